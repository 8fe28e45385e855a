"""Points of one object, followed through the clip and lifted by depth."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.curate.bundle import Array, Sightings
from mllm4d.curate.depth import Depth
from mllm4d.curate.flow import FeatureTracker, PointTracks, grey_images, join_tracks, match_right
from mllm4d.schema import Clip, Mask

STRIDE = 3
"""New corners are looked for in every frame whose index is a multiple of this; those of an object that turns are soon
out of sight."""

CORNERS = 60
"""Corners of one object in one frame."""

PIXEL_SIGMA = 0.2
"""Standard deviation of a followed pixel. Medians on the synthetic world: 0.07 px after one frame, 0.17 after seven."""

MATCHED_SIGMA, MATCHED_BIAS = 0.08, 0.02
"""Of a disparity matched at a corner, pixels: one point's standard deviation, and that of what all points of an object
share. On the synthetic world 0.06 and 0.02; semi-global matching has 0.16 and 0.1 there."""

DEPTH_SIGMA, DEPTH_BIAS = 0.5, 0.33
"""The same for depth maps, in units of their sigma."""

MARGIN = 24
"""Pixels around an object that optical flow may look at."""


def see_points(mask: Mask, clip: Clip, depth: Depth) -> Sightings | None:
    """Follow corners of an object.

    Where the clip has a right view, disparities are matched at the very corners, with the depth map as a guess: that is
    four times as exact as the depth map, whose disparities tend to whole pixels.

    Args:
        mask: The object's pixels.
        clip: The clip.
        depth: Its depth, [T, H, W].

    Returns:
        The sightings, or None where there is no corner.
    """
    reach = _reach(mask.pixels)
    if reach is None:
        return None
    rows, columns, edge = reach
    pixels, frames = mask.pixels[:, rows, columns], clip.frames[:, rows, columns]
    tracks = _follow(pixels, frames, edge)
    if tracks is None:
        return None
    return _lift(tracks, pixels, clip, depth, rows, columns, edge)


def _reach(pixels: Tensor) -> tuple[slice, slice, int] | None:
    """Rows and columns around the object in all frames, and half the window that suits its size."""
    areas = pixels.flatten(1).sum(1)
    if not bool(areas.any()):
        return None
    height, width = pixels.shape[1:]
    row, column = (torch.nonzero(pixels.any(0).any(axis))[:, 0] for axis in (1, 0))
    rows = slice(max(0, int(row[0]) - MARGIN), min(height, int(row[-1]) + MARGIN + 1))
    columns = slice(max(0, int(column[0]) - MARGIN), min(width, int(column[-1]) + MARGIN + 1))
    edge = min(4, max(2, int(0.12 * math.sqrt(float(areas[areas > 0].median())))))
    return rows, columns, edge


def _follow(pixels: Tensor, frames: Tensor, edge: int) -> PointTracks | None:
    """Tracks of the corners inside the object, from the middle frame first, then where no track is yet."""
    import cv2

    tracker = FeatureTracker(count=CORNERS, window=2 * edge + 1, spacing=float(edge))
    images = grey_images(frames)
    middle = len(frames) // 2 // STRIDE * STRIDE
    starts = sorted(range(0, len(frames), STRIDE), key=lambda t: (abs(t - middle), t))
    parts: list[PointTracks] = []
    for start in starts:
        inside = _erode(pixels[start].numpy(), edge)
        for part in parts:
            for x, y in part.pixels[part.seen[:, start], start].round().long().tolist():
                cv2.circle(inside, (x, y), edge, 0, -1)
        if inside.any():
            corners = tracker.corners(frames[start], torch.from_numpy(inside > 0))
            parts.append(tracker.follow(images, start, corners))
    return join_tracks(parts) if parts and sum(len(part.pixels) for part in parts) else None


def _lift(
    tracks: PointTracks, pixels: Tensor, clip: Clip, depth: Depth, rows: slice, columns: slice, edge: int
) -> Sightings:
    """Tracks inside a window of the image as sightings in the whole image."""
    corner = np.array([columns.start, rows.start], float)
    points = tracks.pixels.numpy() + corner
    inverse, sigma, shared = (np.full(points.shape[:2], np.nan) for _ in range(3))
    for t in range(points.shape[1]):
        seen = np.flatnonzero(np.isfinite(points[:, t, 0]))
        column, row = np.rint(points[seen, t] - corner).astype(int).T
        # The rim belongs to what lies behind as much as to the object.
        inside = _erode(pixels[t].numpy(), 1)[row, column] > 0
        points[seen[~inside], t] = np.nan
        seen = seen[inside]
        if len(seen):
            inverse[seen, t], sigma[seen, t], shared[seen, t] = _measure(points[seen, t], t, clip, depth, rows, edge)
    return Sightings(points, inverse, sigma, shared, clip.intrinsics.double().numpy(), PIXEL_SIGMA)


def _measure(points: Array, t: int, clip: Clip, depth: Depth, rows: slice, edge: int) -> tuple[Array, Array, Array]:
    """Inverse depths [N] of pixels [N, 2] of one frame, their sigma and what they share of it, 1/m."""
    column, row = np.rint(points).astype(int).T
    z, noise = (values[t].numpy()[row, column].astype(float) for values in (depth.depth, depth.sigma))
    inverse = 1 / np.where(z > 0, z, np.nan)
    one, bias, unit = DEPTH_SIGMA, DEPTH_BIAS, np.maximum(noise, 1e-3 * z) * inverse**2
    if clip.right is not None and clip.baseline is not None:
        left, right = (grey_images(view[t : t + 1, rows])[0] for view in (clip.frames, clip.right))
        scale = float(clip.intrinsics[0, 0]) * clip.baseline
        inverse = match_right(left, right, points - [0, rows.start], inverse * scale, 2 * edge + 1) / scale
        one, bias, unit = MATCHED_SIGMA, MATCHED_BIAS, np.full(len(points), 1 / scale)
    # A shared error does not average out over the points of a frame.
    count = int(np.isfinite(inverse).sum())
    return inverse, unit * math.hypot(one, bias * math.sqrt(count)), unit * bias


def _erode(pixels: NDArray[np.bool_], radius: int) -> NDArray[np.uint8]:
    import cv2

    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return np.asarray(cv2.erode(pixels.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0))
