"""The ST-CoT text of a question, written from its measured states."""

from __future__ import annotations

import math
from random import Random

from mllm4d import prompts
from mllm4d.qa.generate import Candidate

Point = tuple[float, ...]

AT_REST = 0.05
"""Change of each coordinate, metres, under which a centre is said to stay."""

SAME_SIZE = 1.1
"""Ratio of two distances up to which an object keeps its size in the view."""


def reason(candidate: Candidate, objective: str, text: str, letter: str, random: Random) -> str:
    """Write the five steps with both states, and the answer.

    Centres are written to the centimetre, and what the text says of their distances and changes is computed from them
    as written.

    Args:
        candidate: What was measured.
        objective: The question's wording.
        text: The right option's text.
        letter: Its letter.
        random: Chooses the wording of each step.

    Returns:
        The ST-CoT text: a thinking block and an answer block.
    """
    i, j = (prompts.seconds(time) for time in candidate.times)
    camera = _states(candidate.solution["camera_center"])
    target = _states(candidate.solution["object_center"])
    filled = {
        "objective": objective,
        "i": i,
        "j": j,
        "motion": _motion(candidate.name, camera, target),
        "evidence": prompts.EVIDENCE[candidate.task].format(i=i, j=j, name=candidate.name, **_figures(candidate)),
        "text": text,
    }
    steps = {step: random.choice(variants).format(**filled) for step, variants in prompts.REASONING_STEPS.items()}
    return prompts.REASONING.format(
        **steps,
        camera_i=_write(camera[0]),
        camera_j=_write(camera[1]),
        object_i=_write(target[0]),
        object_j=_write(target[1]),
        letter=letter,
    )


def _states(centers: list[list[float] | None] | None) -> tuple[Point | None, Point | None]:
    """Both centres as they are written."""
    first, last = centers or (None, None)
    return _rounded(first), _rounded(last)


def _rounded(point: list[float] | None) -> Point | None:
    return None if point is None else tuple(round(value, 2) + 0.0 for value in point)


def _write(point: Point | None) -> str:
    return "null" if point is None else "[" + ", ".join(f"{value + 0.0:.2f}" for value in point) + "]"


def _change(first: Point, last: Point) -> Point:
    return tuple(round(b - a, 2) + 0.0 for a, b in zip(first, last, strict=True))


def _figures(candidate: Candidate) -> dict[str, str]:
    """The measured relation in figures: a distance, a signed change, or a vector."""
    if candidate.task in ("camera_absolute_distance", "object_absolute_distance"):
        centers = candidate.solution["object_center" if candidate.object is not None else "camera_center"]
        first, last = _states(centers)
        if first is not None and last is not None:
            return {"distance": f"{math.dist(first, last):.2f} m"}
    measured = [round(value, 2) + 0.0 for value in candidate.measured]
    if len(measured) == 3:
        return {"vector": f"{_write(tuple(measured))} (right, down, {'away' if _ego(candidate) else 'forward'})"}
    return {"distance": f"{measured[0]:.2f} m", "change": f"{measured[0]:+.2f} m"}


def _ego(candidate: Candidate) -> bool:
    return candidate.task == "object_camera_relative_direction"


def _motion(name: str | None, camera: tuple[Point | None, Point | None], target: tuple[Point | None, ...]) -> str:
    """How both moved between the anchors, and what that does to the view."""
    (camera_i, camera_j), (target_i, target_j) = camera, target
    text = f"the camera {_went(camera_i, camera_j)}"
    if name is None:
        return text
    text += f"; the {name} {_went(target_i, target_j)}"
    if camera_i is None or camera_j is None or target_i is None or target_j is None:
        return text
    before, after = math.dist(target_i, camera_i), math.dist(target_j, camera_j)
    if after < before / SAME_SIZE:
        size = "grows"
    else:
        size = "shrinks" if after > before * SAME_SIZE else "keeps about its size"
    return f"{text}; from {before:.2f} m to {after:.2f} m away, it {size} in the view"


def _went(first: Point | None, last: Point | None) -> str:
    if first is None or last is None:
        return "is not seen at both anchors"
    change = _change(first, last)
    return "stays where it is" if max(map(abs, change)) < AT_REST else f"moves by {_write(change)}"
