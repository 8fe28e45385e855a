"""Rectified stereo: disparity in pixels, depth in metres, and how far each can be trusted.

Pixel ``x`` of the left view and ``x - d`` of the right view show the same point when ``d`` is the disparity. A
disparity or depth of 0 means unknown.
"""

from __future__ import annotations

import torch
from kornia.geometry.depth import depth_from_disparity
from torch import Tensor


def disparity_to_depth(disparity: Tensor, fx: float, baseline: float) -> Tensor:
    """Depth ``Z = f B / d``.

    Args:
        disparity: [..., H, W], pixels; 0, negative or not finite where unknown.
        fx: Focal length, pixels.
        baseline: Distance of the two cameras, metres.

    Returns:
        [..., H, W], z-depth, metres, 0 where unknown.

    Raises:
        ValueError: ``fx`` or ``baseline`` is not positive.
    """
    _check_rig(fx, baseline)
    known = (disparity > 0) & disparity.isfinite()
    depth = depth_from_disparity(torch.where(known, disparity, 1.0), baseline, fx)
    return torch.where(known, depth, 0.0)


def depth_sigma(depth: Tensor, fx: float, baseline: float, disparity_sigma: float) -> Tensor:
    """Standard deviation of a depth, to first order: ``sigma_Z = Z^2 / (f B) * sigma_d``.

    Args:
        depth: [..., H, W], metres, 0 where unknown.
        fx: Focal length, pixels.
        baseline: Distance of the two cameras, metres.
        disparity_sigma: Standard deviation of the disparity, pixels.

    Returns:
        [..., H, W], metres, infinite where the depth is unknown.

    Raises:
        ValueError: ``fx`` or ``baseline`` is not positive, or ``disparity_sigma`` is negative.
    """
    _check_rig(fx, baseline)
    if not disparity_sigma >= 0:
        raise ValueError(f"disparity_sigma must not be negative, got {disparity_sigma} px")
    return torch.where(depth > 0, depth.square() * (disparity_sigma / (fx * baseline)), torch.inf)


def left_right_consistent(left: Tensor, right: Tensor, tolerance: float = 1.0) -> Tensor:
    """Where the right view's disparity confirms the left view's; occluded and mismatched pixels fail.

    Args:
        left: [..., H, W], disparity of the left view's pixels, 0 unknown.
        right: [..., H, W], disparity of the right view's pixels, 0 unknown.
        tolerance: Largest accepted difference, pixels.

    Returns:
        [..., H, W] bool: known, its match (to the nearest pixel) lies in the right view and is known there, and the two
        disparities differ by no more than ``tolerance``.

    Raises:
        ValueError: The shapes differ.
    """
    if left.shape != right.shape:
        raise ValueError(f"disparities must have one shape, got {tuple(left.shape)} and {tuple(right.shape)}")
    width = left.shape[-1]
    known = (left > 0) & left.isfinite()
    match = torch.arange(width, device=left.device) - torch.where(known, left, 0.0).round().long()
    there = right.gather(-1, match.clamp(0, width - 1))
    return known & (match >= 0) & (there > 0) & ((there - left).abs() <= tolerance)


def _check_rig(fx: float, baseline: float) -> None:
    if not fx > 0:
        raise ValueError(f"fx must be a positive focal length in pixels, got {fx}")
    if not baseline > 0:
        raise ValueError(f"baseline must be a positive distance in metres, got {baseline}")
