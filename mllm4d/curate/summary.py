"""What a curation run prints at its end."""

from __future__ import annotations

from pathlib import Path

from mllm4d.shards import Index

LEAK = 0.02
"""How far above chance a blind solver may score before it is called a leak, if it is beyond luck as well."""

SHOWN = 5
"""Unusable clips that are named; all are in ``index.json``."""

LUCK = 3.0
"""Standard deviations of a guess's share of right answers that count as luck."""


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
    given_away = [
        f"{task} ({name} {_percent(scores[name])})"
        for task, scores in blind.items()
        for name in solvers
        if leaks_away(scores.get(name, 0), scores["chance"], scores["n"])
    ]
    if given_away:
        print(f"answers can be guessed without the video: {', '.join(given_away)}")
    if index.notes["split_by"] == "time":
        print("fewer source videos than splits: a video's clips are in several splits, cut in time")
    failed = index.notes["clips"]["failed"]
    for key, reason in list(failed.items())[:SHOWN]:
        print(f"left out {key}: {reason}")
    if len(failed) > SHOWN:
        print(f"and {len(failed) - SHOWN} clips more; see index.json, key 'clips'")


def leaks_away(score: float, chance: float, count: float) -> bool:
    """Whether a blind solver's score on so many questions is further above chance than luck explains, and matters."""
    return score - chance > max(LEAK, LUCK * (chance * (1 - chance) / count) ** 0.5)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
