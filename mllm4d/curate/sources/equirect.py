"""Perspective views out of equirectangular pictures, such as one eye of a VR180 video.

The conventions are those of the released Stereo4D code (github.com/Stereo4d/stereo4d-code, ``rectify.py``): the ray
of yaw ``a`` and tilt ``b`` is ``(cos b sin a, sin b, cos b cos a)`` in OpenCV axes, so that yaw grows to the right and
tilt downwards. Both grow evenly over the picture, from the start bound at the centre of the first pixel to the end
bound at the centre of the last. That code goes by way of a rectified equirectangular picture; here both steps are one,
which is the same geometry interpolated once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.geometry.camera import resize_intrinsics

Bounds = tuple[float, float, float, float]
"""Start yaw, end yaw, start tilt and end tilt of a picture, degrees."""


def view_intrinsics(size: int, fov: float) -> Tensor:
    """Intrinsics of a square perspective view that looks straight ahead.

    The principal point is the middle of the picture: ``(size - 1) / 2`` where pixel centres are at integer coordinates.
    Stereo4D's code says ``size / 2`` for the same place, because its pixel centres are at ``x + 0.5``.

    Args:
        size: Width and height, pixels.
        fov: Angle between the left and the right edge, degrees.

    Returns:
        [3, 3] float64, pixels.
    """
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    middle = (size - 1) / 2
    return torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], dtype=torch.float64)


def equirect_positions(rays: Tensor, bounds: Bounds, picture: tuple[int, int]) -> Tensor:
    """Where an equirectangular picture shows rays.

    Args:
        rays: [..., 3], in the picture's axes, of any length.
        bounds: The picture's.
        picture: (height, width), pixels.

    Returns:
        [..., 2], (x, y) pixels; outside the picture where it does not show them.
    """
    yaw = torch.rad2deg(torch.atan2(rays[..., 0], rays[..., 2]))
    tilt = torch.rad2deg(torch.atan2(rays[..., 1], rays[..., ::2].norm(dim=-1)))
    x = (yaw - bounds[0]) / (bounds[1] - bounds[0]) * (picture[1] - 1)
    y = (tilt - bounds[2]) / (bounds[3] - bounds[2]) * (picture[0] - 1)
    return torch.stack([x, y], dim=-1)


def oversampling(intrinsics: Tensor, bounds: Bounds, picture: tuple[int, int]) -> int:
    """How many samples a pixel of the view needs along each side, so that no pixel of the picture is passed over."""
    across = (picture[1] - 1) / math.radians(bounds[1] - bounds[0]) / float(intrinsics[0, 0])
    down = (picture[0] - 1) / math.radians(bounds[3] - bounds[2]) / float(intrinsics[1, 1])
    return max(1, math.ceil(max(across, down)))


def sampling_map(intrinsics: Tensor, size: int, rotation: Tensor, bounds: Bounds, picture: tuple[int, int]) -> Tensor:
    """Where a square perspective view takes its samples in an equirectangular picture.

    Args:
        intrinsics: [3, 3], of the view, pixels.
        size: Width and height of the view, pixels.
        rotation: [3, 3], view axes to the picture's axes.
        bounds: The picture's.
        picture: (height, width), pixels.

    Returns:
        [size * k, size * k, 2] float32, (x, y) pixels, with ``k`` of ``oversampling``.
    """
    fine = size * oversampling(intrinsics, bounds, picture)
    inverse = resize_intrinsics(intrinsics.double(), (size, size), (fine, fine)).inverse()
    y, x = torch.meshgrid(*[torch.arange(fine, dtype=torch.float64)] * 2, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ (rotation.double() @ inverse).mT
    return equirect_positions(rays, bounds, picture).float()


def covers(positions: Tensor, picture: tuple[int, int]) -> bool:
    """Whether a picture of (height, width) shows all of these positions [..., 2]."""
    limits = torch.tensor([picture[1], picture[0]]) - 0.5
    return bool(((positions >= -0.5) & (positions <= limits)).all())


def take_view(picture: NDArray[np.uint8], positions: Tensor, size: int) -> Tensor:
    """Take a view out of a picture; each of its pixels is the mean of its samples.

    Args:
        picture: [h, w, 3].
        positions: [size * k, size * k, 2], from ``sampling_map``.
        size: Width and height of the view, pixels.

    Returns:
        [size, size, 3] uint8.
    """
    import cv2

    across, down = positions.numpy()[..., 0], positions.numpy()[..., 1]
    samples = cv2.remap(picture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(np.asarray(cv2.resize(samples, (size, size), interpolation=cv2.INTER_AREA)))
