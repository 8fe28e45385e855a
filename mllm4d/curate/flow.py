"""Where image points go over a clip: corners followed by pyramidal Lucas-Kanade optical flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.schema import InputError

Array = NDArray[np.float64]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PointTracks:
    """Image points over time.

    Attributes:
        pixels: [N, T, 2] float64, (x, y) pixels of the frames; NaN where not seen.
        seen: [N, T] bool.
        drifted: How many tracks were cut short because they had left the point that they started on.
    """

    pixels: Tensor
    seen: Tensor
    drifted: int = 0


def join_tracks(parts: Sequence[PointTracks]) -> PointTracks:
    """Tracks of one clip, found from several frames, as one (at least one part)."""
    pixels, seen = torch.cat([part.pixels for part in parts]), torch.cat([part.seen for part in parts])
    return PointTracks(pixels, seen, sum(part.drifted for part in parts))


@dataclass(frozen=True)
class FeatureTracker:
    """Corners of one frame, followed to both ends of the clip.

    A corner goes from frame to frame by pyramidal Lucas-Kanade (OpenCV). A track ends where going back does not lead to
    where it came from, and where it leaves the image. The errors of the steps add up, so that every new position is
    matched once more with the frame that the track starts in: if that finds the point close by, its position is taken,
    else the track has drifted and ends.

    On solids of the synthetic world (320x192, 20-100 pixels wide) the error is 0.07 px after one frame and 0.17 px
    after seven (medians). Larger windows are worse there, as more of them reach over the solid's edge.

    Attributes:
        count: Largest number of corners.
        quality: Least strength of a corner (smaller eigenvalue), relative to the strongest one's.
        tiles: The image is cut into so many rows and columns of tiles, each with its own share of the corners, so that
            what has little contrast gets some as well.
        spacing: Least distance of two corners, pixels.
        window: Edge of the window that is compared, pixels, odd.
        levels: Levels of the pyramid above the image.
        there_and_back: Largest distance from the start after going to the next frame and back, pixels.
        drift: Largest distance between a followed point and its match with the track's first frame, pixels.
    """

    count: int = 100
    quality: float = 0.01
    tiles: int = 1
    spacing: float = 4.0
    window: int = 9
    levels: int = 2
    there_and_back: float = 0.5
    drift: float = 1.0

    def __post_init__(self) -> None:
        for key in ("count", "quality", "tiles", "spacing", "there_and_back", "drift"):
            if not getattr(self, key) > 0:
                raise InputError(f"FeatureTracker: {key} must be positive, not {getattr(self, key)}")
        if self.window < 3 or self.window % 2 == 0:
            raise InputError(f"FeatureTracker: window must be odd and at least 3 pixels, not {self.window}")
        if self.levels < 0:
            raise InputError(f"FeatureTracker: levels must not be negative, not {self.levels}")

    def __call__(self, frames: Tensor, start: int, mask: Tensor | None = None) -> PointTracks:
        """Follow the corners of one frame forwards and backwards.

        Args:
            frames: [T, H, W, 3] uint8 RGB.
            start: The frame in which corners are looked for.
            mask: [H, W] bool, where in that frame; None is everywhere.

        Returns:
            The tracks, all of them seen in frame ``start``; none where there is no corner.
        """
        return self.follow(grey_images(frames), start, self.corners(frames[start], mask))

    def corners(self, frame: Tensor, mask: Tensor | None = None) -> Array:
        """Shi-Tomasi corners of one frame.

        Args:
            frame: [H, W, 3] uint8 RGB.
            mask: [H, W] bool, where to look; None is everywhere.

        Returns:
            [N, 2], (x, y) pixels, tile by tile, strongest first.
        """
        import cv2

        # The brightest channel: a saturated colour has little contrast in grey.
        image = frame.numpy().max(-1)
        where = np.ones(image.shape, np.uint8) if mask is None else mask.numpy().astype(np.uint8)
        found = [np.zeros((0, 2))]
        for rows in np.array_split(np.arange(image.shape[0]), self.tiles):
            for columns in np.array_split(np.arange(image.shape[1]), self.tiles):
                tile = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                corners = cv2.goodFeaturesToTrack(
                    np.ascontiguousarray(image[tile]),
                    -(-self.count // self.tiles**2),
                    self.quality,
                    self.spacing,
                    mask=np.ascontiguousarray(where[tile]),
                    blockSize=5,
                )
                if corners is not None:
                    found.append(corners.reshape(-1, 2) + np.array([columns[0], rows[0]]))
        return np.concatenate(found).astype(np.float64)

    def follow(self, images: Sequence[Image], start: int, points: Array) -> PointTracks:
        """Follow given points forwards and backwards.

        Args:
            images: T grey images [H, W] uint8.
            start: The frame that the points are given in.
            points: [N, 2], (x, y) pixels.

        Returns:
            N tracks, all of them seen in frame ``start``.
        """
        pixels = np.full((len(points), len(images), 2), np.nan)
        pixels[:, start] = points
        drifted = 0
        for way in (range(start + 1, len(images)), range(start - 1, -1, -1)):
            alive, before = np.arange(len(points)), start
            for t in way:
                if not len(alive):
                    break
                there, kept = self._step(images[before], images[t], pixels[alive, before])
                alive, there = alive[kept], there[kept]
                if before != start and len(alive):
                    there, kept = self._anchor(images[start], images[t], points[alive], there)
                    drifted += int((~kept).sum())
                    alive, there = alive[kept], there[kept]
                pixels[alive, t] = there
                before = t
        return PointTracks(torch.from_numpy(pixels), torch.from_numpy(np.isfinite(pixels).all(-1)), drifted)

    def match(self, image: Image, other: Image, points: Array, guess: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Look for points of one image close to a guess in another.

        Args:
            image: [H, W] uint8.
            other: [H, W] uint8.
            points: [N, 2], (x, y) pixels of the first image.
            guess: [N, 2], pixels of the other.

        Returns:
            [N, 2], where they are in the other, and [N] bool, which of them lead back to where they came from.
        """
        there, found = _lucas_kanade(image, other, points, self.window, 1, guess)
        back, found_back = _lucas_kanade(other, image, there, self.window, 0, points)
        return there, found & found_back & (np.hypot(*(back - points).T) <= self.there_and_back)

    def _step(self, image: Image, following: Image, points: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The points in the following image, and which of them lead back to where they came from."""
        there, found = _lucas_kanade(image, following, points, self.window, self.levels)
        # From where the points were, so that the way back needs no pyramid.
        back, found_back = _lucas_kanade(following, image, there, self.window, 0, points)
        kept = found & found_back & (np.hypot(*(back - points).T) <= self.there_and_back)
        return there, kept & _inside(there, image)

    def _anchor(self, first: Image, image: Image, points: Array, there: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The points of the first image matched with this one close to ``there``, and which are found there."""
        matched, found = _lucas_kanade(first, image, points, self.window, 0, there)
        return matched, found & (np.hypot(*(matched - there).T) <= self.drift) & _inside(matched, image)


def grey_images(frames: Tensor) -> list[Image]:
    """Grey images [H, W] uint8 of frames [T, H, W, 3] uint8 RGB."""
    import cv2

    return [np.asarray(cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames]


def match_right(
    left: Image, right: Image, points: Array, disparity: Array, window: int = 9, tolerance: float = 1.0
) -> Array:
    """Disparities of single points of a rectified pair, by Lucas-Kanade from a known guess.

    Semi-global matching prefers whole disparities; at a corner this does not.

    Args:
        left: [H, W] uint8.
        right: [H, W] uint8.
        points: [N, 2], (x, y) pixels of the left image.
        disparity: [N], the guess, pixels; not finite or 0 where unknown.
        window: Edge of the compared window, pixels.
        tolerance: Largest distance from the guess, from the row, and of the way there and back, pixels.

    Returns:
        [N], pixels, NaN where the guess is unknown or not confirmed.
    """
    known = np.isfinite(disparity) & (disparity > 0)
    result = np.full(len(points), np.nan)
    if not known.any():
        return result
    start = points[known]
    guess = start - np.stack([disparity[known], np.zeros(known.sum())], -1)
    there, found = _lucas_kanade(left, right, start, window, 0, guess)
    back, found_back = _lucas_kanade(right, left, there, window, 0, start)
    good = (
        found
        & found_back
        & (np.hypot(*(there - guess).T) <= tolerance)
        & (np.hypot(*(back - start).T) <= tolerance / 2)
    )
    result[known] = np.where(good, (start - there)[:, 0], np.nan)
    return result


def _inside(points: Array, image: Image) -> NDArray[np.bool_]:
    return np.asarray(((points >= 0) & (points <= [image.shape[1] - 1, image.shape[0] - 1])).all(-1))


def _lucas_kanade(
    image: Image, following: Image, points: Array, window: int, levels: int, guess: Array | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    import cv2

    start = np.array(points[:, None], np.float32, order="C")
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        image,
        following,
        start,
        start.copy() if guess is None else np.array(guess[:, None], np.float32, order="C"),
        winSize=(window, window),
        maxLevel=levels,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01),
        # A point that is not given any other guess is looked for where it was.
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    return there[:, 0].astype(np.float64), found[:, 0] > 0
