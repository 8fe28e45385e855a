"""How the frames of a clip compare: blank and repeated frames, and cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]
Points = NDArray[np.float32]

THUMBNAIL = 160
"""Width at which contrast and colours are compared, pixels: noise is averaged out."""

MOTION_WIDTH = 320
"""Width at which neighbouring frames are matched, pixels."""

CORNERS = 200
"""Corners looked for in an image."""

FEW_CORNERS = 20
"""With fewer corners nothing is said about whether two images show one scene."""


def contrast(frames: Tensor) -> Tensor:
    """Standard deviation of each frame's grey levels.

    Args:
        frames: [T, H, W, 3] uint8 RGB.

    Returns:
        [T] float64, grey levels, after averaging down to ``THUMBNAIL`` pixels.
    """
    return torch.tensor([float(grey(shrink(frame, THUMBNAIL)).std()) for frame in frames.numpy()]).double()


def repeated(frames: Tensor) -> Tensor:
    """Where a frame equals the one before it, bit for bit.

    Args:
        frames: [T, H, W, 3] uint8 RGB.

    Returns:
        [T - 1] bool.
    """
    return torch.tensor([torch.equal(*pair) for pair in pairwise(frames)], dtype=torch.bool)


def colour_changes(frames: Tensor) -> Tensor:
    """How much the colours change from frame to frame, wherever in the image they are.

    Args:
        frames: [T, H, W, 3] uint8 RGB.

    Returns:
        [T - 1] float64 in [0, 1]: total variation distance of the histograms (16 bins), averaged over the channels.
    """
    histograms = np.stack([_histograms(shrink(frame, THUMBNAIL)) for frame in frames.numpy()])
    return torch.from_numpy(np.abs(np.diff(histograms, axis=0)).sum(-1).mean(-1) / 2)


def find_cuts(frames: Tensor, min_change: float, min_tracked: float, min_matched: float) -> list[int]:
    """Where two neighbouring frames show different scenes.

    Three things must come together, so that neither a fast turn nor a change of light is a cut: the colours change,
    corners cannot be tracked, and ORB features, which are found however far they went, do not match either.

    Args:
        frames: [T, H, W, 3] uint8 RGB.
        min_change: Least change of colours, as in ``colour_changes``.
        min_tracked: Share of the corners that must be found again; with fewer they count as lost.
        min_matched: Share of ORB features that must match under one homography; likewise.

    Returns:
        Every t with a cut between frames t and t + 1.
    """
    cuts = []
    for t in torch.nonzero(colour_changes(frames) >= min_change)[:, 0].tolist():
        first, second = (grey(shrink(frame, MOTION_WIDTH)) for frame in frames[t : t + 2].numpy())
        start, _, corners = track_corners(first, second, reach=1.0)
        if corners < FEW_CORNERS:
            start, _, corners = track_corners(second, first, reach=1.0)
        lost = corners >= FEW_CORNERS and len(start) < min_tracked * corners
        if lost and _matched_share(first, second) < min_matched:
            cuts.append(t)
    return cuts


def track_corners(first: Image, second: Image, reach: float) -> tuple[Points, Points, int]:
    """Corners [N, 2] of the first image, their places in the second, found there and back, and how many there were.

    Args:
        first: [H, W].
        second: [H, W].
        reach: How far from its start a corner may come back, pixels.
    """
    import cv2

    start = cv2.goodFeaturesToTrack(first, CORNERS, 0.01, 7)
    if start is None:
        return np.empty((0, 2), np.float32), np.empty((0, 2), np.float32), 0
    # OpenCV wants places to begin at, and without a flag does not look at them.
    end, there, _ = cv2.calcOpticalFlowPyrLK(first, second, start, start.copy(), winSize=(21, 21), maxLevel=4)
    again, back, _ = cv2.calcOpticalFlowPyrLK(second, first, end, start.copy(), winSize=(21, 21), maxLevel=4)
    good = (there[:, 0] > 0) & (back[:, 0] > 0) & (np.linalg.norm((again - start)[:, 0], axis=-1) < reach)
    return start[good, 0], end[good, 0], len(start)


def _matched_share(first: Image, second: Image) -> float:
    """Share of the ORB features that match under one homography to 4 px; 0 where there are too few."""
    import cv2

    orb = cv2.ORB.create(nfeatures=500, fastThreshold=10)
    found = [orb.detectAndCompute(image, None) for image in (first, second)]
    count = min(len(points) for points, _ in found)
    if count < FEW_CORNERS:
        return 0.0
    pairs: Sequence[Any] = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(found[0][1], found[1][1])
    if len(pairs) < 8:
        return 0.0
    start = np.array([found[0][0][pair.queryIdx].pt for pair in pairs])
    end = np.array([found[1][0][pair.trainIdx].pt for pair in pairs])
    cv2.setRNGSeed(0)
    _, inliers = cv2.findHomography(start, end, cv2.RANSAC, 4.0)
    return 0.0 if inliers is None else float(inliers.sum()) / count


def _histograms(image: Image) -> NDArray[np.float64]:
    """[3, 16], shares that sum to 1 in every channel."""
    return np.stack(
        [np.bincount(channel.ravel() >> 4, minlength=16) / channel.size for channel in np.moveaxis(image, -1, 0)]
    )


def shrink(image: Image, width: int) -> Image:
    """Scale down to a width; smaller images stay as they are."""
    import cv2

    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def grey(image: Image) -> Image:
    """RGB to grey levels."""
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
