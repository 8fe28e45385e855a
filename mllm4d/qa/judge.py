"""When a measured relation is clear enough to be asked about, and what its answer is then."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mllm4d.prompts import LABELS
from mllm4d.schema import InputError, Track

OWN_MOTION = ("object_absolute_distance", "object_relative_direction")
"""Tasks that take for granted that the object itself moves: one that stands still in the world is not asked about."""


@dataclass(frozen=True)
class Margins:
    """When an answer is clear enough to be asked for.

    Attributes:
        sigmas: An answer must be this many standard deviations away from its nearest alternative.
        ladder: Ratio between neighbouring numeric options.
        distance: Shortest and longest distance that is asked about, metres.
        displacement: Shortest displacement that has a direction, metres.
        dominance: The dominant axis must be this many times as long as each other one.
        change: Least change of distance that counts as closer or farther, metres.
        still: Greatest change of distance that counts as unchanged, metres; between the two nothing is asked.
        percentile: Of the distances from camera to object points, in 0-100; 0 is the minimum (exact points only).
    """

    sigmas: float = 3.0
    ladder: float = 1.5
    distance: tuple[float, float] = (0.2, 40.0)
    displacement: float = 0.25
    dominance: float = 1.5
    change: float = 0.4
    still: float = 0.1
    percentile: float = 0.0

    def __post_init__(self) -> None:
        def check(key: str, good: bool, expected: str) -> None:
            if not good:
                raise InputError(f"Margins: {key} must be {expected}, not {getattr(self, key)}")

        check("sigmas", 0 <= self.sigmas < math.inf, "a number of standard deviations, not negative")
        check("ladder", 1 < self.ladder < math.inf, "a ratio greater than 1")
        good = len(self.distance) == 2 and 0 <= self.distance[0] < self.distance[1]
        check("distance", good, "two lengths in metres, the shorter first")
        check("displacement", self.displacement >= 0, "in metres, not negative")
        check("dominance", self.dominance >= 0, "a ratio, not negative")
        check("still", 0 <= self.still <= self.change, f"in metres, from 0 to 'change' ({self.change})")
        check("percentile", 0 <= self.percentile <= 100, "from 0 to 100")


@dataclass(frozen=True)
class Relation:
    """One measured relation.

    Attributes:
        task: One of the seven.
        value: Tensor [] (metres) or [3] (metres, axes as the relation says).
        sigma: Standard deviation (of each component), metres.
        track: The object, or None.
    """

    task: str
    value: Tensor
    sigma: float
    track: Track | None


def judge(relation: Relation, margins: Margins) -> tuple[float | None, str | None] | str:
    """Turn a measured relation into an answer, if it is clear enough.

    Args:
        relation: What was measured.
        margins: What is clear enough.

    Returns:
        (metres, None) or (None, label); or, as a string, the reason why nothing is asked.
    """
    if not math.isfinite(relation.sigma):
        return "no sigma"
    if not bool(relation.value.isfinite().all()):
        return "not measured"
    if relation.task in OWN_MOTION and relation.track is not None and relation.track.moving is False:
        return "object stands still"
    if relation.task == "object_camera_relative_distance":
        return _judge_change(float(relation.value), relation.sigma, margins)
    if relation.task.endswith("direction"):
        return _judge_direction(relation, margins)
    value = float(relation.value)
    if not margins.distance[0] <= value <= margins.distance[1]:
        return "distance out of range"
    # The nearest alternative is one step down the ladder; half way to it an answer would be as wrong as right.
    if value * (1 - 1 / margins.ladder) / 2 < margins.sigmas * relation.sigma:
        return "within sigma of the next option"
    return value, None


def _judge_change(change: float, sigma: float, margins: Margins) -> tuple[None, str] | str:
    if abs(change) >= margins.change + margins.sigmas * sigma:
        return None, "closer" if change < 0 else "farther"
    if abs(change) + margins.sigmas * sigma <= margins.still:
        return None, "unchanged"
    return "between moving and still"


def _judge_direction(relation: Relation, margins: Margins) -> tuple[None, str] | str:
    along_x, along_y, along_z = relation.value.tolist()
    longest, other = sorted((abs(along_x), abs(along_z)), reverse=True)
    noise = margins.sigmas * relation.sigma
    if longest < margins.displacement + noise:
        return "no clear motion"
    # Both lengths err: a - d b has sqrt(1 + d^2) times the sigma of one.
    if longest - max(other, abs(along_y)) * margins.dominance < noise * math.hypot(1, margins.dominance):
        return "no dominant axis"
    left, right, forward, backward = LABELS[relation.task]
    if relation.task == "object_camera_relative_direction":
        forward, backward = backward, forward  # its labels are closer (-z) and farther (+z)
    if abs(along_x) > abs(along_z):
        return None, right if along_x > 0 else left
    return None, forward if along_z > 0 else backward
