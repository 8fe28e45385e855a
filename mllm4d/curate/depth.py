"""Depth from a rectified stereo clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm4d.geometry.stereo import depth_sigma, disparity_to_depth, left_right_consistent
from mllm4d.schema import Clip, InputError


@dataclass(frozen=True)
class Depth:
    """Depth of a clip's frames, seen from the left camera.

    Attributes:
        depth: [T, H, W] float32, z-depth, metres, 0 unknown.
        sigma: [T, H, W] float32, its standard deviation, metres, infinite where unknown.
    """

    depth: Tensor
    sigma: Tensor


class DepthEstimator(ABC):
    """Anything that measures the depth of a clip. Subclass it and name the class in YAML by ``class_path``."""

    @abstractmethod
    def __call__(self, clip: Clip) -> Depth:
        """Estimate depth; the same clip gives the same depth.

        Raises:
            InputError: The clip lacks what the estimator needs; the message names the clip and what is missing.
        """


@dataclass(frozen=True)
class SGBM(DepthEstimator):
    """OpenCV's semi-global block matching (three-way), with a left-right check.

    Both views are padded on the left by the disparity range: OpenCV leaves out that many columns of an image, which
    cost a fifth of the picture on Middlebury's Aloe. Penalties are OpenCV's recommended ``8 b^2`` and ``32 b^2`` for
    block size ``b``.

    On Aloe (1282x1110) 4.7 % of the measured pixels are off by more than 1 px, at 83 % density.

    Attributes:
        num_disparities: Range of disparities, pixels, a multiple of 16; None takes a sixth of the width, rounded up.
        block_size: Edge of the matched block, pixels, odd.
        left_right: Largest difference of the two views' disparities, pixels.
        uniqueness: By how many percent the best match must beat the second.
        max_depth: Farther depths are dropped as unknown, metres.
        disparity_sigma: Standard deviation of a disparity, pixels, from which the depth's sigma follows. On smooth
            surfaces (disparities within 2 px of each other in 7x7 pixels) 68 % of the errors are below 0.16 px in the
            synthetic world, where 0.04 % exceed 1.5 px, and below 0.38 px on Aloe, whose truth is in whole pixels. At
            edges of objects no sigma holds: there 18 % (world) and 20 % (Aloe) are off by more than 1 px.
    """

    num_disparities: int | None = None
    block_size: int = 5
    left_right: float = 1.0
    uniqueness: int = 10
    max_depth: float = 80.0
    disparity_sigma: float = 0.3

    def __post_init__(self) -> None:
        if self.num_disparities is not None and (self.num_disparities < 16 or self.num_disparities % 16):
            raise InputError(f"num_disparities must be a positive multiple of 16, got {self.num_disparities}")
        if self.block_size < 1 or self.block_size % 2 == 0:
            raise InputError(f"block_size must be odd and positive, got {self.block_size}")
        if not self.max_depth > 0:
            raise InputError(f"max_depth must be positive, got {self.max_depth} m")
        if not self.disparity_sigma > 0:
            raise InputError(f"disparity_sigma must be positive, got {self.disparity_sigma} px")

    def __call__(self, clip: Clip) -> Depth:
        """Match every pair of the clip.

        Raises:
            InputError: The clip has no right view, a right view of another size, or no positive baseline.
        """
        if clip.right is None:
            raise InputError(f"clip {clip.key!r}: stereo depth needs a right view, and it has none")
        if clip.right.shape != clip.frames.shape:
            raise InputError(
                f"clip {clip.key!r}: left and right views must have one shape, got {tuple(clip.frames.shape)} and "
                f"{tuple(clip.right.shape)}"
            )
        if clip.baseline is None or not clip.baseline > 0:
            raise InputError(
                f"clip {clip.key!r}: stereo depth needs a positive baseline in metres, not {clip.baseline}"
            )
        fx = float(clip.intrinsics[0, 0])
        result = Depth(*torch.empty(2, *clip.frames.shape[:3]))
        for t, pair in enumerate(zip(clip.frames, clip.right, strict=True)):
            depth = disparity_to_depth(self.disparity(*pair), fx, clip.baseline)
            result.depth[t] = torch.where(depth <= self.max_depth, depth, 0.0)
            result.sigma[t] = depth_sigma(result.depth[t], fx, clip.baseline, self.disparity_sigma)
        return result

    def disparity(self, left: Tensor, right: Tensor) -> Tensor:
        """Match one rectified pair.

        Args:
            left: [H, W, 3] uint8 RGB.
            right: [H, W, 3] uint8 RGB.

        Returns:
            [H, W] float32, disparity of the left view's pixels, pixels, 0 where unknown or not confirmed by the right
            view.
        """
        import cv2

        views = [cv2.cvtColor(view.numpy(), cv2.COLOR_RGB2GRAY) for view in (left, right)]
        # The mirrored right view takes the left view's part, so that it is matched by the very same method.
        mirrored = [view[:, ::-1] for view in reversed(views)]
        there, back = self._match(*views), self._match(*mirrored).flip(-1)
        return torch.where(left_right_consistent(there, back, self.left_right), there, 0.0)

    def _match(self, left: np.ndarray, right: np.ndarray) -> Tensor:
        """Disparity [H, W] of grey numpy images, 0 or below where OpenCV found none."""
        import cv2

        count = self.num_disparities or 16 * -(-left.shape[1] // 96)
        area = self.block_size**2
        matcher = cv2.StereoSGBM.create(
            minDisparity=0,
            numDisparities=count,
            blockSize=self.block_size,
            P1=8 * area,
            P2=32 * area,
            preFilterCap=63,
            uniquenessRatio=self.uniqueness,
            speckleWindowSize=100,
            speckleRange=2,
            mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
        )
        padded = [cv2.copyMakeBorder(view, 0, 0, count, 0, cv2.BORDER_REPLICATE) for view in (left, right)]
        # OpenCV counts in sixteenths of a pixel.
        return torch.from_numpy(matcher.compute(*padded)[:, count:]).float() / 16
