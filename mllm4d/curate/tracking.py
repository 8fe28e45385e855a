"""Points of an image found again in another: corners followed by optical flow, or SIFT features matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

SMALLEST_WINDOW = 13
"""Of the optical flow, pixels; smaller ones hold too little texture to be found again."""


@dataclass(frozen=True)
class CornerTracker:
    """Corners (Shi and Tomasi 1994) followed by pyramidal Lucas-Kanade flow, there and back.

    The window is a fortieth of the image's width, so that it covers the same angle, and with it the same share of
    perspective, at every resolution.

    Attributes:
        count: Largest number of corners.
        levels: Of the pyramid, besides the image itself.
        there_and_back: A point followed to the other image and back must end so near to where it began, pixels.
    """

    count: int = 800
    levels: int = 4
    there_and_back: float = 0.3

    def corners(self, image: Image, where: Image) -> Array:
        """Whole pixels [N, 2] (x, y) with the best corners, strongest first.

        Args:
            image: [H, W] grey.
            where: [H, W], not 0 where a corner may be.
        """
        import cv2

        found = cv2.goodFeaturesToTrack(image, self.count, 0.005, max(4, image.shape[1] / 80), mask=where)
        return np.empty((0, 2)) if found is None else found[:, 0].astype(np.float64)

    def follow(self, first: Image, second: Image, start: Array, guess: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Find points of one image in another.

        Args:
            first: [H, W] grey.
            second: [H, W] grey.
            start: [N, 2], x and y, pixels.
            guess: [N, 2], where they may be in the second image.

        Returns:
            [N, 2], where they are, and [N] whether that can be believed.
        """
        import cv2

        height, width = first.shape
        window = max(SMALLEST_WINDOW, round(width / 40) | 1)
        options: dict[str, Any] = {
            "winSize": (window, window),
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03),
            "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        }
        begin, near = (np.ascontiguousarray(points, np.float32) for points in (start, guess))
        if not len(begin):
            return np.empty((0, 2)), np.zeros(0, bool)
        end, found, _ = cv2.calcOpticalFlowPyrLK(first, second, begin, near, maxLevel=self.levels, **options)
        # The way back begins where the point was, so that it needs no pyramid; that halves the cost.
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(second, first, end, begin.copy(), maxLevel=0, **options)
        there, back = (np.asarray(points, np.float64) for points in (end, back))
        inside = ((there >= 0) & (there < (width, height))).all(axis=1)
        same = np.linalg.norm(back - start, axis=1) < self.there_and_back
        return there, (found[:, 0] > 0) & (found_back[:, 0] > 0) & inside & same


@dataclass(frozen=True)
class FeatureMatcher:
    """SIFT features (Lowe 2004) matched by their descriptors, wherever in the image they are.

    Ten times as slow as following corners, but it needs no guess and bears changes of scale.

    Attributes:
        count: Largest number of features in an image.
        ratio: Lowe's ratio: the best match's distance over the second best's must be below it.
    """

    count: int = 2000
    ratio: float = 0.8

    def match(self, first: Image, second: Image) -> tuple[Array, Array]:
        """Pixels [N, 2] (x, y) of the first image, and those of the second that show the same.

        Args:
            first: [H, W] grey.
            second: [H, W] grey.
        """
        import cv2

        # Without precise upscaling OpenCV's keypoints are shifted by a part of a pixel.
        sift = cv2.SIFT.create(nfeatures=self.count, enable_precise_upscale=True)
        (here, looks), (there, others) = (sift.detectAndCompute(image, None) for image in (first, second))
        if min(len(here), len(there)) < 2:
            return np.empty((0, 2)), np.empty((0, 2))
        pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(looks, others, k=2)
        best = [one for one, other in pairs if one.distance < self.ratio * other.distance]
        start = np.array([here[match.queryIdx].pt for match in best]).reshape(-1, 2)
        return start, np.array([there[match.trainIdx].pt for match in best]).reshape(-1, 2)
