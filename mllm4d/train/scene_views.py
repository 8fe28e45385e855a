"""A clip's scene as TensorBoard shows it: a plan with true and predicted paths, and points in 3-D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from mllm4d.answers import Point
from mllm4d.viz import COLORS

Array = NDArray[np.float64]

PREDICTED = "#ff00ff"
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""What the side of a square of the plan's grid may stand for, metres."""


@dataclass(frozen=True)
class Paths:
    """Where camera and objects are, in the camera axes of the clip's first stored frame.

    Attributes:
        camera: [T, 3], metres.
        objects: Name to [T, 3], metres; NaN where it is not seen.
        views: [T, 3], where the camera looks, unit vectors.
    """

    camera: Array
    objects: Mapping[str, Array]
    views: Array


def paths_of(scene: Mapping[str, Any]) -> Paths | None:
    """The paths of a scene; None where it has no camera.

    Args:
        scene: The content of ``scene.json``.
    """
    if scene.get("camera") is None:
        return None
    poses = np.array(scene["camera"]["world_to_camera"], dtype=np.float64)  # [T, 4, 4]
    turn, shift = poses[0, :3, :3], poses[0, :3, 3]
    centers = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])  # [T, 3]
    unseen = [math.nan] * 3
    objects = {
        track["name"]: np.array([point or unseen for point in track["centers"]], dtype=np.float64) @ turn.T + shift
        for track in scene.get("objects", ())
    }
    return Paths(centers @ turn.T + shift, objects, poses[:, 2, :3] @ turn.T)


def plan(
    paths: Paths,
    true: Sequence[Point | None] = (),
    predicted: Sequence[Point | str | None] = (),
    frame: int | None = None,
    side: int = 256,
) -> Image.Image:
    """Draw a scene from above: right is the first view's right, up is its forward.

    Black is the camera's path, coloured are the objects'; rings are the true centres that a question is about, crosses
    those that an answer gives. What is predicted outside the plan stands at its edge.

    Args:
        paths: The scene.
        true: Centres, in the axes of ``paths``, metres.
        predicted: Centres as ``mllm4d.answers.read_centers`` reads them; only points are drawn.
        frame: Marks where everything is in this frame.
        side: Of the image, pixels.

    Returns:
        The image, RGB.
    """
    given = [np.array(point) for point in true if point is not None]
    seen = [
        paths.camera,
        *(path[np.isfinite(path[:, 0])] for path in paths.objects.values()),
        *(p[None] for p in given),
    ]
    flat = np.concatenate(seen)[:, [0, 2]]  # [N, 2]
    middle, reach = (flat.min(0) + flat.max(0)) / 2, max(1.0, float(np.ptp(flat, axis=0).max()))
    scale = 0.86 * side / reach  # pixels a metre

    def at(point: Array) -> tuple[float, float]:
        x, y = (np.array([point[0], point[2]]) - middle) * (scale, -scale) + side / 2
        return float(np.clip(x, 4, side - 5)), float(np.clip(y, 4, side - 5))

    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    _grid(draw, middle, scale, side)
    tracks = {"camera": (paths.camera, "black")}
    tracks |= {name: (path, COLORS[k % len(COLORS)]) for k, (name, path) in enumerate(paths.objects.items())}
    for path, color in tracks.values():
        for one, other in itertools.pairwise(path):
            if np.isfinite(one[0]) and np.isfinite(other[0]):
                draw.line([*at(one), *at(other)], fill=color, width=2)
        for place in path[np.isfinite(path[:, 0])]:
            _dot(draw, at(place), 2, color)
    if frame is not None:
        for path, color in tracks.values():
            if np.isfinite(path[frame, 0]):
                _dot(draw, at(path[frame]), 6, color)
        ahead = paths.camera[frame] + paths.views[frame] * 0.12 * reach
        draw.line([*at(paths.camera[frame]), *at(ahead)], fill="black", width=2)
    for point in given:
        x, y = at(point)
        draw.ellipse([x - 7, y - 7, x + 7, y + 7], outline="black", width=2)
    for said in predicted:
        if isinstance(said, tuple):
            x, y = at(np.array(said))
            for slope in (1, -1):
                draw.line([x - 6, y - 6 * slope, x + 6, y + 6 * slope], fill=PREDICTED, width=3)
    return image


def scene_points(scene: Mapping[str, Any], cloud: Mapping[str, Any] | None = None) -> tuple[Array, NDArray[np.uint8]]:
    """A scene as coloured points: the camera's path with its first and last view, objects' paths, and its cloud.

    Args:
        scene: The content of ``scene.json``, with a camera.
        cloud: ``points`` [M][3], in the scene's world, metres, and ``colors`` [M][3], 0-255.

    Returns:
        [N, 3] metres, in the scene's world, and [N, 3] RGB.
    """
    poses = np.array(scene["camera"]["world_to_camera"], dtype=np.float64)
    centers = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    lines = [(centers, "black")]
    for pose, color in ((poses[0], "#888888"), (poses[-1], "#444444")):
        corners = np.array([[-0.5, -0.35, 1], [0.5, -0.35, 1], [0.5, 0.35, 1], [-0.5, 0.35, 1]]) * 0.6
        eye, *rest = (np.concatenate([np.zeros((1, 3)), corners]) - pose[:3, 3]) @ pose[:3, :3]
        lines += [(np.stack([eye, corner]), color) for corner in rest]
        lines.append((np.stack([*rest, rest[0]]), color))
    for k, track in enumerate(scene.get("objects", ())):
        path = np.array([point for point in track["centers"] if point], dtype=np.float64).reshape(-1, 3)
        lines.append((path, COLORS[k % len(COLORS)]))
    drawn = [_along(path) for path, _ in lines]
    colors = [np.tile(ImageColor.getrgb(color), (len(p), 1)) for p, (_, color) in zip(drawn, lines, strict=True)]
    if cloud:
        drawn.append(np.array(cloud["points"], dtype=np.float64).reshape(-1, 3))
        colors.append(np.array(cloud["colors"]).reshape(-1, 3))
    return np.concatenate(drawn), np.concatenate(colors).astype(np.uint8)


def _along(path: Array, steps: int = 12) -> Array:
    """Points on the lines of a path, [N, 3]; a path of one point is that point."""
    if len(path) < 2:
        return path
    share = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    return np.concatenate([(path[:-1, None] * (1 - share) + path[1:, None] * share).reshape(-1, 3), path[-1:]])


def _grid(draw: ImageDraw.ImageDraw, middle: Array, scale: float, side: int) -> None:
    step = next((size for size in STEPS if size * scale >= side / 8), STEPS[-1])
    for axis in (0, 1):
        low, high = middle[axis] - side / 2 / scale, middle[axis] + side / 2 / scale
        for line in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step:
            offset = (line - middle[axis]) * scale
            place = side / 2 + (offset if axis == 0 else -offset)
            ends = [place, 0, place, side] if axis == 0 else [0, place, side, place]
            draw.line(ends, fill="#dddddd" if abs(line) > 1e-9 else "#aaaaaa", width=1)
    draw.text((4, side - 14), f"grid {step:g} m", fill="#666666")


def _dot(draw: ImageDraw.ImageDraw, place: tuple[float, float], radius: int, color: str) -> None:
    x, y = place
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
