"""Texts of released files: a question with its options, which option is right, and which relation it asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mllm4d import prompts

VIDEO = "<video>"
"""Stands for the video in a user's text."""

_OPTION = re.compile(r"^\s*(?:Options?:\s*)?\(?([A-Z])\s*[.:)]\s*(.*?)\s*$")
_HEADING = re.compile(r"^\s*(?:Options?|Choices):?\s*$", re.IGNORECASE)
_PREFIX = re.compile(r"^\s*Question:\s*", re.IGNORECASE)


class BadRow(ValueError):
    """An entry that is no multiple-choice question about one video; the message says why, in a few words.

    The words hold nothing of the entry itself, so that equal reasons can be counted.
    """


def read_prompt(text: str) -> tuple[str, dict[str, str]]:
    r"""Take a user's text apart: the question, and the options, one a line, that follow it.

    ``Question:`` and ``Options:`` before them, and instructions after them, are passed over. An option begins with its
    letter and one of ``.``, ``:`` and ``)``.

    Args:
        text: For example ``<video>\nHow far?\nA. 1 m\nB. 2 m\nAnswer with the letter.``

    Returns:
        The question, and letter to text.

    Raises:
        BadRow: There is no such question.
    """
    if text.count(VIDEO) > 1:
        raise BadRow("asks about several videos")
    lines = text.replace(VIDEO, "", 1).strip("\n").split("\n")
    matches = [_OPTION.match(line) for line in lines]
    # The last line "A": a question may itself hold such lines.
    starts = [number for number, match in enumerate(matches) if match is not None and match[1] == "A"]
    if not starts:
        raise BadRow("has no options")
    options: dict[str, str] = {}
    for match in matches[starts[-1] :]:
        if match is None or match[1] != chr(ord("A") + len(options)):
            break
        options[match[1]] = match[2]
    before = lines[: starts[-1]]
    while before and (not before[-1].strip() or _HEADING.match(before[-1])):
        before.pop()
    question = _PREFIX.sub("", "\n".join(before)).strip()
    if not question:
        raise BadRow("has no question before its options")
    return question, check_options(options)


def read_truth(answer: Any, options: Mapping[str, str]) -> tuple[str, ...]:
    """Which options a file's answer names: by letter, by text, or by both.

    Args:
        answer: For example ``"B"``, ``"B. left"``, ``" left"`` or the number 0.
        options: Letter to text.

    Returns:
        The letters; several where options share the text.

    Raises:
        BadRow: It names none, or the letter of one and the text of another.
    """
    if answer is None:
        raise BadRow("has no answer")
    text = plain(answer)
    match = _OPTION.match(text)
    if match is not None and match[1] in options and _same(match[2], options[match[1]]):
        return (match[1],)
    found = tuple(letter for letter, option in options.items() if _same(text, option))
    letter = text.rstrip(".)").lstrip("(")
    if letter in options and found and letter not in found:
        raise BadRow("has an answer that is one option's letter and another's text")
    if letter in options:
        return (letter,)
    if not found:
        raise BadRow("has an answer that is none of its options")
    return found


def _same(first: str, second: str) -> bool:
    return " ".join(first.split()).casefold() == " ".join(second.split()).casefold()


def check_options(options: dict[str, str]) -> dict[str, str]:
    """The options, if they are at least two, lettered from A on without a gap, each with a text.

    Raises:
        BadRow: They are not.
    """
    if len(options) < 2 or list(options) != [chr(ord("A") + k) for k in range(len(options))]:
        raise BadRow("has not at least two options from A on")
    if not all(options.values()):
        raise BadRow("has an option without a text")
    return options


def plain(value: Any) -> str:
    """A text or a number as text, without blanks at its ends; 0 is a number like any other.

    Raises:
        BadRow: It is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow("has an option or answer that is neither text nor number")
    return str(value).strip()


def task_of(question: str, patterns: Mapping[str, Sequence[str]]) -> str | None:
    """Which relation a question asks for, by its wording alone.

    Args:
        question: The wording.
        patterns: Task to regular expressions, found anywhere in the wording, whatever the case; they are looked at
            first. After them come our own wordings (``mllm4d.prompts``), as a whole.

    Returns:
        The task, or None where no wording fits, or those of several tasks do.
    """
    given = [(task, text) for task, texts in patterns.items() for text in texts]
    found = {task for task, text in given if re.search(text, question, re.IGNORECASE)}
    if not found:
        fits = [(known, task) for known, task, form in _templates() if form.fullmatch(question)]
        # "the camera was" is also "the NAME was": the wording that says more of it in its own words is meant.
        found = {task for known, task in fits if known == max(fits)[0]}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=1)
def _templates() -> list[tuple[int, str, re.Pattern[str]]]:
    """Characters of a wording's own words, its task, and the wording as a pattern."""
    pairs = [(task, wording) for task, wordings in prompts.WORDINGS.items() for wording in wordings]
    pairs += prompts.PAPER_WORDINGS.items()
    return [(len(re.sub(r"\{\w+\}", "", wording)), task, _template(wording)) for task, wording in pairs]


def _template(wording: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(wording)))
