"""Files of JSON entries of any size, one entry at a time, and a place on disk where rows wait, sorted by video."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from mllm4d.data.rows import Row
from mllm4d.schema import InputError

CHUNK = 1 << 20
"""Characters that are read at once."""

LONGEST = 1 << 24
"""Characters of the longest entry; what is longer is a broken file."""

_BETWEEN = re.compile(r"[\s,]*")


def read_entries(path: Path) -> Iterator[Any]:
    """Read a list of entries, or JSON lines, without ever holding the whole file.

    Args:
        path: The file; one that begins with ``[`` is a list.

    Yields:
        Parsed entries in order.

    Raises:
        InputError: There is no such file, or it is not JSON.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; expected a file of one of the released formats")
    with path.open(encoding="utf-8") as file:
        try:
            first = file.read(CHUNK).lstrip()
            if first.startswith("["):
                yield from _list_entries(file, first[1:], path)
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_line(line, path, number)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 text ({error})") from error


def _parse_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number} is not JSON ({error.msg})") from error


def _list_entries(file: TextIO, buffer: str, path: Path) -> Iterator[Any]:
    decoder, start, number = json.JSONDecoder(), 0, 0
    while True:
        start = _BETWEEN.match(buffer, start).end()  # type: ignore[union-attr]
        if buffer.startswith("]", start):
            return
        try:
            entry, end = decoder.raw_decode(buffer, start)
        except json.JSONDecodeError as error:
            # Cut off in the middle, or broken: more text tells.
            more = file.read(max(CHUNK, len(buffer) - start)) if len(buffer) - start <= LONGEST else ""
            if not more:
                raise InputError(f"{path}: entry {number} of the list is not JSON ({error.msg})") from error
            buffer, start = buffer[start:] + more, 0
            continue
        yield entry
        start, number = end, number + 1


def write_entries(entries: Iterable[Any], path: Path, lines: bool) -> int:
    """Write entries one at a time.

    Args:
        entries: Plain JSON values.
        path: A new file.
        lines: JSON lines rather than one list.

    Returns:
        How many there were.
    """
    count, between = 0, "\n" if lines else ",\n"
    with path.open("w", encoding="utf-8") as file:
        file.write("" if lines else "[\n")
        for entry in entries:
            file.write((between if count else "") + json.dumps(entry, ensure_ascii=False))
            count += 1
        file.write("\n" if lines else "\n]\n")
    return count


class Spool:
    """Rows on disk, given back video by video, so that memory does not grow with their number.

    Args:
        path: A new file.
    """

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, video TEXT, row TEXT)")

    def fill(self, rows: Iterable[Row]) -> None:
        """Take rows in order."""
        pairs = ((row.video, json.dumps(asdict(row))) for row in rows)
        self.database.executemany("INSERT INTO rows (video, row) VALUES (?, ?)", pairs)
        self.database.execute("CREATE INDEX by_video ON rows (video, number)")

    def videos(self) -> list[str]:
        """All videos, in the order in which they came first."""
        found = self.database.execute("SELECT video FROM rows GROUP BY video ORDER BY MIN(number)")
        return list(chain.from_iterable(found))

    def rows(self, video: str) -> list[Row]:
        """All rows about a video, in order."""
        found = self.database.execute("SELECT row FROM rows WHERE video = ? ORDER BY number", (video,))
        rows = [json.loads(row) for (row,) in found]
        return [Row(**{**row, "answers": tuple(row["answers"])}) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        self.database.close()
