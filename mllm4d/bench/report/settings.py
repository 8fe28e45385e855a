"""What the runs were made with, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mllm4d.bench.report.page import Cell, folded, table
from mllm4d.bench.report.records import Run


def settings_table(runs: Sequence[Run]) -> str:
    """What differs between the runs, and folded what is the same.

    Args:
        runs: Of one suite.
    """
    flat = [dict(_described(run)) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differ = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    header = ["", *(run.name for run in runs)]
    rows: list[list[Cell | str]] = [[key, *(Cell(escape(one.get(key, "–")), "hash") for one in flat)] for key in differ]
    same: list[list[Cell | str]] = [[key, Cell(escape(flat[0][key]), "hash")] for key in keys if key not in differ]
    said = "what is the same in all" if len(runs) > 1 else "all of them"
    return table(header, rows, marked="differs") + folded(said, table(["", "value"], same))


def _described(run: Run) -> Iterator[tuple[str, str]]:
    yield "model", run.model
    yield "checkpoint", run.checkpoint or "–"
    yield "answering", run.answering
    yield "data hash", run.data_hash
    yield "seconds", f"{run.seconds:.1f}"
    yield "questions a second", f"{len(run.samples) / run.seconds:.2f}" if run.seconds else "–"
    yield from _flat(run.versions, "version of ")
    yield from _flat(run.settings, "")


def _flat(entries: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
