"""``objects.json``: the objects of a stereo folder as polygons, run-length masks or 3-D boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm4d.schema import Boxes, InputError, Mask

KINDS = ("polygon", "rle", "box3d")

BOX_SIGMA = 0.1
"""Standard deviation of a box's centre (per axis) where its entry has no ``sigma``, metres. A guess: how exactly boxes
were drawn only their maker knows."""


@dataclass(frozen=True)
class Annotated:
    """One object of the file.

    Attributes:
        id: Unique in the file.
        name: What it is.
        kind: One of ``KINDS``, the same in all its frames.
        frames: Frame number of the source video to that frame's entry.
    """

    id: int
    name: str
    kind: str
    frames: Mapping[int, Any]


def read_objects(path: Path) -> tuple[Annotated, ...]:
    """Read ``objects.json``; what stands in the frames is checked when it is used.

    The file is ``{"objects": [{"id": 1, "name": "board", "frames": {"0": {KIND: …}}}]}``.

    Raises:
        InputError: The file cannot be read, or has another form; the message names object and frame.
    """
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return _read(path, stamp)


@lru_cache(maxsize=4)  # every clip of a long video asks for the same file
def _read(path: Path, stamp: int) -> tuple[Annotated, ...]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    entries = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{path}: expected an object with the key "objects", a list')
    found = [_object(path, number, entry) for number, entry in enumerate(entries)]
    ids = [one.id for one in found]
    if doubled := [id for id in ids if ids.count(id) > 1]:
        raise InputError(f"{path}: the id {doubled[0]} is given to two objects")
    return tuple(found)


def _object(path: Path, number: int, entry: Any) -> Annotated:
    where = f"{path}: object {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("frames"), dict):
        raise InputError(f'{where}: expected the keys "id", "name" and "frames", the last an object')
    id, name = entry.get("id"), entry.get("name")
    if isinstance(id, bool) or not isinstance(id, int):
        raise InputError(f"{where}: key 'id' must be a whole number, not {json.dumps(id)}")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: key 'name' must be a word or more, not {json.dumps(name)}")
    where = f"{path}: object {id}"
    frames, kinds = {}, set()
    for key, one in entry["frames"].items():
        if not key.isdecimal():
            raise InputError(f"{where}: frames are named by their numbers, not {key!r}")
        given = [kind for kind in KINDS if isinstance(one, dict) and kind in one]
        if len(given) != 1:
            raise InputError(f"{where}, frame {key}: expected one of the keys {', '.join(KINDS)}")
        kinds.add(given[0])
        frames[int(key)] = one[given[0]]
    if len(kinds) > 1:
        raise InputError(f"{where}: its frames mix {' and '.join(sorted(kinds))}; expected one kind")
    return Annotated(id, name.strip(), kinds.pop() if kinds else KINDS[0], frames)


def masks_of(
    path: Path,
    objects: Sequence[Annotated],
    frames: Sequence[int],
    size: tuple[int, int],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> tuple[Mask, ...]:
    """The objects of a clip that are image regions.

    Args:
        path: The file, for messages.
        objects: From ``read_objects``.
        frames: Frame numbers of the clip.
        size: (height, width) of the source's images, pixels.
        shrink: Scales an image [H, W] uint8 down to the stored frames.

    Returns:
        A mask for each object that is seen in the clip.

    Raises:
        InputError: A region is malformed or does not fit the images; the message names object and frame.
    """
    draw = {"polygon": _polygon, "rle": _rle}
    found = []
    for one in objects:
        if one.kind not in draw or not any(frame in one.frames for frame in frames):
            continue
        rows = []
        for frame in frames:
            where = f"{path}: object {one.id}, frame {frame}, key {one.kind!r}"
            region = draw[one.kind](one.frames[frame], size, where) if frame in one.frames else np.zeros(size, np.uint8)
            rows.append(shrink(255 * region) > 127)
        found.append(Mask(one.id, one.name, torch.from_numpy(np.stack(rows))))
    return tuple(found)


def boxes_of(path: Path, objects: Sequence[Annotated], frames: Sequence[int]) -> tuple[Boxes, ...]:
    """The objects of a clip that are 3-D boxes.

    A box is ``{"center": [x, y, z], "size": [along its x, y, z], "rotation_y": angle}`` in the left camera's axes,
    metres and radians; ``"rotation"``, 3x3, box to camera axes, may stand in place of the angle, and ``"sigma"``,
    metres, says how exact the centre is.

    Args:
        path: The file, for messages.
        objects: From ``read_objects``.
        frames: Frame numbers of the clip.

    Returns:
        Boxes for each object that is seen in the clip.

    Raises:
        InputError: A box is malformed; the message names object and frame.
    """
    found = []
    for one in objects:
        if one.kind != "box3d" or not any(frame in one.frames for frame in frames):
            continue
        boxes = Boxes(
            one.id,
            one.name,
            torch.full((len(frames), 3), torch.nan, dtype=torch.float64),
            torch.eye(3, dtype=torch.float64).repeat(len(frames), 1, 1),
            torch.ones(len(frames), 3, dtype=torch.float64),
            torch.full((len(frames),), torch.nan, dtype=torch.float64),
        )
        for t, frame in enumerate(frames):
            if frame in one.frames:
                _place(boxes, t, one.frames[frame], f"{path}: object {one.id}, frame {frame}, key 'box3d'")
        found.append(boxes)
    return tuple(found)


def _place(boxes: Boxes, t: int, entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected the keys "center", "size" and "rotation_y" or "rotation"')
    boxes.centers[t] = torch.from_numpy(_array(entry.get("center"), (3,), f"{where}: 'center'"))
    boxes.sizes[t] = torch.from_numpy(_array(entry.get("size"), (3,), f"{where}: 'size'"))
    if not bool((boxes.sizes[t] > 0).all()):
        raise InputError(f"{where}: 'size' must be positive, not {boxes.sizes[t].tolist()}")
    if "rotation" in entry:
        rotation = torch.from_numpy(_array(entry["rotation"], (3, 3), f"{where}: 'rotation'"))
        if not torch.allclose(rotation @ rotation.mT, boxes.rotations[t], atol=1e-3) or rotation.det() < 0:
            raise InputError(f"{where}: 'rotation' must be a rotation matrix")
    else:
        angle = float(_array(entry.get("rotation_y"), (), f"{where}: 'rotation_y'"))
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    boxes.rotations[t] = rotation
    sigma = float(_array(entry.get("sigma", BOX_SIGMA), (), f"{where}: 'sigma'"))
    if sigma < 0:
        raise InputError(f"{where}: 'sigma' must not be negative, got {sigma}")
    boxes.sigma[t] = sigma


def _polygon(entry: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """One polygon, or several, whose union it is."""
    import cv2

    several = entry if entry and isinstance(entry[0], list) and entry[0] and isinstance(entry[0][0], list) else [entry]
    canvas = np.zeros(size, np.uint8)
    for polygon in several:
        points = _array(polygon, (None, 2), where)
        if len(points) < 3:
            raise InputError(f"{where}: a polygon has three points at least, not {len(points)}")
        # OpenCV takes fixed-point coordinates: sixteenths of a pixel.
        cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return canvas


def _rle(entry: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """COCO's run-length code: runs of 0 and 1 in turn, down the columns; as a list or as COCO's string."""
    if not isinstance(entry, dict) or entry.get("size") != list(size):
        raise InputError(f"{where}: 'size' must be the image's, {list(size)} (height, width)")
    counts = entry.get("counts")
    if isinstance(counts, str):
        counts = _uncompress(counts, where)
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise InputError(f"{where}: 'counts' must be a list of whole numbers or COCO's string")
    if sum(counts) != size[0] * size[1]:
        raise InputError(f"{where}: the runs cover {sum(counts)} pixels, the image has {size[0] * size[1]}")
    flat = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
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


def _array(value: Any, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """Finite numbers of a shape, None for any length."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(math.nan)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or not np.isfinite(array).all():
        form = "a number" if not shape else f"finite numbers of shape {['n' if n is None else n for n in shape]}"
        raise InputError(f"{where}: expected {form}, got {json.dumps(value)[:80]}")
    return array
