"""Videos of released files: found by name, read, and given the scene that is known."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from mllm4d.schema import InputError
from mllm4d.video import decode, encode


def find_video(folder: Path, name: str) -> Path | None:
    """A video in a folder by its name, or by ever shorter ends of a longer path.

    Args:
        folder: The only place that is looked at.
        name: As a file has it; may be someone's absolute path.

    Returns:
        The file, or None where there is none.
    """
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "/"]
    for first in range(len(parts)):
        tail = parts[first:]
        if ".." not in tail and (folder.joinpath(*tail)).is_file():
            return folder.joinpath(*tail)
    return None


def keys_of(paths: Sequence[Path]) -> list[str]:
    """The clips' keys: the videos' names as far as they are safe as file names.

    Videos that would be named alike get a checksum of their path as well.

    Args:
        paths: Different videos, relative to their folder.

    Returns:
        Different keys, in the order of the paths.
    """
    names = [re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-") for path in paths]
    counts = Counter(names)
    sums = [hashlib.sha256(path.as_posix().encode()).hexdigest()[:8] for path in paths]
    return [
        name if name and counts[name] == 1 else f"{name}-{digest}".strip("-")
        for name, digest in zip(names, sums, strict=True)
    ]


def load_clip(path: Path, frames: int | None) -> tuple[bytes, dict[str, Any]]:
    """Read a video and what is known about its scene.

    Args:
        path: The video.
        frames: As in ``ReleasedImport``.

    Returns:
        MP4 bytes, and the content of ``scene.json`` without provenance where the video has no scene of its own.

    Raises:
        InputError: It cannot be decoded, has a single frame, or does not fit its scene.
    """
    content = path.read_bytes()
    images, times = decode(content, name=str(path))
    rate = frame_rate(times, str(path))
    scene_path = path.with_suffix(".scene.json")
    if scene_path.is_file():
        scene = json.loads(scene_path.read_text())
        if len(scene.get("times", ())) != len(times):
            raise InputError(f"{path}: has {len(times)} frames, but {scene_path.name} {len(scene.get('times', ()))}")
        return content, scene
    if frames is not None and len(times) > frames:
        chosen = torch.linspace(0, len(times) - 1, frames).round().long()
        images, times = images[chosen], times[chosen]
        rate, content = frame_rate(times, str(path)), encode(images, times)
    elif path.suffix.lower() != ".mp4":
        content = encode(images, times)
    scene = {
        "units": "m",
        "axes": "opencv",
        "fps": round(rate, 6),
        "times": [round(time, 6) for time in times.tolist()],
        "camera": None,
        "objects": [],
        "quality": {},
        "provenance": {},
    }
    return content, scene


def frame_rate(times: Tensor, name: str) -> float:
    """Mean frame rate, 1/s.

    Args:
        times: [T] seconds, from the decoder.
        name: What an error calls the video.

    Raises:
        InputError: There is a single frame, or time stands still: nothing says how fast the video runs.
    """
    if len(times) < 2 or not bool((times.diff() > 0).all()):
        raise InputError(f"{name}: its {len(times)} frames do not follow each other in time, so that it has no rate")
    return (len(times) - 1) / float(times[-1] - times[0])
