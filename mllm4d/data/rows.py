"""A row of a released file, and the question of ours that it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mllm4d import prompts
from mllm4d.data.texts import BadRow
from mllm4d.schema import InputError, Question


@dataclass(frozen=True)
class Row:
    """One multiple-choice question of a released file, before its video is looked at.

    Attributes:
        video: As the file has it; may be someone's absolute path.
        id: As the file has it, or None; not always unique.
        question: The wording, without options and instructions.
        options: Letter to text, in order A, B, ….
        answers: The letters that are right: several where options share the right text.
        reasoning: The ST-CoT text, or None.
        solution: As in ``Question``; in whatever axes the file's makers used.
        ours: What ``Question`` has and the format does not, where we wrote the file; else None.
    """

    video: str
    id: str | None
    question: str
    options: Mapping[str, str]
    answers: tuple[str, ...]
    reasoning: str | None
    solution: Mapping[str, Any]
    ours: Mapping[str, Any] | None


def question_of(row: Row, id: str, frames: int, task_of: Callable[[str], str | None]) -> Question:
    """A row as a question of ours.

    Its anchors are the first and the last frame, unless we wrote the file; a distance that can be read is its value.

    Args:
        row: The row.
        id: The question's id, unless we wrote the file.
        frames: How many frames the stored clip has.
        task_of: From a wording to its task or None.

    Raises:
        BadRow: Several options are right, the task is not known, or what we wrote is not whole any more.
    """
    if len(row.answers) > 1:
        raise BadRow("has several right options")
    options, answer = row.options, row.answers[0]
    carried = {
        "question": row.question,
        "options": dict(options),
        "answer": answer,
        "reasoning": row.reasoning,
        "solution": dict(row.solution),
    }
    if row.ours is not None:
        try:
            question = Question.from_dict({"id": row.id or id, **carried, **row.ours}, "")
        except InputError as error:
            raise BadRow("has a record of ours that is not whole") from error
        if not all(isinstance(k, int) and 0 <= k < frames for k in question.anchors):
            raise BadRow("has anchors outside the video")
        return question
    task = task_of(row.question)
    if task is None:
        raise BadRow("has a wording that says nothing of its task")
    value = _distance(options, answer) if task.endswith("absolute_distance") else None
    return Question(
        id=id,
        task=task,
        answer_value=options[answer] if value is None else value,
        unit=None if value is None else "m",
        anchors=(0, frames - 1),
        object=None,
        **carried,  # type: ignore[arg-type]
    )


def _distance(options: Mapping[str, str], answer: str) -> float | None:
    """The right distance in metres, where all options can be read as distances."""
    try:
        metres = {letter: prompts.read_distance(text) for letter, text in options.items()}
    except ValueError:
        return None
    return metres[answer]
