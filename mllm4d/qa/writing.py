"""Chosen candidates written down as questions: letters, wordings, options, reasoning and ids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from mllm4d import prompts
from mllm4d.qa.bins import count_bins
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import LETTERS, Balanced
from mllm4d.qa.reasoning import reason
from mllm4d.schema import TASKS, Question


@dataclass(frozen=True)
class Choice:
    """A candidate with its option texts (unshuffled) and which of them is right."""

    candidate: Candidate
    texts: tuple[str, ...]
    right: int


def write(choices: Sequence[Choice], random: Random, wordings: Mapping[str, Sequence[str]]) -> list[Question]:
    """Write questions, with options shuffled so that every letter is equally often right among as many options.

    Args:
        choices: What to ask.
        random: Source of letters and wordings.
        wordings: Task to wordings, each equally likely.

    Returns:
        A question for each choice; its id is only the clip's key.
    """
    questions, decks = [], defaultdict[int, list[int]](list)
    for choice in choices:
        count = len(choice.texts)
        if not decks[count]:
            decks[count] = random.sample(range(count), count)
        place = decks[count].pop()
        others = [text for k, text in enumerate(choice.texts) if k != choice.right]
        random.shuffle(others)
        others.insert(place, choice.texts[choice.right])
        options = dict(zip(LETTERS, others, strict=False))
        questions.append(_question(choice.candidate, options, LETTERS[place], random, wordings))
    return questions


def collect(rows: Sequence[tuple[Question, int]], dropped: Counter[str]) -> Balanced:
    """Sort questions, number them within their clip, and count what they hold.

    Args:
        rows: Questions as ``write`` makes them, and the fold of each.
        dropped: What was left out.

    Returns:
        The questions of a split.
    """
    rows = sorted(rows, key=lambda row: (row[0].id, TASKS.index(row[0].task), row[0].anchors, row[0].object or 0))
    numbered = Counter[str]()
    questions = []
    for question, _ in rows:
        questions.append(replace(question, id=f"{question.id}/{numbered[question.id]:03d}"))
        numbered[question.id] += 1
    return Balanced(tuple(questions), tuple(fold for _, fold in rows), +dropped, count_bins(questions))


def _question(
    candidate: Candidate,
    options: dict[str, str],
    answer: str,
    random: Random,
    wordings: Mapping[str, Sequence[str]],
) -> Question:
    i, j = (prompts.seconds(time) for time in candidate.times)
    wording = random.choice(wordings[candidate.task]).format(i=i, j=j, name=candidate.name)
    return Question(
        id=candidate.clip,
        task=candidate.task,
        question=wording,
        options=options,
        answer=answer,
        answer_value=options[answer] if candidate.value is None else candidate.value,
        unit=None if candidate.value is None else "m",
        anchors=candidate.anchors,
        object=candidate.object,
        solution=candidate.solution,
        reasoning=reason(candidate, wording, options[answer], answer, random),
    )
