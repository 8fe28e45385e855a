"""Monocular depth scaled to stereo: every pixel from the model, the metres from both views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mllm4d.curate.depth import Depth, DepthEstimator
from mllm4d.curate.learned.monocular import MonocularDepth
from mllm4d.schema import Clip, InputError


@dataclass(frozen=True)
class ScaledToStereo(DepthEstimator):
    """Monocular depth for density, stereo for the metres.

    In every frame ``1 / Z_stereo = scale * q + shift`` is fitted robustly, where ``q`` is the monocular inverse depth.
    The residual's spread, stereo's own noise included, is the sigma of the inverse depth, so that ``sigma_Z = Z^2 *
    sigma``. A frame with fewer than ``min_points`` measured pixels, or where the fitted scale is not positive, is
    unknown.

    Attributes:
        mono: A relative or metric depth model.
        stereo: What measures depth from both views.
        min_points: Pixels that stereo must have measured in a frame.
        max_depth: Farther depths are dropped as unknown, metres.
    """

    mono: MonocularDepth
    stereo: DepthEstimator
    min_points: int = 500
    max_depth: float = 80.0

    def __post_init__(self) -> None:
        if self.min_points < 3:
            raise InputError(f"min_points must be at least 3, got {self.min_points}")
        if not self.max_depth > 0:
            raise InputError(f"max_depth must be positive, got {self.max_depth} m")

    def __call__(self, clip: Clip) -> Depth:
        """Predict depth and scale it frame by frame.

        Raises:
            InputError: The clip has no right view or baseline, or the model cannot be used.
        """
        measured = self.stereo(clip)  # first, because it is what a clip may lack
        return scale_to_stereo(self.mono.inverse_depth(clip), measured, self.min_points, self.max_depth)


def scale_to_stereo(inverse: Tensor, stereo: Depth, min_points: int, max_depth: float) -> Depth:
    """Give monocular inverse depth the metres of stereo, frame by frame.

    Args:
        inverse: [T, H, W], monocular inverse depth, NaN where unknown.
        stereo: Depth by stereo, of the same shape.
        min_points: Pixels known to both that a frame must have.
        max_depth: Farther depths are dropped as unknown, metres.

    Returns:
        Depth and its sigma; frames that cannot be scaled are unknown.
    """
    depth = torch.zeros_like(inverse)
    sigma = torch.full_like(inverse, torch.inf)
    for t in range(len(inverse)):
        both = (stereo.depth[t] > 0) & inverse[t].isfinite()
        if int(both.sum()) < min_points:
            continue
        scale, shift, spread = fit_line(inverse[t][both].double(), 1 / stereo.depth[t][both].double())
        if not scale > 0:
            continue
        scaled = scale * inverse[t].double() + shift
        known = scaled >= 1 / max_depth  # false for NaN
        depth[t] = torch.where(known, 1 / scaled, 0.0).to(depth.dtype)
        sigma[t] = torch.where(known, spread / scaled.square(), torch.inf).to(sigma.dtype)
    return Depth(depth, sigma)


def fit_line(x: Tensor, y: Tensor, iterations: int = 20) -> tuple[float, float, float]:
    """Fit ``y = scale * x + shift`` robustly.

    Theil's incomplete method (1950) is the start: with the points in order of x, the median slope between the first and
    the second half. Weighted least squares with Tukey's biweight (4.685 spreads) refine it.

    Args:
        x: [N].
        y: [N].
        iterations: Of the refinement.

    Returns:
        Scale, shift, and the residual's spread: 1.4826 times the median absolute deviation, a normal error's sigma. The
        scale is NaN where all x are the same.
    """
    order = x.argsort(stable=True)
    half = len(x) // 2
    low, high = order[:half], order[len(x) - half :]
    run = x[high] - x[low]
    slopes = ((y[high] - y[low]) / run)[run > 0]
    if not len(slopes):
        return float("nan"), float("nan"), float("inf")
    scale = slopes.median()
    shift = (y - scale * x).median()
    spread = _spread(y - scale * x - shift)
    for _ in range(iterations):
        if spread <= 1e-12 * y.abs().max():
            break
        weight = (1 - ((y - scale * x - shift) / (4.685 * spread)).square()).clamp(min=0).square()
        mean_x, mean_y = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
        variance = (weight * (x - mean_x).square()).sum()
        if not variance > 0:
            break
        scale = (weight * (x - mean_x) * (y - mean_y)).sum() / variance
        shift = mean_y - scale * mean_x
        spread = _spread(y - scale * x - shift)
    return float(scale), float(shift), float(spread)


def _spread(residual: Tensor) -> Tensor:
    return 1.4826 * residual.abs().median()
