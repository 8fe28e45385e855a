"""Stand-in for mllm4d.bench.statistics: Wilson, bootstrap over clusters, exact McNemar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DRAWS = 10_000
LEVEL = 0.95


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, JASA 1927)."""
    z = 1.959963984540054
    p, scale = correct / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def cluster_bootstrap(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of a mean, whole clusters drawn."""
    import numpy

    low, high = numpy.quantile(_means(values, clusters, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_p(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> float:
    """Two-sided p of a mean being 0, whole clusters drawn: twice the smaller share of draws beyond 0."""
    means = _means(values, clusters, seed)
    return float(min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + len(means))))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: a fair coin for every question that just one run has right."""
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def _means(values: Sequence[float], clusters: Sequence[str], seed: int) -> Any:
    """[DRAWS] means over clusters drawn with replacement."""
    import numpy

    index = numpy.unique(numpy.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1]
    sums, counts = numpy.bincount(index, weights=values), numpy.bincount(index)
    generator = numpy.random.default_rng(seed)
    means = []
    for _ in range(DRAWS // 500):
        drawn = generator.integers(0, len(sums), (500, len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return numpy.concatenate(means)
