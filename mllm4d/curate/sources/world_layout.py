"""Where things stand in the synthetic world: in view of the camera, and never through each other.

Frames of reference as in ``world_motion``: the stage, metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.sources.world_motion import Array, Lengths, Motion, Rig, draw_object_motion, draw_rig
from mllm4d.schema import InputError

COLOURS = {
    "red": (205, 32, 32),
    "orange": (245, 130, 15),
    "yellow": (240, 215, 40),
    "green": (30, 150, 55),
    "cyan": (40, 200, 210),
    "blue": (35, 75, 215),
    "purple": (125, 45, 175),
    "pink": (245, 130, 185),
}
"""Name to RGB. Every object of a clip has a colour of its own, so that a name can be read off a small frame too."""

SHAPES = ("cube", "ball", "cylinder", "cone")

SUBSTEPS = 4
"""Steps from one frame to the next at which collisions are looked for."""

IN_VIEW = 0.8
"""Least share of the frames in which an object's place must be inside the image."""

_CANDIDATES = 128
_Flags = NDArray[np.bool_]
_STILL = Motion("still", "constant", 0.0, 0.0, np.zeros((1, 2)), np.zeros(1))


@dataclass(frozen=True)
class Solid:
    """One solid that stands on the ground.

    Attributes:
        name: For example "red cube"; empty for a prop that no question is about.
        shape: One of ``SHAPES``.
        colour: [3], RGB, 0-255.
        size: [3], extent along its own x, y and z, metres.
        motion: How it moves.
        positions: [S, 2], x and z of its vertical axis; S = 1 for a prop.
        yaw: [S].
    """

    name: str
    shape: str
    colour: Array
    size: Array
    motion: Motion
    positions: Array
    yaw: Array

    @property
    def radius(self) -> float:
        """Radius of the upright cylinder around it, metres."""
        return float(np.hypot(*self.size[[0, 2]])) / 2 if self.shape == "cube" else float(self.size[0]) / 2


@dataclass(frozen=True)
class Layout:
    """Everything that is on the stage.

    Attributes:
        rig: The camera.
        solids: The named objects.
        props: Nameless things in grey and brown.
        yard: [2, 2], least and greatest x and z between the walls.
    """

    rig: Rig
    solids: tuple[Solid, ...]
    props: tuple[Solid, ...]
    yard: Array


@dataclass(frozen=True)
class Lens:
    """What placing needs to know about the image: tangents of half the view, and the focal length in pixels."""

    half_width: float
    half_height: float
    focal: float


def draw_layout(
    rng: np.random.Generator, frames: int, objects: tuple[int, int], lens: Lens, lengths: Lengths | None = None
) -> Layout:
    """Draw a clip. Motions are drawn first and then given a place, so that hardly any motion is refused.

    Args:
        rng: Source of every choice.
        frames: T; positions have S = (T - 1) * SUBSTEPS + 1 steps.
        objects: Least and greatest number of named objects.
        lens: The camera's.
        lengths: How far things go; None takes the defaults.

    Raises:
        InputError: No place was found for the objects in many trials.
    """
    lengths = lengths or Lengths()
    steps = (frames - 1) * SUBSTEPS + 1
    count = int(rng.integers(objects[0], objects[1] + 1))
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    for _ in range(100):
        rig = draw_rig(rng, steps, lengths)
        # Room behind for a camera that backs away.
        yard = np.array([[-rng.uniform(9, 14), -rng.uniform(7, 9)], [rng.uniform(9, 14), rng.uniform(13, 19)]])
        solids: list[Solid] = []
        for colour, shape in zip(colours, shapes, strict=True):
            solid = _place_object(rng, f"{colour} {shape}", rig, yard, solids, lens, lengths)
            if solid is None:
                break
            solids.append(solid)
        else:
            return Layout(rig, tuple(solids), _place_props(rng, rig, yard, solids), yard)
    raise InputError(
        f"World: no place for {count} objects in the camera's view; lower 'objects' or widen 'field_of_view'"
    )


def _place_object(
    rng: np.random.Generator, name: str, rig: Rig, yard: Array, others: list[Solid], lens: Lens, lengths: Lengths
) -> Solid | None:
    colour, shape = name.split()
    edge = rng.uniform(0.9, 1.4)
    stretch = {"cube": (0.85, 0.85, 0.85), "ball": (1, 1, 1), "cylinder": (0.85, 1.15, 0.85), "cone": (1, 1.35, 1)}
    size, paint = edge * np.array(stretch[shape]), np.array(COLOURS[colour], dtype=float)
    for _ in range(20):
        motion, yaw = draw_object_motion(rng, len(rig.yaw), lengths), rng.uniform(0, 2 * np.pi)
        solid = Solid(name, shape, paint, size, motion, motion.offsets, yaw + motion.turn)
        places = _candidates(rng, rig, motion, solid, lens, lengths.farthest)
        good = _in_view(places, rig, solid, lens) & _apart(places, rig, yard, solid, others)
        good &= _unhidden(places, rig, solid, others)
        if good.any():
            return replace(solid, positions=places[int(good.argmax())])
    return None


def _candidates(rng: np.random.Generator, rig: Rig, motion: Motion, solid: Solid, lens: Lens, farthest: float) -> Array:
    """Possible paths [K, S, 2]: at some random time, the object is at a random place of the view of that time."""
    near, far = 2.2 + solid.radius, max(min(farthest, float(solid.size[0]) * lens.focal / 5), 5.0)
    depth = np.exp(rng.uniform(np.log(near), np.log(far), _CANDIDATES))
    side = depth * lens.half_width * rng.uniform(-0.9, 0.9, _CANDIDATES)
    step = rng.integers(len(rig.yaw), size=_CANDIDATES)
    sine, cosine = np.sin(rig.yaw[step]), np.cos(rig.yaw[step])
    place = rig.motion.offsets[step] + np.stack([side * cosine + depth * sine, depth * cosine - side * sine], -1)
    return (place - motion.offsets[step])[:, None] + motion.offsets


def _in_view(places: Array, rig: Rig, solid: Solid, lens: Lens) -> _Flags:
    """Whether the larger part of the solid is inside the image for most frames, [K]."""
    x, y, z = (axis[:, ::SUBSTEPS] for axis in rig.to_camera(places, float(solid.size[1]) / 2))
    margin = 0.3 * solid.radius
    inside = (np.abs(x) < z * lens.half_width - margin) & (np.abs(y) < z * lens.half_height - margin)
    return np.asarray(inside.mean(1) >= IN_VIEW)


def _apart(places: Array, rig: Rig, yard: Array, solid: Solid, others: list[Solid]) -> _Flags:
    """Whether the solid keeps its distance from the camera, the walls and the others at every step, [K]."""
    free = (_distance(places, rig.motion.offsets) > 1.5 + solid.radius).all(1)
    free &= ((places > yard[0] + 1.2) & (places < yard[1] - 1.2)).all((1, 2))
    for other in others:
        free &= (_distance(places, other.positions) > solid.radius + other.radius + 0.15).all(1)
    return free


def _unhidden(places: Array, rig: Rig, solid: Solid, others: list[Solid], share: float = 0.25) -> _Flags:
    """Whether the solid hides no other, and no other hides it, for more than a share of the frames, [K]."""
    eye, places = rig.motion.offsets[::SUBSTEPS], places[:, ::SUBSTEPS]
    free = np.ones(len(places), dtype=bool)
    for other in others:
        there = np.broadcast_to(other.positions[::SUBSTEPS], (1, len(eye), 2))
        for front, behind in ((places, there), (there, places)):
            hidden = _off_sight(eye, behind, front) < 0.6 * (solid.radius + other.radius)
            free &= hidden.mean(1) <= share
    return free


def _place_props(rng: np.random.Generator, rig: Rig, yard: Array, solids: list[Solid]) -> tuple[Solid, ...]:
    """Boxes and columns that fill the yard, out of the way of everything that moves and rarely before an object."""
    props: list[Solid] = []
    for _ in range(int(rng.integers(7, 13))):
        # Most of them before the first camera, where they are seen.
        nearest = [yard[0, 0] + 1, yard[0, 1] + 1 if rng.random() < 0.2 else 3.0]
        places = rng.uniform(nearest, yard[1] - 1, size=(_CANDIDATES // 2, 1, 2))
        prop = _draw_prop(rng)
        free = (_distance(places, rig.motion.offsets) > 2.0 + prop.radius).all(1)
        for solid in solids:
            room = prop.radius + solid.radius
            free &= (_distance(places, solid.positions) > room + 0.3).all(1)
            eye, there = rig.motion.offsets[::SUBSTEPS], solid.positions[None, ::SUBSTEPS]
            free &= (_off_sight(eye, there, places) < room).mean(1) <= 0.1
        for other in props:
            free &= (_distance(places, other.positions) > prop.radius + other.radius).all(1)
        if free.any():
            props.append(replace(prop, positions=places[int(free.argmax())]))
    return tuple(props)


def _draw_prop(rng: np.random.Generator) -> Solid:
    grey, warm = rng.uniform(70, 190), rng.uniform(-0.05, 0.2)
    colour = grey * np.array([1 + warm, 1.0, 1 - warm])
    width, height, depth = rng.uniform(0.5, 2.0), np.exp(rng.uniform(np.log(0.4), np.log(3.5))), rng.uniform(0.5, 2.0)
    shape = "cube" if rng.random() < 0.7 else "cylinder"
    size = np.array([width, height, depth if shape == "cube" else width])
    return Solid("", shape, colour, size, _STILL, np.zeros((1, 2)), rng.uniform(0, 2 * np.pi, size=1))


def _distance(one: Array, other: Array) -> Array:
    return np.hypot(*np.moveaxis(one - other, -1, 0))


def _off_sight(eye: Array, target: Array, point: Array) -> Array:
    """Distance [..., T] of points [..., T, 2] from the lines of sight that lead from the eye to the targets."""
    sight, way = target - eye, point - eye
    along = np.clip((way * sight).sum(-1) / (sight * sight).sum(-1), 0, 1)
    return _distance(way, along[..., None] * sight)
