"""Solvers that never see the video. What they score above chance is what a data set gives away."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from mllm4d.schema import Question

Solver = Callable[[Question], str | None]
"""From a question to a letter, or None where the solver has nothing to say about such a question."""


def numeric_options(question: Question) -> dict[str, float] | None:
    """The options as metres, or None for a question in words."""
    return None if question.unit is None else {k: float(text.split()[0]) for k, text in question.options.items()}


def median_option(fit: Sequence[Question]) -> Solver:
    """Pick the lower median of the numeric options; needs no fitting."""

    def solve(question: Question) -> str | None:
        values = numeric_options(question)
        return values and sorted(values, key=values.__getitem__)[(len(values) - 1) // 2]

    return solve


def smallest_plausible(fit: Sequence[Question]) -> Solver:
    """Pick the smallest option that keeps most others within 25 %-175 % of it (the range of the paper's scheme)."""

    def solve(question: Question) -> str | None:
        values = numeric_options(question)
        if values is None:
            return None
        inside = {k: sum(0.25 * v <= other <= 1.75 * v for other in values.values()) for k, v in values.items()}
        return min(values, key=lambda k: (-inside[k], values[k]))

    return solve


def most_frequent_letter(fit: Sequence[Question]) -> Solver:
    """Pick the letter that is most often right in the task."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in fit:
        counts[question.task][question.answer] += 1
    return lambda question: max(question.options, key=lambda letter: (counts[question.task][letter], letter))


def option_prior(fit: Sequence[Question]) -> Solver:
    """Pick the option that, where it was offered, was most often right: by its text, or for numbers by its size."""
    offered, right = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for question in fit:
        for letter in question.options:
            offered[_bucket(question, letter)] += 1
        right[_bucket(question, question.answer)] += 1

    def solve(question: Question) -> str:
        def rate(letter: str) -> float:
            bucket = _bucket(question, letter)
            # One imagined question at chance keeps rare buckets from winning.
            return (right[bucket] + 1 / len(question.options)) / (offered[bucket] + 1)

        return max(question.options, key=rate)

    return solve


def time_gap(fit: Sequence[Question]) -> Solver:
    """Guess a distance as usual for the time between the anchors, and pick the option nearest to it."""
    known: dict[tuple[str, int], list[float]] = defaultdict(list)
    for question in fit:
        if isinstance(question.answer_value, float):
            known[question.task, question.anchors[1] - question.anchors[0]].append(math.log(question.answer_value))

    def solve(question: Question) -> str | None:
        values = numeric_options(question)
        guesses = known.get((question.task, question.anchors[1] - question.anchors[0]))
        if values is None or not guesses:
            return None
        guess = sorted(guesses)[len(guesses) // 2]
        return min(values, key=lambda letter: abs(math.log(values[letter]) - guess))

    return solve


def _bucket(question: Question, letter: str) -> tuple[str, str]:
    values = numeric_options(question)
    return question.task, question.options[letter] if values is None else f"{round(4 * math.log2(values[letter]))}"


SOLVERS = (median_option, smallest_plausible, most_frequent_letter, option_prior, time_gap)


def score_blind(fit: Sequence[Question], questions: Sequence[Question]) -> dict[str, dict[str, float | int]]:
    """What every blind solver scores, task by task.

    Args:
        fit: Questions that solvers may learn from (the training split).
        questions: Questions to answer.

    Returns:
        Task to ``{"n": count, "chance": …, solver: accuracy, …}``, rounded to 4 decimals; a solver that has nothing to
        say about a task is left out.
    """
    table: dict[str, dict[str, float | int]] = {}
    solvers = {build.__name__: build(fit) for build in SOLVERS}
    for task in dict.fromkeys(question.task for question in questions):
        group = [question for question in questions if question.task == task]
        table[task] = {"n": len(group), "chance": round(sum(1 / len(q.options) for q in group) / len(group), 4)}
        for name, solve in solvers.items():
            answers = [(solve(question), question.answer) for question in group]
            if any(given is not None for given, _ in answers):
                table[task][name] = round(sum(given == right for given, right in answers) / len(group), 4)
    return table
