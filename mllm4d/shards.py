"""Samples to tar shards and back, and the index that lies beside them.

A shard is a WebDataset tar. One sample is one clip with all its questions: ``KEY.mp4``, ``KEY.scene.json`` and
``KEY.qa.json``. ``index.json`` lists the shards with their counts and checksums, and where in the file each clip lies,
so that one clip is one short read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

import webdataset

from mllm4d.schema import InputError, Question, Sample

FORMAT = "mllm4d-shards/1"

MEMBER_LIMIT = 512 * 2**20
"""Largest member that is read, bytes."""

BLOCK = 512
"""Everything in a tar begins at a multiple of so many bytes."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""Key and suffix of a member, as WebDataset has them: the suffix begins at the first dot of the last part."""

_META = re.compile(r"__[^/]*__($|/)")
"""Members about the shard, which WebDataset passes over."""


class BrokenShard(InputError):
    """The bytes are not those of a shard: cut off, garbled, or not the ones that the index tells of."""


@dataclass(frozen=True)
class Shard:
    """One entry of the index. What may be None is missing in indices that others wrote.

    Attributes:
        path: File name, relative to the index.
        split: "train", "val" or "test".
        keys: The clips' keys, in the order of the file.
        questions: Number of questions of each clip, in the same order.
        sha256: Checksum of the file.
        spans: Of each clip the bytes (first, one past the last) of its members.
        crc32: Of each clip the checksum of those bytes.
        sizes: Of each clip's video (frames, height, width) in pixels; None where the video cannot be opened.
        characters: Of each clip's questions the characters of (question and options, reasoning).
    """

    path: str
    split: str
    keys: tuple[str, ...]
    questions: tuple[int, ...]
    sha256: str
    spans: tuple[tuple[int, int], ...] | None = None
    crc32: tuple[int, ...] | None = None
    sizes: tuple[tuple[int, int, int] | None, ...] | None = None
    characters: tuple[tuple[tuple[int, int], ...], ...] | None = None


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

    Raises:
        InputError: Two clips of a shard have the same key, or one that is no safe file name.
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
    content = path.read_bytes()
    spans = tuple(scan_shard(io.BytesIO(content), path.name).values())
    return Shard(
        path=path.name,
        split=split,
        keys=tuple(sample.key for sample in samples),
        questions=tuple(len(sample.questions) for sample in samples),
        sha256=hashlib.sha256(content).hexdigest(),
        spans=spans,
        crc32=tuple(zlib.crc32(content[start:end]) for start, end in spans),
        sizes=tuple(_video_size(sample.video) for sample in samples),
        characters=tuple(tuple(_characters(question) for question in sample.questions) for sample in samples),
    )


def read_shard(path: Path, keys: set[str] | None = None) -> Iterator[Sample]:
    """Read the samples of a shard in order.

    Args:
        path: The tar file.
        keys: Only these clips; the others are passed over without being read.

    Yields:
        Samples with their questions checked.

    Raises:
        InputError: A member is missing, malformed or not allowed; the message names the file and the key.
    """
    with open(path, "rb") as file, _open(file, path.name) as tar:
        for key, members in _clips(tar, path.name):
            if keys is None or key in keys:
                yield _parse(tar, key, members, path.name)


def scan_shard(file: BinaryIO, name: str) -> dict[str, tuple[int, int]]:
    """Find where each clip of a shard lies, by its members' headers alone.

    Args:
        file: The tar file, which can be sought.
        name: What a message calls it.

    Returns:
        Key to the bytes (first, one past the last) of the clip's members, in the order of the file.

    Raises:
        InputError: A member is not allowed.
        BrokenShard: It is no whole tar.
    """
    spans = {}
    with _open(file, name) as tar:
        for key, members in _clips(tar, name):
            last = max(members.values(), key=lambda info: info.offset_data)
            end = last.offset_data + -(-last.size // BLOCK) * BLOCK
            spans[key] = (min(info.offset for info in members.values()), end)
    return spans


def parse_clip(span: bytes, key: str, name: str) -> Sample:
    """Read a clip from its piece of a shard.

    Args:
        span: The bytes that the index tells of.
        key: The clip that they should hold.
        name: What a message calls the shard.

    Raises:
        InputError: A member is missing, malformed or not allowed.
        BrokenShard: The bytes are no piece of a tar, or another clip's.
    """
    with _open(io.BytesIO(span), name) as tar:
        found = dict(_clips(tar, name))
        if list(found) != [key]:
            there = ", ".join(map(repr, found)) or "nothing"
            raise BrokenShard(f"{name}: {there} where index.json has clip {key!r}")
        return _parse(tar, key, found[key], name)


def _open(file: BinaryIO, name: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise BrokenShard(f"{name}: is no tar file ({error})") from error


def _clips(tar: tarfile.TarFile, name: str) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members, by suffix, of each clip; every header is checked, also of members that nobody wants."""
    seen: set[str] = set()
    current: tuple[str, dict[str, tarfile.TarInfo]] | None = None
    for info in _headers(tar, name):
        match = None if _META.match(info.name) else _NAME.fullmatch(info.name)
        if match is None or not info.isreg():
            continue
        key, suffix = match[1], match[2].lower()
        if current is None or current[0] != key:
            if current is not None:
                yield current
            if key in seen:
                raise InputError(f"{name}: sample {key!r} is there twice")
            seen.add(key)
            current = (key, {})
        if suffix in current[1]:
            raise InputError(f"{name}: member {info.name!r} is there twice")
        current[1][suffix] = info
    if current is not None:
        yield current


def _headers(tar: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    try:
        for info in tar:
            _check_member(info, name)
            yield info
        # tarfile takes a header that it cannot read for the end.
        file: Any = tar.fileobj
        file.seek(tar.offset)
        if file.read(BLOCK).strip(b"\0"):
            raise BrokenShard(f"{name}: garbled after byte {tar.offset}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BrokenShard(f"{name}: broken or cut off ({error})") from error


def _check_member(info: tarfile.TarInfo, name: str) -> None:
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name or re.match(r"[A-Za-z]:", info.name):
        raise InputError(f"{name}: member {info.name!r} would leave the folder")
    if not (info.isreg() or info.isdir()):
        raise InputError(f"{name}: member {info.name!r} is a link or a device; expected plain files")
    if info.size > MEMBER_LIMIT:
        raise InputError(f"{name}: member {info.name!r} has {info.size} bytes, more than {MEMBER_LIMIT}")


def _parse(tar: tarfile.TarFile, key: str, members: Mapping[str, tarfile.TarInfo], shard: str) -> Sample:
    content = {}
    for suffix in ("mp4", "scene.json", "qa.json"):
        if suffix not in members:
            raise InputError(f"{shard}: sample {key!r} lacks {key}.{suffix}")
        try:
            file: Any = tar.extractfile(members[suffix])
            content[suffix] = file.read()
        except (tarfile.TarError, OSError) as error:
            raise BrokenShard(f"{shard}: {key}.{suffix} is cut off ({error})") from error
    scene, entries = (_load(content[name], f"{shard}: {key}.{name}") for name in ("scene.json", "qa.json"))
    if not isinstance(scene, dict) or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise InputError(f"{shard}: {key}: expected an object in scene.json and a list of objects in qa.json")
    questions = tuple(Question.from_dict(entry, f"{shard}: {key}.qa.json") for entry in entries)
    return Sample(key, content["mp4"], scene, questions)


def _load(content: bytes, where: str) -> Any:
    """JSON with finite numbers."""

    def refuse(text: str) -> NoReturn:
        raise InputError(f"{where}: holds the number {text}; expected finite ones")

    def read(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refuse(text)

    try:
        return json.loads(content, parse_float=read, parse_constant=refuse)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error})") from error


def _video_size(video: bytes) -> tuple[int, int, int] | None:
    import av

    try:
        with av.open(io.BytesIO(video), "r") as container:
            stream = container.streams.video[0]
            size = (stream.frames, stream.height, stream.width)
    except (av.FFmpegError, IndexError):
        return None
    return size if all(size) else None


def _characters(question: Question) -> tuple[int, int]:
    asked = len(question.question) + sum(len(text) for text in question.options.values())
    return asked, len(question.reasoning or "")


def write_index(folder: Path, shards: Iterable[Shard], notes: Mapping[str, Any]) -> None:
    """Write ``index.json``, each shard in one line.

    Args:
        folder: Where the shards lie.
        shards: Their entries.
        notes: What else to keep; plain JSON values.
    """
    head = json.dumps({"format": FORMAT, **notes}, indent=1).removesuffix("\n}")
    entries = [{name: value for name, value in asdict(shard).items() if value is not None} for shard in shards]
    rows = ",\n".join(f"  {json.dumps(entry, separators=(',', ':'))}" for entry in entries)
    (folder / "index.json").write_text(f'{head},\n "shards": [\n{rows}\n ]\n}}\n')


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
    index = parse_index(path.read_bytes(), str(path))
    for shard in index.shards:
        if not (folder / shard.path).is_file():
            raise InputError(f"{folder / shard.path}: not found, but index.json lists it")
    return index


def parse_index(content: bytes, where: str) -> Index:
    """Read what ``index.json`` holds.

    Args:
        content: The file.
        where: Its name, for the message.

    Raises:
        InputError: It is not JSON, has another format, lacks a key, or its lists do not fit each other.
    """
    parsed = _load(content, where)
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        found = parsed.get("format") if isinstance(parsed, dict) else None
        raise InputError(f"{where}: key 'format' is {found!r}, expected {FORMAT!r}")
    shards = tuple(_shard(entry, f"{where}: shard {n}") for n, entry in enumerate(parsed.get("shards", ())))
    notes = {name: value for name, value in parsed.items() if name not in ("format", "shards")}
    return Index(shards, notes)


def _shard(entry: Mapping[str, Any], where: str) -> Shard:
    names = [field.name for field in fields(Shard)]
    if missing := [name for name in names[:5] if name not in entry]:
        raise InputError(f"{where} lacks the key {missing[0]!r}")
    values = {name: _tuples(entry[name]) for name in names if entry.get(name) is not None}
    for name in ("keys", "questions", "spans", "crc32", "sizes", "characters"):
        if name in values and len(values[name]) != len(values["keys"]):
            raise InputError(f"{where}: key {name!r} has {len(values[name])} entries for {len(values['keys'])} clips")
    for span in values.get("spans", ()):
        if not (len(span) == 2 and all(isinstance(byte, int) for byte in span) and 0 <= span[0] < span[1]):
            raise InputError(f"{where}: key 'spans' has {list(span)}; expected the first byte and one past the last")
    path = PurePosixPath(values["path"])
    if path.is_absolute() or ".." in path.parts or "\\" in values["path"]:
        raise InputError(f"{where}: key 'path' is {values['path']!r}, which would leave the folder")
    return Shard(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
