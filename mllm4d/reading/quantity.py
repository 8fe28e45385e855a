"""Numbers with units as options: 0.53 m is 53 cm, 3 metres per second are 3 m/s."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LENGTHS = {"mm": 0.001, "cm": 0.01, "m": 1.0, "km": 1000.0}
_NAMES = {"millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km"}
_NAMES |= {name.replace("meter", "metre"): unit for name, unit in _NAMES.items()}
_NAMES |= {"second": "s", "sec": "s", "hour": "h", "hr": "h", "degree": "°", "deg": "°", "percent": "%"}
_ABOUT = r"(?:about |around |approximately |roughly |nearly |almost |[~≈] ?)?"
_AMOUNT = r"(?P<number>-?\d+(?:[.,]\d+)?|\.\d+)"
_UNIT = r"[a-z]+[23]?(?:(?: ?/ ?| per )[a-z]+[23]?)?|°|%"
# Not before a digit or a letter, so that a number is read to its end; "m/s" is one unit wherever it is one.
_QUANTITY = re.compile(rf"(?<![\w.-]){_AMOUNT}(?P<unit> ?(?:{_UNIT}))?(?![\w.]?\d|\w)")
_BARE = re.compile(rf"{_ABOUT}{_AMOUNT}")
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNT = re.compile(rf"\b(?:{'|'.join(_COUNTS)})\b")

Quantity = tuple[float, str]
"""Value and unit; lengths in metres, ``""`` for a plain number."""


def quantity(text: str) -> Quantity | None:
    """What a text says that is a number, with a unit or without, and nothing else; None for any other text."""
    match = _QUANTITY.fullmatch(re.sub(f"^{_ABOUT}", "", text))
    return None if match is None else _measured(match["number"], match["unit"])


def places(text: str, options: Mapping[str, str]) -> list[tuple[int, str]]:
    """Where a text gives one of some quantities, in whatever unit of length.

    Args:
        text: In the form of ``mllm4d.reading.marks.normal``. One that is no more than a number means the option whose
            number is written so.
        options: Text to letter; each a quantity.

    Returns:
        Position and letter of each.
    """
    letters = {value: letter for option, letter in options.items() if (value := quantity(option))}
    plain = all(unit == "" for _, unit in letters)
    if plain:
        text = _COUNT.sub(lambda match: str(_COUNTS.index(match[0])), text)
    elif bare := _BARE.fullmatch(text):
        said = _measured(bare["number"], "")
        written = [_QUANTITY.search(option) for option in options]
        same = [match is not None and _measured(match["number"], "") == said for match in written]
        return [(0, letter) for letter, agrees in zip(options.values(), same, strict=True) if agrees]
    found = []
    for match in _QUANTITY.finditer(text):
        key = _measured(match["number"], "" if plain else match["unit"])
        if key in letters:
            found.append((match.start(), letters[key]))
    return found


def _measured(number: str, unit: str | None) -> Quantity:
    parts = re.split(r" ?/ ?| per ", (unit or "").strip())
    names = [_NAMES.get(part.removesuffix("s"), part) for part in parts]
    value = float(number.replace(",", "."))
    # Rounded: 0.53 m and 53 cm have to be one number.
    return (
        (round(value * _LENGTHS[names[0]], 9), "m")
        if names[0] in _LENGTHS and len(names) == 1
        else (value, "/".join(names))
    )
