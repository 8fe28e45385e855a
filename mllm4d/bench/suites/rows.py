"""Rows of a file: each question once, under an id of its own."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.schema import InputError

MAX_UNUSABLE = 0.05
"""Share of a file's rows whose truth may be untellable; more is a broken file, not a slip in it."""

Row = tuple[str, BenchQuestion, str]
"""Where it is (file and entry), the question, and what the model said."""


def asked(question: BenchQuestion) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What makes two questions of one id the same: the wording and the options in their order."""
    return question.question, tuple(question.options.items())


def merge(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Each question once, ids made unique, and how many rows were there before.

    Rows that share an id but not what they ask are different questions: they get a checksum of what they ask, which
    is the same in every file, whatever else that holds.

    Raises:
        InputError: One question has two different answers.
    """
    wordings: dict[str, set[Any]] = defaultdict(set)
    for _, question, _ in rows:
        wordings[question.id].add(asked(question))
    kept: dict[str, Row] = {}
    for where, question, text in rows:
        if len(wordings[question.id]) > 1:
            question = replace(question, id=f"{question.id}#{zlib.crc32(repr(asked(question)).encode()):08x}")
        before = kept.setdefault(question.id, (where, question, text))
        if before[2] != text:
            raise InputError(f"{where}: question {question.id!r} has another answer here than in {before[0]}")
    return list(kept.values()), len(rows) - len(kept)


def check_share(unusable: Sequence[str], usable: int, file: str) -> None:
    """See that few enough rows were left out.

    Raises:
        InputError: More than ``MAX_UNUSABLE`` were; the first is named.
    """
    if len(unusable) > MAX_UNUSABLE * (len(unusable) + usable):
        raise InputError(f"{unusable[0]} ({len(unusable)} of {len(unusable) + usable} entries of {file} are unusable)")
