"""Questions with their frames and what each run said: of every task some right, wrong and invalid ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from html import escape

from mllm4d.bench.report.frames import Album
from mllm4d.bench.report.page import dot, folded
from mllm4d.bench.report.records import Run, Sample
from mllm4d.schema import InputError

RIGHT, WRONG, INVALID = "right", "wrong", "invalid"

EACH = 2
"""Questions of a task that are shown of each kind."""

LONGEST = 4000
"""Characters of an answer that are shown."""


def kind_of(sample: Sample) -> str:
    """``RIGHT``, ``WRONG`` or ``INVALID``; where a score lies between 0 and 1, right is at least a half."""
    return INVALID if sample.invalid else RIGHT if sample.score >= 0.5 else WRONG


def choose(runs: Sequence[Run], each: int = EACH) -> dict[str, list[Sample]]:
    """The questions that are shown, by task.

    They are drawn by a checksum of their id, not picked: the same for every run. A kind that the first run does not
    have enough of is filled up from the next ones.

    Args:
        runs: Of one suite.
        each: Of a task, of each kind.
    """
    chosen: dict[str, dict[str, Sample]] = {sample.task: {} for run in runs for sample in run.samples}
    order = [sorted(run.samples, key=lambda sample: zlib.crc32(sample.id.encode())) for run in runs]
    for task, found in chosen.items():
        for kind in (RIGHT, WRONG, INVALID):
            candidates = [s for samples in order for s in samples if s.task == task and kind_of(s) == kind]
            new = {sample.id: sample for sample in candidates if sample.id not in found}
            found.update(list(new.items())[:each])
    return {task: list(found.values()) for task, found in chosen.items()}


def samples_section(runs: Sequence[Run], album: Album) -> str:
    """The section, HTML.

    Args:
        runs: Of one suite.
        album: Its pictures.
    """
    said = [{sample.id: sample for sample in run.samples} for run in runs]
    parts: list[str] = []
    reasons: list[str] = []
    count = 0
    for number, (task, samples) in enumerate(choose(runs).items()):
        cards = []
        for sample in samples:
            pictures, reason = _pictures(album, sample)
            reasons += [reason] if reason else []
            answers = [(run.name, by_id.get(sample.id)) for run, by_id in zip(runs, said, strict=True)]
            cards.append(_card(sample, pictures, answers))
        count += len(cards)
        parts.append(folded(f"{task.replace('_', ' ')} ({len(samples)})", "".join(cards), open_=number == 0))
    note = f"{len(reasons)} of {count} have no frames here. The first: {reasons[0]}" if reasons else ""
    return (
        '<h3>Samples</h3><p class="soft">Drawn by a checksum of the id, of each task up to '
        f"{EACH} that were answered right, wrong and in a way that could not be read.</p>"
        + (f"<p><strong>{escape(note)}</strong></p>" if note else "")
        + "".join(parts)
    )


def _pictures(album: Album, sample: Sample) -> tuple[str, str]:
    """Frames, HTML, or why there are none."""
    try:
        pictures = album.pictures(sample.id, sample.question)
    except InputError as error:
        return "", str(error)
    figures = [
        f'<figure><img src="{picture.source}" alt="{picture.label}"><figcaption>{picture.label}</figcaption></figure>'
        for picture in pictures
    ]
    return f'<div class="frames">{"".join(figures)}</div>', ""


def _card(sample: Sample, pictures: str, answers: Sequence[tuple[str, Sample | None]]) -> str:
    options = "".join(_option(key, text, key in sample.right) for key, text in sample.options.items())
    value = escape(", ".join(map(str, sample.right)))
    truth = f'<ul class="options">{options}</ul>' if options else f'<p>True: <strong class="truth">{value}</strong></p>'
    rows = "".join(
        f"<div>{dot(number)}{escape(name)}</div><div>{_answer(answer)}</div>"
        for number, (name, answer) in enumerate(answers)
    )
    return (
        f'<div class="sample"><p class="small soft">{escape(sample.id)}</p><p>{escape(sample.question)}</p>{pictures}'
        f'<div class="asked">{truth}<div class="said">{rows}</div></div>'
        + folded("the whole prompt", f"<pre>{escape(sample.prompt)}</pre>")
        + "</div>"
    )


def _answer(sample: Sample | None) -> str:
    if sample is None:
        return '<span class="soft">not asked</span>'
    kind = kind_of(sample)
    mark = kind if sample.score in (0, 1) else f"score {sample.score:.2f}"
    read = "" if sample.read is None or str(sample.read) == sample.response.strip() else f" read as {sample.read}"
    text = sample.response[:LONGEST] + " […]" * (len(sample.response) > LONGEST)
    shown = f"<pre>{escape(text)}</pre>" if text.strip() else '<span class="soft">(empty)</span>'
    return f'<span class="mark {kind}">{mark}</span><span class="small soft">{escape(read)}</span>{shown}'


def _option(key: str, text: str, right: bool) -> str:
    return f'<li class="{"truth" * right}">{escape(key)}. {escape(str(text))}{" ✓" * right}</li>'
