"""Intervals and tests against scipy, by simulation, and where they have to agree with each other."""

import math
from random import Random

import numpy as np
import pytest
from scipy import stats

from mllm4d.bench.power import power, questions_needed
from mllm4d.bench.statistics import (
    bootstrap_p,
    cluster_bootstrap,
    compare,
    design_effect,
    interval,
    mcnemar,
    wilson,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 3), (7, 10), (250, 1000), (30, 30), (0, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(correct, n, level):
    expected = stats.binomtest(correct, n).proportion_ci(level, method="wilson")
    assert wilson(correct, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_its_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="6 of 5"):
        wilson(6, 5)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 9), (10, 10), (0, 40), (700, 800), (9000, 9200)])
def test_mcnemar_is_scipys_exact_binomial_test(a, b):
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def clustered(seed, videos=40, each=5):
    """Scores that all agree within three videos of four."""
    random = Random(seed)
    scores, names = [], []
    for video in range(videos):
        alike, first = random.random() < 0.75, float(random.random() < 0.5)
        scores += [first if alike else float(random.random() < 0.5) for _ in range(each)]
        names += [f"v{video}"] * each
    return scores, names


def test_the_cluster_bootstrap_is_scipys_over_video_sums():
    scores, names = clustered(0)
    sums, counts = np.reshape(scores, (40, 5)).sum(1), np.full(40, 5)
    expected = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=1,
    ).confidence_interval
    # Two bootstraps of 10,000 draws each.
    assert cluster_bootstrap(scores, names) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_trap_questions_about_one_video_are_one_cluster():
    """100 videos of 10 questions that are right or wrong together: as wide as 100 questions, not 1,000."""
    scores = [float(video % 2) for video in range(100) for _ in range(10)]
    names = [f"v{video}" for video in range(100) for _ in range(10)]
    low, high = cluster_bootstrap(scores, names)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 10, abs=0.015)
    low, high = cluster_bootstrap(scores, list(map(str, range(1000))))
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), abs=0.006)


def test_the_cluster_interval_covers_the_truth_where_that_of_single_questions_does_not():
    covered, naive = 0, 0
    for seed in range(200):
        scores, names = clustered(seed)
        low, high = cluster_bootstrap(scores, names, draws=500)
        covered += low <= 0.5 <= high
        low, high = wilson(sum(scores), len(scores))
        naive += low <= 0.5 <= high
    # 95 % promised; three sigma of 200 are 4.6 %.
    assert covered >= 0.9 * 200
    assert naive < 0.75 * 200


def test_the_order_of_questions_and_the_names_of_videos_do_not_matter_but_the_seed_does():
    scores, names = clustered(0)
    order = Random(1).sample(range(len(scores)), len(scores))
    first = cluster_bootstrap(scores, names)
    assert cluster_bootstrap([scores[k] for k in order], [names[k] for k in order]) == first
    assert cluster_bootstrap(scores, names) == first
    assert cluster_bootstrap(scores, names, seed=1) != first


def test_nothing_has_no_interval():
    for bad in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="values for"):
            cluster_bootstrap(*bad)
    assert interval([], [])[:2] == (0.0, 1.0)


def test_few_videos_and_no_spread_take_the_wider_of_both():
    assert interval([1.0] * 30, [str(k) for k in range(30)])[:2] == wilson(30, 30)
    few = interval([1.0, 0.0] * 5, ["a", "b"] * 5)
    assert few[:2] == (0.0, 1.0)
    assert few.method.startswith("wider")
    scores, names = clustered(0)
    assert interval(scores, names)[:2] == cluster_bootstrap(scores, names)


def test_two_runs_by_hand():
    first, second = [1.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0, 1.0]
    result = compare(first, second, ["a", "a", "b", "b", "c"])
    assert (result.n, result.score_a, result.score_b) == (5, 0.6, 0.8)
    assert result.difference == pytest.approx(0.2)
    assert (result.better_a, result.better_b) == (1, 2)
    assert result.p_mcnemar == pytest.approx(stats.binomtest(1, 3).pvalue)
    # Whole videos lose 0.5, gain 1 and gain 0: the mean of three a is the least, of three b the most.
    assert result.ci_low >= -0.5
    assert result.ci_high <= 1
    with pytest.raises(ValueError, match="zip"):
        compare([1.0], [1.0, 0.0], ["a"])


def test_pairing_sees_a_difference_that_two_intervals_hide():
    random = Random(0)
    first = [float(random.random() < 0.5) for _ in range(400)]
    # Better on twenty questions, worse on none.
    wrong = [k for k, score in enumerate(first) if not score][:20]
    second = [1.0 if k in wrong else score for k, score in enumerate(first)]
    videos = [str(k // 2) for k in range(400)]
    result = compare(first, second, videos)
    assert result.p_mcnemar < 1e-4
    assert result.p_bootstrap < 0.001
    assert result.ci_low > 0
    assert cluster_bootstrap(first, videos)[1] > cluster_bootstrap(second, videos)[0]


def test_p_of_the_bootstrap_is_uniform_where_nothing_differs():
    found = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        gains = np.repeat(generator.choice([-1.0, 0.0, 1.0], 50), 4)
        found.append(bootstrap_p(gains.tolist(), [str(k // 4) for k in range(200)], draws=400))
    # 10 of 200 expected below 0.05; 22 lie beyond three sigma.
    assert 1 <= sum(p < 0.05 for p in found) <= 22
    assert bootstrap_p([0.0] * 5, list("abcde")) == 1


def test_design_effect_of_questions_that_go_together():
    scores = [float(video % 2) for video in range(100) for _ in range(10)]
    names = [f"v{video}" for video in range(100) for _ in range(10)]
    # Ten equal answers are worth one: 10, but for the corrections of 100 / 99 and 999 / 1000.
    assert design_effect(scores, names) == pytest.approx(10 * 100 / 99 * 999 / 1000, rel=1e-9)
    assert design_effect(scores, list(map(str, range(1000)))) == pytest.approx(1, rel=2e-3)
    with pytest.raises(ValueError, match="no design effect"):
        design_effect([1.0, 1.0], ["a", "b"])


def test_questions_needed_by_the_book():
    # Fleiss, table of two proportions without continuity correction: 0.5 against 0.6, 5 %, power 80 %.
    assert questions_needed(0.5, 0.6) == 388
    # Connor's formula by hand: (1.95996 sqrt(0.3) + 0.84162 sqrt(0.3 - 0.01))^2 / 0.01 = 232.96...
    by_hand = (1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.29)) ** 2 / 0.01
    assert questions_needed(0.5, 0.6, discordant=0.3) == math.ceil(by_hand)
    assert questions_needed(0.5, 0.6, effect=3) == math.ceil(3 * 387.34)
    assert questions_needed(0.6, 0.5) == 388


def test_power_is_the_inverse_of_questions_needed():
    for options in ({}, {"discordant": 0.25}, {"effect": 2.0}, {"discordant": 0.1, "effect": 4.0}):
        n = questions_needed(0.62, 0.7, power=0.9, **options)
        assert power(n, 0.62, 0.7, **options) >= 0.9
        assert power(n - math.ceil(options.get("effect", 1)), 0.62, 0.7, **options) < 0.9


def test_power_of_paired_runs_by_simulation():
    n = questions_needed(0.5, 0.6, discordant=0.3)
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(n, [0.1, 0.2, 0.7], 4000)
    # The test that the formula is about: (b - a)^2 / (a + b) against 1.96^2.
    found = (drawn[:, 1] - drawn[:, 0]) ** 2 > stats.chi2.ppf(0.95, 1) * drawn[:, :2].sum(1)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_what_no_number_of_questions_can_show():
    with pytest.raises(ValueError, match="difference of 0"):
        questions_needed(0.5, 0.5)
    with pytest.raises(ValueError, match="within 0-1"):
        questions_needed(0.5, 1.5)
    with pytest.raises(ValueError, match=r"discordant is 0.05; with accuracies 0.5 and 0.6 it is 0.1 to 0.9"):
        power(100, 0.5, 0.6, discordant=0.05)
    with pytest.raises(ValueError, match="effect is 0"):
        power(100, 0.5, 0.6, effect=0)
