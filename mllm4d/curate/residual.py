"""Whether an image point stands still in the world, given depth and the camera's path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.curate.flow import Array, Image, grey_images, match_right
from mllm4d.schema import Clip

Flags = NDArray[np.bool_]

PIXEL_SIGMA = 0.3
"""Standard deviation of a followed pixel."""

DISPARITY_SIGMA = 0.15
"""Standard deviation of a disparity matched at a corner, pixels."""


@dataclass(frozen=True)
class Lifted:
    """Points of one frame: ``local`` [N, 3] camera axes, metres, NaN where unknown; ``inverse_sigma`` [N], 1/m."""

    local: Array
    inverse_sigma: Array

    @property
    def known(self) -> Flags:
        """Which of them, [N]."""
        return np.asarray(np.isfinite(self.local[:, 2]))

    def only(self, chosen: Flags) -> Lifted:
        """Some of the points."""
        return Lifted(self.local[chosen], self.inverse_sigma[chosen])


@dataclass(frozen=True)
class Scenery:
    """What points are lifted and projected with.

    Attributes:
        grey: T images [H, W].
        right: T right views, or None.
        depth: [T, H, W], metres, 0 unknown.
        sigma: [T, H, W], metres.
        intrinsics: [3, 3].
        poses: [T, 4, 4], world-to-camera.
        scale: Focal length times baseline, pixels times metres; NaN without a right view.
        drift: As in ``MotionFinder``.
        turn: As in ``MotionFinder``.
    """

    grey: list[Image]
    right: list[Image] | None
    depth: NDArray[np.float32]
    sigma: NDArray[np.float32]
    intrinsics: Array
    poses: Array
    scale: float
    drift: float
    turn: float

    @classmethod
    def of(cls, clip: Clip, depth: Depth, world_to_camera: Tensor, drift: float, turn: float) -> Scenery:
        """From a clip, its depth and the camera's path."""
        right = None if clip.right is None or clip.baseline is None else grey_images(clip.right)
        intrinsics = clip.intrinsics.double().numpy()
        scale = float("nan") if right is None else float(intrinsics[0, 0]) * float(clip.baseline or 0)
        return cls(
            grey_images(clip.frames),
            right,
            depth.depth.numpy(),
            depth.sigma.numpy(),
            intrinsics,
            world_to_camera.double().numpy(),
            scale,
            drift,
            turn,
        )

    def to_world(self, local: Array, t: int) -> Array:
        """Camera axes of frame t to world, [N, 3]."""
        return (local - self.poses[t, :3, 3]) @ self.poses[t, :3, :3]

    def carry(self, local: Array, start: int, t: int) -> Array:
        """Still points [N, 3] in the camera axes of another frame."""
        return self.to_world(local, start) @ self.poses[t, :3, :3].T + self.poses[t, :3, 3]

    def project(self, points: Lifted, start: int, t: int) -> Array:
        """Where still points are seen in another frame, pixels [N, 2]."""
        image = self.carry(points.local, start, t) @ self.intrinsics.T
        return image[:, :2] / np.maximum(image[:, 2:], 0.05)


def lift(scenery: Scenery, points: Array, t: int) -> Lifted:
    """Lift pixels [N, 2] of frame t; unknown where they are NaN, outside or without depth."""
    height, width = scenery.depth.shape[1:]
    finite = np.asarray(np.isfinite(points).all(-1))
    column, row = np.rint(np.where(finite[:, None], points, 0)).astype(int).T
    inside = finite & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    z = np.where(inside, scenery.depth[t, row, column], 0).astype(float)
    inverse = np.where(z > 0, 1 / np.where(z > 0, z, 1), np.nan)
    if scenery.right is None:
        sigma = np.maximum(scenery.sigma[t, row, column], 1e-3 * z) * inverse**2
    else:
        matched = match_right(
            scenery.grey[t], scenery.right[t], np.where(finite[:, None], points, 0), inverse * scenery.scale
        )
        inverse, sigma = matched / scenery.scale, np.full(len(points), DISPARITY_SIGMA / scenery.scale)
    rays = np.concatenate([points, np.ones((len(points), 1))], 1) @ np.linalg.inv(scenery.intrinsics).T
    return Lifted(rays / inverse[:, None], sigma)


def static_residual(scenery: Scenery, first: Lifted, other: Lifted, start: int, t: int) -> Array:
    """How far points are from standing still: square root of chi squared over pixel and inverse depth, [N].

    The covariance holds the depth of the first sighting (which moves the expected pixel along the epipolar line), the
    second sighting's own errors, and those of the camera's path. NaN where either sighting is unknown.
    """
    expected = _image(scenery, scenery.carry(first.local, start, t))
    seen = _image(scenery, other.local)
    # What a change of the first inverse depth by its sigma does.
    inverse = 1 / first.local[:, 2:]
    shifted = first.local * inverse / (inverse + first.inverse_sigma[:, None])
    slope = _image(scenery, scenery.carry(shifted, start, t)) - expected
    focal = float(scenery.intrinsics[0, 0])
    centers = [-scenery.poses[k, :3, :3].T @ scenery.poses[k, :3, 3] for k in (start, t)]
    went = scenery.drift * float(np.linalg.norm(centers[1] - centers[0]))
    pixel = PIXEL_SIGMA**2 + (focal * scenery.turn) ** 2 + (focal * went * expected[:, 2]) ** 2
    depth = other.inverse_sigma**2 + (went * expected[:, 2] ** 2) ** 2
    covariance = slope[:, :, None] * slope[:, None, :]
    covariance[:, 0, 0] += pixel
    covariance[:, 1, 1] += pixel
    covariance[:, 2, 2] += depth
    error = seen - expected
    which = np.flatnonzero(np.isfinite(error).all(1) & np.isfinite(covariance).all((1, 2)) & (expected[:, 2] > 0))
    result = np.full(len(error), np.nan)
    result[which] = np.sqrt(
        np.einsum("ni,ni->n", error[which], np.linalg.solve(covariance[which], error[which][..., None])[..., 0])
    )
    return result


def _image(scenery: Scenery, local: Array) -> Array:
    """Pixel and inverse depth [N, 3] of points in camera axes; the inverse depth of what is behind is negative."""
    with np.errstate(invalid="ignore", divide="ignore"):
        image = local @ scenery.intrinsics.T
        return np.concatenate([image[:, :2] / image[:, 2:], 1 / image[:, 2:]], 1)
