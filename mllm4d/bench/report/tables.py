"""Scores of the runs of one suite: the board, and tasks with their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from numbers import Real
from typing import Any

from mllm4d.bench.blind import ALL, CHANCE
from mllm4d.bench.report import charts
from mllm4d.bench.report.blind import baselines, best_blind, blind_row, said
from mllm4d.bench.report.charts import Bar
from mllm4d.bench.report.page import Cell, dot, number, percent, span, table
from mllm4d.bench.report.records import Run

MANY_INVALID = 0.05
"""Share of unreadable answers from which on it is shown as a fault."""


def board(runs: Sequence[Run]) -> str:
    """The table of runs.

    Args:
        runs: Of one suite, best first.
    """
    header = ["run", "accuracy (95 %)", "0 to 100 %", "invalid", "official", "best blind", "questions", "videos"]
    return table(header, [_board_row(k, run) for k, run in enumerate(runs)], cards=True)


def _board_row(place: int, run: Run) -> list[Cell | str]:
    scores, row = run.scores, run.blind.get(ALL, {})
    bar = Bar(place, run.name, scores["accuracy"], scores["ci_low"], scores["ci_high"])
    official = [f"{name} {_figure(value)}" for name, value in scores["official"].items() if isinstance(value, Real)]
    best = best_blind(row)
    kind = "mark wrong" if scores["invalid_rate"] > MANY_INVALID else ""
    blind = f"{percent(best.accuracy)}<br><small>{escape(said(best.name))}</small>" if best else "–"
    chance = f"<br><small>chance {percent(row[CHANCE]['accuracy'])}</small>" if CHANCE in row else ""
    model = escape(run.model) + (f"<br>{escape(run.checkpoint)}" if run.checkpoint else "")
    about = f'<br><small class="soft">{model}<br>{escape(run.answering)}</small>'
    return [
        Cell(f"{dot(place)}<strong>{escape(run.name)}</strong>{about}"),
        Cell(
            f"<strong>{percent(scores['accuracy'])}</strong><br><small>{span(scores['ci_low'], scores['ci_high'])}"
            "</small>",
            "number",
        ),
        Cell(charts.whisker(bar, baselines(row))),
        Cell(f'<span class="{kind}">{percent(scores["invalid_rate"])}</span>', "number"),
        Cell("<br>".join(map(escape, official)) or "–", "nowrap"),
        Cell(blind + chance, "number"),
        number(str(scores["n"])),
        number(str(len({sample.video for sample in run.samples}))),
    ]


def _figure(value: Any) -> str:
    """An official figure: a share is a float, a count is not."""
    return percent(value) if isinstance(value, float) else str(value)


def legend_of(runs: Sequence[Run]) -> str:
    """What the colours and lines of ``task_chart`` are.

    Args:
        runs: Of one suite.
    """
    lines = [(charts.CHANCE, "chance"), (charts.BLIND, "best solver that never sees the video")]
    return charts.legend([run.name for run in runs], lines)


def task_chart(runs: Sequence[Run]) -> str:
    """Bars of every task, and of all together first.

    Args:
        runs: Of one suite.
    """
    return "".join(_group(runs, task) for task in [ALL, *_tasks(runs)]) + charts.axis()


def _group(runs: Sequence[Run], task: str) -> str:
    told = [(place, run, run.tasks[task]) for place, run in enumerate(runs) if task in run.tasks]
    bars = [Bar(place, run.name, row["accuracy"], row["ci_low"], row["ci_high"]) for place, run, row in told]
    counts = " / ".join(str(n) for n in sorted({row["n"] for _, _, row in told}))
    row = blind_row(runs, task)
    leaks = any(cell["leaks"] for cell in row.values())
    return charts.bar_group(said(task), f"{counts} questions", bars, baselines(row), leaks, task == ALL)


def task_table(runs: Sequence[Run]) -> str:
    """The figures of ``task_chart``.

    Args:
        runs: Of one suite.
    """
    rows: list[list[Cell | str]] = []
    for task in _tasks(runs):
        blind = blind_row(runs, task)
        best = best_blind(blind)
        chance = percent(blind[CHANCE]["accuracy"]) if CHANCE in blind else "–"
        for run in runs:
            if row := run.tasks.get(task):
                share = [str(row["n"]), percent(row["accuracy"]), span(row["ci_low"], row["ci_high"])]
                cells = [
                    *share,
                    str(row["invalid"]),
                    chance,
                    f"{percent(best.accuracy)} {said(best.name)}" if best else "–",
                ]
                rows.append([said(task), run.name, *map(number, cells)])
    return table(["task", "run", "questions", "accuracy", "95 %", "invalid", "chance", "best blind"], rows)


def slices_table(runs: Sequence[Run]) -> str:
    """Counts by names that may overlap.

    Args:
        runs: Of one suite.
    """
    names = dict.fromkeys(name for run in runs for name in run.scores["slices"])
    rows: list[list[Cell | str]] = [
        [name, run.name, number(str(cell["n"])), number(percent(cell["accuracy"])), number(str(cell["invalid"]))]
        for name in names
        for run in runs
        if (cell := run.scores["slices"].get(name))
    ]
    return table(["group", "run", "questions", "accuracy", "invalid"], rows)


def _tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(task for run in runs for task in run.tasks if task != ALL))
