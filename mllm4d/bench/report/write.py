"""The page: runs by suite, tasks with blind baselines as lines, paired comparisons, samples, settings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm4d.bench.report.blind import blind_table
from mllm4d.bench.report.comparison import comparison_section
from mllm4d.bench.report.frames import MAX_BYTES, Album
from mllm4d.bench.report.page import folded, page, warning
from mllm4d.bench.report.records import Run, read_runs
from mllm4d.bench.report.samples import samples_section
from mllm4d.bench.report.settings import settings_table
from mllm4d.bench.report.tables import board, legend_of, slices_table, task_chart, task_table

if TYPE_CHECKING:
    from mllm4d.bench.suites.base import Suite


def write_report(folders: Sequence[Path], out: Path, suites: Sequence[Suite] = ()) -> Path:
    """Write ``report.html``; the same runs give the same bytes.

    Args:
        folders: Of finished runs, each with ``results.json`` and ``samples.jsonl``.
        out: The file; it appears at once, when it is whole.
        suites: Those that the runs were made with, as far as frames of their videos are to be shown.

    Returns:
        The file.

    Raises:
        InputError: A folder is not what the bench writes.
    """
    runs = read_runs([Path(folder) for folder in folders])
    sections = by_suite(runs)
    media = {suite.title: suite for suite in suites}
    left, parts = MAX_BYTES, [_head(runs, len(sections))]
    for title, members in sections:
        # Each its fair share of the room; what one leaves, the next has.
        album = Album(media.get(members[0].suite), left // (len(sections) + 1 - len(parts)))
        room = album.left
        parts.append(suite_section(title, sorted(members, key=lambda run: -run.scores["accuracy"]), album))
        left -= room - album.left
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.part")
    beside.write_text(page("Benchmark report", parts), encoding="utf-8")
    os.replace(beside, out)
    return out


def by_suite(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that can stand side by side: of one suite, and no two ask different things under one id.

    Args:
        runs: In any order.

    Returns:
        Title and runs of each section; where a suite has several, their titles have the data hash.
    """
    sections: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        asked = {sample.id: (sample.question, sample.options) for sample in run.samples}
        for known, members in sections:
            if members[0].suite == run.suite and all(known.get(id, what) == what for id, what in asked.items()):
                members.append(run)
                known.update(asked)
                break
        else:
            sections.append((asked, [run]))
    count = Counter(members[0].suite for _, members in sections)
    return [
        (m[0].suite if count[m[0].suite] == 1 else f"{m[0].suite} (data {m[0].data_hash[:12]})", m) for _, m in sections
    ]


def suite_section(title: str, runs: Sequence[Run], album: Album) -> str:
    """All about one suite, HTML.

    Args:
        title: Of the suite.
        runs: Best first.
        album: Pictures of its questions.
    """
    leaks = list(dict.fromkeys(str(sentence) for run in runs for sentence in run.warnings))
    return "\n".join(
        [
            f"<h2>{escape(title)}</h2>",
            warning("Read this before the scores", leaks),
            warning("These runs are not of the same questions", _different(runs)),
            board(runs),
            "<h3>By task</h3>",
            legend_of(runs),
            task_chart(runs),
            folded("figures by task", task_table(runs)),
            folded("figures by other groups, which may overlap", slices_table(runs)),
            folded("solvers that never see the video", blind_table(runs)),
            comparison_section(runs),
            samples_section(runs, album),
            "<h3>Settings and versions</h3>",
            settings_table(runs),
        ]
    )


def _head(runs: Sequence[Run], suites: int) -> str:
    count = sum(len(run.samples) for run in runs)
    warned = sum(bool(run.warnings) for run in runs)
    said = f" {warned} of them with warnings, which stand above their scores." if warned else ""
    return (
        f"<h1>Benchmark report</h1><p>{_many(len(runs), 'run')} on {_many(suites, 'suite')}, "
        f"{_many(count, 'answer')}.{said} Error bars are intervals of 95 %; questions about one video count as one "
        "cluster. An answer that cannot be read is invalid and counts as wrong.</p>"
    )


def _many(count: int, name: str) -> str:
    return f"{count} {name}" + "s" * (count != 1)


def _different(runs: Sequence[Run]) -> list[str]:
    hashes = {run.data_hash for run in runs}
    if len(hashes) == 1:
        return []
    listed = "; ".join(f"{run.name}: {run.data_hash[:12]}" for run in runs)
    return [f"Data hashes differ ({listed}). Only the paired comparison below is of the same questions."]
