"""Rigid poses. Extrinsics are world-to-camera [..., 4, 4]: ``X_c = R X_w + t``."""

from __future__ import annotations

import torch
from torch import Tensor


def invert(pose: Tensor) -> Tensor:
    """Invert a rigid transform: world-to-camera becomes camera-to-world and the other way round.

    Args:
        pose: [..., 4, 4], rotation and translation (metres).

    Returns:
        [..., 4, 4].
    """
    rotation = pose[..., :3, :3].mT
    translation = -(rotation @ pose[..., :3, 3:])
    return torch.cat([torch.cat([rotation, translation], dim=-1), pose[..., 3:, :]], dim=-2)


def center(world_to_camera: Tensor) -> Tensor:
    """The camera centre ``-R^T t``.

    Args:
        world_to_camera: [..., 4, 4].

    Returns:
        [..., 3], world, metres.
    """
    return invert(world_to_camera)[..., :3, 3]


def transform(pose: Tensor, points: Tensor) -> Tensor:
    """Apply a rigid transform to points.

    Args:
        pose: [..., 4, 4].
        points: [..., M, 3], in the frame that the pose maps from, metres.

    Returns:
        [..., M, 3], in the frame that the pose maps to.
    """
    return points @ pose[..., :3, :3].mT + pose[..., None, :3, 3]


def rebase(world_to_camera: Tensor) -> Tensor:
    """Express a path in the camera axes of its first frame, so that its first pose is the identity.

    Args:
        world_to_camera: [T, 4, 4].

    Returns:
        [T, 4, 4], first-camera-to-camera.
    """
    based = world_to_camera @ invert(world_to_camera[:1])
    based[0] = torch.eye(4, dtype=based.dtype)
    return based


def path_rms(estimated: Tensor, truth: Tensor) -> float:
    """Absolute trajectory error without alignment: root mean square distance of the camera centres.

    Args:
        estimated: [T, 4, 4], world-to-camera.
        truth: [T, 4, 4], world-to-camera, in the same world.

    Returns:
        Metres.
    """
    return float((center(estimated) - center(truth)).square().sum(-1).mean().sqrt())
