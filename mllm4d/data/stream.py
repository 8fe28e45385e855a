"""Read a planned epoch: worker processes decode and encode clips, this process puts the batches together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mllm4d.data.plan import Plan
from mllm4d.prompts import Dialogue
from mllm4d.schema import InputError, Question, Sample
from mllm4d.shards import read_shard
from mllm4d.video import decode

Style = Callable[[Question], Dialogue]
"""How a question is put and how it should be answered; see ``mllm4d.prompts``."""


class Inputs(Protocol):
    """The one preprocessing, as the stream uses it; ``mllm4d.models.inputs.VideoInputs`` is it."""

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
class QuestionBatch:
    """One step's questions.

    Attributes:
        inputs: The batch with targets, as the model takes it (padded on the right).
        prompts: The same without answers, for generation (padded on the left); None in training.
        questions: The questions, in the order of the rows.
    """

    inputs: Any
    prompts: Any
    questions: tuple[Question, ...]

    def to(self, device: torch.device | str) -> QuestionBatch:
        """The batch with its tensors on a device."""
        prompts = None if self.prompts is None else self.prompts.to(device)
        return QuestionBatch(self.inputs.to(device), prompts, self.questions)


def encode_sample(sample: Sample, inputs: Inputs, style: Style, wanted: Sequence[int]) -> list[tuple[Question, Any]]:
    """Decode a clip once and encode several of its questions.

    Args:
        sample: The clip.
        inputs: The preprocessing.
        style: How questions are put.
        wanted: Indices of the questions.

    Returns:
        Pairs of a question and its encoded record.

    Raises:
        InputError: The video cannot be decoded, or its frames are not those of the scene.
    """
    frames, times = decode(sample.video, name=f"{sample.key}.mp4")
    if len(times) != len(sample.scene["times"]):
        raise InputError(
            f"{sample.key}.mp4: has {len(times)} frames, but {sample.key}.scene.json has {len(sample.scene['times'])} "
            "times"
        )
    questions = [sample.questions[index] for index in wanted]
    dialogues = [style(question) for question in questions]
    encoded = inputs.encode(
        frames,
        times,
        float(sample.scene["fps"]),
        [dialogue.prompt for dialogue in dialogues],
        [dialogue.target for dialogue in dialogues],
        [question.id for question in questions],
    )
    return list(zip(questions, encoded, strict=True))


class _ClipDataset(IterableDataset):
    """The planned clips in order; worker w of W takes every W-th, so that the loader's turns restore the order."""

    def __init__(self, folder: Path, plan: Plan, inputs: Inputs, style: Style) -> None:
        self.folder, self.plan, self.inputs, self.style = folder, plan, inputs, style
        self.wanted: list[list[int]] = [[] for _ in plan.clips]
        for batch in plan.batches:
            for clip, question in batch:
                self.wanted[clip].append(question)

    def __iter__(self) -> Iterator[tuple[int, list[tuple[int, Question, Any]]]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = list(enumerate(self.plan.clips))[first::step]
        for path, group in groupby(mine, key=lambda entry: entry[1][0]):
            positions = {key: position for position, (_, key) in group}
            for sample in read_shard(self.folder / path, set(positions)):
                position = positions.pop(sample.key)
                wanted = self.wanted[position]
                pairs = encode_sample(sample, self.inputs, self.style, wanted)
                yield position, [(index, *pair) for index, pair in zip(wanted, pairs, strict=True)]
            if positions:
                raise InputError(f"{self.folder / path}: lacks clip {next(iter(positions))!r}, which index.json lists")


class ClipLoader:
    """An epoch of batches, whose length is known in advance; every new iteration is the next epoch.

    Args:
        folder: Where the shards lie.
        plan: From the epoch's number to this rank's plan.
        inputs: The preprocessing.
        style: How questions are put.
        workers: Processes that decode and encode; 0 works in this one. The order of batches does not depend on it.
        generation: Whether batches also carry prompts without answers.
    """

    def __init__(
        self,
        folder: Path,
        plan: Callable[[int], Plan],
        inputs: Inputs,
        style: Style,
        workers: int,
        generation: bool = False,
    ) -> None:
        self.folder, self.plan, self.inputs, self.style = folder, plan, inputs, style
        self.workers, self.generation = workers, generation
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.plan(self.epoch).batches)

    def __iter__(self) -> Iterator[QuestionBatch]:
        plan = self.plan(self.epoch)
        self.epoch += 1
        dataset = _ClipDataset(self.folder, plan, self.inputs, self.style)
        loader = iter(DataLoader(dataset, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is))
        # Encoded questions wait here from their clip's decoding to their batch: at most the plan's window of them.
        waiting: dict[tuple[int, int], tuple[Question, Any]] = {}
        for batch in plan.batches:
            while any(item not in waiting for item in batch):
                position, questions = next(loader)
                for index, question, encoded in questions:
                    waiting[position, index] = question, encoded
            yield self._collate([waiting.pop(item) for item in batch])

    def _collate(self, rows: Sequence[tuple[Question, Any]]) -> QuestionBatch:
        encoded = [record for _, record in rows]
        prompts = None
        if self.generation:
            prompts = self.inputs.collate([self.inputs.prompt_only(record) for record in encoded], side="left")
        return QuestionBatch(self.inputs.collate(encoded, side="right"), prompts, tuple(q for q, _ in rows))


def _as_it_is(item: Any) -> Any:
    return item
