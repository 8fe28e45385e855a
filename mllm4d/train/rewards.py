"""Rewards as plain functions of a completion and its question: the paper's, and one for short answers.

A reward is a function ``(completion: str, question: Question) -> float | None``, where ``None`` says that it does not
apply. YAML names it by its import path (``mllm4d.train.scoring.Reward``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mllm4d.answers import Point, read_centers, read_option, right_letters
from mllm4d.schema import Question

WEIGHTS: Mapping[str, float] = {"accuracy": 0.6, "format": 0.2, "camera": 0.1, "object": 0.1}
"""Of the paper's parts (arXiv 2603.00515, its code)."""

THINKING = 20
"""Characters that a thinking block has to have more of."""


def accuracy(completion: str, question: Question) -> float:
    """1 if the text between the answer tags is the right letter, else 0."""
    return _accuracy(completion, question.answer)


def choice(completion: str, question: Question) -> float:
    """1 if a completion chooses the right option, in whatever form (``mllm4d.answers.read_option``), else 0."""
    return float(read_option(completion, question.options) in right_letters(question.options, question.answer))


def answer_format(completion: str, question: Question) -> float:
    """0.5 for both pairs of tags, 0.4 for both centre fields, 0.1 for thinking of more than 20 characters."""
    return _format(completion)


def camera_center(completion: str, question: Question) -> float:
    """exp(-mean error in metres) of the camera's centres over the anchors; see ``paper_reward``."""
    return _centers(read_centers(completion)[0], question.solution.get("camera_center"))


def object_center(completion: str, question: Question) -> float:
    """exp(-mean error in metres) of the object's centres over the anchors; see ``paper_reward``."""
    return _centers(read_centers(completion)[1], question.solution.get("object_center"))


def paper_reward(completion: str, solution: Mapping[str, Any]) -> dict[str, float]:
    """The spatiotemporal reward of MLLM-4D (arXiv 2603.00515), in parts and as a whole; it never raises.

    - accuracy: 1 if the text between the (first) answer tags, without blanks around it, equals the truth, else 0.
    - format: 0.5 where both pairs of tags are there, 0.4 where both centre fields are (once at least, with a list
      or null), 0.1 where the thinking is longer than 20 characters without the tags and blanks around it.
    - camera, object: exp(-mean distance in metres) over the anchors. The k-th line of a kind is the k-th anchor's, and
      a null there is a prediction of none, so that a null never moves a centre to another anchor. 0 where the number of
      lines is not that of the anchors, where one of both has a centre and the other has not, or where a line is neither
      ``[x, y, z]`` of finite numbers nor null. Where the truth has no centre: 1 if none is predicted, else 0.
    - total: 0.6 accuracy + 0.2 format + 0.1 camera + 0.1 object.

    The paper's code differs in this: it counts the tags as thinking, does not take null for a field, without answer
    tags compares the whole text, drops nulls before it pairs centres, and raises on some of them.

    Args:
        completion: What the model said.
        solution: ``answer``, ``camera_center`` and ``object_center`` as released (each of both two points or nulls, or
            null, or missing), or a list of one such record. A truth that is none of this scores 0.

    Returns:
        ``accuracy``, ``format``, ``camera``, ``object`` and ``total``.
    """
    record: Any = solution[0] if isinstance(solution, list) and solution else solution
    truth = record if isinstance(record, Mapping) else {}
    said_camera, said_object = read_centers(completion)
    parts = {
        "accuracy": _accuracy(completion, truth.get("answer")),
        "format": _format(completion),
        "camera": _centers(said_camera, truth.get("camera_center")),
        "object": _centers(said_object, truth.get("object_center")),
    }
    return {**parts, "total": math.fsum(WEIGHTS[name] * value for name, value in parts.items())}


def _accuracy(completion: str, truth: Any) -> float:
    said = _between(completion, "answer")
    return float(said is not None and isinstance(truth, str) and said.strip() == truth.strip())


def _format(completion: str) -> float:
    thinking = _between(completion, "thinking")
    tags = thinking is not None and _between(completion, "answer") is not None
    fields = all(any(value is None or _predicted(value) for value in found) for found in read_centers(completion))
    return 0.5 * tags + 0.4 * fields + 0.1 * (thinking is not None and len(thinking.strip()) > THINKING)


def _between(text: str, tag: str) -> str | None:
    """What is between the first pair of tags."""
    _, opened, rest = text.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    return inside if opened and closed else None


def _centers(said: Sequence[Point | str | None], truth: Any) -> float:
    """The score of one kind of centre."""
    known = _truth(truth)
    if known is None:
        return 0.0
    if not any(known):
        return float(not any(_predicted(value) for value in said))
    if len(said) != len(known):
        return 0.0
    errors = []
    for point, true in zip(said, known, strict=True):
        if isinstance(point, str) or (point is None) != (true is None):
            return 0.0
        if point is not None and true is not None:
            errors.append(math.dist(point, true))
    return math.exp(-sum(errors) / len(errors))


def _predicted(value: Point | str | None) -> bool:
    """Whether a line predicts a centre, be it one that cannot be read; other words than a list predict nothing."""
    return value.startswith("[") if isinstance(value, str) else value is not None


def _truth(centers: Any) -> list[Point | None] | None:
    """The true centres by anchor, none of them where there is nothing to say; None where they cannot be read."""
    if centers is None:
        return []
    if not isinstance(centers, (list, tuple)):
        return None
    points: list[Point | None] = []
    for center in centers:
        if center is not None and (not isinstance(center, (list, tuple)) or len(center) != 3):
            return None
        try:
            if center is not None and not all(type(x) in (int, float) and math.isfinite(x) for x in center):
                return None
        except OverflowError:  # an int that is no float
            return None
        points.append(None if center is None else (float(center[0]), float(center[1]), float(center[2])))
    return points
