"""Read a planned epoch: worker processes decode and encode clips, this process puts the batches together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mllm4d.data.access import ShardFolder
from mllm4d.data.encoding import Fault, Inputs, Pair, Style, encode_sample
from mllm4d.data.plan import Item, Plan
from mllm4d.data.transport import AHEAD, Slots, pack, unpack
from mllm4d.schema import InputError, Question
from mllm4d.shards import Shard

__all__ = ["ClipLoader", "Inputs", "QuestionBatch", "Source", "Style", "encode_sample"]

log = logging.getLogger(__name__)

Row = tuple[Question, Any]
"""A question and its encoded record."""


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


@dataclass(frozen=True)
class Source:
    """One part of a plan: where its shards lie, and which they are."""

    folder: ShardFolder
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class _Read:
    """What came of one clip: its place in the plan, its questions, and those that cannot be used."""

    clip: int
    pairs: list[Pair]
    faults: list[Fault]


class _ClipDataset(IterableDataset):
    """The clips in the order in which the batches first need them, so that the first batch waits for its own alone.

    Worker w of W takes every W-th; the loader takes them in turns, which restores the order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        plan: Plan,
        batches: Sequence[Sequence[Item]],
        inputs: Inputs,
        style: Style,
        slots: Slots,
    ) -> None:
        self.sources, self.plan, self.inputs, self.style, self.slots = sources, plan, inputs, style, slots
        self.wanted: dict[int, list[int]] = {}
        for batch in batches:
            for clip, question in batch:
                self.wanted.setdefault(clip, []).append(question)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for clip in list(self.wanted)[first::step]:
            read = self._read(clip)
            yield pack(read, self.slots, worker.id) if worker else read

    def _read(self, clip: int) -> _Read:
        ref, wanted = self.plan.clips[clip], self.wanted[clip]
        source = self.sources[ref.part]
        shard = source.shards[ref.shard]
        try:
            sample = source.folder.read(shard, ref.clip)
            return _Read(clip, *encode_sample(sample, self.inputs, self.style, wanted))
        except InputError as error:
            return _Read(clip, [], [Fault(shard.keys[ref.clip], tuple(wanted), str(error))])


class ClipLoader:
    """An epoch of batches, whose number is known in advance and the same in every epoch.

    Questions that cannot be used are left out of their batches, named and counted. A batch of which nothing is left
    takes a question from the next, or repeats one where that has none to spare: all ranks take equal steps.

    Args:
        sources: The parts of the plan.
        plan: From the epoch's number to this rank's plan.
        inputs: The preprocessing.
        styles: How questions are put, in each of the first epochs; the last one holds from then on.
        workers: Processes that decode and encode; 0 works in this one. The order of batches does not depend on it.
        generation: Whether batches also carry prompts without answers.
        epoch: The first to be read.
        position: Epoch, and batches of it that are done, asked when an iteration begins: it goes on after those, and
            reads nothing for them. Without it, or where it says None, every iteration is the next epoch, in full.
        max_skipped: Share of this rank's questions in an epoch that may be left out.
        collate: From records to a batch with targets; None takes that of ``inputs``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        plan: Callable[[int], Plan],
        inputs: Inputs,
        styles: Sequence[Style],
        workers: int,
        generation: bool = False,
        epoch: int = 0,
        position: Callable[[], tuple[int, int] | None] | None = None,
        max_skipped: float = 0.0,
        collate: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        self.sources, self.plan, self.inputs, self.styles = sources, plan, inputs, styles
        self.workers, self.generation, self.max_skipped = workers, generation, max_skipped
        self._position, self._collate_rows = position, collate
        self.epoch, self._planned = epoch, epoch
        self.faults: list[Fault] = []

    def __len__(self) -> int:
        # Any epoch's length will do: that of one whose plan is there.
        return len(self.plan(self._planned).batches)

    def __iter__(self) -> Iterator[QuestionBatch]:
        epoch, done = (self._position and self._position()) or (self.epoch, 0)
        self.epoch, self._planned = epoch + 1, epoch
        plan = self.plan(epoch)
        batches = plan.batches[done:]
        slots = Slots(self.workers)
        style = self.styles[min(epoch, len(self.styles) - 1)]
        dataset = _ClipDataset(self.sources, plan, batches, self.inputs, style, slots)
        ahead = AHEAD if self.workers else None
        loader: DataLoader = DataLoader(
            dataset, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is, prefetch_factor=ahead
        )
        reads = (read if isinstance(read, _Read) else unpack(read, slots) for read in loader)
        rows = _Rows(reads, self._left_out(sum(map(len, plan.batches))))
        for number in range(len(batches)):
            yield self._collate(rows.take(batches, number))

    def _left_out(self, planned: int) -> Callable[[Fault], None]:
        """What happens to faults in an epoch of so many questions."""
        count = 0

        def report(fault: Fault) -> None:
            nonlocal count
            count += len(fault.indices)
            if not self.max_skipped:
                raise InputError(fault.reason)
            if count > self.max_skipped * planned:
                raise InputError(
                    f"{count} of {planned} questions cannot be used, 'max_skipped' allows {self.max_skipped:g} of "
                    f"them; the last: {fault.reason}"
                )
            self.faults.append(fault)
            log.warning("left out %d questions, %r: %s", len(fault.indices), fault.name, fault.reason)

        return report

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where to go on is the trainer's progress. That there is this method tells Lightning that it can."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""

    def _collate(self, rows: Sequence[Row]) -> QuestionBatch:
        encoded = [record for _, record in rows]
        prompts = None
        if self.generation:
            prompts = self.inputs.collate([self.inputs.prompt_only(record) for record in encoded], side="left")
        collate = self._collate_rows
        batch = collate(encoded) if collate else self.inputs.collate(encoded, side="right")
        return QuestionBatch(batch, prompts, tuple(question for question, _ in rows))


class _Rows:
    """Encoded questions wait here from the first batch that needs their clip to their own: at most a window."""

    def __init__(self, reads: Iterator[_Read], report: Callable[[Fault], None]) -> None:
        self.reads, self.report = reads, report
        self.waiting: dict[Item, Row] = {}
        self.gone: set[Item] = set()
        self.last: Row | None = None

    def take(self, batches: Sequence[Sequence[Item]], number: int) -> list[Row]:
        """The rows of one of the batches, which are taken in turn; at least one.

        Raises:
            InputError: Not one question is left.
        """
        rows = [self.waiting.pop(item) for item in self._there(batches[number])]
        self.gone.difference_update(batches[number])
        rows = rows or [self._borrow(islice(batches, number + 1, None))]
        self.last = rows[-1]
        return rows

    def _there(self, batch: Sequence[Item]) -> list[Item]:
        """What is left of a batch, once its clips are read."""
        while any(item not in self.waiting and item not in self.gone for item in batch):
            read = next(self.reads)
            self.waiting.update({(read.clip, index): (question, record) for index, question, record in read.pairs})
            for fault in read.faults:
                self.gone.update((read.clip, index) for index in fault.indices)
                self.report(fault)
        return [item for item in batch if item not in self.gone]

    def _borrow(self, batches: Iterable[Sequence[Item]]) -> Row:
        for batch in batches:
            there = self._there(batch)
            if len(there) > 1:
                self.gone.add(there[-1])
                return self.waiting.pop(there[-1])
            if self.last is not None:
                break
            if there:
                return self.waiting[there[0]]
        if self.last is None:
            raise InputError("not one question of the split can be used")
        return self.last


def _as_it_is(item: Any) -> Any:
    return item
