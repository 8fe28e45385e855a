"""Baselines that never see the video, for any benchmark. What they score above chance, the benchmark gives away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mllm4d.bench.guesses import Guess, Say, guesses
from mllm4d.bench.statistics import DRAWS, LEVEL, interval
from mllm4d.bench.suites.numbers import mean_relative_accuracy
from mllm4d.bench.suites.records import CHOICE, EXACT, RELATIVE, BenchQuestion

ALL = "all"
"""The row of all questions together."""

CHANCE = "chance"

QUICK_DRAWS = 2_000
"""Bootstrap draws of intervals that are shown; those that warn are drawn finer."""


@dataclass(frozen=True)
class BlindScore:
    """What one blind solver scores on one task.

    Attributes:
        n: Questions that it has something to say about.
        chance: Mean chance of those; None where numbers are asked for.
        accuracy: Mean score, 0-1.
        ci_low: Of the accuracy, clustered by video.
        ci_high: Likewise.
        leaks: Whether it scores above chance beyond luck, all cells of the table taken together.
    """

    n: int
    chance: float | None
    accuracy: float
    ci_low: float
    ci_high: float
    leaks: bool = False


def blind_table(
    questions: Sequence[BenchQuestion],
    folds: Sequence[int] | None = None,
    fit: Sequence[BenchQuestion] = (),
    say: Say | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, dict[str, BlindScore]]:
    """What blind solvers score, task by task and on all questions (``ALL``), beside chance.

    A cell leaks where its interval lies above chance. With many cells some would do so by luck: the intervals that warn
    have the level at which all of them together hold (Bonferroni).

    Args:
        questions: Of one benchmark; those that are not scored are passed over.
        folds: As in ``guesses``.
        fit: Likewise.
        say: Likewise.
        level: Coverage of the intervals.
        seed: Of the bootstrap.

    Returns:
        Task to solver to score; solvers that have nothing to say about a task are left out.
    """
    answers = guesses(questions, folds, fit, say)
    rows: dict[str, list[int]] = defaultdict(list)
    for k, question in enumerate(questions):
        if question.scoring in (CHOICE, RELATIVE, EXACT):
            rows[question.task].append(k)
    rows[ALL] = [k for task in list(rows) for k in rows[task]]
    table: dict[str, dict[str, BlindScore]] = {}
    cells: list[tuple[str, str, list[float], list[str]]] = []
    for task, members in rows.items():
        choices = [questions[k] for k in members if questions[k].scoring == CHOICE]
        table[task] = {}
        if choices:
            share = _mean([_chance(q) for q in choices])
            table[task][CHANCE] = BlindScore(len(choices), share, share, share, share)
        for name, given in answers.items():
            told = [k for k in members if given[k] is not None]
            if told:
                scores, videos = [_score(questions[k], given[k]) for k in told], [questions[k].video for k in told]
                low, high, _ = interval(scores, videos, level, seed, QUICK_DRAWS)
                only = [_chance(questions[k]) for k in told if questions[k].scoring == CHOICE]
                chance = _mean(only) if len(only) == len(told) else None
                table[task][name] = BlindScore(len(told), chance, _mean(scores), low, high)
                cells.append((task, name, scores, videos))
    for task, name, scores, videos in cells:
        cell = table[task][name]
        if cell.chance is not None and cell.ci_low > cell.chance:
            low = interval(scores, videos, 1 - (1 - level) / len(cells), seed, DRAWS).low
            table[task][name] = replace(cell, leaks=low > cell.chance)
    return table


def leak_warnings(table: Mapping[str, Mapping[str, BlindScore]]) -> tuple[str, ...]:
    """One sentence for every cell that leaks, worst first."""
    leaks = [(task, name, cell) for task, row in table.items() for name, cell in row.items() if cell.leaks]
    leaks.sort(key=lambda leak: (leak[2].chance or 0.0) - leak[2].accuracy)
    return tuple(
        f"{task}: {name} never sees the video and scores {100 * cell.accuracy:.1f} % of {cell.n} "
        f"({100 * cell.ci_low:.1f}-{100 * cell.ci_high:.1f} %), chance is {100 * (cell.chance or 0.0):.1f} %"
        for task, name, cell in leaks
    )


def blind_summary(table: Mapping[str, Mapping[str, BlindScore]]) -> dict[str, Any]:
    """A table as plain JSON values, to stand beside a score.

    Returns:
        ``blind``: task to solver to ``BlindScore``, rounded to 6 decimals; ``warnings``: ``leak_warnings``.
    """
    cells = {task: {name: _plain(cell) for name, cell in row.items()} for task, row in table.items()}
    return {"blind": cells, "warnings": list(leak_warnings(table))}


def _plain(cell: BlindScore) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(cell).items()}


def _score(question: BenchQuestion, guess: Guess) -> float:
    if question.scoring == CHOICE:
        return float(guess in question.right)
    if not isinstance(guess, (int, float)) or question.value is None:
        return 0.0
    return (
        float(guess == question.value) if question.scoring == EXACT else mean_relative_accuracy(guess, question.value)
    )


def _chance(question: BenchQuestion) -> float:
    return len(question.right) / len(question.options)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
