"""Error bars and tests for scores. Questions about one video are one cluster: they are not independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

LEVEL = 0.95

DRAWS = 10_000
"""Bootstrap draws."""

FEW_CLUSTERS = 20
"""With fewer clusters a bootstrap over them says little."""


class Interval(NamedTuple):
    """A confidence interval and how it was found."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same questions.

    Attributes:
        n: Questions.
        score_a: Mean score of the first run.
        score_b: Mean score of the second.
        difference: ``score_b - score_a``.
        ci_low: Of the difference, bootstrap over clusters.
        ci_high: Likewise.
        better_a: Questions on which the first run scores higher.
        better_b: Questions on which the second does.
        p_mcnemar: Two-sided, exact; takes questions as independent.
        p_bootstrap: Two-sided, clusters drawn as wholes.
    """

    n: int
    score_a: float
    score_b: float
    difference: float
    ci_low: float
    ci_high: float
    better_a: int
    better_b: int
    p_mcnemar: float
    p_bootstrap: float


def wilson(correct: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, JASA 22, 1927, 209-212); it takes questions as independent.

    Args:
        correct: Sum of the scores, 0 to ``n``.
        n: Questions.
        level: Coverage.

    Returns:
        Low and high, within 0-1; all of it where there is no question.

    Raises:
        ValueError: ``correct`` is not within 0 to ``n``.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} questions cannot be right")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, scale = correct / n, 1 + z * z / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself, which rounding would miss.
    low = 0.0 if correct == 0 else max(0.0, (center - half) / scale)
    return low, 1.0 if correct == n else min(1.0, (center + half) / scale)


def cluster_bootstrap(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, level: float = LEVEL, draws: int = DRAWS
) -> tuple[float, float]:
    """Percentile interval of a mean, whole clusters drawn with replacement (Davison and Hinkley 1997, section 3.8).

    Args:
        values: One a question.
        clusters: The video of each.
        seed: Of the draws.
        level: Coverage.
        draws: How many.

    Returns:
        Low and high.

    Raises:
        ValueError: There is no value, or the lengths differ.
    """
    import numpy as np

    means = _bootstrap_means(values, clusters, seed, draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(values: Sequence[float], clusters: Sequence[str], seed: int = 0, draws: int = DRAWS) -> float:
    """Two-sided p of a mean being 0, whole clusters drawn: twice the smaller share of draws that are not beyond 0.

    Args:
        values: For example the differences of two runs, one a question.
        clusters: The video of each.
        seed: Of the draws.
        draws: How many; p is never below ``2 / (draws + 1)``.
    """
    means = _bootstrap_means(values, clusters, seed, draws)
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (1 + beyond) / (1 + draws))


def interval(
    values: Sequence[float], clusters: Sequence[str], level: float = LEVEL, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Confidence interval of a mean score of 0-1.

    A bootstrap over clusters; with few clusters, or where all scores are the same, that is too narrow, and Wilson's
    interval, which takes questions as independent, is too narrow where they are not: then the wider bound of either.

    Args:
        values: Scores, 0-1, one a question.
        clusters: The video of each.
        level: Coverage.
        seed: Of the draws.
        draws: How many.
    """
    if not values:
        return Interval(0.0, 1.0, "none: no answers")
    low, high = cluster_bootstrap(values, clusters, seed, level, draws)
    if len(set(clusters)) >= FEW_CLUSTERS and len(set(values)) > 1:
        return Interval(low, high, "bootstrap over videos")
    wilson_low, wilson_high = wilson(math.fsum(values), len(values), level)
    return Interval(min(low, wilson_low), max(high, wilson_high), "wider of bootstrap over videos and Wilson")


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: a fair coin for every question that just one run has right (McNemar 1947).

    Args:
        only_a: Questions that only the first run has right.
        only_b: Questions that only the second has right.
    """
    n = only_a + only_b
    ways, tail = 1, 0  # n over k, and their sum
    for k in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def compare(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Comparison:
    """Two runs on the same questions, matched by place.

    Args:
        first: Scores of one run.
        second: Scores of the other, of the same questions in the same order.
        clusters: The video of each question.
        seed: Of the draws.
        level: Coverage of the difference's interval.
        draws: How many.

    Raises:
        ValueError: There is no question, or the lengths differ.
    """
    gains = [b - a for a, b in zip(first, second, strict=True)]
    low, high = cluster_bootstrap(gains, clusters, seed, level, draws)
    better_a, better_b = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    n = len(gains)
    return Comparison(
        n=n,
        score_a=math.fsum(first) / n,
        score_b=math.fsum(second) / n,
        difference=math.fsum(gains) / n,
        ci_low=low,
        ci_high=high,
        better_a=better_a,
        better_b=better_b,
        p_mcnemar=mcnemar(better_a, better_b),
        p_bootstrap=bootstrap_p(gains, clusters, seed, draws),
    )


def design_effect(values: Sequence[float], clusters: Sequence[str]) -> float:
    """How many times the variance of a mean is what it would be were the questions independent (Kish 1965).

    The cluster-robust variance ``G / (G - 1) * sum_g (sum_(i in g) (x_i - mean))^2 / n^2`` over ``s^2 / n``. With m
    questions a video of correlation rho it is about ``1 + (m - 1) rho``; ``n`` questions are worth ``n / effect``.

    Args:
        values: Scores, one a question.
        clusters: The video of each.

    Raises:
        ValueError: There are not two clusters, or all scores are the same: then it cannot be told.
    """
    sums, counts = _cluster_sums(values, clusters)
    n, groups = len(values), len(sums)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    if groups < 2 or spread == 0:
        raise ValueError(f"no design effect of {n} scores in {groups} clusters: needs two clusters and unequal scores")
    robust = groups / (groups - 1) * float(((sums - mean * counts) ** 2).sum()) / n**2
    return robust / (spread / n)


def _cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> tuple[Any, Any]:
    """[G] sum and [G] count of each cluster, in the order of their names."""
    import numpy as np

    if not len(values) or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values for {len(clusters)} clusters; expected as many, at least one")
    index = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)[1]
    return np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index)


def _bootstrap_means(values: Sequence[float], clusters: Sequence[str], seed: int, draws: int) -> Any:
    """[draws] means of clusters drawn with replacement."""
    import numpy as np

    sums, counts = _cluster_sums(values, clusters)
    generator, groups = np.random.default_rng(seed), len(sums)
    means = []
    for start in range(0, draws, 500):
        drawn = generator.integers(0, groups, (min(500, draws - start), groups))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)
