"""Choose candidates and give them options so that no answer is likelier than another without the video.

Words: within a task every label is equally often right. Distances: truths are binned on a log scale, and a ladder of
four options covers four bins; within the questions whose options cover the same bins, each of the four is equally
often right. So neither the rank of an option, nor its size, nor what is common in the data set tells the answer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from mllm4d import prompts
from mllm4d.prompts import LABELS
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import LETTERS, ladder
from mllm4d.qa.reasoning import reason
from mllm4d.schema import TASKS, Question

OPTIONS = 4
BINS_PER_STEP = 2
"""How finely truths are binned within one step of the ladder."""


@dataclass(frozen=True)
class Choice:
    """A candidate with its option texts (unshuffled) and which of them is right."""

    candidate: Candidate
    texts: tuple[str, ...]
    right: int


def balance(found: Iterable[Candidate], per_clip: int, ratio: float, seed: int) -> tuple[list[Question], Counter[str]]:
    """Make the questions of one split.

    Args:
        found: Candidates of all clips of the split.
        per_clip: At most so many questions of one task about one clip.
        ratio: Ratio of neighbouring numeric options.
        seed: Decides everything that is drawn; the order of ``found`` does not matter.

    Returns:
        Questions sorted by clip and task, and how many candidates were dropped for which reason.
    """
    random, dropped = Random(seed), Counter[str]()
    by_task: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda c: (c.clip, c.task, c.anchors, c.object or 0)):
        by_task[candidate.task].append(candidate)
    questions: list[Question] = []
    for task in TASKS:
        pool = by_task[task]
        random.shuffle(pool)
        kept = _cap(pool, per_clip)
        dropped[f"{task}: over {per_clip} a clip"] += len(pool) - len(kept)
        choices = _balance_words(kept, task) if task in LABELS else _balance_ladders(kept, ratio)
        dropped[f"{task}: balance"] += len(kept) - len(choices)
        random.shuffle(choices)
        questions += _letter(choices, random)
    questions.sort(key=lambda q: (q.id, TASKS.index(q.task), q.anchors, q.object or 0))
    numbered = Counter[str]()
    result = []
    for question in questions:
        result.append(Question(**{**question.__dict__, "id": f"{question.id}/{numbered[question.id]:03d}"}))
        numbered[question.id] += 1
    return result, +dropped


def _cap(pool: Sequence[Candidate], per_clip: int) -> list[Candidate]:
    """The first ``per_clip`` of every clip, rare labels first, so that balancing loses little."""
    frequency = Counter(c.label for c in pool)
    seen, kept = Counter[str](), []
    for candidate in sorted(pool, key=lambda c: frequency[c.label]):
        if seen[candidate.clip] < per_clip:
            kept.append(candidate)
            seen[candidate.clip] += 1
    return kept


def _balance_words(pool: Sequence[Candidate], task: str) -> list[Choice]:
    labels = LABELS[task]
    groups = {label: [c for c in pool if c.label == label] for label in labels}
    count = min(len(group) for group in groups.values())
    return [Choice(c, labels, labels.index(label)) for label, group in groups.items() for c in group[:count]]


def _balance_ladders(pool: Sequence[Candidate], ratio: float) -> list[Choice]:
    width = math.log(ratio) / BINS_PER_STEP
    bins: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in pool:
        bins[math.floor(math.log(candidate.value or 0.0) / width)].append(candidate)
    choices: list[Choice] = []
    while True:
        # Of all windows of four bins, one ladder step apart, take from the one that has most left in its scarcest bin.
        windows = {low: [low + k * BINS_PER_STEP for k in range(OPTIONS)] for low in bins}
        left = {low: min(len(bins.get(b, ())) for b in window) for low, window in windows.items()}
        best = max(sorted(left), key=left.__getitem__, default=None)
        if best is None or not left[best]:
            return choices
        group = []
        for rank, index in enumerate(windows[best]):
            candidate = bins[index].pop()
            texts = tuple(prompts.metres(v) for v in ladder(candidate.value or 0.0, rank, ratio, OPTIONS))
            group.append(Choice(candidate, texts, rank))
        if all(len(set(choice.texts)) == OPTIONS for choice in group):
            choices += group


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
