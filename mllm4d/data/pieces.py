"""Questions about one clip that come in one step, so that what they share, the video above all, is paid for once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, lcm
from typing import NamedTuple

from mllm4d.data.mixing import Part

SMALL = 12
"""Pieces of which so many fit a batch, or more, share their batches whatever their sizes."""


class Piece(NamedTuple):
    """Questions of a clip, one after the other.

    Attributes:
        first: The first of them.
        questions: How many they are.
        size: What they take of a batch's budget.
    """

    first: int
    questions: int
    size: int


Pieces = list[list[tuple[Piece, ...]]]
"""Of each shard and clip."""


def pieces_of(part: Part, budget: int, by_tokens: bool) -> Pieces:
    """A part's clips in as few pieces as a budget allows: one, but where the clip alone exceeds it.

    Args:
        part: The shard set, with its tokens where they count.
        budget: Most tokens of a batch, what a piece's questions share counted once; or most questions.
        by_tokens: Which of the two. No question alone exceeds it.
    """
    if not by_tokens:
        return [[_divide((1,) * count, 0, budget) for count in shard.questions] for shard in part.shards]
    tokens = part.tokens or ()
    shared = part.shared or tuple((0,) * len(shard) for shard in tokens)
    return [
        [_divide(lengths, min(start, *lengths) if lengths else 0, budget) for lengths, start in zip(*pair, strict=True)]
        for pair in zip(tokens, shared, strict=True)
    ]


def _divide(lengths: Sequence[int], shared: int, budget: int) -> tuple[Piece, ...]:
    """Consecutive questions, as many in a piece as fit.

    Args:
        lengths: Of each question, with what all of them share.
        shared: How much that is; no more than the shortest.
        budget: Most that a piece may take.
    """
    pieces: list[Piece] = []
    for number, length in enumerate(lengths):
        if pieces and pieces[-1].size + length - shared <= budget:
            first, questions, size = pieces[-1]
            pieces[-1] = Piece(first, questions + 1, size + length - shared)
        else:
            pieces.append(Piece(number, 1, length))
    return tuple(pieces)


def kind_of(size: int, budget: int) -> int:
    """Pieces of one kind share batches: those of which 1, 2, ... fit, and 0 for all small ones (Lee and Lee 1985).

    How many batches that takes follows from the sizes alone, whatever the order, which is why every rank and epoch can
    have equally many. All but the last of a kind are at least half full, of small ones eleven twelfths.

    Args:
        size: Of the piece.
        budget: Of a batch.
    """
    fit = budget // size
    return fit if fit < SMALL else 0


def work_of(size: int, budget: int) -> int:
    """The share of a batch that a piece takes, as a whole number; ``batch_work`` is a batch."""
    kind = kind_of(size, budget)
    return batch_work(budget) // kind if kind else size * batch_work(1)


def batch_work(budget: int) -> int:
    """See ``work_of``; of small pieces a batch is full with what it holds for certain."""
    return lcm(*range(1, SMALL)) * (budget - budget // SMALL)


def steps_for(parts: Sequence[Part], pieces: Sequence[Pieces], budget: int, world_size: int) -> int:
    """Steps that suffice for any epoch and rank: of each kind but 1 a batch may stay unfilled.

    Args:
        parts: The shard sets.
        pieces: Of each.
        budget: Of a batch.
        world_size: Ranks.
    """
    work, slack = Fraction(0), 0
    for part, own in zip(parts, pieces, strict=True):
        work += sum(work_of(size, budget) for size in _sizes(own)) * Fraction(part.weight)
        # The border between two epochs falls within a piece.
        slack += part.weight != round(part.weight)
    kinds = {kind_of(size, budget) for own in pieces for size in _sizes(own)} - {1}
    return ceil((work / batch_work(budget) + slack) / world_size) + len(kinds)


def fill(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Fill batches with pieces of one kind, in the order in which batches become full.

    Args:
        sizes: Of the pieces, in order.
        budget: Of a batch.

    Returns:
        Numbers of the pieces.
    """
    batches: list[list[int]] = []
    opened: dict[int, list[int]] = {}
    loads: dict[int, int] = {}
    for number, size in enumerate(sizes):
        kind = kind_of(size, budget)
        if kind in opened and loads[kind] + size > budget:
            batches.append(opened.pop(kind))
        opened.setdefault(kind, []).append(number)
        loads[kind] = size + (loads[kind] if len(opened[kind]) > 1 else 0)
        if len(opened[kind]) == kind:
            batches.append(opened.pop(kind))
    return batches + list(opened.values())


def _sizes(pieces: Pieces) -> Iterator[int]:
    return (piece.size for shard in pieces for clip in shard for piece in clip)
