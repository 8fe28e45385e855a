"""Named objects in 3-D from their image regions and depth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.curate.body_center import (
    DEPTH_OFFSET,
    OFFSET_SIGMA,
    Surface,
    center_path,
    motion_sigmas,
    place_center,
    scale_sigma,
)
from mllm4d.curate.bundle import Array
from mllm4d.curate.depth import Depth
from mllm4d.curate.rigid import RigidMotion, fit_motion
from mllm4d.curate.sightings import see_points
from mllm4d.geometry.pose import center, invert, transform
from mllm4d.geometry.uncertainty import difference_sigma, drift_sigma
from mllm4d.schema import Camera, Clip, Mask, Track

MINIMUM_POINTS = 30
"""Fewer measured pixels than this say too little about where an object is."""

MINIMUM_FOLLOWED = 20
"""From so many followed points on they are what the object's surface is known by."""

DEPTH_NOISE = 0.4
"""Error of the depth of a region's middle, in sigmas of one pixel's depth. Neighbouring pixels err together, so that
averaging helps little."""

SURFACE_SIGMA, POINT_SIGMA = 0.045, 1.0
"""Error of the distance to the nearest of the followed points, beside that of the object's place: in units of the
lateral radius, as they are only some points of what has been visible, and in units of the depths' shared error, as the
nearest of them is so by mistake too."""

PIXEL_NOISE, RELIEF = 0.8, 0.25
"""Noise of a smoothed depth map's pixels, in their sigmas; and the spread of a ball's visible surface, in lateral
radii. Stereo's noise is larger than the relief of a small or far object, and what is nearest is noise's choice."""

HIDDEN, CUT = 1.5, 0.3
"""By how much the middle of what is visible may lie beside the middle of the whole, in units of the missing radius; and
what is taken as missing where the image's border cuts the object, in units of the visible radius."""

SMOOTHING = 0.125
"""Edge of the square over which a depth map is averaged within an object, in units of the square root of its area.
Stereo's noise is larger than the relief of an object on a small image, and what is nearest is noise's choice."""


@dataclass
class _Estimate:
    """What is known of an object in each frame; camera axes, metres, NaN and empty where unknown."""

    clouds: list[Tensor]
    surface: Surface
    centers: Array
    noise: Array
    center_sigma: Array
    motion_sigma: Array
    surface_sigma: Array


def track_from_mask(mask: Mask, clip: Clip, depth: Depth, camera: Camera) -> Track:
    """Locate one object in every frame.

    Corners inside the mask are followed through the clip and lifted by depth; the motion of one rigid body is fitted to
    them (``mllm4d.curate.rigid``), and the centre of the body is carried along. The centre itself is the middle of the
    visible surface, moved back along the viewing ray by a share of the object's lateral radius, as all frames together
    say. So ``centers`` follows one point of the body, though where in the body it is remains uncertain.

    In frames that are not linked by corners (too few, or too fast a turn) the centre comes from that frame's visible
    surface alone, which wanders with the viewpoint: there ``motion_sigma`` is as large as ``center_sigma``.

    Args:
        mask: The object's pixels.
        clip: The clip; its right view, where it has one, makes the points' depths more exact.
        depth: Depth with its sigma, [T, H, W], metres.
        camera: The camera that saw it.

    Returns:
        The track; frames with too few measured pixels have NaN centres and no points.
    """
    world_to_camera = camera.world_to_camera.double()
    found = _from_surface(mask, depth, camera.intrinsics)
    sight = see_points(mask, clip, depth)
    motion = None if sight is None else fit_motion(sight, world_to_camera[:, :3, :3].numpy())
    if motion is not None:
        _follow_body(found, motion, mask, depth, camera)
    to_world = invert(world_to_camera)
    centers = transform(to_world, torch.from_numpy(found.centers)[:, None])[:, 0]
    points = tuple(transform(pose, cloud) for pose, cloud in zip(to_world, found.clouds, strict=True))
    center_sigma, motion_sigma = torch.from_numpy(found.center_sigma), torch.from_numpy(found.motion_sigma)
    surface_sigma = torch.from_numpy(found.surface_sigma)
    moving = moves(centers, motion_sigma, camera)
    return Track(mask.id, mask.name, centers, center_sigma, motion_sigma, surface_sigma, points, moving)


def _from_surface(mask: Mask, depth: Depth, intrinsics: Tensor) -> _Estimate:
    """Each frame by itself: the centre behind the middle of the visible surface."""
    count = len(mask.pixels)
    clouds, noise = [torch.empty(0, 3, dtype=torch.float64)] * count, np.full(count, np.nan)
    inverse = np.linalg.inv(intrinsics.double().numpy())
    for t in range(count):
        rows, columns = _window(mask.pixels[t])
        visible = _visible_depth(mask.pixels[t, rows, columns].numpy(), depth.depth[t, rows, columns].numpy())
        row, column = np.nonzero(visible)
        if len(row) >= MINIMUM_POINTS:
            sigma = float(np.median(depth.sigma[t, rows, columns].numpy()[row, column]))
            z = _without_noise(visible[row, column], sigma, int(mask.pixels[t].sum()), intrinsics)
            rays = np.stack([column + columns.start, row + rows.start, np.ones(len(row))], -1) @ inverse.T
            clouds[t] = torch.from_numpy(rays * z[:, None])
            noise[t] = DEPTH_NOISE * sigma
    surface = _surface(mask, clouds, intrinsics)
    rays = surface.middles / np.linalg.norm(surface.middles, axis=1, keepdims=True)
    centers = surface.middles + DEPTH_OFFSET * surface.radii[:, None] * rays
    hidden = HIDDEN * _missing(mask.pixels.numpy(), surface.radii)
    sigma = np.hypot(noise, np.hypot(OFFSET_SIGMA * surface.radii, hidden))
    surface_sigma = np.hypot(PIXEL_NOISE / DEPTH_NOISE * noise, OFFSET_SIGMA * surface.radii)
    return _Estimate(clouds, surface, centers, noise, sigma, sigma.copy(), surface_sigma)


def _missing(pixels: NDArray[np.bool_], radii: Array) -> Array:
    """By how much the lateral radius falls short of the whole object's, [T], metres, as far as can be told."""
    if not np.isfinite(radii).any():
        return np.zeros(len(radii))
    missing = np.maximum(0, np.nanquantile(radii, 0.75) - radii)
    cut = pixels[:, [0, -1]].any((1, 2)) | pixels[:, :, [0, -1]].any((1, 2))
    return missing + np.where(cut, CUT * radii, 0)


def _without_noise(z: Array, sigma: float, area: int, intrinsics: Tensor) -> Array:
    """Depths [N] drawn together about their median by what noise explains of their spread, metres."""
    middle, spread = float(np.median(z)), max(float(z.std()), 1e-9)
    radius = _lateral_radius(area, middle, intrinsics)
    relief = math.sqrt(max(spread**2 - (PIXEL_NOISE * sigma) ** 2, (RELIEF * radius) ** 2))
    return middle + (z - middle) * min(1.0, relief / spread)


def _lateral_radius(area: int, depth: float, intrinsics: Tensor) -> float:
    """Radius of the disc with so many pixels at this depth, metres."""
    return math.sqrt(area / math.pi / float(intrinsics[0, 0] * intrinsics[1, 1])) * depth


def _window(pixels: Tensor) -> tuple[slice, slice]:
    """Rows and columns that a region [H, W] lies in; empty for an empty one."""
    spans = [torch.nonzero(pixels.any(axis))[:, 0].tolist() or [0, -1] for axis in (1, 0)]
    return slice(spans[0][0], spans[0][-1] + 1), slice(spans[1][0], spans[1][-1] + 1)


def _visible_depth(pixels: NDArray[np.bool_], depth: NDArray[np.float32]) -> Array:
    """The smoothed depth of an object's visible surface, without its rim and what lies far from its middle.

    Args:
        pixels: [H, W], the object.
        depth: [H, W], metres, 0 unknown.

    Returns:
        [H, W], metres, 0 elsewhere.
    """
    import cv2

    if not pixels.any():
        return np.zeros(depth.shape)
    # Depth bleeds over the rim from behind.
    known = (cv2.erode(np.pad(pixels.astype(np.uint8), 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0) & (depth > 0)
    if not known.any():
        return np.zeros(depth.shape)
    inverse = np.where(known, 1 / np.where(known, depth, 1).astype(float), 0)
    away = np.abs(inverse - np.median(inverse[known]))
    known &= away <= 6 * 1.4826 * max(float(np.median(away[known])), 1e-9)
    size = (2 * int(SMOOTHING * math.sqrt(pixels.sum())) + 1,) * 2
    total, weight = (
        cv2.blur(values, size, borderType=cv2.BORDER_CONSTANT) for values in (inverse * known, known.astype(float))
    )
    return np.where(known, np.maximum(weight, 1e-12) / np.maximum(total, 1e-12), 0)


def _follow_body(found: _Estimate, motion: RigidMotion, mask: Mask, depth: Depth, camera: Camera) -> None:
    """Replace what single frames say by what the body's motion says, where it is known."""
    for t, offset in zip(motion.frames, _depth_offsets(motion, depth), strict=True):
        z = found.clouds[t][:, 2:]
        found.clouds[t] = found.clouds[t] / (1 + offset * z)
    found.surface = _surface(mask, found.clouds, camera.intrinsics)
    part = Surface(found.surface.middles[motion.frames], found.surface.radii[motion.frames])
    placed = place_center(motion, part)
    if placed is None:
        return
    middle, middle_sigma, radius = placed
    rotations = camera.world_to_camera[motion.frames, :3, :3].double().numpy()
    scale = scale_sigma(motion)
    own = motion_sigmas(motion, middle, middle_sigma, scale, rotations)
    path = center_path(motion, middle)
    known = np.isfinite(part.radii)
    frames = motion.frames[known]
    found.centers[frames] = path[known]
    found.noise[frames] = np.hypot(scale * np.linalg.norm(path, axis=1), own)[known]
    found.center_sigma[frames] = np.hypot(found.noise[frames], middle_sigma)
    found.motion_sigma[frames] = own[known]
    followed = motion.used.sum(1) >= 3
    if followed.sum() >= MINIMUM_FOLLOWED:
        shape = torch.from_numpy(motion.body.in_camera()[followed])
        for k in np.flatnonzero(known):
            found.clouds[motion.frames[k]] = shape[:, k]
        nearest = np.hypot(SURFACE_SIGMA * radius, POINT_SIGMA * scale * np.linalg.norm(path, axis=1))
        found.surface_sigma[frames] = np.hypot(found.noise[frames], nearest[known])


def _depth_offsets(motion: RigidMotion, depth: Depth) -> Array:
    """By how much the inverse depth of a depth map is to be raised to agree with the body's points, [F], 1/m."""
    z, offsets = motion.body.in_camera()[..., 2], np.zeros(len(motion.frames))
    for k, t in enumerate(motion.frames):
        used = np.flatnonzero(motion.used[:, k])
        column, row = np.rint(motion.sight.pixels[used, k]).astype(int).T
        measured = depth.depth[t].numpy()[row, column].astype(float)
        used, measured = used[measured > 0], measured[measured > 0]
        if len(used):
            offsets[k] = np.median(1 / z[used, k] - 1 / measured)
    return offsets


def moves(centers: Tensor, sigmas: Tensor, camera: Camera, clear: float = 5.0, still: float = 0.3) -> bool | None:
    """Whether a track moves in the world.

    Args:
        centers: [T, 3], world, metres, NaN where not seen.
        sigmas: [T], as ``Track.motion_sigma``, metres.
        camera: The camera that saw it; what its drift explains is no motion.
        clear: Displacement from the best-known sighting, in sigmas, that is motion for certain where two sightings
            have it.
        still: Displacement plus two sigmas, metres, under which it stands still.

    Returns:
        True or False, or None in the band between the two and for fewer than two sightings.
    """
    seen = torch.nonzero(centers.isfinite().all(-1))[:, 0].tolist()
    if len(seen) < 2:
        return None
    best = min(seen, key=lambda t: float(sigmas[t]))
    rest = [t for t in seen if t != best]
    far = (centers[rest] - centers[best]).norm(dim=-1)
    reach = (centers - center(camera.world_to_camera)).norm(dim=-1)
    spread = torch.stack(
        [
            difference_sigma(
                sigmas[best],
                sigmas[t],
                drift_sigma(camera.center_sigma, best, t),
                drift_sigma(camera.rotation_sigma, best, t) * reach[t],
            )
            for t in rest
        ]
    )
    # One wrong sighting is no motion.
    if int((far > clear * spread).sum()) >= min(2, len(rest)):
        return True
    return False if bool((far + 2 * spread < still).all()) else None


def _surface(mask: Mask, clouds: list[Tensor], intrinsics: Tensor) -> Surface:
    middles, radii = np.full((len(clouds), 3), np.nan), np.full(len(clouds), np.nan)
    for t, cloud in enumerate(clouds):
        if len(cloud):
            middles[t] = cloud.median(dim=0).values.numpy()
            radii[t] = _lateral_radius(int(mask.pixels[t].sum()), middles[t, 2], intrinsics)
    return Surface(middles, radii)
