"""Whether the rows of a stereo pair match."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.filters.cuts import grey, shrink, track_corners

PAIR_WIDTH = 640
"""Width at which left and right are matched, pixels; wider views are scaled down."""

ITERATIONS = 30
"""Of the robust fit."""


@dataclass(frozen=True)
class PairMatches:
    """Corners of left views found again in the right views.

    Attributes:
        left: [N, 2], pixels of the views as they are.
        right: [N, 2], likewise.
        corners: How many were looked for.
    """

    left: Tensor
    right: Tensor
    corners: int


@dataclass(frozen=True)
class Rectification:
    """How well rows match.

    Attributes:
        vertical: Median of ``|y_right - y_left|``, pixels.
        offset: Of the right view, downwards, in the middle of the image, pixels.
        tilt: Of the right view about the viewing axis, clockwise, degrees.
        disparity: Median of ``x_left - x_right``, pixels.
        backwards: Share of the matches with a disparity under -0.5 px, which nothing in front of the cameras has.
    """

    vertical: float
    offset: float
    tilt: float
    disparity: float
    backwards: float


def match_pairs(left: Tensor, right: Tensor) -> PairMatches:
    """Find corners of left views in the right views, in any direction.

    Args:
        left: [N, H, W, 3] uint8 RGB.
        right: [N, H, W, 3] uint8 RGB.

    Returns:
        The matches of all pairs together.
    """
    scale = max(1.0, left.shape[2] / PAIR_WIDTH)
    found = [
        track_corners(grey(shrink(here, PAIR_WIDTH)), grey(shrink(there, PAIR_WIDTH)), reach=0.5)
        for here, there in zip(left.numpy(), right.numpy(), strict=True)
    ]
    starts, ends = (torch.from_numpy(np.concatenate([each[i] for each in found])).double() * scale for i in (0, 1))
    return PairMatches(starts, ends, sum(each[2] for each in found))


def rectification(matches: PairMatches, height: int, width: int) -> Rectification:
    """Judge whether the same point lies in the same row of both views.

    The vertical disparity is fitted by a plane over the image, by least absolute errors (reweighted least squares),
    which wrong matches hardly move; its slope along x is the sine of the tilt.

    Args:
        matches: At least three.
        height: Of the views, pixels.
        width: Of the views, pixels.

    Returns:
        The figures.
    """
    across, down = (matches.left - torch.tensor([(width - 1) / 2, (height - 1) / 2])).T
    dx, dy = (matches.right - matches.left).T
    design = torch.stack([torch.ones_like(across), across, down], dim=-1)
    plane = torch.stack([dy.median(), dy.new_zeros(()), dy.new_zeros(())])
    for _ in range(ITERATIONS):
        weight = (dy - design @ plane).abs().clamp(min=0.01).rsqrt()[:, None]
        plane = torch.linalg.lstsq(weight * design, weight * dy[:, None], driver="gelsd").solution[:, 0]
    return Rectification(
        float(dy.abs().median()),
        float(plane[0]),
        math.degrees(math.asin(max(-1.0, min(1.0, float(plane[1]))))),
        float(-dx.median()),
        float((dx > 0.5).double().mean()),
    )
