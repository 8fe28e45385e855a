"""Every two runs of a suite on the questions that both answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations

from mllm4d.bench.report.charts import difference
from mllm4d.bench.report.page import Cell, dot, number, percent, span, table
from mllm4d.bench.report.records import SAMPLES, Run
from mllm4d.bench.statistics import Comparison, compare
from mllm4d.schema import InputError

SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""What the ends of the picture's scale may stand for."""


@dataclass(frozen=True)
class Pair:
    """Two runs.

    Attributes:
        a: The first.
        b: The second.
        found: Of the questions that both answered; None where there is none.
        only_a: Questions that the first alone answered.
        only_b: Questions that the second alone answered.
    """

    a: Run
    b: Run
    found: Comparison | None
    only_a: int
    only_b: int


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Compare every two runs, question by question, matched by id.

    Args:
        runs: Of one suite.

    Raises:
        InputError: Two runs ask different things under one id.
    """
    return [_pair(a, b) for a, b in combinations(runs, 2)]


def _pair(a: Run, b: Run) -> Pair:
    second = {sample.id: sample for sample in b.samples}
    both = [(sample, second[sample.id]) for sample in a.samples if sample.id in second]
    for one, other in both:
        if (one.question, one.options) != (other.question, other.options):
            raise InputError(
                f"{b.folder / SAMPLES}: question {one.id!r} is {other.question!r} with {other.options}, in "
                f"{a.folder / SAMPLES} it is {one.question!r} with {one.options}: they cannot be compared"
            )
    scores = [one.score for one, _ in both], [other.score for _, other in both]
    found = compare(*scores, [one.video for one, _ in both]) if both else None
    return Pair(a, b, found, len(a.samples) - len(both), len(b.samples) - len(both))


def comparison_section(runs: Sequence[Run]) -> str:
    """The section, HTML; nothing where there are no two runs.

    Args:
        runs: Of one suite.
    """
    found = pairs(runs)
    if not found:
        return ""
    ends = [abs(end) for p in found if p.found for end in (p.found.ci_low, p.found.ci_high)]
    reach = next((scale for scale in SCALES if scale >= max(ends, default=0.0)), SCALES[-1])
    header = [
        "A, B",
        "questions",
        "B − A, points",
        f"−{100 * reach:.0f} to +{100 * reach:.0f} points",
        "better on A, B",
    ]
    header += ["p, videos", "p, McNemar", "better"]
    places = {run.name: place for place, run in enumerate(runs)}
    rows = [_row(pair, reach, places) for pair in found]
    note = (
        "Matched by question id. Intervals of 95 % and the p of videos draw whole videos (bootstrap); McNemar's exact "
        "test takes questions as independent, which those about one video are not."
    )
    if len(found) > 1:
        note += f" These are {len(found)} comparisons: with many, some p fall below 0.05 by luck."
    return f'<h3>Paired comparison</h3><p class="soft">{note}</p>{table(header, rows, cards=True)}'


def _row(pair: Pair, reach: float, places: Mapping[str, int]) -> list[Cell | str]:
    found, names = pair.found, [dot(places[run.name]) + escape(run.name) for run in (pair.a, pair.b)]
    if found is None:
        return [Cell("<br>".join(names)), number("0"), *[""] * 5, "no question in common"]
    scores = found.score_a, found.score_b
    both = "<br>".join(
        f'{name} <small class="soft">{percent(score)}</small>' for name, score in zip(names, scores, strict=True)
    )
    more = f"<br><small>A {pair.only_a}, B {pair.only_b} more</small>" if pair.only_a or pair.only_b else ""
    interval = f"<br><small>{span(found.ci_low, found.ci_high)}</small>"
    seen = "no difference seen" if found.ci_low <= 0 <= found.ci_high else names[found.difference > 0]
    return [
        Cell(both),
        Cell(f"{found.n}{more}", "number"),
        Cell(f"<strong>{100 * found.difference:+.1f}</strong>{interval}", "number"),
        Cell(difference(found.difference, found.ci_low, found.ci_high, reach)),
        number(f"{found.better_a}, {found.better_b}"),
        number(_p(found.p_bootstrap)),
        number(_p(found.p_mcnemar)),
        Cell(seen),
    ]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
