"""The table of a run for people, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm4d.bench.blind import ALL


def markdown(results: Mapping[str, Any]) -> str:
    """The table for people: every task with its interval, and what blind solvers score on it, in %.

    Args:
        results: Of ``results_of``.
    """
    blind = results["blind"]
    solvers = list(dict.fromkeys(name for row in blind.values() for name in row))
    header = ["task", "n", "accuracy", "95 % interval", "invalid", *(name.replace("_", " ") for name in solvers)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, row in results["tasks"].items():
        cells = [blind.get(name, {}).get(solver) for solver in solvers]
        rows.append(
            [
                f"**{name}**" if name == ALL else name,
                str(row["n"]),
                _percent(row["accuracy"]),
                f"{_percent(row['ci_low'])} – {_percent(row['ci_high'])}",
                _percent(row["invalid"] / max(1, row["n"])),
                *("–" if cell is None else _percent(cell["accuracy"]) + "!" * cell["leaks"] for cell in cells),
            ]
        )
    model = results["model"] + (f" + {results['checkpoint']}" if results["checkpoint"] else "")
    lines = [f"# {results['suite']}", "", f"Model: {model}", f"Answering: {results['answering']}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "In %. What stands after the invalid answers never sees the video; `!` is above chance beyond luck."]
    official = [f"- {name}: {value:g}" for name, value in numbers(results["scores"]["official"])]
    lines += ["", "By the benchmark's own rule:", "", *official] if official else []
    lines += ["", "Warnings:", "", *(f"- {warning}" for warning in results["warnings"])] if results["warnings"] else []
    return "\n".join(lines) + "\n"


def numbers(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The figures in nested tables, under their keys joined by ``/``.

    Args:
        entries: Plain JSON values.
        prefix: Before every name.
    """
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
