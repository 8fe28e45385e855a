"""Bundle adjustment of one rigid body: its poses and its points, from pixels and depths in which they are seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

LOSS_SCALE = 2.0
"""Residuals larger than so many sigmas count less and less (Cauchy's loss)."""

NEAREST = 0.05
"""Nearer points are held at this depth while the search goes on, metres."""


@dataclass(frozen=True)
class Sightings:
    """Where the points of one body are seen.

    Attributes:
        pixels: [N, T, 2], (x, y), NaN where not seen.
        inverse: [N, T], 1 / z-depth, 1/m, NaN where unknown.
        inverse_sigma: [N, T], its standard deviation, 1/m.
        shared_sigma: [N, T], standard deviation of the error that all inverse depths have in common, 1/m.
        intrinsics: [3, 3], pixels.
        pixel_sigma: Standard deviation of a pixel (per axis).
    """

    pixels: Array
    inverse: Array
    inverse_sigma: Array
    shared_sigma: Array
    intrinsics: Array
    pixel_sigma: float


@dataclass(frozen=True)
class Body:
    """Poses and points of one body.

    Attributes:
        rotations: [T, 3, 3], from body axes to the camera axes of each frame.
        translations: [T, 3], the body's origin in the camera axes of each frame, metres.
        points: [N, 3], body axes, metres.
    """

    rotations: Array
    translations: Array
    points: Array

    def in_camera(self) -> Array:
        """The points in the camera axes of every frame, [N, T, 3]."""
        return np.einsum("tij,nj->nti", self.rotations, self.points) + self.translations


@dataclass(frozen=True)
class Adjusted:
    """The result of an adjustment.

    Attributes:
        body: The body where the loss is least.
        covariance: [T, 6, T, 6], of the poses: a small turn of the body (camera axes, radians), then its shift (camera
            axes, metres), with the reference frame's pose held and the points' errors taken in.
        loss: Sum over the sightings, in squared sigmas.
        used: [N, T] bool, sightings whose pixel is explained within three sigmas.
    """

    body: Body
    covariance: Array
    loss: float
    used: Flags


@dataclass(frozen=True)
class _Normal:
    """Normal equations in blocks; K is 3 (shifts only) or 6 (turns and shifts)."""

    point: Array  # [N, 3, 3]
    pose: Array  # [T, K, K]
    mixed: Array  # [N, T, 3, K]
    point_gradient: Array  # [N, 3]
    pose_gradient: Array  # [T, K]


def adjust(sight: Sightings, start: Body, reference: int, turning: bool, iterations: int = 20) -> Adjusted:
    """Levenberg-Marquardt with the points eliminated (Schur complement; Triggs et al. 2000, section 6.1).

    Args:
        sight: What is seen; every frame sees points, every point is seen with a known depth.
        start: Where to start; its rotations are kept where ``turning`` is False.
        reference: The frame whose pose is held.
        turning: Whether rotations are adjusted too.
        iterations: Largest number.

    Returns:
        The adjusted body.
    """
    body, damping = start, 1e-3
    residual, weight = _residuals(sight, body)
    loss = _loss(residual)
    for _ in range(iterations):
        normal = _normal(sight, body, turning)
        moved, lower = body, loss
        while damping < 1e6:
            trial = _move(normal, body, reference, damping)
            if (trial_loss := _loss(_residuals(sight, trial)[0])) < loss:
                moved, lower, damping = trial, trial_loss, max(damping / 10, 1e-6)
                break
            damping *= 10
        gain, body, loss = loss - lower, moved, lower
        if gain < 1e-3 * (1 + loss):
            break
    residual, weight = _residuals(sight, body)
    used = (weight[..., 0] > 0) & ((residual[..., :2] ** 2).sum(-1) < 9)
    return Adjusted(body, _covariance(_normal(sight, body, turning), reference), loss, used)


def _residuals(sight: Sightings, body: Body) -> tuple[Array, Array]:
    """Residuals [N, T, 3] (x, y, inverse depth) in sigmas, 0 where unknown, and one over their sigmas, likewise."""
    local = body.in_camera()
    depth = np.maximum(local[..., 2:], NEAREST)
    image = local[..., :2] / depth * sight.intrinsics[[0, 1], [0, 1]] + sight.intrinsics[:2, 2]
    error = np.concatenate([image - sight.pixels, 1 / depth - sight.inverse[..., None]], -1)
    weight = np.zeros(error.shape)
    weight[..., :2] = 1 / sight.pixel_sigma
    weight[..., 2] = 1 / sight.inverse_sigma
    weight[~np.isfinite(error)] = 0
    weight[~np.isfinite(sight.pixels).all(-1)] = 0
    return np.nan_to_num(error) * weight, weight


def _loss(residual: Array) -> float:
    """Cauchy's loss of pixels and of inverse depths."""
    return float(LOSS_SCALE**2 * np.log1p(_squares(residual)).sum())


def _squares(residual: Array) -> Array:
    """Squared residuals of pixel and inverse depth, [N, T, 2], in the loss's scale."""
    return np.stack([(residual[..., :2] ** 2).sum(-1), residual[..., 2] ** 2], -1) / LOSS_SCALE**2


def _normal(sight: Sightings, body: Body, turning: bool) -> _Normal:
    residual, weight = _residuals(sight, body)
    shares = np.sqrt(1 / (1 + _squares(residual)))[..., [0, 0, 1]]
    residual, weight = residual * shares, weight * shares
    local = body.in_camera()
    x, y, z = np.moveaxis(local, -1, 0)
    z = np.maximum(z, NEAREST)
    by_shift = np.zeros((*z.shape, 3, 3))  # [N, T, residual, axis of the point in the camera]
    by_shift[..., 0, 0], by_shift[..., 0, 2] = sight.intrinsics[0, 0] / z, -sight.intrinsics[0, 0] * x / z**2
    by_shift[..., 1, 1], by_shift[..., 1, 2] = sight.intrinsics[1, 1] / z, -sight.intrinsics[1, 1] * y / z**2
    by_shift[..., 2, 2] = -1 / z**2
    by_shift *= weight[..., None]
    by_point = np.einsum("ntrc,tcj->ntrj", by_shift, body.rotations)
    by_pose = by_shift
    if turning:
        # A small turn w moves a point at R X from the body's origin by w x (R X).
        arm = local - body.translations
        by_pose = np.concatenate([np.cross(arm[..., None, :], by_shift), by_shift], -1)
    return _Normal(
        np.einsum("ntri,ntrj->nij", by_point, by_point),
        np.einsum("ntri,ntrj->tij", by_pose, by_pose),
        np.einsum("ntri,ntrj->ntij", by_point, by_pose),
        np.einsum("ntri,ntr->ni", by_point, residual),
        np.einsum("ntri,ntr->ti", by_pose, residual),
    )


def _reduce(normal: _Normal, reference: int, damping: float) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Equations of the free poses, [F K, F K] and [F K]; inverse point blocks [N, 3, 3]; which poses are free [F]."""
    frames, size = normal.pose_gradient.shape
    inverse = np.asarray(np.linalg.inv(normal.point * (1 + damping * np.eye(3)) + 1e-9 * np.eye(3)), float)
    carried = np.einsum("nij,ntjk->ntik", inverse, normal.mixed)
    flat = [block.transpose(0, 2, 1, 3).reshape(-1, frames * size) for block in (normal.mixed, carried)]
    matrix = -(flat[0].T @ flat[1]).reshape(frames, size, frames, size)
    each = np.arange(frames, dtype=np.int64)
    matrix[each, :, each] += normal.pose * (1 + damping * np.eye(size))
    right = normal.pose_gradient - np.einsum("ntij,ni->tj", carried, normal.point_gradient)
    free = np.delete(each, reference)
    length = size * len(free)
    square: Array = matrix[free][:, :, free].reshape(length, length)
    side: Array = right[free].reshape(length)
    return square, side, inverse, free


def _move(normal: _Normal, body: Body, reference: int, damping: float) -> Body:
    matrix, right, inverse, free = _reduce(normal, reference, damping)
    frames, size = normal.pose_gradient.shape
    change = np.zeros((frames, size))
    change[free] = -np.linalg.solve(matrix + 1e-9 * np.eye(len(matrix)), right).reshape(len(free), -1)
    gradient = normal.point_gradient + np.einsum("ntij,tj->ni", normal.mixed, change)
    points = body.points - np.einsum("nij,nj->ni", inverse, gradient)
    rotations = body.rotations
    if size == 6:
        import cv2

        turns = [np.asarray(cv2.Rodrigues(turn)[0], float) for turn in change[:, :3]]
        rotations = np.stack(turns) @ rotations
    return Body(rotations, body.translations + change[:, -3:], points)


def _covariance(normal: _Normal, reference: int) -> Array:
    matrix, _, _, free = _reduce(normal, reference, 0.0)
    frames, size = normal.pose_gradient.shape
    inner = np.linalg.pinv(matrix, hermitian=True).reshape(len(free), size, len(free), size)
    covariance = np.zeros((frames, 6, frames, 6))
    axes = np.arange(6 - size, 6)
    covariance[np.ix_(free, axes, free, axes)] = inner
    return covariance
