"""Numbers as answers: read from a text, and scored."""

from __future__ import annotations

import math
import re

from mllm4d.reading.marks import answer_part

THRESHOLDS = tuple(0.5 + 0.05 * k for k in range(10))
"""0.5, 0.55, …, 0.95, as in VSI-Bench (Yang et al., "Thinking in Space", arXiv 2412.14171, section 3)."""

LINSPACE = tuple(0.5 + k * ((0.95 - 0.5) / 9) for k in range(10))
"""The same as ``numpy.linspace`` rounds them, which VSI-Bench's code compares with: it matters at the thresholds."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\d)")
_WORD = re.compile(rf"(?<!no )\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_DECLARED = re.compile(
    r"\b(?:answer|result)[\s:=*`]{1,5}(?:is|=|would be)?(?=\W)[^\d.;\n]{0,30}?(?=[-+.]?\d)", re.IGNORECASE
)

_SEVERAL = re.compile(r"[-+.\d,]+\s*\w*\s*(?:or|to|[-–])\s*\d")
"""3 or 4, 3 m to 4 m, 3-4."""


def read_number(text: str) -> float | None:
    """The number that a text gives as its answer.

    Only what is inside the last pair of answer tags (or a box, or a JSON answer) counts where there is one, and nothing
    inside thinking tags. In that, the number after the last "answer is", else the only number. Where there are several
    different numbers, or a range, there is no answer. Words up to twelve are numbers.

    Args:
        text: What the model said.

    Returns:
        A finite number, or None where the text cannot be read.
    """
    spelled = _spelled(answer_part(text))
    if declared := list(_DECLARED.finditer(spelled)):
        rest = spelled[declared[-1].end() :]
        return None if _SEVERAL.match(rest) else next(iter(_numbers(rest)), None)
    found = set(_numbers(spelled))
    return found.pop() if len(found) == 1 else None


def _spelled(text: str) -> str:
    """Number words as digits."""
    return _WORD.sub(lambda match: str(_WORDS.index(match[1].lower())), text)


def _numbers(text: str) -> list[float]:
    found = [float(match[0].replace(",", "")) for match in _NUMBER.finditer(text)]
    return [value for value in found if math.isfinite(value)]


def mean_relative_accuracy(value: float, truth: float) -> float:
    """Share of the thresholds t that the relative error keeps: ``|value - truth| / |truth| < 1 - t``.

    Strictly below, as the paper writes it; VSI-Bench's own code takes ``<=`` (see ``vsi_bench``). A truth of 0 has no
    relative error: the value must be 0 as well.

    Args:
        value: The answer.
        truth: The true number.

    Returns:
        0-1.
    """
    error = relative_error(value, truth)
    return sum(error < 1 - threshold for threshold in THRESHOLDS) / len(THRESHOLDS)


def mean_relative_accuracy_inclusive(value: float, truth: float) -> float:
    """The same with ``<=``, as VSI-Bench's own code has it: an error of just 1 - t still keeps the threshold t."""
    error = relative_error(value, truth)
    return sum(error <= 1 - threshold for threshold in LINSPACE) / len(LINSPACE)


def relative_error(value: float, truth: float) -> float:
    """``|value - truth| / |truth|``; of a truth of 0, 0 where the value is 0 as well and else infinite."""
    if truth == 0 or not math.isfinite(value):
        return 0.0 if value == truth else math.inf
    return abs(value - truth) / abs(truth)


def exact_number(value: float, truth: float) -> float:
    """1 where the two are the same number, else 0."""
    return float(value == truth)
