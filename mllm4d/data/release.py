"""Shards to the released formats, with their videos as files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm4d.data.entries import write_entries
from mllm4d.data.formats import FORMATS, Format
from mllm4d.data.rows import question_of
from mllm4d.data.texts import BadRow
from mllm4d.schema import InputError, Question
from mllm4d.shards import read_index, read_shard


def write_released(shards: str | Path, split: str, format: str, out: str | Path) -> Path:
    """Write a split of shards as a file of a released format, with ``videos/KEY.mp4`` and ``videos/KEY.scene.json``.

    Every entry is read back as it is made: what would not come back is refused.

    Args:
        shards: Folder with ``index.json`` and the shards.
        split: The split.
        format: One of ``sft``, ``cold_start``, ``r1`` and ``vlm4d``.
        out: A new folder; it appears when it is whole. ``SPLIT.json`` or ``SPLIT.jsonl`` is put there.

    Returns:
        The file.

    Raises:
        InputError: There is no such split or format, ``out`` is there, or a question cannot be said in the format.
    """
    folder, target = Path(shards), Path(out)
    if format not in FORMATS:
        raise InputError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    if target.exists():
        raise InputError(f"{target}: is there already; name a new folder")
    index = read_index(folder)
    if not index.split(split):
        raise InputError(f"{folder / 'index.json'}: lists no shard of split {split!r}")
    form = FORMATS[format]
    beside = target.with_name(target.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "videos").mkdir(parents=True)
    name = f"{split}.{'jsonl' if form.lines else 'json'}"
    try:
        paths = [folder / shard.path for shard in index.split(split)]
        write_entries(_entries(paths, form, beside / "videos"), beside / name, form.lines)
        os.replace(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target / name


def _entries(paths: list[Path], form: Format, videos: Path) -> Iterator[dict[str, Any]]:
    for path in paths:
        for sample in read_shard(path):
            file = f"{sample.key}.mp4"
            (videos / file).write_bytes(sample.video)
            (videos / f"{sample.key}.scene.json").write_text(json.dumps(sample.scene, ensure_ascii=False))
            for question in sample.questions:
                entry = form.write(f"{videos.name}/{file}", question)
                _check(entry, question, form, len(sample.scene["times"]))
                yield entry


def _check(entry: dict[str, Any], question: Question, form: Format, frames: int) -> None:
    """See that what is written says what the question says."""
    try:
        row = next(form.read(json.loads(json.dumps(entry))))
        same = question_of(row, question.id, frames, lambda wording: None).to_dict() == question.to_dict()
        reason = "it would be read back as another question"
    except BadRow as error:
        same, reason = False, f"it {error}"
    if not same:
        raise InputError(f"question {question.id!r} cannot be written in this format: {reason}")
