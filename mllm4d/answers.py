"""Read a model's text. Rewards and bench share it, so that training and scoring agree on what counts as an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mllm4d.reading.marks import normal
from mllm4d.reading.option import read_option
from mllm4d.schema import InputError

__all__ = [
    "Centers",
    "Judge",
    "Point",
    "Reading",
    "States",
    "alike",
    "read_centers",
    "read_option",
    "read_or_judge",
    "read_states",
    "right_letters",
]

_THINKING = re.compile(r"<(/?)thinking>", re.IGNORECASE)
# No two repetitions here can match the same characters: what a model says may be long and nasty.
_CENTER = re.compile(r"^[ \t]*(?:[-*][ \t]+)?(Camera|Object) Center:(.*)$", re.MULTILINE)
_NUMBER = r"[ \t]*([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)[ \t]*"
_POINT = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER}\]")

Point = tuple[float, float, float]
Centers = tuple[Point | None, Point | None]
"""A centre at the first and at the last anchor, metres; None where the text says null."""


@dataclass(frozen=True)
class States:
    """What a reasoning text says about both time anchors.

    Attributes:
        thinking: The text between the thinking tags, without blanks at its ends.
        camera_center: The camera's centres, or None where they are not given in the form asked for.
        object_center: The object's centres, likewise.
    """

    thinking: str
    camera_center: Centers | None
    object_center: Centers | None


def read_states(text: str) -> States | None:
    """Read the reasoning block: its text, and the camera's and the object's centres at both anchors.

    Strict, so that nothing can be credited that was not said: there is one pair of thinking tags, and in it two lines
    ``- Camera Center: V`` and two ``- Object Center: V``, V being ``[x, y, z]`` of three finite numbers or ``null``.
    The first line of a kind is the first anchor's, the second the last anchor's, so that a null at one anchor never
    moves a centre to the other. A field with fewer or more lines, or with any line in another form, is None as a whole.

    Args:
        text: What the model said.

    Returns:
        What it says, or None where there is not just one thinking block.
    """
    tags = list(_THINKING.finditer(text))
    if [tag[1] for tag in tags] != ["", "/"]:
        return None
    thinking = text[tags[0].end() : tags[1].start()]
    camera, target = read_centers(thinking)
    return States(thinking.strip(), _both(camera), _both(target))


def read_centers(text: str) -> tuple[list[Point | str | None], list[Point | str | None]]:
    """Read all lines ``- Camera Center: V`` and ``- Object Center: V`` of a text, in order.

    Args:
        text: What the model said, or a part of it.

    Returns:
        The camera's and the object's: V as a point of three finite numbers, None where it is ``null``, and as it is
        written where it is neither.
    """
    found: dict[str, list[Point | str | None]] = {"Camera": [], "Object": []}
    for kind, value in _CENTER.findall(text):
        found[kind].append(_read_center(value.strip(" \t\r")))
    return found["Camera"], found["Object"]


def _read_center(value: str) -> Point | str | None:
    match = _POINT.fullmatch(value)
    if match is None:
        return None if value == "null" else value
    point = (float(match[1]), float(match[2]), float(match[3]))
    return point if all(map(math.isfinite, point)) else value


def _both(values: list[Point | str | None]) -> Centers | None:
    if len(values) != 2 or isinstance(values[0], str) or isinstance(values[1], str):
        return None
    return values[0], values[1]


def alike(options: Mapping[str, Any], letters: Iterable[str]) -> frozenset[str]:
    """Some letters, with those of all options that have the same text: who chooses either has said the same.

    Args:
        options: Letter to option text.
        letters: Some of them.
    """
    texts = {letter: normal(option) for letter, option in options.items()}
    wanted = {texts[letter] for letter in letters}
    return frozenset(letter for letter, text in texts.items() if text in wanted)


def right_letters(options: Mapping[str, Any], answer: Any) -> frozenset[str]:
    """Which letters are right, where a file names the answer by letter or by text.

    Options that share one text are right together (``alike``).

    Args:
        options: Letter to option text; numbers are taken as their text.
        answer: A letter, or an option's text; 0 is a number like any other.

    Raises:
        InputError: It is neither, or the letter of one option and the text of another.
    """
    said = normal(answer)
    by_text = {letter for letter, option in options.items() if normal(option) == said}
    by_letter = {letter for letter in options if letter.casefold() == said}
    if by_letter and by_text and not by_letter <= by_text:
        raise InputError(f"answer {answer!r} is the letter of one option and the text of another: {dict(options)}")
    named = alike(options, by_text or by_letter)
    if not named:
        raise InputError(f"answer {answer!r} is neither letter nor text of one of the options {dict(options)}")
    return named


class Judge(Protocol):
    """Asked which option a text chooses, where rules cannot tell. It is never shown which one is right."""

    def __call__(self, said: str, question: str, options: Mapping[str, str]) -> str:
        """Say it in a form that ``read_option`` can read; anything else, an empty text too, is no answer."""


class Reading(NamedTuple):
    """The letter that was read, or None; and whether it took a judge."""

    letter: str | None
    judged: bool = False


def read_or_judge(said: str, question: str, options: Mapping[str, str], judge: Judge | None) -> Reading:
    """Read by rules, and ask a judge about what they cannot read; a text without a word is not worth asking about.

    Args:
        said: What the model said.
        question: The wording.
        options: Letter to option text.
        judge: None asks nobody.
    """
    letter = read_option(said, options)
    if letter is not None or judge is None or not re.search(r"\w", said):
        return Reading(letter)
    letter = read_option(judge(said, question, options), options)
    return Reading(letter, letter is not None)
