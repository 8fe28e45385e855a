"""What makes questions of candidates, and how numeric options are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

from mllm4d.qa.generate import Candidate
from mllm4d.schema import Question

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Balanced:
    """The questions of one split.

    Attributes:
        questions: Sorted by clip and task.
        folds: 0 or 1 for each question; both folds are balanced where the whole is.
        dropped: How many candidates were left out, and why.
        bins: Task to the number of questions with each right label, or in each half octave of the right distance.
    """

    questions: tuple[Question, ...]
    folds: tuple[int, ...]
    dropped: Counter[str]
    bins: Mapping[str, Mapping[str, int]]


class OptionMaker(ABC):
    """Makes questions of candidates. Subclass it in any file and name the class in YAML by ``class_path``."""

    @abstractmethod
    def __call__(self, found: Iterable[Candidate], per_clip: int, ratio: float, seed: int) -> Balanced:
        """Make the questions of one split.

        Args:
            found: Candidates of all clips of the split.
            per_clip: At most so many questions of one task about one clip.
            ratio: Ratio of neighbouring numeric options that the answers are known to be clear of (``Margins.ladder``).
            seed: Decides everything that is drawn; the order of ``found`` does not matter.

        Returns:
            The questions; a question's id is ``CLIP/NNN``.
        """


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
    63.9 %, one that takes the option nearest to the options' mean 50.0 %, against a chance of 25 %.

    Args:
        value: The truth, metres.
        random: Source of the draw.
        count: Number of options.

    Returns:
        Options, metres; the truth stands first.
    """
    return [value, *(value * random.uniform(0.25, 1.75) for _ in range(count - 1))]
