"""How well answers are read: precision and recall by file and by style, on answers written for this project.

``tests/answers/*.jsonl`` holds answers in the styles of different models with what a careful human reads in them: a
letter, or "invalid" (its README says how they were written). Precision is the share of the letters that were read that
are right, recall the share of the letters that are there that were read rightly.

    python tools/benchmarks/answers.py --errors --out answers.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm4d.answers import alike, read_option

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "answers"
INVALID = "invalid"
ALL = "all"

Read = Callable[[str, Mapping[str, str]], str | None]
"""From text and options to a letter or None."""


def load(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All answers of a folder: ``file`` (its name), ``style``, ``options``, ``text`` and ``truth``."""
    files = sorted(folder.glob("*.jsonl"))
    return [
        {"file": file.stem, **json.loads(line)}
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def agrees(row: Mapping[str, Any], letter: str | None) -> bool:
    """Whether a letter is what the human reads; options that share one text are one."""
    if letter is None or row["truth"] == INVALID:
        return (letter or INVALID) == row["truth"]
    return letter in alike(row["options"], [row["truth"]])


def measure(rows: Iterable[Mapping[str, Any]], by: str, read: Read = read_option) -> dict[str, dict[str, Any]]:
    """Counts, precision and recall of each part and of all.

    Args:
        rows: Answers.
        by: The key that parts them, "file" or "style".
        read: The reader.

    Returns:
        Part to ``n``, ``valid`` (letters that are there), ``read`` (letters that were read), ``right``, ``precision``
        and ``recall``; the last two are None where there is nothing to divide by.
    """
    table: dict[str, dict[str, Any]] = defaultdict(lambda: {"n": 0, "valid": 0, "read": 0, "right": 0})
    for row in rows:
        letter = read(row["text"], row["options"])
        for counts in (table[row[by]], table[ALL]):
            counts["n"] += 1
            counts["valid"] += row["truth"] != INVALID
            counts["read"] += letter is not None
            counts["right"] += letter is not None and agrees(row, letter)
    for counts in table.values():
        counts["precision"] = counts["right"] / counts["read"] if counts["read"] else None
        counts["recall"] = counts["right"] / counts["valid"] if counts["valid"] else None
    # All of them last.
    return {name: table[name] for name in sorted(table, key=lambda name: (name == ALL, name))}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="print the answers that are read wrongly")
    parser.add_argument("--out", type=Path, help="JSON file for the tables")
    arguments = parser.parse_args()
    rows = load()
    if arguments.errors:
        for row in rows:
            letter = read_option(row["text"], row["options"])
            if not agrees(row, letter):
                print(f"{row['file']}, {row['style']}: {row['text']!r}: read {letter or INVALID}, is {row['truth']}")
    tables = {by: measure(rows, by) for by in ("file", "style")}
    for by, table in tables.items():
        print(f"| {by} | answers | with a letter | precision | recall |\n|---|---:|---:|---:|---:|")
        for name, row in table.items():
            shares = " | ".join("" if row[k] is None else f"{100 * row[k]:.1f} %" for k in ("precision", "recall"))
            print(f"| {name} | {row['n']} | {row['valid']} | {shares} |")
    if arguments.out:
        arguments.out.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
