"""The region of an object in one image from points on it, and its colour."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def outline(points: Array, depths: Array, depth: NDArray[np.float32], sigma: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The hull of the points, a little wider, as far as its depth is that of the points.

    Args:
        points: [M, 2], (x, y) pixels, M >= 1.
        depths: [M], metres.
        depth: [H, W], metres, 0 unknown.
        sigma: [H, W], metres.

    Returns:
        [H, W] bool, one connected region; empty where no pixel qualifies.
    """
    import cv2

    middle = np.median(depths)
    spread = 1.4826 * np.median(np.abs(depths - middle))
    noise = float(np.median(sigma[tuple(np.rint(points).astype(int).T[::-1].clip(0))]))
    near = np.abs(depths - middle) <= 3 * spread + 3 * noise
    center = np.median(points[near], axis=0)
    away = np.hypot(*(points - center).T)
    near &= away <= 3 * np.median(away[near]) + 2
    hull = np.zeros(depth.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.rint(points[near]).astype(np.int32)), 1)
    grown = 2 * int(0.12 * math.sqrt(hull.sum()) + 1) + 1
    wide = cv2.dilate(hull, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown)))
    low, high = depths[near].min() - 2 * noise, depths[near].max() + 2 * noise
    inside = (depth >= low) & (depth <= high) | (depth == 0) & (hull > 0)
    region = (wide > 0) & inside
    region = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=4)
    if count < 2:
        return np.zeros(depth.shape, bool)
    return np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


HUES = {"red": 0, "orange": 28, "yellow": 54, "green": 125, "cyan": 184, "blue": 225, "purple": 277, "pink": 331}
"""Name to hue, degrees."""


def color_name(pixels: NDArray[np.uint8]) -> str | None:
    """The name of the colour of pixels [N, 3] RGB, or None where it is not clear."""
    import colorsys

    if not len(pixels):
        return None
    hue, saturation, value = colorsys.rgb_to_hsv(*(np.median(pixels, axis=0) / 255))
    if saturation < 0.35 or value < 0.15:
        return None
    apart = {name: abs((360 * hue - place + 180) % 360 - 180) for name, place in HUES.items()}
    return min(apart, key=lambda name: apart[name])
