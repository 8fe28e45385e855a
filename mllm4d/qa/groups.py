"""Groups of candidates that offer the same options, each of them right once."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import product

from mllm4d import prompts
from mllm4d.prompts import LABELS
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import ladder
from mllm4d.qa.writing import Choice

OPTIONS = 4

BINS_PER_STEP = (16, 4, 2, 1)
"""How finely truths are binned within one step of the ladder; at the ratio of 1.5 the finest bin is 2.6 % wide. With
coarser bins questions have ladders of their own and ``index.json`` says what blind solvers make of it."""

ENOUGH = 0.25
"""Coarser groups come in only where the finer ones find partners for less than this share of what the cap per clip
allows, as in a single short video."""

Level = Callable[[Sequence[Candidate], "_Piles"], list[list[Choice]]]
"""From candidates and empty piles to groups."""

Gap = Callable[[Candidate], int]


def exact_gap(candidate: Candidate) -> int:
    """The time between the anchors in frames."""
    return candidate.anchors[1] - candidate.anchors[0]


def octave_gap(candidate: Candidate) -> int:
    """The time between the anchors in octaves of frames."""
    return exact_gap(candidate).bit_length()


def any_gap(candidate: Candidate) -> int:
    """The same for all."""
    return 0


# Things go farther in more time, and "unchanged" is the guess for a short one: a group should share its gap.
GAPS: tuple[Gap, ...] = (exact_gap, octave_gap, any_gap)


class _Piles:
    """Candidates in piles, from which groups are taken with at most so many candidates of one clip in all."""

    def __init__(self, per_clip: int, used: Counter[str]) -> None:
        self.piles: dict[Hashable, list[Candidate]] = defaultdict(list)
        self.per_clip, self.used = per_clip, used

    def put(self, index: Hashable, candidate: Candidate) -> None:
        """Put a candidate on a pile."""
        self.piles[index].append(candidate)

    def scarcest(self, indices: Sequence[Hashable]) -> int:
        """What is left on the lowest of some piles."""
        return min(len(self.piles.get(index, ())) for index in indices)

    def take(self, indices: Sequence[Hashable]) -> list[Candidate] | None:
        """One candidate of each pile, or None (and nothing taken) when a pile has none whose clip is not full."""
        group: list[Candidate] = []
        for index in indices:
            pile = self.piles.get(index, [])
            while pile and self.used[pile[-1].clip] >= self.per_clip:
                pile.pop()
            if not pile:
                for place, candidate in zip(indices, group, strict=False):
                    self.piles[place].append(candidate)
                    self.used[candidate.clip] -= 1
                return None
            group.append(pile.pop())
            self.used[group[-1].clip] += 1
        return group


def label_groups(pool: Sequence[Candidate], task: str, per_clip: int, enough: float = ENOUGH) -> list[list[Choice]]:
    """Groups of one candidate for every label of a task, with the same time between the anchors where there are enough.

    Args:
        pool: Candidates of the task; earlier ones are taken later.
        task: One that is answered in words.
        per_clip: At most so many candidates of one clip.
        enough: Share of what ``per_clip`` allows up to which groups may also be of about the same time, or of any.

    Returns:
        The groups.
    """
    return _fill(pool, per_clip, [(partial(_by_label, task=task, gap=gap), enough) for gap in GAPS])


def ladder_groups(pool: Sequence[Candidate], ratio: float, per_clip: int, enough: float = ENOUGH) -> list[list[Choice]]:
    """Groups of four candidates whose distances lie a step of the ladder apart, with the same time between the anchors.

    Args:
        pool: Candidates of a task that is answered in metres; earlier ones are taken later.
        ratio: Of neighbouring options.
        per_clip: At most so many candidates of one clip.
        enough: As in ``label_groups``. Ladders of their own (coarser bins) come in up to ``ENOUGH`` at most.

    Returns:
        The groups, the finest first.
    """
    levels = [
        (partial(_by_ladder, ratio=ratio, bins=bins, gap=gap), enough if bins == BINS_PER_STEP[0] else ENOUGH)
        for bins, gap in product(BINS_PER_STEP, GAPS)
    ]
    return _fill(pool, per_clip, levels)


def _fill(pool: Sequence[Candidate], per_clip: int, levels: Sequence[tuple[Level, float]]) -> list[list[Choice]]:
    """Group with one level after the other, each of what the last one left, until a share of what may be is reached."""
    in_clip = Counter(candidate.clip for candidate in pool)
    allowed = sum(min(count, per_clip) for count in in_clip.values())
    groups: list[list[Choice]] = []
    used, left = Counter[str](), list(pool)
    for level, enough in levels:
        if sum(map(len, groups)) < enough * allowed:
            more = level(left, _Piles(per_clip, used))
            taken = {id(choice.candidate) for group in more for choice in group}
            left = [candidate for candidate in left if id(candidate) not in taken]
            groups += more
    return groups


def _by_label(pool: Sequence[Candidate], piles: _Piles, task: str, gap: Gap) -> list[list[Choice]]:
    labels, groups = LABELS[task], []
    for candidate in pool:
        piles.put((gap(candidate), candidate.label), candidate)
    gaps = {gap(candidate) for candidate in pool}
    while gaps:
        for g in sorted(gaps):
            if (group := piles.take([(g, label) for label in labels])) is None:
                gaps.remove(g)
            else:
                groups.append([Choice(candidate, labels, k) for k, candidate in enumerate(group)])
    return groups


def _by_ladder(pool: Sequence[Candidate], piles: _Piles, ratio: float, bins: int, gap: Gap) -> list[list[Choice]]:
    width = math.log(ratio) / bins
    starts: dict[int, set[int]] = defaultdict(set)
    for candidate in pool:
        index = math.floor(math.log(candidate.value or 0.0) / width)
        piles.put((gap(candidate), index), candidate)
        starts[gap(candidate)].add(index)

    def window(g: int, low: int) -> list[Hashable]:
        return [(g, low + k * bins) for k in range(OPTIONS)]

    # Of all windows of four bins, one ladder step apart, take from the one that has most left in its scarcest bin.
    heaps = {g: [(-piles.scarcest(window(g, low)), low) for low in sorted(starts[g])] for g in sorted(starts)}
    for heap in heaps.values():
        heapq.heapify(heap)
    groups: list[list[Choice]] = []
    while heaps:
        for g, heap in list(heaps.items()):
            if not heap:
                del heaps[g]
                continue
            left, low = heapq.heappop(heap)
            now = -piles.scarcest(window(g, low))
            if now > left:
                # Overlapping windows have taken from it since it was looked at.
                heapq.heappush(heap, (now, low))
            elif now < 0 and (group := piles.take(window(g, low))) is not None:
                groups.append(_on_ladder(group, ratio, shared=bins == BINS_PER_STEP[0]))
                heapq.heappush(heap, (-piles.scarcest(window(g, low)), low))
    return groups


def _on_ladder(group: Sequence[Candidate], ratio: float, shared: bool) -> list[Choice]:
    steps = [math.log(candidate.value or 0.0) - k * math.log(ratio) for k, candidate in enumerate(group)]
    if shared:
        # One ladder for all four: they agree to within a bin, and no look at the options can tell the four apart.
        steps = [sum(steps) / OPTIONS] * OPTIONS
    texts = [prompts.distances(ladder(math.exp(step), 0, ratio, OPTIONS)) for step in steps]
    return [Choice(candidate, row, rank) for rank, (candidate, row) in enumerate(zip(group, texts, strict=True))]
