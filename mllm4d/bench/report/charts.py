"""Bars with error bars and lines, as boxes placed by percentages: text keeps its size on any screen."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from mllm4d.bench.report.page import COLORS, percent, span

CHANCE, BLIND = "chance", "blind"
"""Kinds of lines."""


class Bar(NamedTuple):
    """A share with its interval.

    Attributes:
        run: Number of the run in its suite, which gives the colour.
        name: Of the run.
        value: 0-1.
        low: Of the interval, 0-1.
        high: Likewise.
    """

    run: int
    name: str
    value: float
    low: float
    high: float


class Line(NamedTuple):
    """What a share is to be compared with.

    Attributes:
        kind: ``CHANCE`` or ``BLIND``.
        value: 0-1.
        label: What it is.
    """

    kind: str
    value: float
    label: str


def bar_group(name: str, note: str, bars: Sequence[Bar], lines: Sequence[Line], leaks: bool, all_: bool) -> str:
    """The bars of one task, one a run, with lines across all of them.

    Args:
        name: Of the task.
        note: Small, under it.
        bars: One a run.
        lines: Baselines.
        leaks: Whether a blind solver is above chance beyond luck.
        all_: Whether it is all tasks together.
    """
    mark = ' <span class="mark wrong">can be guessed</span>' if leaks else ""
    title = f'<div class="name">{escape(name)}{mark} <small class="soft">{escape(note)}</small></div>'
    drawn = "".join(f'<div class="bar" title="{escape(_words(bar))}">{_fill(bar)}{_error(bar)}</div>' for bar in bars)
    return (
        f'<div class="task{" all" * all_}">{title}'
        f'<div class="tracks">{drawn}{"".join(map(_line, lines))}</div><div class="values">'
        + "".join(f'<div class="value">{percent(b.value)} <small>{span(b.low, b.high)}</small></div>' for b in bars)
        + "</div></div>"
    )


def axis() -> str:
    """The scale under the groups."""
    marks = "".join(f'<span style="left:{mark}%">{mark}</span>' for mark in (0, 25, 50, 75, 100))
    return f'<div class="task axis-row"><div class="name"></div><div class="axis">{marks}</div><div>%</div></div>'


def legend(runs: Sequence[str], lines: Sequence[tuple[str, str]]) -> str:
    """What the colours and lines are.

    Args:
        runs: Names in the order of their numbers.
        lines: Kind and meaning.
    """
    colors = [
        f'<span><span class="dot" style="background:var(--run{k % COLORS})"></span>{escape(name)}</span>'
        for k, name in enumerate(runs)
    ]
    keys = [
        f'<span><span class="key"><span class="base {kind}"></span></span>{escape(text)}</span>' for kind, text in lines
    ]
    return f'<div class="legend">{"".join(colors + keys)}</div>'


def whisker(bar: Bar, lines: Sequence[Line]) -> str:
    """One share as a point with its interval and the lines, for a table.

    Args:
        bar: The share.
        lines: Baselines.
    """
    words = escape("; ".join([_words(bar), *(line.label for line in lines)]))
    point = f'<div class="point" style="left:{100 * bar.value:.2f}%;background:var(--run{bar.run % COLORS})"></div>'
    drawn = f'<div class="bar" title="{words}">{_error(bar)}{point}</div>'
    return f'<div class="tracks" style="min-width:14em">{drawn}{"".join(map(_line, lines))}</div>'


def difference(value: float, low: float, high: float, reach: float) -> str:
    """A difference of two shares with its interval, around a line at no difference.

    Args:
        value: -1 to 1.
        low: Of the interval.
        high: Likewise.
        reach: What the ends of the scale stand for, above 0.
    """

    def place(share: float) -> float:
        return max(0.0, min(1.0, 0.5 + share / reach / 2))

    bar = Bar(COLORS - 1, "difference", place(value), place(low), place(high))
    point = f'<div class="point" style="left:{100 * bar.value:.2f}%;background:var(--text)"></div>'
    middle = '<div class="base zero" style="left:50%"></div>'
    return f'<div class="tracks" style="min-width:12em">{middle}<div class="bar">{_error(bar)}{point}</div></div>'


def _words(bar: Bar) -> str:
    return f"{bar.name}: {percent(bar.value)}, 95 % interval {span(bar.low, bar.high)} %"


def _fill(bar: Bar) -> str:
    return f'<div class="fill" style="width:{100 * bar.value:.2f}%;background:var(--run{bar.run % COLORS})"></div>'


def _error(bar: Bar) -> str:
    return f'<div class="error" style="left:{100 * bar.low:.2f}%;width:{100 * (bar.high - bar.low):.2f}%"></div>'


def _line(line: Line) -> str:
    return f'<div class="base {line.kind}" style="left:{100 * line.value:.2f}%" title="{escape(line.label)}"></div>'
