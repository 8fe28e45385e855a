"""``objects.json``: the objects of a stereo folder as polygons, run-length masks or 3-D boxes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllm4d.curate.sources.regions import array_of, draw_polygons, draw_runs
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


def read_objects(path: Path, count: int) -> tuple[Annotated, ...]:
    """Read ``objects.json``; what a frame's entry holds is checked when it is used.

    The file is ``{"objects": [{"id": 1, "name": "board", "frames": {"0": {KIND: …}}}]}``.

    Args:
        path: The file.
        count: Number of frames of the video.

    Raises:
        InputError: The file cannot be read, has another form, or speaks of a frame that the video does not have; the
            message names object and frame.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    objects = _read(path, state.st_mtime_ns, state.st_size)
    for one in objects:
        if one.frames and max(one.frames) >= count:
            raise InputError(
                f"{path}: object {one.id}, frame {max(one.frames)}: the video's last frame is number {count - 1}"
            )
    return objects


@lru_cache(maxsize=4)  # every clip of a long video asks for the same file
def _read(path: Path, modified: int, length: int) -> tuple[Annotated, ...]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    entries = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{path}: expected an object with the key "objects", a list')
    found = [_object(path, number, entry) for number, entry in enumerate(entries)]
    ids = [one.id for one in found]
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: the id {Counter(ids).most_common(1)[0][0]} is given to two objects")
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
        if int(key) in frames:
            raise InputError(f"{where}, frame {key}: stands there twice")
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
    stored: tuple[int, int],
) -> tuple[Mask, ...]:
    """The objects of a clip that are image regions.

    Args:
        path: The file, for messages.
        objects: From ``read_objects``.
        frames: Frame numbers of the clip.
        size: (height, width) of the source's images, pixels.
        stored: (height, width) of the stored frames; a pixel of theirs belongs to the object where half of the area
            that it covers does, or more.

    Returns:
        A mask for each object that is seen in the clip.

    Raises:
        InputError: A region is malformed or does not fit the images; the message names object and frame.
    """
    import cv2

    draw = {"polygon": draw_polygons, "rle": draw_runs}
    found = []
    for one in objects:
        if one.kind not in draw or not any(frame in one.frames for frame in frames):
            continue
        rows = []
        for frame in frames:
            where = f"{path}: object {one.id}, frame {frame}, key {one.kind!r}"
            region = draw[one.kind](one.frames[frame], size, where) if frame in one.frames else np.zeros(size, np.uint8)
            if stored != size:
                region = cv2.resize(255 * region, stored[::-1], interpolation=cv2.INTER_AREA) > 127
            rows.append(region.astype(bool))
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
    boxes.centers[t] = torch.from_numpy(array_of(entry.get("center"), (3,), f"{where}: 'center'"))
    boxes.sizes[t] = torch.from_numpy(array_of(entry.get("size"), (3,), f"{where}: 'size'"))
    if not bool((boxes.sizes[t] > 0).all()):
        raise InputError(f"{where}: 'size' must be positive, not {boxes.sizes[t].tolist()}")
    if ("rotation" in entry) == ("rotation_y" in entry):
        raise InputError(f"{where}: expected one of the keys 'rotation_y' and 'rotation'")
    if "rotation" in entry:
        rotation = torch.from_numpy(array_of(entry["rotation"], (3, 3), f"{where}: 'rotation'"))
        if not torch.allclose(rotation @ rotation.mT, boxes.rotations[t], atol=1e-3) or rotation.det() < 0:
            raise InputError(f"{where}: 'rotation' must be a rotation matrix")
    else:
        angle = float(array_of(entry["rotation_y"], (), f"{where}: 'rotation_y'"))
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    boxes.rotations[t] = rotation
    sigma = float(array_of(entry.get("sigma", BOX_SIGMA), (), f"{where}: 'sigma'"))
    if sigma < 0:
        raise InputError(f"{where}: 'sigma' must not be negative, got {sigma}")
    boxes.sigma[t] = sigma
