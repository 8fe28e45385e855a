"""Where in a rigid body its centre is, and how well the way of that centre is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mllm4d.curate.bundle import Array
from mllm4d.curate.rigid import RigidMotion

DEPTH_OFFSET = 0.7
"""How far the centre of a solid lies behind the middle of its visible surface, in units of its lateral radius (of the
disc with the area of its image). A ball has 0.71, a cube seen face on 0.89, seen edge on 0.53."""

OFFSET_SIGMA = 0.15
"""How wrong ``DEPTH_OFFSET`` may be, in units of the lateral radius: the spread of the figures above."""

LATERAL_SIGMA = 0.08
"""How far the middle of the visible surface lies beside the centre, in units of the lateral radius."""

INDEPENDENT = 4
"""The middles of the visible surface in all frames together say as much as so many independent ones."""

CORRELATED = 1.3
"""By how much larger the variances are than the adjustment says, which takes points as independent; measured on the
synthetic world."""

PIXEL_BIAS = 0.2
"""Error of a body's place in one image that does not average out over its points, pixels."""


@dataclass(frozen=True)
class Surface:
    """The middle of the visible surface in each of F frames.

    Attributes:
        middles: [F, 3], camera axes of each frame, metres; NaN where unknown.
        radii: [F], lateral radius, metres; NaN where unknown.
    """

    middles: Array
    radii: Array


def place_center(motion: RigidMotion, surface: Surface) -> tuple[Array, float, float] | None:
    """The centre in body axes, from the visible surface of all frames.

    The middle of the surface lies ``k r`` before the centre, where ``r`` is the lateral radius and ``k`` about
    ``DEPTH_OFFSET``. Where the body is seen from several sides, ``k`` is estimated along with the centre, by least
    squares.

    Args:
        motion: The body's motion in F frames.
        surface: Its visible surface in these frames.

    Returns:
        The centre [3] (body axes, metres), its standard deviation (per axis, metres) and the radius (metres); None
        where no surface is known.
    """
    known = np.flatnonzero(np.isfinite(surface.radii))
    if not len(known):
        return None
    radius = float(np.quantile(surface.radii[known], 0.75))
    rotations, shifts = motion.body.rotations[known], motion.body.translations[known]
    middles = np.einsum("tji,tj->ti", rotations, surface.middles[known] - shifts)
    rays = surface.middles[known] / np.linalg.norm(surface.middles[known], axis=1, keepdims=True)
    views = np.einsum("tji,tj->ti", rotations, rays)
    # Unknowns: the centre's three coordinates, and k.
    rows = np.concatenate([np.tile(np.eye(3), (len(known), 1, 1)), -radius * views[..., None]], -1)
    noise = max(LATERAL_SIGMA * radius, 1e-6)
    weights = np.full(len(known), min(1.0, INDEPENDENT / len(known)) / noise**2)
    prior, mean = np.zeros((4, 4)), np.array([0, 0, 0, DEPTH_OFFSET])
    prior[3, 3] = 1 / OFFSET_SIGMA**2
    solution = mean
    for _ in range(5):
        normal = np.einsum("t,tri,trj->ij", weights, rows, rows) + prior
        solution = np.linalg.solve(normal, np.einsum("t,tri,tr->i", weights, rows, middles) + prior @ mean)
        error = np.linalg.norm(rows @ solution - middles, axis=1)
        # Frames in which a part is hidden or outside the image pull less (Cauchy's weights).
        weights = min(1.0, INDEPENDENT / len(known)) / noise**2 / (1 + (error / (2 * noise)) ** 2)
    sigma = math.sqrt(float(np.trace(np.linalg.inv(normal)[:3, :3])) / 3)
    return solution[:3], sigma, radius


def center_path(motion: RigidMotion, center: Array) -> Array:
    """The centre in the camera axes of each of the F frames, [F, 3], metres."""
    return np.einsum("tij,j->ti", motion.body.rotations, center) + motion.body.translations


def scale_sigma(motion: RigidMotion) -> float:
    """Relative standard deviation of all the body's depths together."""
    return float(np.nanmedian(motion.sight.shared_sigma / motion.sight.inverse))


def motion_sigmas(
    motion: RigidMotion, center: Array, center_sigma: float, scale: float, camera_rotations: Array
) -> Array:
    """How well the centre's displacements are known, as one number per frame.

    The variance of the displacement between two frames has three parts: that of the adjusted poses; a shared error of
    the scale, which grows with the way as seen from the camera; and a wrong place of the centre in a body that turns.
    The numbers are such that the squares of two frames' add up to the variance between them as well as can be (least
    squares over all pairs).

    Args:
        motion: The body's motion in F frames.
        center: In body axes, [3], metres.
        center_sigma: Its standard deviation (per axis), metres.
        scale: Relative standard deviation of all depths together.
        camera_rotations: [F, 3, 3], world to camera.

    Returns:
        [F], metres, per axis.
    """
    count = len(motion.frames)
    jacobian = np.zeros((count, 3, 6))
    for t in range(count):
        x, y, z = motion.body.rotations[t] @ center
        swing = np.array([[0, z, -y], [-z, 0, x], [y, -x, 0]])
        jacobian[t] = camera_rotations[t].T @ np.concatenate([swing, np.eye(3)], 1)
    covariance = np.einsum("iab,ibjc,jdc->iajd", jacobian, motion.covariance, jacobian, optimize=True)
    own = np.einsum("iaib->iab", covariance)
    between = own[:, None] + own[None] - covariance.transpose(0, 2, 1, 3) - covariance.transpose(2, 0, 3, 1)
    # The worst axis, which is that along the line of sight.
    variance = CORRELATED * np.trace(between, axis1=2, axis2=3).clip(min=0) / 3
    path = center_path(motion, center)
    seen, seen_depth = np.einsum("tji,tj->ti", camera_rotations, path), path[:, 2]
    variance += scale**2 * ((seen[:, None] - seen[None]) ** 2).sum(-1)
    turned = np.einsum("tji,tjk->tik", camera_rotations, motion.body.rotations)
    cosine = (np.einsum("tij,sij->ts", turned, turned) - 1) / 2
    # An offset e of the centre moves it by 2 sin(angle / 2) |e| at most.
    variance += center_sigma**2 * 2 * (1 - cosine).clip(min=0)
    bias = PIXEL_BIAS * seen_depth / math.sqrt(float(motion.sight.intrinsics[0, 0] * motion.sight.intrinsics[1, 1]))
    variance += bias[:, None] ** 2 + bias[None] ** 2
    if motion.rival is not None:
        other = np.einsum("tij,j->ti", motion.rival.rotations, center) + motion.rival.translations
        apart = seen - np.einsum("tji,tj->ti", camera_rotations, other)
        variance += ((apart[:, None] - apart[None]) ** 2).sum(-1)
    return np.sqrt(_additive(variance))


def _additive(variance: Array) -> Array:
    """Numbers a [F] with a_i + a_j close to the variances [F, F] of pairs, none below a quarter of its row's mean."""
    count = len(variance)
    rows = variance.sum(1) / max(1, count - 1)
    if count == 2:
        return rows / 2
    total = variance.sum() / (2 * (count - 1))
    shares = (variance.sum(1) - total) / (count - 2)
    return np.maximum(shares, rows / 4)
