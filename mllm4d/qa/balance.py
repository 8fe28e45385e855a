"""Choose candidates and give them options so that no answer is likelier than another without the video.

Questions come in groups that offer the very same options, and in a group each option is right once: one question for
every label (with about the same time between the anchors), or for distances four whose truths lie one step of the
ladder apart. So no function of the options can beat chance, whatever it knows of the data set. Groups are dealt to two
folds, so that a solver can be fitted on one and scored on the other with both in balance.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from mllm4d import prompts
from mllm4d.prompts import LABELS
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import LETTERS, ladder
from mllm4d.qa.reasoning import reason
from mllm4d.schema import TASKS, Question

OPTIONS = 4
BINS_PER_STEP = (16, 4, 2, 1)
"""How finely truths are binned within one step of the ladder; at the ratio of 1.5 the finest bin is 2.6 % wide. Coarser
bins come in only where the finer ones find partners for less than ``ENOUGH`` of what the cap per clip allows, as in a
single short video; questions then have ladders of their own and ``index.json`` says what blind solvers make of it."""

ENOUGH = 0.25


@dataclass(frozen=True)
class Choice:
    """A candidate with its option texts (unshuffled) and which of them is right."""

    candidate: Candidate
    texts: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Balanced:
    """The questions of one split.

    Attributes:
        questions: Sorted by clip and task.
        folds: 0 or 1 for each question; both folds are balanced.
        dropped: How many candidates were left out, and why.
    """

    questions: tuple[Question, ...]
    folds: tuple[int, ...]
    dropped: Counter[str]


def balance(found: Iterable[Candidate], per_clip: int, ratio: float, seed: int) -> Balanced:
    """Make the questions of one split.

    Args:
        found: Candidates of all clips of the split.
        per_clip: At most so many questions of one task about one clip.
        ratio: Ratio of neighbouring numeric options.
        seed: Decides everything that is drawn; the order of ``found`` does not matter.

    Returns:
        The questions.
    """
    random, dropped = Random(seed), Counter[str]()
    by_task: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda c: (c.clip, c.task, c.anchors, c.object or 0)):
        by_task[candidate.task].append(candidate)
    rows: list[tuple[Question, int]] = []
    for task in TASKS:
        pool = by_task[task]
        random.shuffle(pool)
        groups = _label_groups(pool, task, per_clip) if task in LABELS else _ladders(pool, ratio, per_clip)
        random.shuffle(groups)
        for fold in (0, 1):
            choices = [choice for group in groups[fold::2] for choice in group]
            rows += [(question, fold) for question in _letter(choices, random)]
        dropped[f"{task}: balance and {per_clip} a clip"] += len(pool) - sum(map(len, groups))
    rows.sort(key=lambda row: (row[0].id, TASKS.index(row[0].task), row[0].anchors, row[0].object or 0))
    numbered = Counter[str]()
    questions = []
    for question, _ in rows:
        questions.append(replace(question, id=f"{question.id}/{numbered[question.id]:03d}"))
        numbered[question.id] += 1
    return Balanced(tuple(questions), tuple(fold for _, fold in rows), +dropped)


class _Piles:
    """Candidates in piles, from which groups are taken with at most so many candidates of one clip in all."""

    def __init__(self, per_clip: int) -> None:
        self.piles: dict[Hashable, list[Candidate]] = defaultdict(list)
        self.per_clip, self.used = per_clip, Counter[str]()

    def put(self, index: Hashable, candidate: Candidate) -> None:
        """Put a candidate on a pile."""
        self.piles[index].append(candidate)

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


def _label_groups(pool: Sequence[Candidate], task: str, per_clip: int) -> list[list[Choice]]:
    labels, piles, groups = LABELS[task], _Piles(per_clip), []
    for candidate in pool:
        piles.put((_gap(candidate), labels.index(candidate.label or "")), candidate)
    # Within about the same time between the anchors: else "unchanged" would be the guess for short ones.
    gaps = {_gap(candidate) for candidate in pool}
    while gaps:
        for gap in sorted(gaps):
            if (group := piles.take([(gap, k) for k in range(len(labels))])) is None:
                gaps.remove(gap)
            else:
                groups.append([Choice(candidate, labels, k) for k, candidate in enumerate(group)])
    return groups


def _gap(candidate: Candidate) -> int:
    """The time between the anchors in octaves of frames."""
    return (candidate.anchors[1] - candidate.anchors[0]).bit_length()


def _ladders(pool: Sequence[Candidate], ratio: float, per_clip: int) -> list[list[Choice]]:
    per_clip_counts = Counter(candidate.clip for candidate in pool)
    allowed = sum(min(count, per_clip) for count in per_clip_counts.values())
    groups: list[list[Choice]] = []
    for bins in BINS_PER_STEP:
        if len(finer := _ladder_groups(pool, ratio, per_clip, bins)) > len(groups):
            groups = finer
        if OPTIONS * len(groups) >= ENOUGH * allowed:
            break
    return groups


def _ladder_groups(pool: Sequence[Candidate], ratio: float, per_clip: int, bins: int) -> list[list[Choice]]:
    width, piles = math.log(ratio) / bins, _Piles(per_clip)
    for candidate in pool:
        piles.put(math.floor(math.log(candidate.value or 0.0) / width), candidate)
    lows = sorted({math.floor(math.log(c.value or 0.0) / width) for c in pool})
    windows = {low: [low + k * bins for k in range(OPTIONS)] for low in lows}
    groups: list[list[Choice]] = []
    while windows:
        # Of all windows of four bins, one ladder step apart, take from the one that has most left in its scarcest bin.
        low = max(windows, key=lambda low: min(len(piles.piles.get(b, ())) for b in windows[low]))
        if (group := piles.take(windows[low])) is None:
            del windows[low]
            continue
        steps = [math.log(c.value or 0.0) - k * math.log(ratio) for k, c in enumerate(group)]
        if bins == BINS_PER_STEP[0]:
            # One ladder for all four: they agree to within a bin, and no look at the options can tell the four apart.
            steps = [sum(steps) / OPTIONS] * OPTIONS
        texts = [tuple(map(prompts.metres, ladder(math.exp(step), 0, ratio, OPTIONS))) for step in steps]
        # Two options that round to the same text leave the group without an answer.
        if all(len(set(row)) == OPTIONS for row in texts):
            groups.append([Choice(c, row, rank) for rank, (c, row) in enumerate(zip(group, texts, strict=True))])
    return groups


def _letter(choices: Sequence[Choice], random: Random) -> list[Question]:
    """Shuffle the options so that every letter is equally often right among questions with as many options."""
    questions, decks = [], defaultdict[int, list[int]](list)
    for choice in choices:
        count = len(choice.texts)
        if not decks[count]:
            decks[count] = random.sample(range(count), count)
        place = decks[count].pop()
        others = [text for k, text in enumerate(choice.texts) if k != choice.right]
        random.shuffle(others)
        others.insert(place, choice.texts[choice.right])
        questions.append(_question(choice.candidate, dict(zip(LETTERS, others, strict=False)), LETTERS[place], random))
    return questions


def _question(candidate: Candidate, options: dict[str, str], answer: str, random: Random) -> Question:
    i, j = (prompts.seconds(time) for time in candidate.times)
    wording = random.choice(prompts.WORDINGS[candidate.task]).format(i=i, j=j, name=candidate.name)
    return Question(
        id=candidate.clip,
        task=candidate.task,
        question=wording,
        options=options,
        answer=answer,
        answer_value=candidate.value if candidate.value is not None else candidate.label or "",
        unit=None if candidate.value is None else "m",
        anchors=candidate.anchors,
        object=candidate.object,
        solution=candidate.solution,
        reasoning=reason(candidate, wording, options[answer], answer),
    )
