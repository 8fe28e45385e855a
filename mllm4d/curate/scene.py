"""From a clip to its scene: what the source knows is taken, what it does not know is estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm4d.curate.boxes import track_from_boxes
from mllm4d.curate.depth import Depth, DepthEstimator
from mllm4d.curate.filters.clip import frames_text
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.naming import tell_apart
from mllm4d.curate.objects import track_from_mask
from mllm4d.curate.odometry import Odometry
from mllm4d.curate.quality import Quality
from mllm4d.geometry.camera import unproject
from mllm4d.geometry.pose import invert, rebase, transform
from mllm4d.schema import Camera, Clip, Cloud, InputError, Mask, Scene, Track

CLOUD_POINTS = 1500
"""Points of a scene that are kept for people to look at."""


def build_scene(
    clip: Clip,
    depth: DepthEstimator | None,
    odometry: Odometry | None,
    finder: ObjectFinder | None = None,
    quality: Quality | None = None,
) -> Scene:
    """Turn a clip into a scene in the camera axes of its first frame.

    Args:
        clip: The clip.
        depth: Used where poses or objects need depth and the clip has none.
        odometry: Used where the clip has no poses.
        finder: Used where the clip has no objects.
        quality: Drops what cannot be trusted, and counts it under ``quality["dropped"]`` of the scene; None trusts all.

    Returns:
        The scene, with every centre's sigma.

    Raises:
        InputError: Something is missing that nothing was given to estimate with, or the filters refuse the clip.
    """
    figures: dict[str, Any] = {}
    dropped = Counter[str]()
    if quality:
        figures |= quality.check_clip(clip)
    measured = None
    if clip.world_to_camera is None or (clip.tracks is None and (clip.masks or (finder and not clip.boxes))):
        measured = _depth(clip, depth)
        figures["depth_density"] = _density(measured)
        if quality:
            measured, pixels = quality.clean(clip, measured, clip.masks)
            dropped.update({f"depth pixel: {reason}": count for reason, count in pixels.items()})
            figures["depth_density_kept"] = _density(measured)
    if clip.world_to_camera is not None:
        camera = _given(clip, clip.world_to_camera)
    else:
        if odometry is None or measured is None:
            raise InputError(f"clip {clip.key!r} has no poses; name an estimator under the key 'odometry'")
        path = odometry(clip, measured)
        camera = Camera(clip.intrinsics.double(), path.world_to_camera, path.center_sigma, path.rotation_sigma)
        figures["odometry"] = dict(path.quality)
    if quality:
        figures |= quality.check_path(clip, camera)
    masks = clip.masks
    if finder and measured and not masks and clip.tracks is None and not clip.boxes:
        masks = finder(clip, measured, camera.world_to_camera)
        if quality:
            measured, pixels = quality.clean(clip, measured, masks)
            dropped["depth pixel: mask_boundary"] += pixels["mask_boundary"]
    size = clip.frames.shape[1], clip.frames.shape[2]
    tracks, unclear = tell_apart(_tracks(clip, masks, measured, camera), camera, size, clip.times)
    dropped.update({f"track: {reason}": count for reason, count in unclear.items()})
    if quality:
        tracks, frames = quality.clean_tracks(tracks, camera, clip.times)
        dropped.update({f"track: {reason}": count for reason, count in frames.items()})
    figures["dropped"] = dict(sorted(dropped.items()))
    shown = measured if measured or clip.depth is None else _depth(clip, None)
    cloud = None if shown is None else _cloud(clip, shown, camera)
    return Scene(clip.fps, clip.times, camera, tuple(tracks), figures, clip.provenance, cloud)


def _tracks(clip: Clip, masks: Sequence[Mask], depth: Depth | None, camera: Camera) -> Sequence[Track]:
    if clip.tracks is not None:
        return clip.tracks
    boxes = [track_from_boxes(box, camera) for box in clip.boxes]
    return boxes + ([track_from_mask(mask, clip, depth, camera) for mask in masks] if depth else [])


def _given(clip: Clip, world_to_camera: Tensor) -> Camera:
    if bad := [t for t, pose in enumerate(world_to_camera) if not bool(pose.isfinite().all())]:
        raise InputError(f"clip {clip.key!r}: the poses of {frames_text(bad)} hold numbers that are not finite")
    exact = torch.zeros(len(clip.times), dtype=torch.float64)
    center_sigma = exact if clip.center_sigma is None else clip.center_sigma
    rotation_sigma = exact if clip.rotation_sigma is None else clip.rotation_sigma
    return Camera(clip.intrinsics.double(), rebase(world_to_camera.double()), center_sigma, rotation_sigma)


def _depth(clip: Clip, estimate: DepthEstimator | None) -> Depth:
    if clip.depth is not None:
        sigma = torch.zeros_like(clip.depth) if clip.depth_sigma is None else clip.depth_sigma
        return Depth(clip.depth, torch.where(clip.depth > 0, sigma, torch.inf))
    if estimate is None:
        raise InputError(f"clip {clip.key!r} has no depth; name an estimator under the key 'depth'")
    return estimate(clip)


def _density(depth: Depth) -> float:
    return round(float((depth.depth > 0).float().mean()), 4)


def _cloud(clip: Clip, depth: Depth, camera: Camera) -> Cloud:
    """Points of the first and the last frame, evenly picked among those that are known well."""
    points, colors = [], []
    for t in (0, len(clip.times) - 1):
        known = torch.nonzero(depth.sigma[t] < 0.1 * depth.depth[t])
        picked = known[torch.linspace(0, len(known) - 1, CLOUD_POINTS // 2).long()] if len(known) else known
        rows, columns = picked.unbind(-1)
        local = unproject(depth.depth[t].double(), camera.intrinsics)[rows, columns]
        points.append(transform(invert(camera.world_to_camera[t]), local))
        colors.append(clip.frames[t, rows, columns])
    return Cloud(torch.cat(points), torch.cat(colors))
