"""``report.html``: what is in a folder of shards, in one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mllm4d.schema import TASKS, Sample
from mllm4d.shards import Index, read_shard
from mllm4d.viz import bars, blind_figure, scene_figure

SAMPLES_PER_SPLIT = 2
"""Clips of each split that are shown."""

QUESTIONS_SHOWN = 12
"""Questions of a shown clip."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }} td, th {{ border: 1px solid #ccc; padding: .25em .6em }}
th {{ background: #f3f3f3; text-align: left }} td.number {{ text-align: right }}
.clip {{ border-top: 2px solid #ddd; margin-top: 2em }} video {{ max-width: 100% }} .right {{ font-weight: bold }}
</style><script>{script}</script></head><body>
{body}
</body></html>
"""


def sample_keys(index: Index) -> list[str]:
    """The clips that a report shows: of each split those with the most questions."""
    chosen = []
    for split in dict.fromkeys(shard.split for shard in index.shards):
        counts = [pair for shard in index.split(split) for pair in zip(shard.questions, shard.keys, strict=True)]
        chosen += [key for _, key in sorted(counts, key=lambda pair: (-pair[0], pair[1]))[:SAMPLES_PER_SPLIT]]
    return chosen


def write_report(folder: Path, index: Index, clouds: Mapping[str, Mapping[str, Any] | None]) -> Path:
    """Write ``report.html`` beside the shards; the same shards give the same bytes.

    Args:
        folder: Where the shards lie.
        index: Their index.
        clouds: Coloured points of sample clips by key, as ``mllm4d.viz.scene_figure`` takes them.

    Returns:
        The file.
    """
    from plotly.offline import get_plotlyjs

    notes = index.notes
    title = f"Questions from {escape(notes['source']['class_path'].rsplit('.', 1)[-1])}"
    counts = {task: {s: row[task] for s, row in notes["counts"].items() if task in row} for task in TASKS}
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{notes['clips']['usable']} clips, {sum(sum(row.values()) for row in counts.values())} questions; "
        f"split by {escape(notes['split_by'])}. Source: <code>{escape(notes['source']['class_path'])}</code>.</p>",
        "<h2>Questions</h2>",
        _table(
            ["task", *notes["counts"]], [[t, *(row.get(s, 0) for s in notes["counts"])] for t, row in counts.items()]
        ),
        *(_figure(bars(notes["answers"][task], task), f"answers-{task}") for task in TASKS if task in notes["answers"]),
        "<h2>Solvers that never see the video</h2><p>What they score above chance is what the options, the letters or "
        "the times give away.</p>",
        _figure(blind_figure(notes["blind"]), "blind"),
        "<h2>What was left out</h2>",
        _figure(bars(notes["filters"], "dropped, by reason", "count (log)").update_xaxes(type="log"), "filters")
        if notes["filters"]
        else "<p>Nothing.</p>",
        _table(["clip that could not be used", "reason"], [list(row) for row in notes["clips"]["failed"].items()]),
        "<h2>Clips</h2><p>Click a question in the legend to see what it is about.</p>",
    ]
    chosen = set(sample_keys(index))
    for shard in index.shards:
        if wanted := chosen & set(shard.keys):
            for sample in read_shard(folder / shard.path, wanted):
                parts.append(_clip(sample, shard.split, clouds.get(sample.key)))
    page = _PAGE.format(title=title, script=get_plotlyjs(), body="\n".join(parts))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _clip(sample: Sample, split: str, cloud: Mapping[str, Any] | None) -> str:
    shown = sample.questions[:QUESTIONS_SHOWN]
    rows = []
    for question in shown:
        options = "<br>".join(
            f"<span{' class=right' if letter == question.answer else ''}>{letter}. {escape(text)}</span>"
            for letter, text in question.options.items()
        )
        number = question.id.rsplit("/", 1)[-1]
        rows.append(f"<tr><td>{number}</td><td>{escape(question.question)}</td><td>{options}</td></tr>")
    video = base64.b64encode(sample.video).decode()
    more = len(sample.questions) - len(shown)
    return "\n".join(
        [
            f'<div class="clip"><h3>{escape(sample.key)} ({escape(split)})</h3>',
            f'<video controls loop muted src="data:video/mp4;base64,{video}"></video>',
            _figure(scene_figure(sample.scene, shown, cloud), f"scene-{sample.key}"),
            f"<table><tr><th></th><th>question</th><th>options</th></tr>{''.join(rows)}</table>",
            f"<p>and {more} questions more</p></div>" if more else "</div>",
        ]
    )


def _figure(figure: Any, name: str) -> str:
    # A name instead of a random one: the same shards give the same page.
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config={"displayModeBar": False})


def _table(header: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td{_number(cell)}>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(cell: Any) -> str:
    return ' class="number"' if isinstance(cell, (int, float)) else ""
