"""From a clip to its scene: what the source knows is taken, what it does not know is estimated."""

from __future__ import annotations

import torch

from mllm4d.curate.depth import Depth, DepthEstimator
from mllm4d.curate.objects import track_from_mask
from mllm4d.curate.odometry import Odometry
from mllm4d.geometry.pose import rebase
from mllm4d.schema import Camera, Clip, InputError, Scene


def build_scene(clip: Clip, estimate_depth: DepthEstimator | None, odometry: Odometry | None) -> Scene:
    """Turn a clip into a scene in the camera axes of its first frame.

    Args:
        clip: The clip.
        estimate_depth: Used where poses or objects need depth and the clip has none.
        odometry: Used where the clip has no poses.

    Returns:
        The scene, with every centre's sigma.

    Raises:
        InputError: Something is missing that nothing was given to estimate with.
    """
    depth = None
    if clip.world_to_camera is None or (clip.tracks is None and clip.masks):
        depth = _depth(clip, estimate_depth)
    quality: dict[str, object] = {}
    if clip.world_to_camera is not None:
        if not bool(clip.world_to_camera.isfinite().all()):
            raise InputError(f"clip {clip.key!r}: its poses hold numbers that are not finite")
        poses, drift = rebase(clip.world_to_camera.double()), torch.zeros(len(clip.times), dtype=torch.float64)
    else:
        if odometry is None or depth is None:
            raise InputError(f"clip {clip.key!r} has no poses; name an estimator under the key 'odometry'")
        path = odometry(clip, depth)
        poses, drift = path.world_to_camera, path.center_sigma
        quality["odometry"] = dict(path.quality)
    tracks = clip.tracks
    if tracks is None:
        tracks = tuple(track_from_mask(mask, depth, clip.intrinsics, poses) for mask in clip.masks) if depth else ()
    if depth is not None:
        quality["depth_density"] = round(float((depth.depth > 0).float().mean()), 4)
    camera = Camera(clip.intrinsics.double(), poses, drift)
    return Scene(clip.fps, clip.times, camera, tracks, quality, clip.provenance)


def _depth(clip: Clip, estimate_depth: DepthEstimator | None) -> Depth:
    if clip.depth is not None:
        return Depth(clip.depth, torch.zeros_like(clip.depth))
    if estimate_depth is None:
        raise InputError(f"clip {clip.key!r} has no depth; name an estimator under the key 'depth'")
    return estimate_depth(clip)
