"""Scene to candidates: measured relations that are clear enough to be asked about. Pure and seeded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllm4d.geometry import relations
from mllm4d.geometry.pose import center, transform
from mllm4d.geometry.uncertainty import difference_sigma, drift_sigma
from mllm4d.qa.judge import Margins, Relation, judge
from mllm4d.schema import TASKS, Scene, Track


@dataclass(frozen=True)
class Candidate:
    """A relation that is clear enough, before it has options.

    Attributes:
        clip: The clip's key.
        task: One of the seven.
        value: Metres, or None for tasks in words.
        label: The right option text, or None for tasks in metres.
        sigma: Standard deviation of the measured relation, metres.
        anchors: Frame indices (i, j).
        times: Their times, seconds.
        object: The object's id, or None.
        name: The object's name, or None.
        solution: As in ``Question``.
        measured: The measured relation: [1] metres (signed for a change of distance), or [3] metres in the axes that
            the relation says.
        original: For a twin (``mllm4d.qa.twins``): the anchors of the candidate that it is the twin of.
    """

    clip: str
    task: str
    value: float | None
    label: str | None
    sigma: float
    anchors: tuple[int, int]
    times: tuple[float, float]
    object: int | None
    name: str | None
    solution: Mapping[str, Any]
    measured: tuple[float, ...] = ()
    original: tuple[int, int] | None = None

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Candidate:
        """What ``dataclasses.asdict`` and JSON made of a candidate, back again."""
        pairs = {key: tuple(entry[key]) for key in ("anchors", "times", "measured")}
        original = entry["original"]
        return cls(**{**entry, **pairs, "original": None if original is None else tuple(original)})


def measure(scene: Scene, i: int, j: int, percentile: float = 0.0) -> Iterator[Relation]:
    """Every relation that the scene holds between two anchors, with its uncertainty.

    Args:
        scene: The clip's scene.
        i: First anchor, a frame index.
        j: Last anchor.
        percentile: As in ``Margins``.

    Yields:
        The camera's relations, then each object's that is seen at the anchors which the relation needs.
    """
    poses, drift = scene.camera.world_to_camera, scene.camera.center_sigma
    pose_i, pose_j = poses[i], poses[j]
    camera = drift_sigma(drift, i, j)
    turn = drift_sigma(scene.camera.rotation_sigma, i, j)
    went = relations.camera_absolute_distance(pose_i, pose_j)
    yield Relation(TASKS[0], went, float(camera), None)
    yield Relation(TASKS[1], relations.camera_relative_direction(pose_i, pose_j), float(camera), None)
    for track in scene.objects:
        seen_i, seen_j = bool(track.centers[i].isfinite().all()), bool(track.centers[j].isfinite().all())
        at_i, at_j = track.centers[i][None], track.centers[j][None]
        # In the camera's own axes at each anchor the camera's path plays no part.
        if seen_i and seen_j:
            own = difference_sigma(track.motion_sigma[i], track.motion_sigma[j])
            # A wrong rotation swings what camera j sees around camera j.
            swing = turn * (at_j[0] - center(pose_j)).norm()
            sigma = float(difference_sigma(own, camera, swing))
            yield Relation(TASKS[2], relations.object_absolute_distance(at_i, at_j), sigma, track)
            yield Relation(TASKS[3], relations.object_relative_direction(pose_i, at_i, at_j), sigma, track)
        near_i, near_j = track.points[i], track.points[j]
        if len(near_j):
            value = relations.object_camera_absolute_distance(pose_i, near_j, percentile)
            # Swung around camera j, a point's distance to camera i changes by at most the angle times the cameras' own.
            sigma = float(difference_sigma(track.surface_sigma[j], camera, turn * went))
            yield Relation(TASKS[4], value, sigma, track)
        if len(near_i) and len(near_j):
            value = relations.object_camera_relative_distance(pose_i, near_i, pose_j, near_j, percentile)
            yield Relation(
                TASKS[5], value, float(difference_sigma(track.surface_sigma[i], track.surface_sigma[j])), track
            )
        if seen_i and seen_j:
            value = relations.object_camera_relative_direction(pose_i, at_i, pose_j, at_j)
            yield Relation(TASKS[6], value, float(own), track)


def anchor_pairs(count: int, pairs: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Choose pairs of frames i < j: the first and last frame, then others with every gap equally likely.

    Args:
        count: Number of frames, at least 2.
        pairs: How many pairs at most.
        generator: Source of the choice.

    Returns:
        Distinct pairs.
    """
    chosen = {(0, count - 1): None}
    for _ in range(20 * pairs):
        if len(chosen) >= pairs:
            break
        gap = int(torch.randint(1, count, (), generator=generator))
        first = int(torch.randint(0, count - gap, (), generator=generator))
        chosen[first, first + gap] = None
    return list(chosen)[:pairs]


def candidates(
    key: str, scene: Scene, margins: Margins, pairs: int, generator: torch.Generator
) -> tuple[list[Candidate], Counter[str]]:
    """Every clear answer about a clip.

    Args:
        key: The clip's key.
        scene: Its scene.
        margins: What is clear enough.
        pairs: How many pairs of anchors to look at.
        generator: Chooses the anchors.

    Returns:
        The candidates, and how many relations were dropped for which reason (``task: reason``).
    """
    found, dropped = [], Counter[str]()
    for i, j in anchor_pairs(len(scene.times), pairs, generator):
        for relation in measure(scene, i, j, margins.percentile):
            answer = judge(relation, margins)
            if isinstance(answer, str):
                dropped[f"{relation.task}: {answer}"] += 1
                continue
            found.append(make_candidate(key, scene, relation, answer, (i, j)))
    return found, dropped


def make_candidate(
    key: str,
    scene: Scene,
    relation: Relation,
    answer: tuple[float | None, str | None],
    anchors: tuple[int, int],
    original: tuple[int, int] | None = None,
) -> Candidate:
    """Write down one clear answer.

    Args:
        key: The clip's key.
        scene: Its scene.
        relation: What was measured between the anchors.
        answer: What ``judge`` made of it.
        anchors: Frame indices (i, j).
        original: As in ``Candidate``.

    Returns:
        The candidate, in figures to 0.1 mm.
    """
    (i, j), track = anchors, relation.track
    value, label = answer
    return Candidate(
        clip=key,
        task=relation.task,
        value=None if value is None else round(value, 4),
        label=label,
        sigma=round(relation.sigma, 5),
        anchors=anchors,
        times=(float(scene.times[i]), float(scene.times[j])),
        object=track.id if track else None,
        name=track.name if track else None,
        solution=_solution(scene, track, i, j),
        measured=tuple(round(v, 4) + 0.0 for v in relation.value.reshape(-1).tolist()),
        original=original,
    )


def _solution(scene: Scene, track: Track | None, i: int, j: int) -> dict[str, Any]:
    """Centres at both anchors in the camera axes of the first stored frame; None where the object is not seen."""
    poses, anchors = scene.camera.world_to_camera, [i, j]

    def rows(points: Tensor) -> list[list[float] | None]:
        local = transform(poses[0], points.double())
        return [[round(v, 3) + 0.0 for v in row] if math.isfinite(sum(row)) else None for row in local.tolist()]

    seen = rows(track.centers[anchors]) if track else None
    return {
        "camera_center": rows(center(poses[anchors])),
        "object_center": None if seen is None or None in seen else seen,
    }
