"""How things move in the synthetic world: drawn before they have a place, so that finding a place favours no motion.

The stage is the frame that clips are built in: x right and z forward along the ground as the first camera looks, y
down, the ground at y = 0, metres. Angles turn from z towards x, radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

OBJECT_MOTIONS = {"still": 0.25, "straight": 0.26, "stops": 0.14, "starts": 0.12, "turns": 0.23}
"""Share of each kind of object motion: stopping and starting happen half-way, turning is an arc or a bend."""

CAMERA_MOTIONS = {"still": 0.16, "pans": 0.06, "straight": 0.36, "orbits": 0.22, "turns": 0.20}
"""Share of each kind of camera motion: panning only rotates, orbiting keeps looking at one place, turning follows a
bend with the eyes ahead."""


@dataclass(frozen=True)
class Lengths:
    """How far things go over a clip, and how far away they are.

    Attributes:
        object: Least and greatest length of an object's path, metres, log-uniform.
        camera: Least and greatest length of the camera's path, metres, log-uniform.
        still: Share of the clips in which the camera stands; the other kinds share the rest as ``CAMERA_MOTIONS`` says.
        farthest: Greatest distance from the camera at which an object is given its place, metres.
    """

    object: tuple[float, float] = (0.3, 6.0)
    camera: tuple[float, float] = (0.2, 5.0)
    still: float = CAMERA_MOTIONS["still"]
    farthest: float = 15.0

    def camera_motions(self) -> dict[str, float]:
        """Share of each kind of camera motion."""
        rest = (1 - self.still) / (1 - CAMERA_MOTIONS["still"])
        return {kind: self.still if kind == "still" else rest * share for kind, share in CAMERA_MOTIONS.items()}


@dataclass(frozen=True)
class Motion:
    """A path over the ground that starts at the origin.

    Attributes:
        kind: A key of ``OBJECT_MOTIONS`` or ``CAMERA_MOTIONS``.
        speed: How it changes over the clip, as in ``progress``.
        length: Length of the path, metres; 0 stands exactly still.
        direction: Of the first step, radians.
        offsets: [S, 2], x and z, metres.
        turn: [S], how far the direction has turned, radians.
    """

    kind: str
    speed: str
    length: float
    direction: float
    offsets: Array
    turn: Array

    def describe(self) -> dict[str, object]:
        """Plain JSON values for the provenance; the direction in degrees."""
        if not self.length:
            return {"motion": self.kind}
        degrees = round(float(np.degrees(self.direction)) % 360, 1)
        return {"motion": self.kind, "speed": self.speed, "length": round(self.length, 3), "direction": degrees}


@dataclass(frozen=True)
class Rig:
    """The camera's way through the stage; at the first step it stands over the origin and looks along z.

    Attributes:
        motion: The path.
        yaw: [S], where it looks, radians.
        height: Over the ground, metres.
        pitch: How far it looks down, radians.
    """

    motion: Motion
    yaw: Array
    height: float
    pitch: float

    def to_camera(self, points: Array, height: float) -> tuple[Array, Array, Array]:
        """Points over the ground, one for each step, in camera axes.

        Args:
            points: [..., S, 2], x and z on the stage, metres.
            height: Of the points over the ground, metres.

        Returns:
            x, y and z in camera axes, each [..., S], metres.
        """
        sine, cosine = np.sin(self.yaw), np.cos(self.yaw)
        x, z = np.moveaxis(points - self.motion.offsets, -1, 0)
        ahead, down = x * sine + z * cosine, self.height - height
        sine_pitch, cosine_pitch = np.sin(self.pitch), np.cos(self.pitch)
        return (
            x * cosine - z * sine,
            down * cosine_pitch - ahead * sine_pitch,
            ahead * cosine_pitch + down * sine_pitch,
        )

    def camera_to_stage(self) -> Array:
        """Poses [S, 4, 4]."""
        poses = np.zeros((len(self.yaw), 4, 4))
        poses[:] = np.eye(4)
        sine, cosine = np.sin(self.yaw), np.cos(self.yaw)
        poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = cosine, sine, -sine, cosine
        down = np.eye(4)
        sine, cosine = np.sin(self.pitch), np.cos(self.pitch)
        down[1:3, 1:3] = [[cosine, sine], [-sine, cosine]]
        poses = poses @ down
        poses[:, 0, 3], poses[:, 2, 3] = self.motion.offsets.T
        poses[:, 1, 3] = -self.height
        return poses


def draw_object_motion(rng: np.random.Generator, steps: int, lengths: Lengths) -> Motion:
    """Draw how one object moves, every direction equally likely.

    Args:
        rng: Source of the choice.
        steps: S, equally spaced in time from the clip's first to its last frame.
        lengths: How far it may go.
    """
    kind = _pick(rng, OBJECT_MOTIONS)
    speed = kind if kind in ("stops", "starts") else _pick(rng, {"constant": 0.5, "accelerates": 0.25, "slows": 0.25})
    angle = _sign(rng) * np.radians(rng.uniform(60, 150)) if kind == "turns" else 0.0
    length = _log_uniform(rng, lengths.object) if kind != "still" else 0.0
    return _motion(rng, kind, speed, length, angle, bend=rng.random() < 0.5, steps=steps)


def draw_rig(rng: np.random.Generator, steps: int, lengths: Lengths) -> Rig:
    """Draw how the camera moves and where it looks, every direction of its path equally likely.

    Args:
        rng: Source of the choice.
        steps: S, as in ``draw_object_motion``.
        lengths: How far it may go, and how often it stands.
    """
    kind = _pick(rng, lengths.camera_motions())
    speed = _pick(rng, {"constant": 0.4, "accelerates": 0.15, "slows": 0.15, "stops": 0.15, "starts": 0.15})
    angle = _sign(rng) * np.radians(rng.uniform(10, 45)) if kind in ("turns", "pans") else 0.0
    length = _log_uniform(rng, lengths.camera) if kind not in ("still", "pans") else 0.0
    motion = _motion(rng, kind, speed, length, angle, bend=False, steps=steps)
    focus = np.array([0.0, rng.uniform(6, 11)])
    yaw = motion.turn
    if kind == "orbits":
        x, z = (focus - motion.offsets).T
        yaw = np.arctan2(x, z)
    return Rig(motion, yaw, height=rng.uniform(1.2, 2.0), pitch=np.radians(rng.uniform(4, 11)))


def progress(speed: str, time: Array, rng: np.random.Generator) -> Array:
    """How much of its path something has covered.

    Args:
        speed: "constant"; "accelerates" or "slows" two- to fourfold; "stops" or "starts" at some time in the middle.
        time: [S], from 0 to 1.
        rng: Draws how strongly, or when.

    Returns:
        [S], from 0 to 1.
    """
    gain, middle = rng.uniform(2, 4), rng.uniform(0.35, 0.65)
    if speed == "accelerates":
        return time * (2 + (gain - 1) * time) / (gain + 1)
    if speed == "slows":
        return time * (2 * gain - (gain - 1) * time) / (gain + 1)
    if speed == "stops":
        return np.minimum(time / middle, 1.0)
    if speed == "starts":
        return np.maximum((time - middle) / (1 - middle), 0.0)
    return time


def _motion(
    rng: np.random.Generator, kind: str, speed: str, length: float, angle: float, bend: bool, steps: int
) -> Motion:
    """Lay out a path that turns by ``angle`` all along, or at a bend in its middle part."""
    covered = progress(speed, np.linspace(0, 1, steps), rng)
    direction, corner = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.65)
    share = np.linspace(0, 1, 401)
    turned = angle * (np.clip((share - corner) / 0.1 + 0.5, 0, 1) if bend else share)
    middle = direction + (turned[1:] + turned[:-1]) / 2
    strides = np.stack([np.sin(middle), np.cos(middle)]) * length / 400
    walked = np.concatenate([np.zeros((2, 1)), strides.cumsum(1)], axis=1)
    offsets = np.stack([np.interp(covered, share, axis) for axis in walked], axis=-1)
    return Motion(kind, speed, length, direction, offsets, np.interp(covered, share, turned))


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
