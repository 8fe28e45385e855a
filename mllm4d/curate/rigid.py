"""How a rigid body moves, from points of it that are followed through a clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.bundle import Adjusted, Array, Body, Sightings, adjust

SHARED, SURVIVING = 5, 0.6
"""Points that neighbouring frames must share, with known depth, for the motion between them to be known: so many, and
such a share of those in the frame that has fewer. Where a body turns by a right angle from one frame to the next only
mistaken points survive."""

TURNS = 30.0
"""A body turns where that lowers the loss by so much for each number that describes the turning."""

POOR = 0.7
"""Loss per degree of freedom above which a fit may have missed the best one."""

MAYBE = 3.0
"""A body that keeps its orientation lowers the loss by less than this. Between the two it may turn or its points may be
followed badly: it is taken as not turning, and where the two models disagree on its way, that counts as an error."""


@dataclass(frozen=True)
class RigidMotion:
    """A body's motion in the frames in which it is known.

    Attributes:
        frames: [F], indices of these frames, consecutive.
        body: Poses in these frames, and N points.
        covariance: [F, 6, F, 6], as in ``Adjusted``, scaled by how well the sightings agree.
        sight: The sightings of these points in these frames.
        used: [N, F] bool, sightings that agree with the motion.
        turns: Whether the body turns; else it keeps its orientation in the world.
        rival: The body that turns, where that explains a little more but not clearly so.
    """

    frames: NDArray[np.int64]
    body: Body
    covariance: Array
    sight: Sightings
    used: NDArray[np.bool_]
    turns: bool
    rival: Body | None


def fit_motion(sight: Sightings, camera_rotations: Array) -> RigidMotion | None:
    """Estimate the motion of a body relative to the camera.

    Two models are adjusted to all sightings: a body that keeps its orientation in the world (the camera's rotations are
    taken as known), and one that turns freely, from the first one's result. The freer one is taken where it explains
    clearly more. The first asks far less of the points: on a small image a turn and a shift look alike.

    Args:
        sight: The points of the body, N tracks over T frames.
        camera_rotations: [T, 3, 3], world to camera.

    Returns:
        The motion in the longest run of frames that are linked by common points, or None where no two frames are.
    """
    frames = _longest_run(np.isfinite(sight.inverse))
    if frames is None:
        return None
    inverse = sight.inverse[:, frames]
    kept = np.isfinite(inverse).any(1) & (np.isfinite(sight.pixels[:, frames]).all(-1).sum(1) >= 2)
    part = replace(
        sight,
        pixels=sight.pixels[kept][:, frames],
        inverse=inverse[kept],
        inverse_sigma=sight.inverse_sigma[kept][:, frames],
        shared_sigma=sight.shared_sigma[kept][:, frames],
    )
    local = _lift(part)
    reference = int(np.isfinite(part.inverse).sum(0).argmax())
    rotations = camera_rotations[frames]
    start = _assemble(local, rotations, _shifts(local, rotations, reference))
    steady = adjust(part, start, reference, turning=False)
    turning = adjust(part, steady.body, reference, turning=True)
    if _scale(part, turning) > POOR:
        # From the one that keeps its orientation the search may end early: once more from step by step.
        again = adjust(part, _chain(part, local, rotations), reference, turning=True)
        turning = min(turning, again, key=lambda found: found.loss)
    gain = (steady.loss - turning.loss) / (3 * (len(frames) - 1)) / max(1.0, _scale(part, turning))
    best = turning if gain > TURNS else steady
    rival = turning.body if MAYBE < gain <= TURNS else None
    covariance = best.covariance * max(1.0, _scale(part, best))
    return RigidMotion(frames, best.body, covariance, part, best.used, gain > TURNS, rival)


def _scale(sight: Sightings, adjusted: Adjusted) -> float:
    """Loss per degree of freedom: 1 or less where the sightings agree as their sigmas say."""
    known = 2 * np.isfinite(sight.pixels).all(-1).sum() + np.isfinite(sight.inverse).sum()
    return adjusted.loss / max(1, known - 3 * len(sight.pixels) - 3 * sight.pixels.shape[1])


def _longest_run(known: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The longest run of frames that each share enough tracks [N, T] with the next; None where no two frames do."""
    both, counts = (known[:, 1:] & known[:, :-1]).sum(0), known.sum(0)
    linked = (both >= SHARED) & (both >= SURVIVING * np.minimum(counts[1:], counts[:-1]))
    best, first = (0, 0), None
    for t, link in enumerate([*linked.tolist(), False]):
        if link and first is None:
            first = t
        elif not link and first is not None:
            best, first = max(best, (first, t), key=lambda run: run[1] - run[0]), None
    return np.arange(best[0], best[1] + 1) if best[1] > best[0] else None


def _lift(sight: Sightings) -> Array:
    """Sightings with known depth as points in the camera axes of their frames, [N, T, 3], metres; else NaN."""
    ones = np.ones((*sight.inverse.shape, 1))
    rays = np.concatenate([sight.pixels, ones], -1) @ np.linalg.inv(sight.intrinsics).T
    return rays / sight.inverse[..., None]


def _shifts(local: Array, rotations: Array, reference: int) -> Array:
    """Translations [T, 3] of a body that does not turn: medians of what its points do from frame to frame."""
    turned = np.einsum("tji,ntj->nti", rotations, local)
    steps = np.nanmedian(np.diff(turned, axis=1), axis=0)
    path = np.concatenate([np.zeros((1, 3)), steps.cumsum(0)])
    path += np.nanmedian(turned[:, reference], axis=0) - path[reference]
    return np.einsum("tij,tj->ti", rotations, path)


def _assemble(local: Array, rotations: Array, translations: Array) -> Body:
    """A body whose points are where their sightings say in the median."""
    points = np.nanmedian(np.einsum("tji,ntj->nti", rotations, local - translations), axis=1)
    return Body(rotations, translations, points)


def _chain(sight: Sightings, local: Array, rotations: Array) -> Body:
    """A body that turns: PnP with RANSAC from each frame to the next, beginning with the camera's axes."""
    import cv2

    cv2.setRNGSeed(0)
    poses = [np.eye(4)]
    poses[0][:3, :3], poses[0][:3, 3] = rotations[0], np.nanmedian(local[:, 0], axis=0)
    for t in range(len(rotations) - 1):
        known = np.isfinite(local[:, t, 0]) & np.isfinite(sight.pixels[:, t + 1, 0])
        start, step = (np.zeros(3), np.zeros(3)), np.eye(4)
        found, turn, shift, _ = cv2.solvePnPRansac(
            local[known, t], sight.pixels[known, t + 1], sight.intrinsics, None, *start, True, 200, 1.0, 0.999
        )
        if found:
            step[:3, :3], step[:3, 3] = cv2.Rodrigues(turn)[0], shift.ravel()
        poses.append(step @ poses[-1])
    stacked = np.stack(poses)
    return _assemble(local, stacked[:, :3, :3], stacked[:, :3, 3])
