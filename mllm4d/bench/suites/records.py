"""The records of a benchmark: what is asked, what is shown, and how an answer was scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHOICE = "choice"
"""One of the options; 1 or 0."""

RELATIVE = "mean_relative_accuracy"
"""A number; the share of the thresholds that its relative error keeps."""

EXACT = "exact_number"
"""A whole number; 1 or 0."""

UNSCORED = "unscored"
"""Asked because later turns of a dialogue build on it, never counted."""


@dataclass(frozen=True)
class BenchQuestion:
    """One question of a benchmark.

    Attributes:
        id: Unique in the suite, also across its splits.
        video: What it is about, as the release names it: a video file, or a scene for ``images``. The questions about
            one video are one cluster.
        question: The wording, without options and instructions.
        options: Key to text, in the order in which they are shown; empty where a number is asked for.
        right: Keys of the right options; several where options share the right text.
        value: The true number where one is asked for, in the benchmark's unit; else None.
        scoring: ``CHOICE``, ``RELATIVE``, ``EXACT`` or ``UNSCORED``.
        task: The group that it is counted in; every question has one.
        slices: Other names that it is counted under; these may overlap.
        variants: Name shared by the questions that are one question in several variants (mirrored, reversed, …).
        span: Seconds (from, to) of the video that it is about; None for all of it.
        images: Images that are new in this turn of a dialogue, in place of a video.
        dialogue: Name shared by the turns of a dialogue, which are asked in the order of ``turn``; else None.
        turn: Position in the dialogue, from 0.
        entry: The released entry; with a ``response`` added it is a line of an answer file.
    """

    id: str
    video: str
    question: str
    options: Mapping[str, str]
    right: frozenset[str]
    value: float | None
    scoring: str
    task: str
    slices: tuple[str, ...] = ()
    variants: str | None = None
    span: tuple[float, float] | None = None
    images: tuple[str, ...] = ()
    dialogue: str | None = None
    turn: int = 0
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Media:
    """What the model is shown with a question.

    Attributes:
        video: A file, or the bytes of one; None where there are images.
        images: Image files in order.
        span: Seconds (from, to) of the video that count; None for all of it.
    """

    video: Path | bytes | None = None
    images: tuple[Path, ...] = ()
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scored:
    """One answer and what it is worth.

    Attributes:
        question: The question.
        text: What the model said, as it said it.
        read: The option's key or the number that was read from it; None where it is invalid.
        score: Ours, 0-1; an invalid answer has 0.
        official: By the benchmark's own rule, 0-1; None where that leaves the answer out or needs a judge model.
    """

    question: BenchQuestion
    text: str
    read: str | float | None
    score: float
    official: float | None

    @property
    def invalid(self) -> bool:
        """Whether no answer could be read."""
        return self.read is None


@dataclass(frozen=True)
class Answers:
    """A finished answer file.

    Attributes:
        questions: What was asked, each question once.
        texts: What the model said, in the same order.
        repeated: Rows left out because they were there before, word for word.
        unusable: Rows left out because their truth cannot be told, each as file, entry and reason.
        missing: Questions of the release that the file has no answer to; 0 where the release was not given.
    """

    questions: tuple[BenchQuestion, ...]
    texts: tuple[str, ...]
    repeated: int
    unusable: tuple[str, ...]
    missing: int
