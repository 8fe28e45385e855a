"""How many questions a benchmark needs to show a difference, and what so many can show."""

from __future__ import annotations

import math
from statistics import NormalDist

from mllm4d.bench.statistics import LEVEL


def questions_needed(
    score_a: float,
    score_b: float,
    power: float = 0.8,
    level: float = LEVEL,
    discordant: float | None = None,
    effect: float = 1.0,
) -> int:
    """How many questions show that two accuracies differ, in a two-sided test.

    On different questions (``discordant`` None) for each run, two proportions (Fleiss, "Statistical Methods for Rates
    and Proportions", without continuity correction); on the same questions McNemar's test (Connor, Biometrics 43,
    1987), which needs fewer the oftener both runs are right or wrong together.

    Args:
        score_a: Accuracy of one run, 0-1.
        score_b: Of the other.
        power: Chance to find the difference.
        level: 1 minus the chance to find one where there is none.
        discordant: Share of the questions that just one of the runs has right, where both answer the same questions; at
            least ``|score_b - score_a|``. Runs that have nothing in common have ``a (1 - b) + b (1 - a)``.
        effect: Design effect of questions that share videos (``design_effect``).

    Raises:
        ValueError: A share is out of its range, or there is no difference.
    """
    a, b, difference = _check_shares(score_a, score_b, discordant, effect)
    if difference == 0:
        raise ValueError("no number of questions shows a difference of 0")
    needed = (_quantile((1 + level) / 2) * _null(a, b, discordant) + _quantile(power) * _true(a, b, discordant)) ** 2
    # A hair less, so that rounding errors do not cost a question.
    return math.ceil(effect * needed / difference**2 - 1e-9)


def power(
    n: int,
    score_a: float,
    score_b: float,
    level: float = LEVEL,
    discordant: float | None = None,
    effect: float = 1.0,
) -> float:
    """The chance that ``n`` questions show the difference of two accuracies; the inverse of ``questions_needed``.

    Args:
        n: Questions (for each run, where they answer different ones).
        score_a: As in ``questions_needed``.
        score_b: Likewise.
        level: Likewise.
        discordant: Likewise.
        effect: Likewise.

    Raises:
        ValueError: A share is out of its range.
    """
    a, b, difference = _check_shares(score_a, score_b, discordant, effect)
    z, scale = _quantile((1 + level) / 2), _true(a, b, discordant)
    reach = math.sqrt(n / effect) * difference - z * _null(a, b, discordant)
    if scale == 0:
        return float(reach >= 0)
    return NormalDist().cdf(reach / scale)


def _null(a: float, b: float, discordant: float | None) -> float:
    """Standard deviation of one question's difference where the runs do not differ."""
    middle = (a + b) / 2
    return math.sqrt(2 * middle * (1 - middle) if discordant is None else discordant)


def _true(a: float, b: float, discordant: float | None) -> float:
    """The same where they differ as said."""
    return math.sqrt(a * (1 - a) + b * (1 - b) if discordant is None else max(0.0, discordant - (a - b) ** 2))


def _check_shares(a: float, b: float, discordant: float | None, effect: float) -> tuple[float, float, float]:
    difference = abs(b - a)
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise ValueError(f"accuracies {a} and {b} are not both within 0-1")
    most = min(a + b, 2 - a - b)
    if discordant is not None and not difference - 1e-12 <= discordant <= most + 1e-12:
        raise ValueError(
            f"discordant is {discordant}; with accuracies {a} and {b} it is {difference:.4g} to {most:.4g}"
        )
    if effect <= 0:
        raise ValueError(f"effect is {effect}, expected more than 0")
    return a, b, difference


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
