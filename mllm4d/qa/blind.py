"""Solvers that never see the video. What they score above chance is what a data set gives away."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from mllm4d.prompts import read_distance
from mllm4d.schema import Question

SHRINKAGE = 10
"""Questions at chance that the option prior imagines beside those it has seen of a text or size."""

Solver = Callable[[Question], str | None]
"""From a question to a letter, or None where the solver has nothing to say about such a question."""


def numeric_options(question: Question) -> dict[str, float] | None:
    """The options as metres, or None for a question in words."""
    return None if question.unit is None else {k: read_distance(text) for k, text in question.options.items()}


def median_option(fit: Sequence[Question]) -> Solver:
    """Pick the lower median of the numeric options; needs no fitting."""

    def solve(question: Question) -> str | None:
        values = numeric_options(question)
        return sorted(values, key=values.__getitem__)[(len(values) - 1) // 2] if values else None

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
        def rate(letter: str) -> tuple[float, str]:
            bucket = _bucket(question, letter)
            # Imagined questions at chance keep rare buckets from winning by luck. A tie is broken by the option's text,
            # not its letter: the same options then give the same answer, which a balanced group has right once.
            share = (right[bucket] + SHRINKAGE / len(question.options)) / (offered[bucket] + SHRINKAGE)
            return share, question.options[letter]

        return max(question.options, key=rate)

    return solve


def time_gap(fit: Sequence[Question]) -> Solver:
    """Guess what is usual for the time between the anchors: the median distance, or the most frequent word."""
    distances: dict[tuple[str, int], list[float]] = defaultdict(list)
    words: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for question in fit:
        if isinstance(question.answer_value, str):
            words[_gap(question)][question.answer_value] += 1
        else:
            distances[_gap(question)].append(math.log(question.answer_value))

    def solve(question: Question) -> str | None:
        values = numeric_options(question)
        if values is None:
            usual = words.get(_gap(question), Counter())
            texts = question.options
            return max(texts, key=lambda letter: (usual[texts[letter]], texts[letter])) if usual else None
        guesses = sorted(distances.get(_gap(question), ()))
        if not guesses:
            return None
        return min(values, key=lambda letter: abs(math.log(values[letter]) - guesses[len(guesses) // 2]))

    return solve


def wording_prior(fit: Sequence[Question]) -> Solver:
    """Guess from the words of the question, names and times among them, by naive Bayes over the sizes and texts."""
    prior = Counter[tuple[str, str]](_bucket(question, question.answer) for question in fit)
    totals = Counter[str](question.task for question in fit)
    common, given = Counter[tuple[str, str]](), Counter[tuple[str, str, str]]()
    for question in fit:
        for word in _words(question):
            common[question.task, word] += 1
            given[(*_bucket(question, question.answer), word)] += 1

    def solve(question: Question) -> str:
        def evidence(letter: str) -> tuple[float, str]:
            bucket = _bucket(question, letter)
            score = 0.0
            for word in _words(question):
                if usual := common[question.task, word] / max(1, totals[question.task]):
                    rate = (given[(*bucket, word)] + SHRINKAGE * usual) / (prior[bucket] + SHRINKAGE)
                    score += math.log(rate / usual)
            return score, question.options[letter]

        return max(question.options, key=evidence)

    return solve


def _words(question: Question) -> list[str]:
    # In one order: a set's differs from process to process, and with it the last digit of a sum, which decides ties.
    return sorted(set(re.findall(r"\w+(?:\.\d+)?", question.question.lower())))


def _gap(question: Question) -> tuple[str, int]:
    return question.task, question.anchors[1] - question.anchors[0]


def _bucket(question: Question, letter: str) -> tuple[str, str]:
    values = numeric_options(question)
    return question.task, question.options[letter] if values is None else f"{round(4 * math.log2(values[letter]))}"


SOLVERS = (median_option, smallest_plausible, most_frequent_letter, option_prior, time_gap, wording_prior)


def score_blind(questions: Sequence[Question], folds: Sequence[int]) -> dict[str, dict[str, float | int]]:
    """What every blind solver scores, task by task, on questions that it was not fitted on.

    Args:
        questions: Questions to answer.
        folds: A number for each question; a fold is answered by solvers fitted on all others. Folds should each be
            balanced: within one balanced whole, what is rare in one part is frequent in the rest, and a prior would
            score below chance for no good reason.

    Returns:
        Task to ``{"n": count, "chance": …, solver: accuracy, …}``, rounded to 4 decimals; a solver that has nothing to
        say about a task is left out.
    """
    given: dict[str, list[str | None]] = {}
    for build in SOLVERS:
        solvers = {f: build([q for q, k in zip(questions, folds, strict=True) if k != f]) for f in set(folds)}
        given[build.__name__] = [solvers[f](q) for q, f in zip(questions, folds, strict=True)]
    table: dict[str, dict[str, float | int]] = {}
    for task in dict.fromkeys(question.task for question in questions):
        rows = [k for k, question in enumerate(questions) if question.task == task]
        chance = sum(1 / len(questions[k].options) for k in rows) / len(rows)
        table[task] = {"n": len(rows), "chance": round(chance, 4)}
        for name, answers in given.items():
            if any(answers[k] is not None for k in rows):
                right = sum(answers[k] == questions[k].answer for k in rows)
                table[task][name] = round(right / len(rows), 4)
    return table
