"""Pictures for data that has none: boxes on a plain with a grid, under a sky, as a camera would see them.

They are schematic, and true in what the labels tell: every box stands where it is labelled and hides what is behind it;
the grid is fixed in the world, so that the camera's own motion shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CAMERA_HEIGHT = 1.65
"""Of KITTI's cameras over the road, metres (Geiger et al., CVPR 2012)."""

GRID = 5.0
"""Between the lines on the ground, metres."""

LINE = 0.06
"""Half the width of such a line, metres."""

NEAR = 0.5
"""Nothing nearer is drawn, metres."""

FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
"""Corners of each face in order, in the numbering of ``box_corners``."""

LIGHT = np.array([-0.4, -0.8, -0.45])
"""Towards the light, camera axes."""

SUBPIXEL = 4
"""Bits of a pixel's fraction that OpenCV's drawing takes."""


@dataclass(frozen=True)
class SolidBox:
    """A box to draw: ``center`` [3] and ``rotation`` [3, 3] (box to camera axes), ``size`` [3] (metres), RGB colour."""

    center: Array
    rotation: Array
    size: Array
    colour: tuple[int, int, int]


def draw_frame(
    size: tuple[int, int], intrinsics: Array, camera_to_world: Array, boxes: list[SolidBox]
) -> NDArray[np.uint8]:
    """Draw one frame.

    The ground is flat, level with the camera and ``CAMERA_HEIGHT`` under it. Boxes are painted from far to near.

    Args:
        size: (height, width), pixels.
        intrinsics: [3, 3], pixels.
        camera_to_world: [4, 4], metres; the world's y axis points about downwards.
        boxes: In camera axes.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    image = _ground(size, intrinsics, camera_to_world)
    for box in sorted(boxes, key=lambda box: -float(np.linalg.norm(box.center))):
        _paint(image, intrinsics, box)
    return image


def box_corners(center: Array, rotation: Array, size: Array) -> Array:
    """The eight corners.

    Args:
        center: [3].
        rotation: [3, 3], from the box's axes to those of ``center``.
        size: [3], edges along the box's axes.

    Returns:
        [8, 3], in the axes of ``center``; corner ``4 a + 2 b + c`` is on the far side of x, y, z where a, b, c are 1.
    """
    signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    return (signs * size) @ rotation.T + center


def _ground(size: tuple[int, int], intrinsics: Array, camera_to_world: Array) -> NDArray[np.uint8]:
    """Sky over a plain whose lines lie on round coordinates of the world."""
    rows, columns = np.indices(size, dtype=np.float64)
    down = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    image = np.empty((*size, 3))
    image[:] = np.array([150.0, 185, 225]) + 60 * np.clip(1 + 4 * down, 0, 1)[..., None] * np.array([0.8, 0.6, 0.3])
    below = down > 1e-3
    z = CAMERA_HEIGHT / down[below]
    x = (columns[below] - intrinsics[0, 2]) / intrinsics[0, 0] * z
    points = np.stack([x, np.full_like(x, CAMERA_HEIGHT), z], -1) @ camera_to_world[:3, :3].T + camera_to_world[:3, 3]
    fade = np.exp(-z / 40)
    line = np.zeros_like(z)
    across, along = z / intrinsics[0, 0], z**2 / (CAMERA_HEIGHT * intrinsics[1, 1])
    for axis in (0, 2):
        off = np.abs((points[:, axis] + GRID / 2) % GRID - GRID / 2)
        # Lines are at least as wide as the ground that a pixel covers, and fainter for it, so that they do not flicker.
        pixel = np.abs(camera_to_world[axis, 0]) * across + np.abs(camera_to_world[axis, 2]) * along
        width = LINE + pixel
        line = np.maximum(line, np.clip((width - off) / (pixel + 1e-9), 0, 1) * LINE / (LINE + 0.5 * pixel))
    shade = 105 + 45 * (1 - fade) + 100 * np.clip(2 * fade, 0, 1) * line
    image[below] = shade[:, None] * np.array([1.0, 1.0, 0.97])
    return image.clip(0, 255).astype(np.uint8)


def _paint(image: NDArray[np.uint8], intrinsics: Array, box: SolidBox) -> None:
    import cv2

    corners = box_corners(box.center, box.rotation, box.size)
    light = LIGHT / np.linalg.norm(LIGHT)
    for face in FACES:
        polygon = corners[face]
        middle = polygon.mean(0)
        normal = (middle - box.center) / np.linalg.norm(middle - box.center)
        visible = _in_front(polygon)
        if normal @ middle >= 0 or len(visible) < 3:
            continue
        pixels = (visible @ intrinsics.T)[:, :2] / visible[:, 2:]
        # OpenCV's fixed-point coordinates must stay small; far outside the image nothing is to be seen.
        fixed = (pixels.clip(-20000, 20000) * 2**SUBPIXEL).round().astype(np.int32)
        colour = np.array(box.colour) * (0.6 + 0.4 * max(0.0, float(normal @ light)))
        cv2.fillConvexPoly(image, fixed, colour.round().tolist(), cv2.LINE_AA, SUBPIXEL)
        cv2.polylines(image, [fixed], True, (colour * 0.6).round().tolist(), 1, cv2.LINE_AA, SUBPIXEL)


def _in_front(polygon: Array) -> Array:
    """The part of a polygon [N, 3] beyond ``NEAR`` (Sutherland and Hodgman 1974)."""
    kept = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            kept.append(start + (end - start) * (NEAR - start[2]) / (end[2] - start[2]))
    return np.array(kept).reshape(-1, 3)
