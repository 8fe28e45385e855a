"""From a clip to its scene: what the source knows is taken, what it does not know is estimated."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm4d.curate.depth import Depth, DepthEstimator
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.objects import track_from_mask
from mllm4d.curate.odometry import Odometry
from mllm4d.geometry.pose import rebase
from mllm4d.schema import Camera, Clip, InputError, Scene


def build_scene(
    clip: Clip,
    estimate_depth: DepthEstimator | None,
    odometry: Odometry | None,
    find_objects: ObjectFinder | None = None,
) -> Scene:
    """Turn a clip into a scene in the camera axes of its first frame.

    Args:
        clip: The clip.
        estimate_depth: Used where poses or objects need depth and the clip has none.
        odometry: Used where the clip has no poses.
        find_objects: Used where the clip has no objects.

    Returns:
        The scene, with every centre's sigma.

    Raises:
        InputError: Something is missing that nothing was given to estimate with.
    """
    known = clip.tracks is not None or clip.boxes
    depth = None
    if clip.world_to_camera is None or (not known and (clip.masks or find_objects is not None)):
        depth = _depth(clip, estimate_depth)
    quality: dict[str, object] = {}
    if clip.world_to_camera is not None:
        camera = _given(clip, clip.world_to_camera)
    else:
        if odometry is None or depth is None:
            raise InputError(f"clip {clip.key!r} has no poses; name an estimator under the key 'odometry'")
        path = odometry(clip, depth)
        camera = Camera(clip.intrinsics.double(), path.world_to_camera, path.center_sigma, path.rotation_sigma)
        quality["odometry"] = dict(path.quality)
    tracks = clip.tracks
    if tracks is None:
        masks = clip.masks
        if not masks and depth is not None and find_objects is not None:
            masks = find_objects(clip, depth, camera.world_to_camera)
        tracks = tuple(track_from_mask(mask, depth, camera) for mask in masks) if depth else ()
    if depth is not None:
        quality["depth_density"] = round(float((depth.depth > 0).float().mean()), 4)
    return Scene(clip.fps, clip.times, camera, tracks, quality, clip.provenance)


def _given(clip: Clip, world_to_camera: Tensor) -> Camera:
    if not bool(world_to_camera.isfinite().all()):
        raise InputError(f"clip {clip.key!r}: its poses hold numbers that are not finite")
    exact = torch.zeros(len(clip.times), dtype=torch.float64)
    center_sigma = exact if clip.center_sigma is None else clip.center_sigma
    rotation_sigma = exact if clip.rotation_sigma is None else clip.rotation_sigma
    return Camera(clip.intrinsics.double(), rebase(world_to_camera.double()), center_sigma, rotation_sigma)


def _depth(clip: Clip, estimate_depth: DepthEstimator | None) -> Depth:
    if clip.depth is not None:
        sigma = torch.zeros_like(clip.depth) if clip.depth_sigma is None else clip.depth_sigma
        return Depth(clip.depth, torch.where(clip.depth > 0, sigma, torch.inf))
    if estimate_depth is None:
        raise InputError(f"clip {clip.key!r} has no depth; name an estimator under the key 'depth'")
    return estimate_depth(clip)
