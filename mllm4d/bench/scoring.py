"""What the metrics compute, as plain functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mllm4d.answers import Centers, right_letters
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.schema import Question

Asked = Question | BenchQuestion
AskedKind = TypeVar("AskedKind", Question, BenchQuestion)


def right_options(question: Asked) -> frozenset[str]:
    """The letters that are right: several where options share the right text."""
    if isinstance(question, BenchQuestion):
        return question.right
    return right_letters(question.options, question.answer)


def circular(question: AskedKind) -> tuple[AskedKind, ...]:
    """The question with its options turned round, once for every option (CircularEval; MMBench, arXiv 2307.06281).

    Args:
        question: With n options.

    Returns:
        n questions, the first with the options as they are; ids ``ID@0``, ``ID@1``, …
    """
    letters, texts = list(question.options), list(question.options.values())
    turned = []
    for k in range(len(letters)):
        moved = dict(zip(letters, letters[-k:] + letters[:-k], strict=True))
        changes: dict[str, Any] = {
            "id": f"{question.id}@{k}",
            "options": dict(zip(letters, texts[k:] + texts[:k], strict=True)),
        }
        if isinstance(question, BenchQuestion):
            changes["right"] = frozenset(moved[letter] for letter in question.right)
        else:
            changes["answer"] = moved[question.answer]
        turned.append(replace(question, **changes))
    return tuple(turned)


def variant_group(question: Asked) -> str:
    """A name that the variants of one question share: the benchmark's, else the id without ``circular``'s mark."""
    if isinstance(question, BenchQuestion) and question.variants is not None:
        return question.variants
    return re.sub(r"@\d+$", "", question.id)


def right_in_groups(right: Sequence[bool], groups: Sequence[Any], needed: int | None = None) -> tuple[float, int, int]:
    """Share of groups that are right: in all their members, or in so many of them.

    Args:
        right: Of each answer.
        groups: The group of each.
        needed: How many members have to be right; None is all of them.

    Returns:
        The share (NaN where there is no group that counts), how many groups count, and how many have fewer members
        than ``needed``, which do not count.
    """
    members: dict[Any, list[bool]] = {}
    for value, group in zip(right, groups, strict=True):
        members.setdefault(group, []).append(bool(value))
    whole = [found for found in members.values() if needed is None or len(found) >= needed]
    good = sum(sum(found) >= (len(found) if needed is None else needed) for found in whole)
    return good / len(whole) if whole else math.nan, len(whole), len(members) - len(whole)


def center_errors(said: Centers | None, truth: Any) -> tuple[float | None, ...]:
    """Distance of a said centre from the true one, anchor by anchor.

    Args:
        said: What ``read_states`` has read, metres; None where it is not given in the form asked for.
        truth: Two [x, y, z] or nulls, metres, or None: the truth at the same anchors.

    Returns:
        One for each anchor that has a true centre: metres, or None where no centre is said for that anchor.
    """
    pairs = zip(said or (None, None), truth or (), strict=False)
    return tuple(None if point is None else math.dist(point, true) for point, true in pairs if true is not None)
