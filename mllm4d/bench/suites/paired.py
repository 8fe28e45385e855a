"""Two runs on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm4d.bench.suites.intervals import bootstrap_p, cluster_bootstrap, mcnemar
from mllm4d.bench.suites.records import Scored


def paired(both: Sequence[tuple[Scored, Scored]]) -> dict[str, Any]:
    """The exact McNemar test and the bootstrap over videos of the difference in accuracy.

    Args:
        both: The two runs' answers to the same question, for every question that both answered.

    Returns:
        ``n``; ``accuracy_a``, ``accuracy_b``, ``difference`` (b - a) with ``ci_low``, ``ci_high`` at 95 %;
        ``better_a``, ``better_b``: questions that one run scores higher on; ``p_mcnemar``: two-sided, exact, questions
        taken as independent; ``p_bootstrap``: two-sided, videos as clusters. Without common questions only ``n``, 0.
    """
    if not both:
        return {"n": 0}
    first, second = [a.score for a, _ in both], [b.score for _, b in both]
    gains = [b - a for a, b in zip(first, second, strict=True)]
    better_a, better_b = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    videos = [a.question.video for a, _ in both]
    low, high = cluster_bootstrap(gains, videos)
    return {
        "n": len(both),
        "accuracy_a": round(sum(first) / len(both), 6),
        "accuracy_b": round(sum(second) / len(both), 6),
        "difference": round((sum(second) - sum(first)) / len(both), 6),
        "ci_low": round(low, 6),
        "ci_high": round(high, 6),
        "better_a": better_a,
        "better_b": better_b,
        "p_mcnemar": mcnemar(better_a, better_b),
        "p_bootstrap": bootstrap_p(gains, videos),
    }
