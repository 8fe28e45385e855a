"""One camera step from points of one frame and where the next one sees them (perspective-n-point)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ITERATIONS, CONVERGED = 12, 1e-5
"""Most iterations of the weighted fit, and the change (metres and radians) below which it is done; three are usual."""


@dataclass(frozen=True)
class Matches:
    """Points of one frame that are found again in another.

    Attributes:
        points: [N, 3], in the first camera's axes, metres.
        depth_sigma: [N], standard deviation of the points' depth, metres.
        pixels: [N, 2], where the second camera sees them.
    """

    points: Array
    depth_sigma: Array
    pixels: Array

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Matches:
        return Matches(self.points[chosen], self.depth_sigma[chosen], self.pixels[chosen])


@dataclass(frozen=True)
class Fit:
    """A step and how sure it is.

    Attributes:
        transform: [4, 4], first camera's axes to the second's.
        inliers: The matches that agree with it.
        share: Inliers over matches.
        variance: Of the second camera's centre, per axis, m^2.
        angle_variance: Of the rotation, per axis, rad^2.
    """

    transform: Array
    inliers: Matches
    share: float
    variance: float
    angle_variance: float


def solve_step(matches: Matches, intrinsics: Array, reprojection: float, pixel_sigma: float, minimum: int) -> Fit | int:
    """Find the step that projects the points to the pixels: RANSAC, then a fit that knows each point's error.

    Args:
        matches: The matches, some of them wrong.
        intrinsics: [3, 3], pixels.
        reprojection: RANSAC's inlier threshold, pixels.
        pixel_sigma: Standard deviation of a pixel coordinate of a match.
        minimum: Fewest inliers.

    Returns:
        The step, or if it is lost the number of matches that agree.
    """
    import cv2

    if len(matches) < minimum:
        return len(matches)
    solved, rotation, translation, chosen = cv2.solvePnPRansac(
        matches.points,
        matches.pixels,
        intrinsics,
        None,
        iterationsCount=1000,
        reprojectionError=reprojection,
        confidence=0.9999,
    )
    if not solved or chosen is None or len(chosen) < minimum:
        return 0 if chosen is None else len(chosen)
    inliers = matches[chosen[:, 0].astype(np.intp)]
    rotation, translation = cv2.solvePnPRefineLM(
        inliers.points, inliers.pixels, intrinsics, None, rotation, translation
    )
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = cv2.Rodrigues(rotation)[0], translation[:, 0]
    transform, covariance = fit_weighted(inliers, intrinsics, start, pixel_sigma)
    shift, turn = np.trace(covariance[:3, :3]) / 3, np.trace(covariance[3:, 3:]) / 3
    return Fit(transform, inliers, len(inliers) / len(matches), float(shift), float(turn))


def fit_weighted(matches: Matches, intrinsics: Array, start: Array, pixel_sigma: float) -> tuple[Array, Array]:
    """Fit a step by Gauss-Newton with each match weighted by its own error (OpenCV's fit takes all for equally good).

    What a match's residual may be follows from its pixel's error and, to first order, from its point's depth error as
    the second camera sees it: near points say most about the translation but err along the direction that depth errs
    in, far ones say most about the rotation whatever their depth. Cauchy's weights bound what a wrong match can do.

    Args:
        matches: The matches, nearly all of them right.
        intrinsics: [3, 3], pixels.
        start: [4, 4], first camera's axes to the second's, near the truth.
        pixel_sigma: Standard deviation of a pixel coordinate of a match.

    Returns:
        The step [4, 4], and the covariance [6, 6] of the second camera's centre (metres) and of its rotation (radians).
    """
    import cv2

    transform = start.copy()
    focal = intrinsics[[0, 1], [0, 1]]
    rays = matches.points / matches.points[:, 2:]
    for _ in range(ITERATIONS):
        seen = matches.points @ transform[:3, :3].T + transform[:3, 3]  # [N, 3], second camera's axes
        residual = seen[:, :2] / seen[:, 2:] * focal + intrinsics[:2, 2] - matches.pixels  # [N, 2]
        # What a small motion of the seen point does to its pixel.
        project = np.zeros((len(seen), 2, 3))
        project[:, [0, 1], [0, 1]] = focal / seen[:, 2:]
        project[:, :, 2] = -seen[:, :2] * focal / seen[:, 2:] ** 2
        jacobian = np.concatenate([project, project @ -_cross(seen)], axis=2)  # [N, 2, 6]
        # What one sigma of the point's depth does; the residual's covariance is s^2 I + along along^T, whose inverse
        # is (I - along along^T / (s^2 + |along|^2)) / s^2.
        along = (project @ (rays @ transform[:3, :3].T)[:, :, None])[..., 0] * matches.depth_sigma[:, None]
        along = along / np.sqrt(pixel_sigma**2 + (along**2).sum(1, keepdims=True))
        residual_along = (along * residual).sum(1)  # [N]
        jacobian_along = (along[:, :, None] * jacobian).sum(1)  # [N, 6]
        square = ((residual**2).sum(1) - residual_along**2) / pixel_sigma**2
        robust = 1 / (1 + square / 4)
        weight = robust[:, None] / pixel_sigma**2
        both, weights = jacobian.reshape(-1, 6), np.repeat(weight, 2, axis=0)
        normal = (weights * both).T @ both - (weight * jacobian_along).T @ jacobian_along
        gradient = (weights * both).T @ residual.ravel() - (weight * jacobian_along).T @ residual_along
        change = -np.linalg.solve(normal, gradient)
        update = np.eye(4)
        update[:3, :3], update[:3, 3] = cv2.Rodrigues(change[3:])[0], change[:3]
        transform = update @ transform
        if np.abs(change).max() < CONVERGED:
            break
    # Where nothing moves, residuals can be next to nothing; no pixel is known better than a tenth of its sigma.
    scale = max(robust @ square / (2 * len(matches) - 6), 0.01)
    return transform, scale * np.linalg.inv(normal)


def reprojection_error(transform: Array, matches: Matches, intrinsics: Array) -> float:
    """Root mean square distance of projected points and their pixels, pixels.

    Args:
        transform: [4, 4], first camera's axes to the second's.
        matches: The matches.
        intrinsics: [3, 3], pixels.
    """
    image = (matches.points @ transform[:3, :3].T + transform[:3, 3]) @ intrinsics.T
    return float(np.sqrt(((image[:, :2] / image[:, 2:] - matches.pixels) ** 2).sum(-1).mean()))


def _cross(vectors: Array) -> Array:
    """Matrices [N, 3, 3] that take the cross product with vectors [N, 3] from the left."""
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(-1, 3, 3)
