"""Questions as the paper makes them (arXiv 2603.00515), for comparison: its options, units and tasks, and its leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from mllm4d.prompts import LABELS, PAPER_LABELS, PAPER_WORDINGS
from mllm4d.qa.balance import sort_by_task
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import Balanced, OptionMaker, paper_options
from mllm4d.qa.writing import Choice, collect, write

DRAWS = 100
"""Draws of distractors until no two options read the same."""


@dataclass(frozen=True)
class PaperOptions(OptionMaker):
    """The paper's scheme: three distractors uniform in 25 %-175 % of the truth, in metres with two decimals.

    The six tasks of the paper, one plain wording each, capped per clip and not balanced. A solver that never sees the
    video scores 63.9 % on such distances (``paper_options``): for comparison with the paper, not for training.
    """

    def __call__(self, found: Iterable[Candidate], per_clip: int, ratio: float, seed: int) -> Balanced:
        """See ``OptionMaker``; ``ratio`` plays no part."""
        random, dropped = Random(seed), Counter[str]()
        rows = []
        for task, pool in sort_by_task(found).items():
            if task not in PAPER_WORDINGS:
                dropped[f"{task}: not in the paper"] += len(pool)
                continue
            random.shuffle(pool)
            used, choices = Counter[str](), []
            for candidate in pool:
                if used[candidate.clip] >= per_clip:
                    dropped[f"{task}: {per_clip} a clip"] += 1
                elif (choice := _choice(candidate, random)) is None:
                    dropped[f"{task}: options read the same"] += 1
                else:
                    used[candidate.clip] += 1
                    choices.append(choice)
            for fold in (0, 1):
                wordings = {task: (PAPER_WORDINGS[task],)}
                rows += [(question, fold) for question in write(choices[fold::2], random, wordings)]
        return collect(rows, dropped)


def _choice(candidate: Candidate, random: Random) -> Choice | None:
    if candidate.value is None:
        labels = LABELS[candidate.task]
        texts = tuple(PAPER_LABELS.get(label, label) for label in labels)
        return Choice(candidate, texts, labels.index(candidate.label or ""))
    for _ in range(DRAWS):
        texts = tuple(f"{value:.2f} m" for value in paper_options(candidate.value, random))
        if len(set(texts)) == len(texts):
            return Choice(candidate, texts, 0)
    return None
