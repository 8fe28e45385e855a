"""Two runs on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm4d.bench.power import questions_needed
from mllm4d.bench.statistics import Comparison, compare, design_effect
from mllm4d.bench.suites.records import Scored


def paired(both: Sequence[tuple[Scored, Scored]]) -> dict[str, Any]:
    """The exact McNemar test and the bootstrap over videos of the difference in accuracy.

    Args:
        both: The two runs' answers to the same question, for every question that both answered.

    Returns:
        ``n``; ``accuracy_a``, ``accuracy_b``, ``difference`` (b - a) with ``ci_low``, ``ci_high`` at 95 %;
        ``better_a``, ``better_b``: questions that one run scores higher on; ``p_mcnemar``: two-sided, exact, questions
        taken as independent; ``p_bootstrap``: two-sided, videos as clusters; ``questions_needed``: how many questions
        about as many videos each would show a difference of this size in four of five benchmarks, or None where there
        is none, or it cannot be told. Without common questions only ``n``, 0.
    """
    if not both:
        return {"n": 0}
    first, second = [a.score for a, _ in both], [b.score for _, b in both]
    videos = [a.question.video for a, _ in both]
    found = compare(first, second, videos)
    return {
        "n": found.n,
        "accuracy_a": round(found.score_a, 6),
        "accuracy_b": round(found.score_b, 6),
        "difference": round(found.difference, 6),
        "ci_low": round(found.ci_low, 6),
        "ci_high": round(found.ci_high, 6),
        "better_a": found.better_a,
        "better_b": found.better_b,
        "p_mcnemar": found.p_mcnemar,
        "p_bootstrap": found.p_bootstrap,
        "questions_needed": _needed(found, first, second, videos),
    }


def _needed(found: Comparison, first: Sequence[float], second: Sequence[float], videos: Sequence[str]) -> int | None:
    # The formula is about questions that are right or wrong.
    if found.difference == 0 or {*first, *second} - {0.0, 1.0}:
        return None
    try:
        effect = design_effect([b - a for a, b in zip(first, second, strict=True)], videos)
    except ValueError:
        return None
    share = (found.better_a + found.better_b) / found.n
    # Where videos disagree less than chance would have it, questions are still no more than independent.
    return questions_needed(found.score_a, found.score_b, discordant=share, effect=max(1.0, effect))
