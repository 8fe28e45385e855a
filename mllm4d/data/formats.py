"""The released formats of MLLM-4D and VLM4D: an entry of such a file to rows, and a question to such an entry.

=============  ====================================================================================================
``sft``        MLLM4D-2M: ``{"video", "conversations": [{"from": "user", "value"}, {"from": "assistant", "value"}]}``
``cold_start`` the same, with the ST-CoT text as the answer
``r1``         MLLM4D-R1-30k: ``{"messages", "videos", "solution": [{"answer", "camera_center", "object_center"}]}``
``vlm4d``      ``{"id", "video", "question_type", "question", "choices": {"A": …}, "answer": text or int, "response"}``
=============  ====================================================================================================

What a question has and its format has no place for (task, anchors, …) is written under the key ``mllm4d``, which other
readers pass over; with it a question comes back as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mllm4d import prompts
from mllm4d.data.rows import Row
from mllm4d.data.texts import VIDEO, BadRow, check_options, plain, read_prompt, read_truth
from mllm4d.schema import Question

OURS = "mllm4d"
"""The key of what a released format has no place for."""

NO_SOLUTION: Mapping[str, Any] = {"camera_center": None, "object_center": None}

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Format(NamedTuple):
    """A released format.

    Attributes:
        read: From an entry of the file to its rows; raises ``BadRow``.
        write: From a video's path and a question to an entry.
        lines: Whether the file has one entry a line (JSON lines) rather than one list.
        carries: The fields of ``Question`` that the format itself has a place for.
    """

    read: Callable[[Any], Iterator[Row]]
    write: Callable[[str, Question], dict[str, Any]]
    lines: bool
    carries: tuple[str, ...]


# Reading


def read_conversations(entry: Any) -> Iterator[Row]:
    """Rows of an entry of the SFT or cold-start file: one for each turn of the user.

    Args:
        entry: The parsed entry.

    Yields:
        Rows; an answer with a thinking block is the row's reasoning.

    Raises:
        BadRow: It is no multiple-choice question about one video.
    """
    video, turns = _text(entry, "video"), _get(entry, "conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("'conversations' is no list of turns")
    said = [(turn.get("from"), turn.get("value")) for turn in turns if turn.get("from") != "system"]
    users, answers = said[::2], said[1::2]
    if len(users) != len(answers) or not users or any(not isinstance(text, str) for _, text in said):
        raise BadRow("'conversations' does not alternate between user and assistant")
    if {who for who, _ in users} - {"user", "human"} or {who for who, _ in answers} - {"assistant", "gpt"}:
        raise BadRow("'conversations' does not alternate between user and assistant")
    for (_, prompt), (_, target) in zip(users, answers, strict=True):
        question, options = read_prompt(prompt)
        tags = _TAG.findall(target)
        reasoning = target if "<thinking>" in target else None
        answer = read_truth(tags[-1] if tags else target, options)
        yield Row(video, _id(entry), question, options, answer, reasoning, NO_SOLUTION, _ours(entry))


def read_r1(entry: Any) -> Iterator[Row]:
    """The row of an entry of the R1 file.

    Args:
        entry: The parsed entry.

    Yields:
        One row.

    Raises:
        BadRow: It is no multiple-choice question about one video, or a centre is not three finite numbers.
    """
    videos, messages, solution = _get(entry, "videos"), _get(entry, "messages"), _get(entry, "solution")
    videos = [videos] if isinstance(videos, str) else videos
    if not isinstance(videos, list) or len(videos) != 1 or not isinstance(videos[0], str):
        raise BadRow("'videos' does not name one video")
    if not isinstance(messages, list):
        raise BadRow("'messages' is no list")
    users = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    if len(users) != 1 or not isinstance(users[0], str):
        raise BadRow("'messages' has not just one text of the user")
    solution = solution[0] if isinstance(solution, list) and len(solution) == 1 else solution
    if not isinstance(solution, Mapping):
        raise BadRow("'solution' is no record")
    question, options = read_prompt(users[0])
    answers = read_truth(_get(solution, "answer"), options)
    centers = {name: _centers(solution.get(name)) for name in NO_SOLUTION}
    yield Row(videos[0], _id(entry), question, options, answers, None, centers, _ours(entry))


def read_vlm4d(entry: Any) -> Iterator[Row]:
    """The row of an entry of a VLM4D file.

    Args:
        entry: The parsed entry.

    Yields:
        One row; its answer letters are several where options share the right text.

    Raises:
        BadRow: It is no multiple-choice question.
    """
    choices = _get(entry, "choices")
    if entry.get("question_type", "multiple-choice") != "multiple-choice" or not isinstance(choices, Mapping):
        raise BadRow("is no multiple-choice question")
    options = check_options({str(letter).strip(): plain(text) for letter, text in choices.items()})
    answers = read_truth(_get(entry, "answer"), options)
    question = _text(entry, "question").strip()
    yield Row(_text(entry, "video"), _id(entry), question, options, answers, None, NO_SOLUTION, _ours(entry))


def _get(entry: Any, name: str) -> Any:
    if not isinstance(entry, Mapping) or name not in entry:
        raise BadRow(f"lacks the key {name!r}")
    return entry[name]


def _text(entry: Any, name: str) -> str:
    value = _get(entry, name)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"key {name!r} is no text")
    return value


def _id(entry: Mapping[str, Any]) -> str | None:
    return None if entry.get("id") is None else str(entry["id"])


def _ours(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    ours = entry.get(OURS)
    if ours is not None and not isinstance(ours, Mapping):
        raise BadRow(f"key {OURS!r} is no record")
    return ours


def _centers(value: Any) -> list[Any] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise BadRow("has centres that are not two")
    for point in value:
        if point is None:
            continue
        if not isinstance(point, list) or len(point) != 3:
            raise BadRow("has a centre that is not three numbers")
        if not all(type(x) in (int, float) and math.isfinite(x) for x in point):
            raise BadRow("has a centre that is not three finite numbers")
    return value


# Writing


def write_sft(video: str, question: Question) -> dict[str, Any]:
    """An entry of the SFT file; the answer is the letter."""
    dialogue = prompts.letter(question)
    return _conversation(video, question, dialogue, SFT)


def write_cold_start(video: str, question: Question) -> dict[str, Any]:
    """An entry of the cold-start file; the answer is the reasoning.

    Raises:
        InputError: The question has no reasoning.
    """
    return _conversation(video, question, prompts.reasoned(question), COLD_START)


def write_r1(video: str, question: Question) -> dict[str, Any]:
    """An entry of the R1 file."""
    prompt = prompts.with_options(question.question, dict(question.options), prompts.REASONING_INSTRUCTION)
    return {
        "messages": [{"role": "user", "content": f"{VIDEO}\n{prompt}"}],
        "videos": [video],
        "solution": [{"answer": question.answer, **question.solution}],
        OURS: _rest(question, R1),
    }


def write_vlm4d(video: str, question: Question) -> dict[str, Any]:
    """An entry of a VLM4D file."""
    return {
        "id": question.id,
        "video": video,
        "question_type": "multiple-choice",
        "question": question.question,
        "choices": dict(question.options),
        "answer": question.options[question.answer],
        "response": "",
        OURS: _rest(question, VLM4D),
    }


def _conversation(video: str, question: Question, dialogue: prompts.Dialogue, carries: Sequence[str]) -> dict[str, Any]:
    return {
        "video": video,
        "conversations": [
            {"from": "user", "value": f"{VIDEO}\n{dialogue.prompt}"},
            {"from": "assistant", "value": dialogue.target},
        ],
        OURS: _rest(question, carries),
    }


def _rest(question: Question, carries: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in question.to_dict().items() if name not in carries}


SFT = ("question", "options", "answer")
COLD_START = (*SFT, "reasoning")
R1 = (*SFT, "solution")
VLM4D = (*SFT, "id")

FORMATS: Mapping[str, Format] = {
    "sft": Format(read_conversations, write_sft, False, SFT),
    "cold_start": Format(read_conversations, write_cold_start, False, COLD_START),
    "r1": Format(read_r1, write_r1, True, R1),
    "vlm4d": Format(read_vlm4d, write_vlm4d, False, VLM4D),
}
"""The released formats by name."""
