"""What an exercise shows: a still, a cut from one still to another, or a short clip; and what can be seen in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import NamedTuple

import numpy as np

from mllm4d.curate.sources.world_layout import COLOURS, SHAPES
from tools.tiny.scenes import Bytes, Scene

NAMES = tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES))
"""All names that a solid can have."""

CLEAR = 20
"""A solid is seen when it has so many pixels, of 64 x 64. One with fewer, but any, makes a frame unclear."""

SHIFT = 20
"""Stills are moved up, down, left and right by at most so many pixels, so that where a thing is in the image tells
nothing about how far away it is."""


class Seen(NamedTuple):
    """A solid in a frame: its name, and the middle of its pixels as shares of the width and height, from 0 to 1."""

    name: str
    x: float
    y: float


class View(NamedTuple):
    """One frame: the solids that are seen, and whether there are no others that can hardly be seen."""

    solids: tuple[Seen, ...]
    clear: bool

    def find(self, name: str) -> Seen | None:
        """The solid of that name."""
        return next((solid for solid in self.solids if solid.name == name), None)

    @property
    def names(self) -> set[str]:
        """Of the solids."""
        return {solid.name for solid in self.solids}


@dataclass(frozen=True)
class Film:
    """Eight frames.

    Attributes:
        frames: [T, H, W, 3], RGB.
        fps: Frame rate, 1/s.
        views: What each frame shows; one for a still.
        near: Names of everything that is in the scenes, seen or not.
        kinds: [T, H, W], 0 where there is no solid, else 1 + the place of its name in ``NAMES``.
    """

    frames: Bytes
    fps: float
    views: tuple[View, ...]
    near: frozenset[str]
    kinds: Bytes

    @property
    def still(self) -> bool:
        """Whether all frames are one and the same."""
        return len(self.views) == 1


def view(labels: Bytes, names: Sequence[str]) -> View:
    """What one frame [H, W] of a scene shows."""
    counts = np.bincount(labels.reshape(-1), minlength=len(names) + 1)[1:]
    solids = []
    for k, name in enumerate(names):
        if counts[k] >= CLEAR:
            rows, columns = np.nonzero(labels == k + 1)
            height, width = labels.shape
            solids.append(Seen(name, float(columns.mean() + 0.5) / width, float(rows.mean() + 0.5) / height))
    return View(tuple(solids), bool(((counts == 0) | (counts >= CLEAR)).all()))


def draw_film(scenes: Sequence[Scene], random: Random) -> Film:
    """Draw a film: half are stills, a quarter cuts, a quarter clips."""
    kind, fps = random.random(), random.choice((2.0, 4.0, 4.0, 8.0))
    if kind < 0.5:
        return still(random.choice(scenes), random, fps)
    if kind < 0.75:
        first, last = random.sample(range(len(scenes)), 2)
        return cut(scenes[first], scenes[last], random, fps)
    return clip(random.choice(scenes), random, fps)


def still(scene: Scene, random: Random, fps: float) -> Film:
    """One frame for all the time."""
    picture = _picture(scene, random)
    count = len(scene.frames)
    frames, kinds = (np.repeat(image[None], count, 0) for image in (picture.frame, picture.kinds))
    return Film(frames, fps, (picture.view,), frozenset(scene.names), kinds)


def cut(one: Scene, other: Scene, random: Random, fps: float) -> Film:
    """A frame of one scene, and from some time in the middle on a frame of another."""
    pictures = _picture(one, random), _picture(other, random)
    count = len(one.frames)
    after = random.randint(2, count - 2)
    shots = [pictures[frame >= after] for frame in range(count)]
    frames, kinds = np.stack([shot.frame for shot in shots]), np.stack([shot.kinds for shot in shots])
    return Film(frames, fps, tuple(shot.view for shot in shots), frozenset(one.names + other.names), kinds)


def clip(scene: Scene, random: Random, fps: float) -> Film:
    """The scene as it is, or as a mirror shows it."""
    frames, labels = scene.frames, scene.labels
    if random.random() < 0.5:
        frames, labels = frames[:, :, ::-1], labels[:, :, ::-1]
    views = tuple(view(label, scene.names) for label in labels)
    return Film(frames, fps, views, frozenset(scene.names), _kinds(labels, scene.names))


class _Picture(NamedTuple):
    frame: Bytes
    view: View
    kinds: Bytes


def _picture(scene: Scene, random: Random) -> _Picture:
    """A frame, perhaps mirrored, and shifted."""
    frame = random.randrange(len(scene.frames))
    down, right = random.randint(-SHIFT, SHIFT), random.randint(-SHIFT, SHIFT)
    image, labels = scene.frames[frame], scene.labels[frame]
    if random.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    moved, covered = _shift(image, down, right), _shift(labels, down, right)
    return _Picture(moved, view(covered, scene.names), _kinds(covered, scene.names))


def _kinds(labels: Bytes, names: Sequence[str]) -> Bytes:
    """Labels of a scene as labels of ``NAMES``."""
    return np.array([0, *(1 + NAMES.index(name) for name in names)], dtype=np.uint8)[labels]


def _shift(image: Bytes, down: int, right: int) -> Bytes:
    """Move an image [H, W, ...]; what comes in is what is at the edge."""
    rows = np.clip(np.arange(image.shape[0]) - down, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) - right, 0, image.shape[1] - 1)
    return image[rows][:, columns]
