"""What the files of a run must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm4d.schema import InputError

_TEXT, _NUMBER, _WHOLE, _TABLE, _LIST = (str,), (int, float), (int,), (dict,), (list,)
RESULT_KEYS: Mapping[str, tuple[type, ...]] = {
    "suite": _TEXT,
    "answering": _TEXT,
    "model": _TEXT,
    "checkpoint": (str, type(None)),
    "scores": _TABLE,
    "tasks": _TABLE,
    "blind": _TABLE,
    "warnings": _LIST,
    "versions": _TABLE,
    "data_hash": _TEXT,
    "settings": _TABLE,
    "n": _WHOLE,
    "seconds": _NUMBER,
}
SCORE_KEYS: Mapping[str, tuple[type, ...]] = {
    "n": _WHOLE,
    "correct": _NUMBER,
    "accuracy": _NUMBER,
    "invalid": _WHOLE,
    "invalid_rate": _NUMBER,
    "ci_low": _NUMBER,
    "ci_high": _NUMBER,
    "slices": _TABLE,
    "official": _TABLE,
}
SHARE_KEYS: Mapping[str, tuple[type, ...]] = {
    "n": _WHOLE,
    "accuracy": _NUMBER,
    "ci_low": _NUMBER,
    "ci_high": _NUMBER,
}
TASK_KEYS = {**SHARE_KEYS, "invalid": _WHOLE}
SLICE_KEYS: Mapping[str, tuple[type, ...]] = {"n": _WHOLE, "accuracy": _NUMBER, "invalid": _WHOLE}
BLIND_KEYS = {**SHARE_KEYS, "leaks": (bool,)}
SAMPLE_KEYS: Mapping[str, tuple[type, ...]] = {
    "id": _TEXT,
    "task": _TEXT,
    "video": _TEXT,
    "question": _TEXT,
    "options": _TABLE,
    "right": _LIST,
    "response": _TEXT,
    "read": (str, int, float, type(None)),
    "score": _NUMBER,
    "official": (int, float, type(None)),
    "invalid": (bool,),
    "prompt": _TEXT,
}


def read_text(path: Path) -> str:
    """A file of a run.

    Raises:
        InputError: It is not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; expected the folder of a finished run of the bench")
    return path.read_text(encoding="utf-8")


def parse(text: str, where: str) -> Mapping[str, Any]:
    """A JSON object.

    Args:
        text: The JSON.
        where: Its place, for the message.

    Raises:
        InputError: It is none.
    """
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON ({error})") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: is a {type(entry).__name__}, expected a JSON object")
    return entry


def check(entry: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    """See that an object has these keys with values of these types.

    Args:
        entry: Anything.
        keys: Key to types.
        where: Its place, for the message.

    Raises:
        InputError: It is no object, lacks a key, or a value is of another type.
    """
    if not isinstance(entry, dict):
        raise InputError(f"{where}: is a {type(entry).__name__}, expected a JSON object")
    for key, types in keys.items():
        if key not in entry:
            raise InputError(f"{where}: lacks the key {key!r}")
        value = entry[key]
        # To Python a bool is a number too.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise InputError(f"{where}: key {key!r} is {value!r:.80}, expected {expected}")
