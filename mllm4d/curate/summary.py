"""What a curation run prints at its end."""

from __future__ import annotations

from pathlib import Path

from mllm4d.shards import Index

LEAK = 0.05
"""How far above chance a blind solver may score before it is called a leak."""


def print_summary(folder: Path, index: Index) -> None:
    """Print questions per split and task, and what blind solvers score beside chance.

    Args:
        folder: Where the shards lie.
        index: Their index.
    """
    counts, blind = index.notes["counts"], index.notes["blind"]
    solvers = list(dict.fromkeys(name for row in blind.values() for name in row if name not in ("n", "chance")))
    header = ["task", *counts, "chance", *solvers]
    rows = [header]
    for task, scores in blind.items():
        cells = [str(counts[split].get(task, 0)) for split in counts]
        figures = [_percent(scores.get(name)) for name in ("chance", *solvers)]
        rows.append([task, *cells, *figures])
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    print(f"\n{folder}: {index.notes['clips']['usable']} clips; questions per split, accuracy of blind solvers in %")
    for name, *cells in rows:
        print(name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)))
    leaks = [
        f"{task} ({name} {_percent(scores[name])})"
        for task, scores in blind.items()
        for name in solvers
        if scores.get(name, 0) > scores["chance"] + LEAK
    ]
    if leaks:
        print(f"answers can be guessed without the video: {', '.join(leaks)}")
    if index.notes["clips"]["failed"]:
        print(f"{len(index.notes['clips']['failed'])} clips could not be used; see index.json, key 'clips'")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
