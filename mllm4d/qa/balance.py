"""Choose candidates and give them options so that no answer is likelier than another without the video.

Words: within a task every label is equally often right. Distances: truths are binned on a log scale, and a ladder of
four options covers four bins; within the questions whose options cover the same bins, each of the four is equally
often right. So neither the rank of an option, nor its size, nor what is common in the data set tells the answer.

A group is the least that is balanced in itself: one question for every label, or for every rank of a ladder. Groups are
dealt to two folds, so that solvers can be fitted on one and scored on the other with both in balance.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from mllm4d import prompts
from mllm4d.prompts import LABELS
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import LETTERS, ladder
from mllm4d.qa.reasoning import reason
from mllm4d.schema import TASKS, Question

OPTIONS = 4
BINS_PER_STEP = 8
"""How finely truths are binned within one step of the ladder. With 2, where the density of truths is steep, the place of
an option within its bin told the option prior 4 points above chance."""


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
        kept = _cap(pool, per_clip)
        groups = _label_groups(kept, task) if task in LABELS else _ladder_groups(kept, ratio)
        random.shuffle(groups)
        for fold in (0, 1):
            choices = [choice for group in groups[fold::2] for choice in group]
            rows += [(question, fold) for question in _letter(choices, random)]
        dropped[f"{task}: over {per_clip} a clip"] += len(pool) - len(kept)
        dropped[f"{task}: balance"] += len(kept) - sum(map(len, groups))
    rows.sort(key=lambda row: (row[0].id, TASKS.index(row[0].task), row[0].anchors, row[0].object or 0))
    numbered = Counter[str]()
    questions = []
    for question, _ in rows:
        questions.append(replace(question, id=f"{question.id}/{numbered[question.id]:03d}"))
        numbered[question.id] += 1
    return Balanced(tuple(questions), tuple(fold for _, fold in rows), +dropped)


def _cap(pool: Sequence[Candidate], per_clip: int) -> list[Candidate]:
    """The first ``per_clip`` of every clip, rare labels first, so that balancing loses little."""
    frequency = Counter(c.label for c in pool)
    seen, kept = Counter[str](), []
    for candidate in sorted(pool, key=lambda c: frequency[c.label]):
        if seen[candidate.clip] < per_clip:
            kept.append(candidate)
            seen[candidate.clip] += 1
    return kept


def _label_groups(pool: Sequence[Candidate], task: str) -> list[list[Choice]]:
    labels = LABELS[task]
    by_label = [[Choice(c, labels, k) for c in pool if c.label == label] for k, label in enumerate(labels)]
    return [list(group) for group in zip(*by_label, strict=False)]


def _ladder_groups(pool: Sequence[Candidate], ratio: float) -> list[list[Choice]]:
    width = math.log(ratio) / BINS_PER_STEP
    bins: dict[int, list[tuple[float, Candidate]]] = defaultdict(list)
    for candidate in pool:
        if candidate.value is not None:
            bins[math.floor(math.log(candidate.value) / width)].append((candidate.value, candidate))
    windows = {low: [low + k * BINS_PER_STEP for k in range(OPTIONS)] for low in sorted(bins)}
    groups: list[list[Choice]] = []
    while windows:
        # Of all windows of four bins, one ladder step apart, take from the one that has most left in its scarcest bin.
        low = max(windows, key=lambda low: min(len(bins.get(b, ())) for b in windows[low]))
        if not all(bins.get(b) for b in windows[low]):
            break
        group = []
        for rank, index in enumerate(windows[low]):
            value, candidate = bins[index].pop()
            group.append(Choice(candidate, tuple(map(prompts.metres, ladder(value, rank, ratio, OPTIONS))), rank))
        # Two options that round to the same text leave the question, and so the group, without an answer.
        if all(len(set(choice.texts)) == OPTIONS for choice in group):
            groups.append(group)
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
        answer_value=candidate.label if candidate.value is None else candidate.value,
        unit=None if candidate.value is None else "m",
        anchors=candidate.anchors,
        object=candidate.object,
        solution=candidate.solution,
        reasoning=reason(candidate, wording, options[answer], answer),
    )
