"""Pinhole cameras: pixels, rays and points. Pixel centres are at integer coordinates; depth is z-depth."""

from __future__ import annotations

import torch
from kornia.geometry.camera import project_points
from kornia.geometry.depth import depth_to_3d_v2
from torch import Tensor


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Lift a depth map to points.

    Args:
        depth: [..., H, W], z-depth, metres; 0 (unknown) becomes the origin, mask it out.
        intrinsics: [..., 3, 3] or [3, 3], pixels.

    Returns:
        [..., H, W, 3], camera axes, metres.
    """
    lead = depth.shape[:-2]
    maps = depth.reshape(-1, *depth.shape[-2:])
    matrices = intrinsics.to(depth).expand(*lead, 3, 3).reshape(-1, 3, 3)
    return depth_to_3d_v2(maps, matrices).reshape(*depth.shape, 3)


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Project points in camera axes to pixels.

    Args:
        points: [..., M, 3], camera axes, metres, z > 0.
        intrinsics: [..., 3, 3] or [3, 3], pixels.

    Returns:
        [..., M, 2], (x, y) pixels.
    """
    return project_points(points, intrinsics.to(points)[..., None, :, :])


def resize_intrinsics(intrinsics: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Intrinsics of an image after it was resized, for pixel centres at integer coordinates.

    Args:
        intrinsics: [3, 3], pixels of the original image.
        size: (height, width) of the original image.
        new_size: (height, width) after resizing.

    Returns:
        [3, 3], pixels of the resized image.
    """
    scale_y, scale_x = new_size[0] / size[0], new_size[1] / size[1]
    # The image's corner is at (-0.5, -0.5), and it is the corner that stays where it is.
    change = torch.tensor(
        [[scale_x, 0, 0.5 * scale_x - 0.5], [0, scale_y, 0.5 * scale_y - 0.5], [0, 0, 1]], dtype=intrinsics.dtype
    )
    return change @ intrinsics
