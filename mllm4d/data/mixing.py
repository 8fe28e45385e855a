"""Which questions an epoch draws from several shard sets, and in what order: pure functions of work, seed and epoch.

Questions are measured by their work: 1 each, or more for long ones where batches are filled by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import NamedTuple

from mllm4d.schema import InputError
from mllm4d.shards import Shard


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards and its share in the training.

    Attributes:
        path: Local folder or fsspec URL.
        weight: How often an epoch asks each of its questions: 1 once, 2 twice; with 0.5 an epoch asks one half of them
            and the next epoch the other half.

    Raises:
        InputError: The weight is not positive.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"data.shards: {self.path!r} has the weight {self.weight}; expected more than 0")


@dataclass(frozen=True)
class Part:
    """A shard set as the plan sees it.

    Attributes:
        shards: Those of the splits that are read.
        weight: As in ``ShardSet``.
        tokens: Of each shard, clip and question the estimated length; None where batches are not filled by tokens.
        shared: Of each shard and clip how much of that all its questions have in common; None where that is not known.
    """

    shards: tuple[Shard, ...]
    weight: float = 1.0
    tokens: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    shared: tuple[tuple[int, ...], ...] | None = None


class Run(NamedTuple):
    """Questions of one clip, one after the other.

    Attributes:
        part: Number of the part.
        shard: Number of the shard in it.
        clip: Number of the clip in the shard.
        first: The first of the questions.
        work: Work of each.
    """

    part: int
    shard: int
    clip: int
    first: int
    work: tuple[int, ...]


def quota(work: Sequence[Sequence[Sequence[int]]], weight: float) -> int:
    """Work that an epoch draws from a part: the same in every epoch."""
    # Exactly: work may have more digits than a float.
    return max(1, round(Fraction(weight) * sum(sum(clip) for shard in work for clip in shard)))


def draw(
    part: int, work: Sequence[Sequence[Sequence[int]]], weight: float, seed: int, epoch: int, shuffled: bool
) -> list[Run]:
    """What an epoch draws from one part: the next stretch of an endless series of passes over it.

    Args:
        part: Number of the part.
        work: [shard][clip][question], at least 1 each.
        weight: As in ``ShardSet``.
        seed: Decides the order of the shards in each pass.
        epoch: Number of the epoch.
        shuffled: Whether shards are shuffled at all.

    Returns:
        Runs whose work sums to ``quota``, or misses it by less than the longest question.
    """
    whole = sum(sum(clip) for shard in work for clip in shard)
    if not whole:
        return []
    begin, end = (quota(work, weight) * n for n in (epoch, epoch + 1))
    runs: list[Run] = []
    for number in range(begin // whole, -(-end // whole)):
        order = list(range(len(work)))
        if shuffled:
            Random(f"{seed}/{number}").shuffle(order)
        full = [
            Run(part, shard, clip, 0, tuple(questions))
            for shard in order
            for clip, questions in enumerate(work[shard])
            if questions
        ]
        runs += cut(full, begin - number * whole, end - number * whole)
    return runs


def cut(runs: Sequence[Run], begin: int, end: int) -> Iterator[Run]:
    """The questions that begin within a stretch of work.

    Args:
        runs: One after the other.
        begin: First unit of the stretch.
        end: One past its last unit.
    """
    at = 0
    for run in runs:
        after = at + sum(run.work)
        if begin <= at and after <= end:
            yield run
        elif at < end and after > begin:
            starts = [at + sum(run.work[:n]) for n in range(len(run.work))]
            inside = [n for n, start in enumerate(starts) if begin <= start < end]
            if inside:
                yield run._replace(first=run.first + inside[0], work=run.work[inside[0] : inside[-1] + 1])
        at = after


def interleave(streams: Sequence[Sequence[Run]]) -> list[Run]:
    """One stream of several, each spread evenly over the whole.

    Args:
        streams: Runs of each part, in order.
    """
    if len(streams) == 1:
        return list(streams[0])
    placed: list[tuple[float, int, Run]] = []
    for number, stream in enumerate(streams):
        total, at = sum(sum(run.work) for run in stream), 0
        for run in stream:
            own = sum(run.work)
            placed.append(((2 * at + own) / (2 * total), number, run))
            at += own
    return [run for _, _, run in sorted(placed, key=lambda entry: entry[:2])]
