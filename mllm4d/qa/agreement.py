"""How far the relations of a measured scene agree with those of the true one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mllm4d.qa.generate import measure
from mllm4d.qa.judge import OWN_MOTION, Margins, Relation, judge
from mllm4d.schema import TASKS, Scene

OPPOSITES = {frozenset(pair) for pair in (("left", "right"), ("forward", "backward"), ("closer", "farther"))}
LENIENT = Margins(sigmas=0, distance=(0.0, 1e9), displacement=0.0, dominance=0.0, change=0.1, still=0.1)
"""No margins: the nearest answer, however narrow."""


@dataclass(frozen=True)
class Outcome:
    """One relation of one clip: measured and true answers, metres or words.

    Attributes:
        task: One of the seven.
        measured: None where it is not asked.
        truth: None where there is no such object.
    """

    task: str
    measured: float | str | None
    truth: float | str | None


@dataclass(frozen=True)
class Displacement:
    """How far a moving object went between two frames.

    Attributes:
        length: True, metres.
        error: Of the displacement as a vector, metres.
        relative: Error of its length, relative to the true one.
        asked: Whether it is asked about.
    """

    length: float
    error: float
    relative: float
    asked: bool


def compare(measured: Scene, truth: Scene, pairs: Sequence[tuple[int, int]], margins: Margins) -> list[Outcome]:
    """Every relation that is measured and has a truth.

    Args:
        measured: The reconstruction; objects that are not there have an id that the truth lacks.
        truth: The exact scene, of the same clip.
        pairs: Anchors to look at.
        margins: When the reconstruction's answer is asked for.

    Returns:
        One outcome a relation.
    """
    outcomes, ids = [], {track.id for track in truth.objects}
    for i, j in pairs:
        exact = {_identity(relation): relation for relation in measure(truth, i, j)}
        for relation in measure(measured, i, j, margins.percentile):
            known = exact.get(_identity(relation))
            if known is not None:
                outcomes.append(Outcome(relation.task, _answer(relation, margins), _true_answer(known)))
            elif relation.track is not None and relation.track.id not in ids:
                outcomes.append(Outcome(relation.task, _answer(relation, margins), None))
    return outcomes


def displacements(
    measured: Scene, truth: Scene, pairs: Sequence[tuple[int, int]], margins: Margins
) -> list[Displacement]:
    """The errors of all displacements of moving objects that are longer than 0.1 m; arguments as in ``compare``."""
    rows, objects = [], {track.id: track for track in truth.objects if track.moving}
    for i, j in pairs:
        for relation in measure(measured, i, j, margins.percentile):
            if relation.task != "object_absolute_distance" or relation.track is None:
                continue
            if (known := objects.get(relation.track.id)) is None:
                continue
            went = known.centers[j] - known.centers[i]
            length = float(went.norm())
            if length > 0.1:
                error = float((relation.track.centers[j] - relation.track.centers[i] - went).norm())
                off = abs(float(relation.value) - length) / length
                rows.append(Displacement(length, error, off, _answer(relation, margins) is not None))
    return rows


def _identity(relation: Relation) -> tuple[str, int | None]:
    return relation.task, relation.track.id if relation.track else None


def _answer(relation: Relation, margins: Margins) -> float | str | None:
    answer = judge(relation, margins)
    return None if isinstance(answer, str) else answer[0] if answer[1] is None else answer[1]


def _true_answer(relation: Relation) -> float | str | None:
    if relation.task in OWN_MOTION and relation.track is not None and not relation.track.moving:
        return 0.0 if relation.task.endswith("distance") else "nowhere"
    return _answer(relation, LENIENT)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float | int]]:
    """Count per task.

    Args:
        outcomes: From ``compare``.

    Returns:
        Task to ``n`` relations, how many are ``asked``, ``agreement`` (a distance agrees when it would choose the right
        option), for words how many name the ``opposite``, for distances the ``median relative error``.
    """
    by_task: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.task].append(outcome)
    table: dict[str, dict[str, float | int]] = {}
    # An option is half a step of the ladder away from being confused with its neighbour.
    step = math.log(Margins().ladder) / 2
    for task in (task for task in TASKS if by_task[task]):
        asked = [o for o in by_task[task] if o.measured is not None]
        row: dict[str, float | int] = {"n": len(by_task[task]), "asked": len(asked)}
        words = [o for o in asked if isinstance(o.measured, str)]
        if words:
            row["agreement"] = sum(o.measured == o.truth for o in words) / len(words)
            row["opposite"] = sum(frozenset((o.measured, o.truth)) in OPPOSITES for o in words)
        numbers = [(o.measured, o.truth or 0.0) for o in asked if isinstance(o.measured, float)]
        if numbers:
            pairs = [(m, t) for m, t in numbers if isinstance(t, float)]
            row["agreement"] = sum(t > 0 and m > 0 and abs(math.log(m / t)) < step for m, t in pairs) / len(numbers)
            row["median relative error"] = quantile([abs(m - t) / t if t else math.inf for m, t in pairs], 0.5)
        table[task] = row
    return table


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile of a non-empty list: the smallest value that at least this share does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
