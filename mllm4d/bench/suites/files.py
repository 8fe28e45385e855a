"""Released files and answer files: entries in JSON, JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm4d.answers import alike
from mllm4d.data.entries import read_entries
from mllm4d.data.texts import BadRow, plain, read_truth
from mllm4d.schema import InputError


def read_table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Entries of a file one at a time.

    Args:
        path: A JSON list or JSON lines; ``.csv`` and ``.parquet`` are told by their suffix.

    Yields:
        Entries in order; an empty CSV field is None.

    Raises:
        InputError: There is no such file, it cannot be read, or an entry is no record.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; expected a file of entries")
    suffix = path.suffix.lower()
    rows = _csv(path) if suffix == ".csv" else _parquet(path) if suffix == ".parquet" else read_entries(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{path}: entry {number} is no record (JSON object) but a {type(row).__name__}")
        yield row


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file):
                yield {name: value or None for name, value in row.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is no CSV file in UTF-8 ({error})") from error


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs the package pyarrow (pip install pyarrow)") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: is no Parquet file ({error})") from error


def text_of(entry: Mapping[str, Any], name: str) -> str:
    """A text of an entry without blanks at its ends.

    Raises:
        InputError: The key is missing, or it is no text. Say in front where the entry is.
    """
    if name not in entry:
        raise InputError(f"lacks the key {name!r}")
    try:
        value = plain(entry[name])
    except BadRow:
        value = ""
    if not value:
        raise InputError(f"key {name!r} is {entry[name]!r}, expected a text")
    return value


def number_of(entry: Mapping[str, Any], name: str) -> float:
    """A number of an entry, as a number or as text.

    Raises:
        InputError: The key is missing, or it is no finite number.
    """
    text = text_of(entry, name)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value - value != 0:
        raise InputError(f"key {name!r} is {entry[name]!r}, expected a finite number")
    return value


def response_of(entry: Mapping[str, Any], name: str) -> str:
    """What the model said; null is an empty answer.

    Raises:
        InputError: The key is missing, or it is neither text nor number nor null.
    """
    if name not in entry:
        raise InputError(f"lacks the key {name!r}, which holds the model's answer")
    value = entry[name]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"key {name!r} is a {type(value).__name__}, expected the model's answer as text or null")
    return str(value)


def lettered(texts: Sequence[Any]) -> dict[str, str]:
    """Options given as a list: lettered from A on; a letter that they begin with themselves is taken off.

    Args:
        texts: For example ``["A. left", "B. right"]`` or ``["left", "right"]``.

    Raises:
        BadRow: One is neither text nor number.
    """
    options = {}
    plain_texts = [plain(text) for text in texts]
    letters = [chr(ord("A") + k) for k in range(len(plain_texts))]
    own = all(
        text[:1] == letter and text[1:2] in (".", ":", ")") for text, letter in zip(plain_texts, letters, strict=True)
    )
    for letter, text in zip(letters, plain_texts, strict=True):
        options[letter] = text[2:].strip() if own else text
    return options


def truth_of(answer: Any, options: Mapping[str, str]) -> frozenset[str]:
    """Letters of the right options; several where options share the right text, whatever way the file names it.

    Args:
        answer: A letter, a text, or both, as in ``read_truth``.
        options: Letter to text.

    Raises:
        BadRow: It names none, or the letter of one and the text of another.
    """
    return alike(options, read_truth(answer, options))
