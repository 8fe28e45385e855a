"""Image regions as people write them: polygons and COCO's run-length code, drawn as masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mllm4d.schema import InputError


def draw_polygons(entry: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Draw one polygon, or the union of several.

    Args:
        entry: [[x, y], …], pixels, or a list of such lists.
        size: (height, width) of the image.
        where: What an error calls the entry.

    Returns:
        [height, width] uint8, 1 where a pixel's centre (at whole numbers) lies inside or on the outline.

    Raises:
        InputError: It is no list of points, a polygon has fewer than three, or a number is not finite.
    """
    several = (
        isinstance(entry, list) and entry and all(isinstance(p, list) and p and isinstance(p[0], list) for p in entry)
    )
    canvas = np.zeros(size, np.uint8)
    for polygon in entry if several else [entry]:
        points = array_of(polygon, (None, 2), where)
        if len(points) < 3:
            raise InputError(f"{where}: a polygon has three points at least, not {len(points)}")
        canvas |= _inside(points, size)
    return canvas


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie inside a polygon (by the even-odd rule) or on its outline.

    OpenCV's fillPoly would draw the pixels that the outline touches as well: a border of half a pixel, a sixth of the
    area of an object that is twenty pixels wide.
    """
    height, width = size
    crossings = np.zeros((height, width + 1), np.int32)
    outline = np.zeros(size, np.uint8)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        (x, y), (to_x, to_y) = (start, end) if start[1] <= end[1] else (end, start)
        rows = np.arange(_within(y, height), _within(np.floor(to_y) + 1, height))
        if y < to_y:
            columns = x + (rows - y) * ((to_x - x) / (to_y - y))
            below = rows < to_y  # a corner shared by two edges is crossed once
            crossings[rows[below], np.clip(np.ceil(columns[below]), 0, width).astype(int)] += 1
            touched = (columns == np.round(columns)) & (columns >= 0) & (columns < width)
            outline[rows[touched], columns[touched].astype(int)] = 1
        else:
            outline[rows, _within(min(x, to_x), width) : _within(np.floor(max(x, to_x)) + 1, width)] = 1
    return (crossings.cumsum(axis=1)[:, :width] % 2).astype(np.uint8) | outline


def _within(value: float, end: int) -> int:
    """The first whole number from ``value`` on, kept within 0 and ``end``."""
    return int(np.clip(np.ceil(value), 0, end))


def draw_runs(entry: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Draw COCO's run-length code: runs of 0 and 1 in turn, down the columns.

    Args:
        entry: ``{"size": [height, width], "counts": …}``, the counts as a list or as COCO's compressed string.
        size: (height, width) of the image.
        where: What an error calls the entry.

    Returns:
        [height, width] uint8, 0 or 1.

    Raises:
        InputError: The size is not the image's, or the counts are malformed or do not fill it.
    """
    if not isinstance(entry, dict) or entry.get("size") != list(size):
        raise InputError(f"{where}: 'size' must be the image's, {list(size)} (height, width)")
    counts = entry.get("counts")
    if isinstance(counts, str):
        counts = _uncompress(counts, where)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise InputError(f"{where}: 'counts' must be a list of whole numbers or COCO's string")
    if sum(counts) != size[0] * size[1]:
        raise InputError(f"{where}: the runs cover {sum(counts)} pixels, the image has {size[0] * size[1]}")
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    return np.ascontiguousarray(flat.reshape(size[::-1]).T)


def _uncompress(text: str, where: str) -> list[int]:
    """COCO's string: numbers in groups of five bits, each from the third on relative to the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            raise InputError(f"{where}: 'counts' holds the letter {letter!r}, which COCO's code does not have")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError(f"{where}: 'counts' breaks off in the middle of a number")
    return counts


def array_of(value: Any, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """Finite numbers of a shape, None for any length, as float64.

    Raises:
        InputError: It is something else.
    """
    try:
        array = np.array(value)
    except (TypeError, ValueError):  # lists of different lengths
        array = np.array(None)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        form = "a number" if not shape else f"finite numbers of shape {['n' if n is None else n for n in shape]}"
        raise InputError(f"{where}: expected {form}, got {json.dumps(value)[:80]}")
    return array.astype(np.float64)
