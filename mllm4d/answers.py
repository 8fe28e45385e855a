"""Read a model's text. Rewards and bench share it, so that training and scoring agree on what counts as an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_DECLARED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?\s*\(?\**([A-Z])\b(?![a-z'])", re.IGNORECASE)
_LONE = re.compile(r"^\W*([A-Z])(?:[.):,\s]|\W*$)")


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
