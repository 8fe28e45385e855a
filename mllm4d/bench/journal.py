"""Answers as they come, in files that survive a kill, and what they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mllm4d.schema import InputError

DETAILS = "bench"
"""Key of a line under which the bench keeps its own: ``id``, ``seconds``, …; the rest is the released entry."""


class Journal:
    """JSON lines, one a question, each rank in a file of its own, ``NAME-rankR.jsonl``.

    A line that a kill has cut off is dropped. A question that is there twice (a video that could not be read at first)
    counts as it came last.

    Args:
        folder: Where the files lie; all ranks see it.
        name: What they are called.
        rank: Of this process, which writes one of them.
    """

    def __init__(self, folder: str | Path, name: str = "answers", rank: int = 0) -> None:
        self.folder, self.name = Path(folder), name
        self.path = self.folder / f"{name}-rank{rank}.jsonl"
        self._file: TextIO | None = None

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, and hand them to the operating system: from there they survive this process.

        Args:
            lines: Each with the question's ``id`` under ``bench``.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _cut_torn(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write("".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines))
        self._file.flush()

    def read(self) -> dict[str, dict[str, Any]]:
        """What all ranks have written, by the questions' ids.

        Raises:
            InputError: A line other than a file's last is none of ours.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob(f"{self.name}-rank*.jsonl")):
            for line in _lines(path):
                found[line[DETAILS]["id"]] = line
        return found

    def seconds(self) -> float:
        """Time spent on the answers: of the rank that took longest."""
        files = self.folder.glob(f"{self.name}-rank*.jsonl")
        sums = [sum(float(line[DETAILS].get("seconds", 0.0)) for line in _lines(file)) for file in files]
        return max(sums, default=0.0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def check_configuration(path: Path, present: Mapping[str, Any]) -> None:
    """See that answers that are there were made with the same configuration.

    Args:
        path: The file that keeps it (``keep_configuration``); where there is none, there must be no answers.
        present: What is asked for now: plain JSON values. Keys of the file that it has not are not compared.

    Raises:
        InputError: They differ (the message names the first key that does), or there are answers and no such file.
    """
    if not path.is_file():
        if answers := sorted(path.parent.glob("*-rank*.jsonl")):
            raise InputError(
                f"{answers[0]}: holds answers, but nothing says of what: {path.name} is not beside it; name another "
                "folder ('model.out')"
            )
        return
    try:
        saved = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is no configuration of a journal ({error}); remove its folder") from error
    now = dict(_flat(json.loads(json.dumps(present, default=str))))
    groups = {key.split(".")[0] for key in now}
    for key in [*now, *(key for key in saved if key not in now and key.split(".")[0] in groups)]:
        if saved.get(key) != now.get(key):
            raise InputError(
                f"{path.parent}: holds answers of another configuration: {key} was {_short(saved.get(key))} and is "
                f"{_short(now.get(key))} here; name another folder ('model.out'), or remove this one"
            )


def keep_configuration(path: Path, present: Mapping[str, Any]) -> None:
    """Write down what the answers are made with, beside its place and renamed.

    Args:
        path: The file.
        present: Plain JSON values.
    """
    write_whole(path, json.dumps(present, indent=1, ensure_ascii=False, default=str) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: there is the old one or the new one, never half of one.

    Args:
        path: The file.
        text: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    # Bytes: a kill may have cut a character in two.
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what stands after the last line's end was cut off
        try:
            entry = json.loads(line)
            entry[DETAILS]["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: line {number} is no answer of a journal ({error!r}); remove it") from error
        yield entry


def _cut_torn(path: Path) -> None:
    """Take a line without an end off a file."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
