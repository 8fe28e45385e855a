"""A suite's questions, clip by clip: worker processes decode and encode, this process puts pools together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mllm4d.bench.answering import Answering
from mllm4d.bench.clips import Clip, clips_of
from mllm4d.bench.encoding import Encoder, Encoding
from mllm4d.bench.rows import Row
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.data.transport import AHEAD, Slots, pack, unpack
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError

log = logging.getLogger(__name__)

Item = Clip | int
"""A clip, or the number of a question that is asked without its clip."""


class Asker(Protocol):
    """What the data module wants of the module that asks; ``mllm4d.bench.module.Bench`` is it.

    Attributes:
        inputs: The preprocessing.
        answering: How the questions are answered.
        text_only: Whether all questions are asked without their clips too.
    """

    inputs: VideoInputs
    answering: Answering
    text_only: bool

    def begin(self) -> tuple[Collection[int], Collection[int]]:
        """Numbers of the questions that were answered before, with their clips and without."""


class Pool(NamedTuple):
    """Questions that are asked together, in batches of like length.

    Attributes:
        rows: The questions.
        faults: Number of each that cannot be asked, and why.
        blind: Whether they come without their clips.
    """

    rows: tuple[Row, ...]
    faults: tuple[tuple[int, str], ...]
    blind: bool


class Package:
    """A pool on its way through Lightning, which would take a tuple apart to move its tensors one by one."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def to(self, device: Any, **more: Any) -> Package:
        """Stays where it is: batches move when they are made."""
        return self


class SuiteData(LightningDataModule):
    """The questions of a suite for ``python -m mllm4d test``.

    Every clip is decoded and encoded once for all its questions. Which questions come together does not depend on the
    number of ranks, nor on what was answered before; a rank takes every so many-th pool.

    Args:
        suite: The benchmark.
        workers: Processes that decode and encode; 0 works in this one.
        pool: Questions, about, among which batches of like length are made.
        seconds_per_image: Time between the images of an image list (OST-Bench), which have none of their own.
        max_failed: Share of the questions whose clip may be unreadable; they count as invalid, and are named.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        suite: Suite,
        workers: int = 2,
        pool: int = 64,
        seconds_per_image: float = 1.0,
        max_failed: float = 0.0,
    ) -> None:
        super().__init__()
        if pool < 1:
            raise InputError(f"data.pool: {pool} is below 1")
        if seconds_per_image <= 0:
            raise InputError(f"data.seconds_per_image: {seconds_per_image} is not above 0")
        if not 0 <= max_failed < 1:
            raise InputError(f"data.max_failed: {max_failed} is no share; expected at least 0 and less than 1")
        self.suite, self.workers, self.pool = suite, workers, pool
        self.seconds_per_image, self.max_failed = seconds_per_image, max_failed
        self.questions: tuple[BenchQuestion, ...] = ()
        self.clips: list[Clip] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the questions, and see that their videos are there.

        Raises:
            InputError: A file is missing or unusable, or there is nothing to ask.
        """
        if stage not in (None, "test"):
            raise InputError(f"data: a benchmark is asked with `python -m mllm4d test`, not {stage!r}")
        self.questions = tuple(self.suite.questions())
        self.clips = clips_of(self.suite, self.questions)
        if not self.clips:
            raise InputError(f"{self.suite.title}: its files hold no question that is scored; {self.suite.needs}")
        self.suite.check()

    @property
    def asked(self) -> list[int]:
        """Numbers of the questions that are asked, ascending."""
        return sorted(number for clip in self.clips for number in clip.questions)

    def test_dataloader(self) -> PoolLoader:
        """This rank's pools, without those that are done."""
        trainer = self.trainer
        assert trainer is not None
        asker: Asker = trainer.lightning_module  # type: ignore[assignment]
        seen, unseen = asker.begin()
        encoder = Encoder(self.suite, self.questions, asker.inputs, asker.answering, self.seconds_per_image)
        mine = slice(trainer.global_rank, None, trainer.world_size)
        plan = [pool for pool in pools(self.clips, self.pool) if not _numbers(pool) <= set(seen)][mine]
        if asker.text_only:
            plan += [pool for pool in pools(self.asked, self.pool) if not _numbers(pool) <= set(unseen)][mine]
        return PoolLoader(encoder, plan, self.workers, self.max_failed * len(self.asked))


def pools(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Items in their order, so many at once that they have at least ``size`` questions together.

    Args:
        items: Clips, or numbers of questions.
        size: Questions.
    """
    found: list[list[Item]] = []
    count = size
    for item in items:
        if count >= size:
            found.append([])
            count = 0
        found[-1].append(item)
        count += len(item.questions) if isinstance(item, Clip) else 1
    return found


class PoolLoader:
    """This rank's pools, one after the other; an empty one where there is nothing to do.

    Args:
        encoder: Encodes the questions.
        plan: The pools.
        workers: Processes that decode and encode.
        most_failed: Questions of this rank that may be unusable.
    """

    def __init__(self, encoder: Encoder, plan: Sequence[Sequence[Item]], workers: int, most_failed: float) -> None:
        self.encoder, self.plan, self.workers, self.most_failed = encoder, plan, workers, most_failed

    def __len__(self) -> int:
        # Lightning leaves out all that comes after where no rank has a batch.
        return max(1, len(self.plan))

    def __iter__(self) -> Iterator[Package]:
        if not self.plan:
            yield Package(Pool((), (), False))
            return
        slots, failed = Slots(self.workers), 0
        items = [item for pool in self.plan for item in pool]
        # Readers work on the next pool while this one is answered.
        ahead = max(AHEAD, -(-max(map(len, self.plan)) // self.workers)) if self.workers else None
        dataset = _Items(self.encoder, items, slots)
        loader: DataLoader = DataLoader(
            dataset, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is, prefetch_factor=ahead
        )
        reads = (read if isinstance(read, Encoding) else unpack(read, slots) for read in loader)
        for pool in self.plan:
            found = [next(reads) for _ in pool]
            faults = tuple(fault for one in found for fault in one.faults)
            failed += len(faults)
            for number, reason in faults:
                name = self.encoder.questions[number].id
                if failed > self.most_failed:
                    raise InputError(f"{reason} (question {name!r}; 'data.max_failed' says how many may fail)")
                log.warning("question %r cannot be asked: %s", name, reason)
            yield Package(Pool(tuple(row for one in found for row in one.rows), faults, not isinstance(pool[0], Clip)))


class _Items(IterableDataset):
    """The items in their order; worker w of W takes every W-th, and the loader takes them in turns."""

    def __init__(self, encoder: Encoder, items: Sequence[Item], slots: Slots) -> None:
        self.encoder, self.items, self.slots = encoder, items, slots

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for item in self.items[first::step]:
            read = self.encoder.clip(item) if isinstance(item, Clip) else self.encoder.blind(item)
            yield pack(read, self.slots, worker.id) if worker else read


def _numbers(pool: Sequence[Item]) -> set[int]:
    return {number for item in pool for number in (item.questions if isinstance(item, Clip) else (item,))}


def _as_it_is(item: Any) -> Any:
    return item
