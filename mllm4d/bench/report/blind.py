"""Solvers that never see the video: what they score is given away by the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mllm4d.bench.blind import ALL, CHANCE
from mllm4d.bench.report import charts
from mllm4d.bench.report.charts import Line
from mllm4d.bench.report.page import Cell, percent, span, table
from mllm4d.bench.report.records import Run


class Blind(NamedTuple):
    """A blind solver's score.

    Attributes:
        name: Of the solver.
        accuracy: 0-1.
        leaks: Whether it is above chance beyond luck.
    """

    name: str
    accuracy: float
    leaks: bool


def best_blind(row: Mapping[str, Mapping[str, Any]]) -> Blind | None:
    """The best of the solvers that say something about the most questions; None where there is none.

    Args:
        row: Solver to its figures, of one task.
    """
    solvers = {name: cell for name, cell in row.items() if name != CHANCE}
    most = max((cell["n"] for cell in solvers.values()), default=0)
    told = [(cell["accuracy"], name, cell["leaks"]) for name, cell in solvers.items() if cell["n"] == most]
    if not told:
        return None
    accuracy, name, leaks = max(told)
    return Blind(name, accuracy, leaks)


def baselines(row: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """Chance and the best blind solver of a task as lines.

    Args:
        row: Solver to its figures.
    """
    lines = []
    if best := best_blind(row):
        leak = ", above chance: the questions give it away" if best.leaks else ""
        lines.append(Line(charts.BLIND, best.accuracy, f"blind: {said(best.name)} {percent(best.accuracy)}{leak}"))
    if CHANCE in row:  # dashed, so that a line under it can be seen
        lines.append(Line(charts.CHANCE, row[CHANCE]["accuracy"], f"chance {percent(row[CHANCE]['accuracy'])}"))
    return lines


def blind_table(runs: Sequence[Run]) -> str:
    """What every blind solver scores, task by task.

    Args:
        runs: Of one suite.
    """
    tasks = list(dict.fromkeys(task for run in runs for task in run.blind))
    found = {task: blind_row(runs, task) for task in tasks}
    solvers = list(dict.fromkeys(name for row in found.values() for name in row))
    rows: list[list[Cell | str]] = [
        [said(task), *(_blind_cell(row.get(name)) for name in solvers)] for task, row in found.items()
    ]
    return table(["task", *map(said, solvers)], rows)


def _blind_cell(cell: Mapping[str, Any] | None) -> Cell:
    if cell is None:
        return Cell("–", "number")
    share = percent(cell["accuracy"])
    shown = f'<span class="mark wrong">{share}</span>' if cell["leaks"] else share
    interval = "" if cell["ci_low"] == cell["ci_high"] else f"{span(cell['ci_low'], cell['ci_high'])}<br>"
    return Cell(f'{shown}<br><small class="soft">{interval}of {cell["n"]}</small>', "number")


def blind_row(runs: Sequence[Run], task: str) -> Mapping[str, Mapping[str, Any]]:
    """What blind solvers score on a task: what differs between runs, such as the model by text alone, by run.

    Args:
        runs: Of one suite.
        task: The task.
    """
    rows = {run.name: run.blind[task] for run in runs if task in run.blind}
    found: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        cells = {run: row[name] for run, row in rows.items() if name in row}
        first = next(iter(cells.values()))
        if name == CHANCE or all(cell == first for cell in cells.values()):
            found[name] = first
        else:
            found.update({f"{name} ({run})": cell for run, cell in cells.items()})
    return found


def said(name: str) -> str:
    """The name of a task or a solver for people."""
    return "all tasks" if name == ALL else name.replace("_", " ")
