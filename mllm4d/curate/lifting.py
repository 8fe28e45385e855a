"""Pixels of a clip's frames as points in space."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mllm4d.curate.depth import Depth
from mllm4d.curate.pnp import Array
from mllm4d.curate.tracking import Image
from mllm4d.schema import Clip


class LiftedFrames:
    """A clip's frames, grey, and the points that their pixels show, made when asked for: no copy of the clip is held.

    Attributes:
        clip: The clip.
        depth: Its depth.
        intrinsics: [3, 3] float64, pixels.
    """

    def __init__(self, clip: Clip, depth: Depth, max_relative_sigma: float) -> None:
        """Depths whose sigma, relative to the depth, is larger than ``max_relative_sigma`` count as unknown."""
        self.clip, self.depth = clip, depth
        self._max_relative_sigma = max_relative_sigma
        self.intrinsics: Array = clip.intrinsics.double().numpy()
        self._to_rays = np.linalg.inv(self.intrinsics).T

    def grey(self, t: int) -> Image:
        """[H, W]."""
        import cv2

        grey: Image = cv2.cvtColor(self.clip.frames[t].numpy(), cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
        return grey

    def trusted(self, t: int) -> NDArray[np.float32]:
        """Depth [H, W] float32, metres, 0 where it is not known well or a named object is, which may move by itself."""
        depth, sigma = self.depth.depth[t], self.depth.sigma[t]
        good = sigma <= self._max_relative_sigma * depth
        for mask in self.clip.masks:
            good = good & ~mask.pixels[t]
        return torch.where(good, depth, 0.0).float().numpy()

    def lift(self, t: int, pixels: Array) -> tuple[Array, Array]:
        """Points [N, 3] in the camera's axes (metres, z = 0 unknown) and their depth's sigma [N] at pixels [N, 2]."""
        depth = self.trusted(t)
        height, width = depth.shape
        column, row = pixels.round().astype(int).T
        row, column = row.clip(0, height - 1), column.clip(0, width - 1)
        z = depth[row, column].astype(np.float64)
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ self._to_rays
        return rays * z[:, None], self.depth.sigma[t].numpy()[row, column].astype(np.float64)
