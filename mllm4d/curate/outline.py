"""The region of an object in one image from points on it, and its colour."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CUTS, CUT_PIXELS, LEAST = 1, 3000, 0.4
"""Rounds of GrabCut, the greatest number of pixels it works on (larger regions are made smaller first), and the least
share of a region that must be left by it."""

HUES = {"red": 0, "orange": 28, "yellow": 54, "green": 125, "cyan": 184, "blue": 225, "purple": 277, "pink": 331}
"""Name to hue, degrees."""


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
    kept = np.rint(points[near]).astype(np.int32)
    corner = np.maximum(kept.min(0) - 3, 0)
    extent = kept.max(0) - corner + 4
    margin = int(0.12 * math.sqrt(float(extent.prod()))) + 2
    first = np.maximum(corner - margin, 0)
    window = slice(first[1], corner[1] + extent[1] + margin), slice(first[0], corner[0] + extent[0] + margin)
    around = depth[window]
    hull = np.zeros(around.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(kept - first.astype(np.int32)), 1)
    grown = 2 * int(0.12 * math.sqrt(hull.sum()) + 1) + 1
    wide = cv2.dilate(hull, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown)))
    low, high = depths[near].min() - 2 * noise, depths[near].max() + 2 * noise
    inside = (around >= low) & (around <= high) | (around == 0) & (hull > 0)
    region = ((wide > 0) & inside).astype(np.uint8)
    region = np.asarray(cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=4)
    result = np.zeros(depth.shape, bool)
    if count > 1:
        result[window] = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return result


def cut_out(region: NDArray[np.bool_], image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Let a region end where the colours change: GrabCut (Rother et al. 2004) around it.

    Args:
        region: [H, W], about where the object is.
        image: [H, W, 3] uint8.

    Returns:
        [H, W] bool; the region itself where colours do not tell it from what is around it.
    """
    import cv2

    row, column = np.nonzero(region)
    margin = 3 + int(0.5 * math.sqrt(len(row)))
    rows = slice(max(0, int(row.min()) - margin), int(row.max()) + margin + 1)
    columns = slice(max(0, int(column.min()) - margin), int(column.max()) + margin + 1)
    whole = region[rows, columns].astype(np.uint8)
    scale = min(1.0, math.sqrt(CUT_PIXELS / whole.size))
    size = max(1, round(whole.shape[1] * scale)), max(1, round(whole.shape[0] * scale))
    inside = cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST)
    core = cv2.erode(inside, np.ones((2 * int(0.12 * math.sqrt(inside.sum())) + 1,) * 2, np.uint8), borderValue=0)
    near = cv2.dilate(inside, np.ones((3, 3), np.uint8))
    if not core.any() or near.all():
        return region
    labels = np.where(near > 0, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_BGD))
    labels[core > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    models = [np.zeros((1, 65)), np.zeros((1, 65))]
    view = cv2.resize(np.ascontiguousarray(image[rows, columns]), size, interpolation=cv2.INTER_AREA)
    cv2.grabCut(view, labels, [0, 0, 1, 1], models[0], models[1], CUTS, cv2.GC_INIT_WITH_MASK)
    left = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    refined = np.zeros_like(region)
    refined[rows, columns] = cv2.resize(left, whole.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return refined if LEAST * len(row) <= refined.sum() else region


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
