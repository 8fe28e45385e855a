"""Objects back to the configuration that makes them, for the record in ``index.json``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mllm4d.schema import InputError


def describe(value: Any) -> Any:
    """Plain JSON values from which an object could be made again.

    Args:
        value: A plain value, or an object that keeps each argument of its constructor in an attribute of
            the same name.

    Returns:
        Plain values; for an object ``{"class_path": …, "init_args": {…}}``.

    Raises:
        InputError: An object does not keep an argument; the message names class and argument.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    kind = type(value)
    arguments = {}
    for name in inspect.signature(kind).parameters:
        if not hasattr(value, name):
            raise InputError(
                f"{kind.__module__}.{kind.__qualname__} must keep its argument {name!r} in an attribute of that name, "
                "so that index.json can say how the data was made"
            )
        arguments[name] = describe(getattr(value, name))
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
