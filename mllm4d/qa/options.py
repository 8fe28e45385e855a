"""Options that give nothing away: the numeric ladder, and the paper's scheme for comparison."""

from __future__ import annotations

from random import Random

LETTERS = "ABCDEFGH"


def ladder(value: float, rank: int, ratio: float, count: int = 4) -> list[float]:
    """A geometric ladder in which the truth has a given rank: ``value * ratio^(k - rank)`` for k = 0 … count-1.

    Args:
        value: The truth, metres.
        rank: The truth's place from the bottom, 0 … count-1; every rank should be equally often right.
        ratio: Ratio of neighbours, > 1.
        count: Number of options.

    Returns:
        Options in ascending order, metres; the truth stands at ``rank``.
    """
    return [value * ratio ** (k - rank) for k in range(count)]


def paper_options(value: float, random: Random, count: int = 4) -> list[float]:
    """The paper's scheme: distractors drawn uniformly from 25 %-175 % of the truth. It leaks; for comparison only.

    A solver that never sees the video and takes the smallest option that keeps the others within that range scores
    63.9 %, against a chance of 25 %.

    Args:
        value: The truth, metres.
        random: Source of the draw.
        count: Number of options.

    Returns:
        Options, metres; the truth stands first.
    """
    return [value, *(value * random.uniform(0.25, 1.75) for _ in range(count - 1))]
