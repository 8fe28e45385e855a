"""Pretrained Hugging Face models by local folder or hub name; no remote code is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mllm4d.schema import InputError


def check_model(key: str, name: str) -> None:
    """Fail early where a model is named by a folder that is none. A hub name ("owner/name") is not looked up here.

    Args:
        key: The argument that names it, for the message.
        name: Local folder or hub name.

    Raises:
        InputError: The folder has no ``config.json``.
    """
    folder = Path(name)
    # A hub name is "owner/name"; anything else can only be meant as a folder.
    meant = folder.is_dir() or folder.is_absolute() or name.startswith(".") or len(folder.parts) != 2
    if meant and not (folder / "config.json").is_file():
        raise InputError(f"{key}: {folder / 'config.json'} not found; expected the folder of a Hugging Face model")


def read_pretrained(kind: Any, key: str, name: str, **options: Any) -> Any:
    """Read a config, model or processor.

    Args:
        kind: A class of transformers with ``from_pretrained``.
        key: The argument that names it, for the message.
        name: Local folder, from which alone is then read, or hub name.
        options: Passed on.

    Raises:
        InputError: It is not there, or is of another kind; transformers' own first line says what is wrong.
    """
    check_model(key, name)
    local = Path(name).is_dir()
    try:
        return kind.from_pretrained(name, local_files_only=local, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{key}: {name!r} cannot be read as {kind.__name__}: {reason}") from error


def choose_device(key: str, name: str) -> torch.device:
    """The device by its name; "auto" is the GPU where there is one.

    Raises:
        InputError: torch knows no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{key}: {name!r} is not a device of torch, such as 'cpu' or 'cuda'") from error


def choose_dtype(key: str, name: str) -> torch.dtype:
    """The floating-point type by its name.

    Raises:
        InputError: torch knows no such type.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"{key}: {name!r} is not a floating-point type of torch, such as 'float32' or 'bfloat16'")
    return dtype
