"""Who reads which question when: an epoch's order as a pure function of counts and seed.

The plan is made before anything is read, from the counts in ``index.json``. So the order does not depend on the number
of reading processes, every rank has the same number of steps in every epoch, each question comes exactly once an epoch
(or as often as its set's weight says), and a clip is decoded once for all of its questions (twice when the border
between two ranks or epochs runs through it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, lcm
from random import Random
from typing import NamedTuple

from mllm4d.data.mixing import Part, Run, cut, draw, interleave
from mllm4d.data.pieces import Piece, fill, pieces_of, steps_for, work_of
from mllm4d.schema import InputError

Item = tuple[int, int]
"""Index into the plan's clips, and number of the question."""


class ClipRef(NamedTuple):
    """A clip: number of the part, of the shard in it, of the clip in that."""

    part: int
    shard: int
    clip: int


@dataclass(frozen=True)
class Plan:
    """One rank's epoch.

    Attributes:
        clips: In the order of reading; one that is drawn twice stands there twice.
        batches: For each step its questions, those of one clip next to each other.
    """

    clips: tuple[ClipRef, ...]
    batches: tuple[tuple[Item, ...], ...]


def plan_epoch(
    parts: Sequence[Part],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    window: int = 0,
    batch_tokens: int | None = None,
    together: bool = False,
) -> Plan:
    """Plan one rank's epoch.

    Args:
        parts: The shard sets, with the shards of the splits that are read.
        batch_size: Questions in a step on one rank. Steps are of even size, so that some may have fewer, never none;
            where ranks cannot share evenly, one step of some ranks has one more.
        seed: Decides the order, together with ``epoch``.
        epoch: Number of the epoch.
        rank: This process among those that train together.
        world_size: How many they are.
        window: Questions that are mixed with each other; 0 keeps the order of the shards.
        batch_tokens: Tokens in a step on one rank, padding included, in place of ``batch_size``: questions of similar
            length come together, as many as fit by the parts' ``tokens``. Where a rank has fewer questions than steps,
            its last batches are empty: a reader repeats a question there. That takes questions longer than half the
            budget, or very few of them.
        together: A clip's questions come in one step, where a packed row computes what they share once: the tokens
            that they share (the parts' ``shared``) count once, and there is no padding. Only a clip that alone exceeds
            ``batch_tokens`` (or ``batch_size``) is divided. Steps have clips of about equal size then, as many as fit;
            batches may be empty as with ``batch_tokens``.

    Returns:
        The plan; all ranks have the same number of batches.

    Raises:
        InputError: There are fewer questions than ranks, or one is estimated to exceed ``batch_tokens`` by itself.
    """
    if together:
        return _plan_together(parts, batch_size, batch_tokens, seed, epoch, rank, world_size, window)
    fits = None if batch_tokens is None else _rows_that_fit(parts, batch_tokens)
    mine = _share(parts, _work(parts, fits), seed, epoch, rank, world_size, window)
    clips = tuple(ClipRef(run.part, run.shard, run.clip) for run in mine.runs)
    items = [
        (n, question) for n, run in enumerate(mine.runs) for question in range(run.first, run.first + len(run.work))
    ]
    if window:
        items = _mix(items, [1] * len(items), window, Random(f"{seed}/{epoch}/{rank}"))
    if fits is None:
        # From the shortest rank: were it from the longest, a rank could be left with a step and no question for it.
        steps = -(-(mine.everyone // world_size) // batch_size)
        cuts = [len(items) * step // steps for step in range(steps + 1)]
        return Plan(clips, tuple(_by_clip(items[a:b]) for a, b in pairwise(cuts)))
    sizes = [fits[ref.part][ref.shard][ref.clip][question] for ref, question in ((clips[n], q) for n, q in items)]
    return Plan(clips, tuple(map(_by_clip, _fill(items, sizes, _steps(parts, fits, world_size)))))


def _plan_together(
    parts: Sequence[Part],
    batch_size: int,
    batch_tokens: int | None,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    window: int,
) -> Plan:
    """The same with pieces of clips in place of questions."""
    budget = batch_size if batch_tokens is None else batch_tokens
    if batch_tokens is not None:
        _rows_that_fit(parts, batch_tokens)  # each question alone
    pieces = [pieces_of(part, budget, batch_tokens is not None) for part in parts]
    work = [[[tuple(work_of(piece.size, budget) for piece in c) for c in shard] for shard in part] for part in pieces]
    mine = _share(parts, work, seed, epoch, rank, world_size, window)
    clips = tuple(ClipRef(run.part, run.shard, run.clip) for run in mine.runs)
    items = [(n, number) for n, run in enumerate(mine.runs) for number in range(run.first, run.first + len(run.work))]

    def piece(item: Item) -> Piece:
        ref = clips[item[0]]
        return pieces[ref.part][ref.shard][ref.clip][item[1]]

    if window:
        items = _mix(items, [piece(item).questions for item in items], window, Random(f"{seed}/{epoch}/{rank}"))
    filled = [[items[number] for number in batch] for batch in fill([piece(item).size for item in items], budget)]
    batches = _halve(filled, steps_for(parts, pieces, budget, world_size))
    questions = (
        [(item[0], piece(item).first + n) for item in batch for n in range(piece(item).questions)] for batch in batches
    )
    return Plan(clips, tuple(map(_by_clip, questions)))


class _Share(NamedTuple):
    """What one rank reads, and how many entries of work all ranks have together."""

    runs: list[Run]
    everyone: int


def _share(
    parts: Sequence[Part], work: list[Nested], seed: int, epoch: int, rank: int, world_size: int, window: int
) -> _Share:
    """One rank's stretch of the epoch."""
    streams = [
        draw(number, own, part.weight, seed, epoch, window > 0)
        for number, (part, own) in enumerate(zip(parts, work, strict=True))
    ]
    runs = interleave([stream for stream in streams if stream])
    total, count = sum(sum(run.work) for run in runs), sum(len(run.work) for run in runs)
    start, stop = (total * r // world_size for r in (rank, rank + 1))
    mine = list(cut(runs, start, stop))
    if count < world_size or not mine:
        raise InputError(f"{count} questions, or clips that stay whole, are too few for {world_size} ranks")
    return _Share(mine, count)


def _by_clip(batch: Sequence[Item]) -> tuple[Item, ...]:
    """Questions of one clip next to each other, clips in the order in which they first come.

    A packed row has them so: questions, prompts and answers of a batch are then in one order.
    """
    places = {clip: place for place, clip in reversed(list(enumerate(clip for clip, _ in batch)))}
    return tuple(sorted(batch, key=lambda item: places[item[0]]))


def _mix(items: Sequence[Item], counts: Sequence[int], window: int, random: Random) -> list[Item]:
    """Draw from a buffer of ``window`` questions that is refilled in order, as a shuffle buffer does.

    Args:
        items: What is drawn.
        counts: Questions of each.
        window: Questions in the buffer.
        random: Draws.
    """
    buffer: list[tuple[Item, int]] = []
    mixed = []
    load = 0
    for item, count in zip(items, counts, strict=True):
        buffer.append((item, count))
        load += count
        while load > window:
            place = random.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            drawn, count = buffer.pop()
            mixed.append(drawn)
            load -= count
    random.shuffle(buffer)
    return mixed + [item for item, _ in buffer]


Nested = list[list[tuple[int, ...]]]
"""Of each shard, clip and question a number."""


def _rows_that_fit(parts: Sequence[Part], batch_tokens: int) -> list[Nested]:
    """Of each part's questions, how many of its length fill a batch."""
    fits = []
    for part in parts:
        if part.tokens is None:
            raise InputError("batch_tokens: the lengths of the questions are not known")
        for shard, clips in zip(part.shards, part.tokens, strict=True):
            for key, lengths in zip(shard.keys, clips, strict=True):
                if max(lengths, default=0) > batch_tokens:
                    raise InputError(
                        f"batch_tokens: {batch_tokens} are fewer than one question about clip {key!r} of {shard.path} "
                        f"has by the estimate, {max(lengths)}"
                    )
        fits.append([[tuple(batch_tokens // n for n in clip) for clip in shard] for shard in part.tokens])
    return fits


def _work(parts: Sequence[Part], fits: list[Nested] | None) -> list[Nested]:
    """Work of each question: 1, or its share of a batch as a whole number, for all parts in the same unit."""
    if fits is None:
        return [[[(1,) * count for count in shard.questions] for shard in part.shards] for part in parts]
    unit = lcm(*{n for part in fits for shard in part for clip in shard for n in clip})
    return [[[tuple(unit // n for n in clip) for clip in shard] for shard in part] for part in fits]


def _steps(parts: Sequence[Part], fits: list[Nested], world_size: int) -> int:
    """Steps that suffice for any epoch and rank.

    With n questions of which c fit a batch, a rank's share of n / c batches may need one more of each c > 1 that is not
    full, and one where the border between two ranks or two epochs falls within a question.
    """
    batches, slack, rounded = Fraction(0), 0, set[int]()
    for part, own in zip(parts, fits, strict=True):
        counts = Counter(n for shard in own for clip in shard for n in clip)
        rounded |= {n for n in counts if n > 1}
        batches += sum((Fraction(count, n) for n, count in counts.items()), Fraction(0)) * Fraction(part.weight)
        slack += part.weight != round(part.weight)
    return ceil((batches + slack) / world_size) + len(rounded)


def _fill(items: Sequence[Item], sizes: Sequence[int], steps: int) -> list[list[Item]]:
    """Fill batches with questions of one size; so many of a size as fit, in the order in which batches become full.

    Args:
        items: The questions in order.
        sizes: Of each, how many of its length fit.
        steps: As many batches come out: the fullest are halved, or empty ones added.
    """
    open_batches: dict[int, list[Item]] = {}
    batches: list[list[Item]] = []
    for item, size in zip(items, sizes, strict=True):
        batch = open_batches.setdefault(size, [])
        batch.append(item)
        if len(batch) == size:
            batches.append(open_batches.pop(size))
    return _halve(batches + list(open_batches.values()), steps)


def _halve(batches: list[list[Item]], steps: int) -> list[list[Item]]:
    """As many batches as there are steps: the fullest are halved, or empty ones added."""
    batches = list(batches)
    while len(batches) < steps:
        fullest = max(range(len(batches)), key=lambda n: (len(batches[n]), n))
        middle = len(batches[fullest]) // 2
        if not middle:
            return batches + [[] for _ in range(steps - len(batches))]
        batches[fullest : fullest + 1] = [batches[fullest][:middle], batches[fullest][middle:]]
    return batches
