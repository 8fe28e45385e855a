"""The figures of a run by our rules, with error bars."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mllm4d.bench.statistics import interval
from mllm4d.bench.suites.records import BenchQuestion, Scored


def summarize(scored: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy over all questions, with its interval, and by task.

    Args:
        scored: Answers, each question once.

    Returns:
        ``n``; ``correct``, the sum of the scores (a whole number where options are asked for); ``accuracy``, its
        mean; ``invalid``, how many answers could not be read (they have score 0), and ``invalid_rate``; ``ci_low``,
        ``ci_high`` of the accuracy at 95 %, and ``ci_method``, how they were found; ``videos``; ``groups``, a count
        for each task (every question is in one), and ``slices``, one for each other name (which may overlap).
    """
    tasks, slices = defaultdict(list), defaultdict(list)
    for answer in scored:
        tasks[answer.question.task].append(answer)
        for name in answer.question.slices:
            slices[name].append(answer)
    # Questions about one video are one cluster.
    low, high, method = interval([answer.score for answer in scored], [answer.question.video for answer in scored])
    return {
        **count(scored),
        "invalid_rate": round(sum(answer.invalid for answer in scored) / max(1, len(scored)), 6),
        "ci_low": round(low, 6),
        "ci_high": round(high, 6),
        "ci_method": method,
        "videos": len({answer.question.video for answer in scored}),
        "groups": {name: count(answers) for name, answers in tasks.items()},
        "slices": {name: count(answers) for name, answers in slices.items()},
    }


def count(scored: Sequence[Scored]) -> dict[str, Any]:
    """``n``, ``correct``, ``accuracy`` and ``invalid`` of some answers."""
    correct = sum(answer.score for answer in scored)
    return {
        "n": len(scored),
        "correct": int(correct) if correct == int(correct) else round(correct, 6),
        "accuracy": round(correct / max(1, len(scored)), 6),
        "invalid": sum(answer.invalid for answer in scored),
    }


def mean_by(scored: Sequence[Scored], name: Callable[[BenchQuestion], str]) -> dict[str, float]:
    """Mean official score by a name of the questions, rounded to 6 decimals; answers that it leaves out do not count.

    Args:
        scored: Answers.
        name: From a question to its name.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for answer in scored:
        if answer.official is not None:
            found[name(answer.question)].append(answer.official)
    return {key: round(sum(values) / len(values), 6) for key, values in found.items()}


def average(parts: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Mean of named figures; None where one of them is not there."""
    if any(name not in parts for name in names):
        return None
    return round(sum(parts[name] for name in names) / len(names), 6)
