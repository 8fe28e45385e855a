"""A clip with some of its questions to encoded records: decoded once, each question that cannot be used named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mllm4d.prompts import Dialogue
from mllm4d.schema import InputError, Question, Sample
from mllm4d.video import decode

Style = Callable[[Question], Dialogue]
"""How a question is put and how it should be answered; see ``mllm4d.prompts``."""


class Inputs(Protocol):
    """The one preprocessing, as the stream uses it; ``mllm4d.models.inputs.VideoInputs`` is it.

    It may also have ``sample(count) -> list[int]``: which of a clip's frames ``encode`` uses, ascending, so that others
    are not converted; given those alone, it uses all. And ``tokens_of(frames, height, width) -> int``: tokens that a
    clip of that stored size takes.
    """

    def encode(
        self,
        frames: Tensor,
        times: Tensor,
        fps: float,
        prompts: Sequence[str],
        targets: Sequence[str] | None,
        ids: Sequence[str],
    ) -> list[Any]:
        """One clip with several questions to one record a question; the pixels are processed once and shared."""

    def collate(self, encoded: Sequence[Any], side: str) -> Any:
        """Records to one padded batch."""

    def prompt_only(self, encoded: Any) -> Any:
        """The record without its answer, for generation."""


@dataclass(frozen=True)
class Fault:
    """Questions that cannot be used.

    Attributes:
        name: The question's id, or the clip's key where it concerns all that were asked of it.
        indices: Numbers of the questions in the clip.
        reason: What is wrong, as a sentence.
    """

    name: str
    indices: tuple[int, ...]
    reason: str


Pair = tuple[int, Question, Any]
"""Number of the question in its clip, the question, its encoded record."""


def encode_sample(
    sample: Sample, inputs: Inputs, style: Style, wanted: Sequence[int]
) -> tuple[list[Pair], list[Fault]]:
    """Decode a clip once and encode several of its questions.

    Args:
        sample: The clip.
        inputs: The preprocessing.
        style: How questions are put.
        wanted: Numbers of the questions.

    Returns:
        The encoded questions, and those that the preprocessing refuses, such as one that is too long.

    Raises:
        InputError: The video cannot be decoded, its frames are not those of the scene, or a question is not there.
    """
    expected = sample.scene.get("times")
    count = len(expected) if isinstance(expected, list) else 0
    choose: Callable[[int], list[int]] | None = getattr(inputs, "sample", None)
    used = choose(count) if choose and count else None
    frames, times = decode(sample.video, name=f"{sample.key}.mp4", only=used)
    if len(times) != count:
        there = count if isinstance(expected, list) else "no"
        raise InputError(f"{sample.key}.mp4: has {len(times)} frames, but {sample.key}.scene.json has {there} times")
    times = times if used is None else times[used]
    if any(index >= len(sample.questions) for index in wanted):
        raise InputError(f"{sample.key}.qa.json: has {len(sample.questions)} questions, index.json says more")
    fps = sample.scene.get("fps")
    if not isinstance(fps, (int, float)) or fps <= 0:
        raise InputError(f"{sample.key}.scene.json: key 'fps' is {fps!r}; expected frames a second")

    def encode(indices: Sequence[int]) -> list[Pair]:
        questions = [sample.questions[index] for index in indices]
        dialogues = [style(question) for question in questions]
        prompts, targets = [d.prompt for d in dialogues], [d.target for d in dialogues]
        records = inputs.encode(frames, times, float(fps), prompts, targets, [question.id for question in questions])
        return list(zip(indices, questions, records, strict=True))

    try:
        return encode(wanted), []
    except InputError as error:
        if len(wanted) == 1:
            return [], [Fault(sample.questions[wanted[0]].id, tuple(wanted), str(error))]
    # One of them spoils the rest: each by itself.
    faults = []
    for index in wanted:
        try:
            encode([index])
        except InputError as error:
            faults.append(Fault(sample.questions[index].id, (index,), str(error)))
    bad = {index for fault in faults for index in fault.indices}
    good = [index for index in wanted if index not in bad]
    return encode(good) if good else [], faults
