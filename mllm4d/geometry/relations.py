"""The seven relations between a camera and an object at two time anchors, i (first) and j (last).

Poses are world-to-camera [..., 4, 4]; points are an object's points [..., M, 3] in the world; metres. Leading
dimensions broadcast. A single known centre is passed as one point, [..., 1, 3]. Formulas: MLLM-4D (arXiv 2603.00515),
with the camera's direction corrected: the paper's ``R_i^T (t_j - t_i)`` belongs to camera-to-world extrinsics and does
not fit its own centres ``-R^T t``; under world-to-camera extrinsics the direction is ``R_i (c_j - c_i)``.
"""

from __future__ import annotations

from torch import Tensor

from mllm4d.geometry.pose import center, transform


def camera_absolute_distance(pose_i: Tensor, pose_j: Tensor) -> Tensor:
    """How far the camera is at j from where it was at i: ``|| c_j - c_i ||``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        pose_j: [..., 4, 4], world-to-camera.

    Returns:
        [...], metres.
    """
    return (center(pose_j) - center(pose_i)).norm(dim=-1)


def camera_relative_direction(pose_i: Tensor, pose_j: Tensor) -> Tensor:
    """Camera j seen from camera i: ``R_i (c_j - c_i)``, that is ``R_i c_j + t_i``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        pose_j: [..., 4, 4], world-to-camera.

    Returns:
        [..., 3], axes of camera i, metres.
    """
    return transform(pose_i, center(pose_j)[..., None, :])[..., 0, :]


def object_absolute_distance(points_i: Tensor, points_j: Tensor) -> Tensor:
    """How far the object's centre is at j from where it was at i: ``|| p_j - p_i ||``.

    Args:
        points_i: [..., M, 3], world.
        points_j: [..., M', 3], world.

    Returns:
        [...], metres.
    """
    return (points_j.mean(-2) - points_i.mean(-2)).norm(dim=-1)


def object_relative_direction(pose_i: Tensor, points_i: Tensor, points_j: Tensor) -> Tensor:
    """Where the object went, in the axes that the camera had at i: ``R_i (p_j - p_i)``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        points_i: [..., M, 3], world.
        points_j: [..., M', 3], world.

    Returns:
        [..., 3], axes of camera i, metres.
    """
    return _in_camera(pose_i, points_j) - _in_camera(pose_i, points_i)


def object_camera_absolute_distance(pose_i: Tensor, points_j: Tensor, percentile: float = 0.0) -> Tensor:
    """From the camera at i to the nearest point of the object at j: ``min_m || P_{j,m} - c_i ||``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        points_j: [..., M, 3], world.
        percentile: 0 takes the minimum. A raw minimum over measured points is noise's favourite: for those give a low
            percentile, in 0-100, and say which.

    Returns:
        [...], metres.
    """
    distances = (points_j - center(pose_i)[..., None, :]).norm(dim=-1)
    return distances.quantile(percentile / 100, dim=-1) if percentile else distances.amin(-1)


def object_camera_relative_distance(
    pose_i: Tensor, points_i: Tensor, pose_j: Tensor, points_j: Tensor, percentile: float = 0.0
) -> Tensor:
    """By how much the object is farther from the camera at j than at i: ``min||P_j - c_j|| - min||P_i - c_i||``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        points_i: [..., M, 3], world.
        pose_j: [..., 4, 4], world-to-camera.
        points_j: [..., M', 3], world.
        percentile: As in ``object_camera_absolute_distance``.

    Returns:
        [...], metres; negative is closer.
    """
    return object_camera_absolute_distance(pose_j, points_j, percentile) - object_camera_absolute_distance(
        pose_i, points_i, percentile
    )


def object_camera_relative_direction(pose_i: Tensor, points_i: Tensor, pose_j: Tensor, points_j: Tensor) -> Tensor:
    """How the object moved in the camera's own view: ``(R_j p_j + t_j) - (R_i p_i + t_i)``.

    It mixes in the camera's rotation, so that its wording says "as seen from the camera". For a camera that does not
    rotate it equals ``object_relative_direction - camera_relative_direction``.

    Args:
        pose_i: [..., 4, 4], world-to-camera.
        points_i: [..., M, 3], world.
        pose_j: [..., 4, 4], world-to-camera.
        points_j: [..., M', 3], world.

    Returns:
        [..., 3], metres; +x to the right, +z farther, both as seen from the camera.
    """
    return _in_camera(pose_j, points_j) - _in_camera(pose_i, points_i)


def _in_camera(pose: Tensor, points: Tensor) -> Tensor:
    """The points' centre in camera axes, [..., 3]."""
    return transform(pose, points.mean(-2, keepdim=True))[..., 0, :]
