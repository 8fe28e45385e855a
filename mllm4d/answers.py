"""Read a model's text. Rewards and bench share it, so that training and scoring agree on what counts as an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_DECLARED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?\s*\(?\**([A-Z])\b(?![a-z'])", re.IGNORECASE)
_LONE = re.compile(r"^\W*([A-Z])(?:[.):,\s]|\W*$)")
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


def read_option(text: str, options: Mapping[str, str]) -> str | None:
    """Which option a text chooses.

    In this order: the text inside the last pair of answer tags; a declaration ("the answer is B", "Option: C"); a
    letter that stands alone or first; the one option whose text occurs in the answer. What contradicts itself or cannot
    be read is no answer.

    Args:
        text: What the model said.
        options: Letter to option text.

    Returns:
        The letter, or None where the text cannot be read.
    """
    if tags := _TAG.findall(text):
        return _read_bare(tags[-1], options)
    declared = {letter.upper() for letter in _DECLARED.findall(text) if letter.isupper()} & set(options)
    if declared:
        return declared.pop() if len(declared) == 1 else None
    return _read_bare(text, options)


def _read_bare(text: str, options: Mapping[str, str]) -> str | None:
    """A leading letter, or a unique option text."""
    stripped = text.strip()
    # "A car moved" starts with a letter but says a word: only a letter with its own text or nothing after it counts.
    if (match := _LONE.match(stripped)) and match[1] in options:
        letter, rest = match[1], stripped[match.end(1) :].strip(" .):,*\n")
        if not rest or options[letter].lower() in rest.lower() or stripped[match.end(1) : match.end(1) + 1] in ".):":
            return letter
    found = [letter for letter, option in options.items() if _occurs(option, text)]
    # An option whose text is part of a longer option that occurs too ("clockwise" in "counter-clockwise") is not meant.
    found = [a for a in found if not any(a != b and options[a].lower() in options[b].lower() for b in found)]
    return found[0] if len(found) == 1 else None


def _occurs(option: str, text: str) -> bool:
    return bool(re.search(rf"(?<![\w.-]){re.escape(option.strip())}(?![\w-])", text, re.IGNORECASE))
