"""Samples to tar shards and back, and the index that lies beside them.

A shard is a WebDataset tar. One sample is one clip with all its questions: ``KEY.mp4``, ``KEY.scene.json`` and
``KEY.qa.json``. ``index.json`` lists the shards with their counts and checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import webdataset

from mllm4d.schema import InputError, Question, Sample

FORMAT = "mllm4d-shards/1"


@dataclass(frozen=True)
class Shard:
    """One entry of the index.

    Attributes:
        path: File name, relative to the index.
        split: "train", "val" or "test".
        keys: The clips' keys, in the order of the file.
        questions: Number of questions of each clip, in the same order.
        sha256: Checksum of the file.
    """

    path: str
    split: str
    keys: tuple[str, ...]
    questions: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says: the shards, and whatever the maker of the data noted (source, config, blind, …)."""

    shards: tuple[Shard, ...]
    notes: Mapping[str, Any]

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of one split."""
        return tuple(shard for shard in self.shards if shard.split == name)


def write_shards(samples: Iterable[Sample], folder: Path, split: str, clips_per_shard: int) -> list[Shard]:
    """Write the samples of one split; the same samples give the same bytes.

    Args:
        samples: In the order in which they shall stand.
        folder: An existing folder.
        split: "train", "val" or "test"; the shards are named after it.
        clips_per_shard: Clips in a shard.

    Returns:
        The index entries.
    """
    shards: list[Shard] = []
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == clips_per_shard:
            shards.append(_write_shard(batch, folder, split, len(shards)))
            batch = []
    if batch:
        shards.append(_write_shard(batch, folder, split, len(shards)))
    return shards


def _write_shard(samples: Sequence[Sample], folder: Path, split: str, number: int) -> Shard:
    path = folder / f"{split}-{number:06d}.tar"
    # A fixed owner and time of change: bytes that depend on the content alone.
    with webdataset.TarWriter(str(path), user="mllm4d", group="mllm4d", mode=0o644, mtime=0) as writer:
        for sample in samples:
            writer.write(
                {
                    "__key__": sample.key,
                    "mp4": sample.video,
                    "qa.json": _dump([question.to_dict() for question in sample.questions]),
                    "scene.json": _dump(sample.scene),
                }
            )
    return Shard(
        path=path.name,
        split=split,
        keys=tuple(sample.key for sample in samples),
        questions=tuple(len(sample.questions) for sample in samples),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def read_shard(path: Path, keys: set[str] | None = None) -> Iterator[Sample]:
    """Read the samples of a shard in order.

    Args:
        path: The tar file.
        keys: Only these clips; the others are passed over without being parsed.

    Yields:
        Samples with their questions checked.

    Raises:
        InputError: A member is missing or malformed; the message names the file and the key.
    """
    for members in webdataset.tarfile_to_samples(handler=webdataset.reraise_exception)([{"url": str(path)}]):
        if keys is None or members["__key__"] in keys:
            yield _parse(members, path.name)


def _parse(members: Mapping[str, Any], shard: str) -> Sample:
    key = members["__key__"]
    for name in ("mp4", "scene.json", "qa.json"):
        if name not in members:
            raise InputError(f"{shard}: sample {key!r} lacks {key}.{name}")
    parsed = {}
    for name in ("scene.json", "qa.json"):
        try:
            parsed[name] = json.loads(members[name])
        except json.JSONDecodeError as error:
            raise InputError(f"{shard}: {key}.{name} is not JSON ({error})") from error
    where = f"{shard}: {key}.qa.json"
    questions = tuple(Question.from_dict(entry, where) for entry in parsed["qa.json"])
    return Sample(key, members["mp4"], parsed["scene.json"], questions)


def write_index(folder: Path, shards: Iterable[Shard], notes: Mapping[str, Any]) -> None:
    """Write ``index.json``.

    Args:
        folder: Where the shards lie.
        shards: Their entries.
        notes: What else to keep; plain JSON values.
    """
    content = {"format": FORMAT, **notes, "shards": [asdict(shard) for shard in shards]}
    (folder / "index.json").write_text(json.dumps(content, indent=1) + "\n")


def read_index(folder: Path) -> Index:
    """Read ``index.json``.

    Args:
        folder: Where the shards lie.

    Raises:
        InputError: There is none, it has another format, or a shard that it lists is not there.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"{path}: not found; expected a folder of shards, as `python -m mllm4d curate` writes it")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: key 'format' is {content.get('format')!r}, expected {FORMAT!r}")
    shards = []
    for number, entry in enumerate(content.get("shards", ())):
        if missing := [name for name in Shard.__dataclass_fields__ if name not in entry]:
            raise InputError(f"{path}: shard {number} lacks the key {missing[0]!r}")
        shards.append(Shard(**{**entry, "keys": tuple(entry["keys"]), "questions": tuple(entry["questions"])}))
        if not (folder / shards[-1].path).is_file():
            raise InputError(f"{folder / shards[-1].path}: not found, but index.json lists it")
    notes = {name: value for name, value in content.items() if name not in ("format", "shards")}
    return Index(tuple(shards), notes)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
