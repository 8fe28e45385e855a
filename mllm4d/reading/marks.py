"""What surrounds an answer: reasoning, tags, boxes, markdown; and the one form in which texts are compared."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# No two repetitions in these patterns can match the same characters, or they are bounded: a text may be long and nasty.
_TAGS = re.compile(r"<(/?)(think|thinking|answer|conclusion)>", re.IGNORECASE)
_BOX = re.compile(r"<\|(begin|end)_of_box\|>")
_ANGLES = str.maketrans("◁▷", "<>")
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s?\{([^{}]{0,300})\}")
_BOXED = re.compile(r"\\boxed\s?\{([^{}]{1,300})\}")
_JSON = re.compile(
    r"[\"'](?:final_)?(?:answer|option|choice|letter)[\"']\s{0,3}:\s{0,3}(?:[\"']([^\"\n]{1,300})[\"']|([-\w.]{1,40}))",
    re.IGNORECASE,
)
_NOISE = re.compile(r"~~[^~\n]{1,80}~~|<\|[^<>|]{1,40}\|>|</?s>|</?\w{2,20}>|[\u200b\ufeff*`$]|__|\\[()\[\]]")
_ROLE = re.compile(r"^\s*(?:assistant|model)\s?[:\n]", re.IGNORECASE)
_TURN = "ASSISTANT:"
"""Before the answer of a model that repeats the dialogue."""

_BEFORE = re.compile(r"^(?:[\s,;:!?\"'()\[\]]|\.(?!\d))+")
_AFTER = " .,;:!?\"'()[]"

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‐": "-", "‑": "-", "−": "-"})
_SPELLINGS = tuple(
    (re.compile(rf"\b(?:{pattern})\b"), word)
    for pattern, word in {
        r"(?:counter|anti)[ -]?clockwise": "counterclockwise",
        r"(left|right|up|down)wards?": r"\1",
        r"(for|back|to)wards": r"\1ward",
        r"(front|back|forward|backward|upper|lower|top|bottom)[ -](left|right)": r"\1-\2",
        r"further": "farther",
    }.items()
)
"""Spellings of one word; "clockwise" must not be found in "counter clockwise"."""


def answer_part(text: str) -> str:
    """What of a text is the answer: without reasoning and marks.

    That is what the last pair of answer tags holds, or what follows the only one where it is not closed; in it, or
    where there is none, what the last box or JSON answer holds; else all that is not reasoning.
    """
    text = _BOX.sub(lambda match: "<answer>" if match[1] == "begin" else "</answer>", text.translate(_ANGLES))
    outside, inside = _split(text)
    said = outside.rpartition(_TURN)[2] if inside is None else inside
    said = _LATEX.sub(r"\1", said).replace("\\,", " ")
    for form in (_BOXED, _JSON):
        if found := list(form.finditer(said)):
            said = next(filter(None, found[-1].groups()))
    return plain(_ROLE.sub("", _NOISE.sub("", said)))


def _split(text: str) -> tuple[str, str | None]:
    """What is outside of all tags, and what the last answer tags hold."""
    outside: list[str] = []
    inside: str | None = None
    start, open_tag = 0, ""
    for tag in _TAGS.finditer(text):
        closing, name = bool(tag[1]), "think" if tag[2].lower().startswith("think") else "answer"
        if closing and open_tag == name:
            inside = text[start : tag.start()] if name == "answer" else inside
            open_tag = ""
        elif closing and name == "think" and not open_tag:
            # The prompt has opened it: all before it is reasoning.
            outside, inside = [], None
        elif not closing and open_tag in ("", "answer"):
            outside.append(text[start : tag.start()])
            open_tag = name
        elif not (closing and not open_tag):
            continue
        else:
            outside.append(text[start : tag.start()])
        start = tag.end()
    if open_tag == "answer":
        # Cut off, or stopped by the closing tag.
        inside = text[start:] if inside is None else inside
    elif not open_tag:
        outside.append(text[start:])
    return "\n".join(outside), inside


def plain(text: str) -> str:
    """One form of blanks, quotes and hyphens; line ends are kept."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()


def normal(text: Any) -> str:
    """An option or a part of an answer as it is compared: small letters, one spelling, no marks at its ends."""
    whole = plain(str(text)).replace("\n", " ").casefold()
    # Marks alone stay as they are: "?" is not "...".
    words = _BEFORE.sub("", whole.rstrip(_AFTER)) or whole
    for pattern, word in _SPELLINGS:
        words = pattern.sub(word, words)
    return words
