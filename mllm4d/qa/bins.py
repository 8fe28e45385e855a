"""Bins of what is right: half octaves of metres, or words; and even counts over them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from mllm4d.schema import TASKS, Question

T = TypeVar("T")


def distance_bin(metres: float) -> int:
    """The half octave of a distance: k for 2^(k/2) up to 2^((k+1)/2) metres."""
    return math.floor(2 * math.log2(metres))


def bin_name(index: int) -> str:
    """A half octave in words, for example ``1 to 1.4 m``."""
    return f"{2 ** (index / 2):.2g} to {2 ** ((index + 1) / 2):.2g} m"


def count_bins(questions: Iterable[Question]) -> dict[str, dict[str, int]]:
    """Questions per task and right label (in the alphabet's order) or half octave of the right distance (ascending)."""
    words: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    lengths: dict[str, Counter[int]] = {task: Counter() for task in TASKS}
    for question in questions:
        if isinstance(question.answer_value, str):
            words[question.task][question.answer_value] += 1
        else:
            lengths[question.task][distance_bin(question.answer_value)] += 1
    tables = {
        task: dict(sorted(words[task].items())) | {bin_name(k): n for k, n in sorted(lengths[task].items())}
        for task in TASKS
    }
    return {task: table for task, table in tables.items() if table}


def middle_cap(counts: Mapping[T, int], factor: float | None, least: int) -> float:
    """How much a bin may hold: ``factor`` times the median of the bins that hold anything, but no less than ``least``.

    The idea of equal bins capped by the middle one is that of Multi-SpatialMLLM (arXiv 2505.17015).

    Args:
        counts: What each bin holds.
        factor: Of the median; None caps nothing.
        least: Bins this small are never cut.
    """
    filled = [count for count in counts.values() if count]
    return math.inf if factor is None or not filled else max(least, factor * statistics.median(filled))


def even_out(groups: Sequence[Sequence[float]], factor: float | None) -> list[int]:
    """Which groups to keep so that no half octave holds more distances than ``middle_cap`` allows.

    Groups are taken whole. Those in scarce bins are taken first, so that they do not fall victim to a full neighbour.

    Args:
        groups: The distances of each group, metres.
        factor: As in ``middle_cap``; it never cuts below the size of a group.

    Returns:
        Indices of the groups that stay, ascending.
    """
    bins = [Counter(distance_bin(value) for value in group) for group in groups]
    counts = sum(bins, Counter[int]())
    cap = middle_cap(counts, factor, max(map(len, groups), default=0))
    filled, kept = Counter[int](), []
    for index in sorted(range(len(groups)), key=lambda k: sum(counts[b] * n for b, n in bins[k].items())):
        if all(filled[b] + n <= cap for b, n in bins[index].items()):
            filled += bins[index]
            kept.append(index)
    return sorted(kept)
