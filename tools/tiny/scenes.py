"""Pictures for the tiny model's pretraining: frames of the synthetic world with the solids' silhouettes, kept on disk.

Nothing of the world's geometry is kept: no pose, no depth, no position in space. So no exercise can be about 4-D.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.sources.world import World
from mllm4d.schema import InputError

SIZE, FRAMES = 64, 8
CHUNK = 100
"""Scenes in a file."""

WORLD_SEED = 70_007
"""Not the seed of any shipped configuration: the tiny model has seen no clip that it will be asked about."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A clip as pictures.

    Attributes:
        frames: [T, H, W, 3], RGB.
        labels: [T, H, W], 0 where there is no named solid, else 1 + its place in ``names``.
        names: Such as "red cube".
    """

    frames: Bytes
    labels: Bytes
    names: tuple[str, ...]


def render(index: int) -> Scene:
    """Make a scene: a clip of the world with one to five solids, of which only the pictures are kept."""
    world = World(width=SIZE, height=SIZE, frames=FRAMES, fps=4.0, objects=(1, 5), seed=WORLD_SEED)
    clip = world.load(f"world-{index:05d}")
    labels = np.zeros(clip.frames.shape[:3], dtype=np.uint8)
    for k, mask in enumerate(clip.masks):
        labels[mask.pixels.numpy()] = k + 1
    return Scene(clip.frames.numpy(), labels, tuple(mask.name for mask in clip.masks))


def render_missing(folder: Path, count: int) -> Iterator[int]:
    """Render what is not there yet, a file at a time; each appears when it is whole.

    Args:
        folder: Where the files are kept.
        count: Scenes in all, a multiple of ``CHUNK``.

    Yields:
        How many scenes are there.

    Raises:
        InputError: ``count`` is not such a multiple.
    """
    if count < CHUNK or count % CHUNK:
        raise InputError(f"--scenes: {count} is not a multiple of {CHUNK}")
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, CHUNK):
        file = _file(folder, first)
        if not file.is_file():
            scenes = [render(index) for index in range(first, first + CHUNK)]
            beside = file.with_suffix(f".{os.getpid()}.partial")
            with open(beside, "wb") as stream:
                np.savez(
                    stream,
                    frames=np.stack([scene.frames for scene in scenes]),
                    labels=np.stack([scene.labels for scene in scenes]),
                    names=np.array(json.dumps([scene.names for scene in scenes])),
                )
            os.replace(beside, file)
        yield first + CHUNK


def read_scenes(folder: Path, count: int) -> list[Scene]:
    """Read ``count`` scenes that ``render_missing`` has made.

    Raises:
        InputError: A file is not there.
    """
    scenes: list[Scene] = []
    for first in range(0, count, CHUNK):
        file = _file(folder, first)
        if not file.is_file():
            raise InputError(f"{file}: not found; render {count} scenes first")
        with np.load(file, allow_pickle=False) as data:
            frames, labels, names = data["frames"], data["labels"], json.loads(str(data["names"]))
        scenes += [Scene(frames[k], labels[k], tuple(names[k])) for k in range(len(names))]
    return scenes


def _file(folder: Path, first: int) -> Path:
    return folder / f"scenes-{first:06d}.npz"
