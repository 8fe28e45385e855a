"""The files that come with stereo video: calibration, poses, times."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllm4d.geometry.pose import invert
from mllm4d.schema import InputError


@dataclass(frozen=True)
class Rig:
    """A rectified stereo camera.

    Attributes:
        intrinsics: [3, 3] float64, of both views, pixels.
        baseline: Distance of the two cameras, metres; None where there is one camera only.
        offset: [3] float64, takes points from the axes of the camera that poses are given for to the left camera's,
            metres.
        fps: Frame rate, 1/s, where the file says it.
        stacked: One video shows the left view above the right one, not beside it.
        depth_scale: Stored depth is so many units a metre; 256 is KITTI's.
        depth_sigma: Standard deviation of stored depth, relative to the depth. The default is a guess.
    """

    intrinsics: Tensor
    baseline: float | None
    offset: Tensor
    fps: float | None = None
    stacked: bool = False
    depth_scale: float = 256.0
    depth_sigma: float = 0.02


LAYOUTS = {"side_by_side": False, "top_bottom": True}
UNITS = {"baseline": "metres", "fps": "frames per second", "depth_scale": "units a metre", "depth_sigma": "relative"}


def read_rig(folder: Path) -> Rig:
    """Read the calibration of a folder: ``calib.json``, or KITTI odometry's ``calib.txt``.

    Raises:
        InputError: Neither is there, or it is malformed.
    """
    if (folder / "calib.json").exists():
        return read_calibration_json(folder / "calib.json")
    if (folder / "calib.txt").exists():
        return read_kitti_calibration(folder / "calib.txt", colour=(folder / "image_2").is_dir())
    raise InputError(f"{folder}: the calibration is missing; expected calib.json or KITTI's calib.txt")


def read_calibration_json(path: Path) -> Rig:
    """Read ``calib.json``.

    ``fx``, ``fy``, ``cx`` and ``cy`` are in pixels of one view, ``baseline`` in metres (left out where there is one
    camera only); optional are ``fps``, ``layout`` ("side_by_side" or "top_bottom", of a video that shows both views),
    ``depth_scale`` and ``depth_sigma`` (of stored depth, as in ``Rig``).

    Raises:
        InputError: The file cannot be read, a key is missing, or a value is no number or not positive.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with the keys fx, fy, cx, cy, baseline and fps")
    values: dict[str, float] = {}
    for name in ("fx", "fy", "cx", "cy", "baseline", "fps", "depth_scale", "depth_sigma"):
        value = content.get(name)
        if name not in content and name not in ("fx", "fy", "cx", "cy"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            unit = UNITS.get(name, "pixels")
            raise InputError(f"{path}: key {name!r} must be a positive number ({unit}), not {json.dumps(value)}")
        values[name] = float(value)
    layout = content.get("layout", "side_by_side")
    if layout not in LAYOUTS:
        raise InputError(f"{path}: key 'layout' must be {' or '.join(LAYOUTS)}, not {json.dumps(layout)}")
    intrinsics = [[values.pop("fx"), 0, values.pop("cx")], [0, values.pop("fy"), values.pop("cy")], [0, 0, 1]]
    zero = torch.zeros(3, dtype=torch.float64)
    baseline = values.pop("baseline", None)
    matrix = torch.tensor(intrinsics, dtype=torch.float64)
    return Rig(matrix, baseline, zero, stacked=LAYOUTS[layout], **values)


def read_kitti_calibration(path: Path, colour: bool) -> Rig:
    """Read KITTI odometry's ``calib.txt``: 3x4 projections of the rectified cameras, one a line.

    Args:
        path: The file: two lines (left, right) or four (grey left, grey right, colour left, colour right), with KITTI's
            labels ``P0:`` to ``P3:`` or without. Lines with other labels are left out.
        colour: Take the colour pair of four.

    Returns:
        The rig. KITTI's poses are those of the first camera, so that the colour pair has an offset.

    Raises:
        InputError: The file is missing or has another form, the two camera matrices differ, or the baseline is not
            positive.
    """
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        label, _, numbers = line.rpartition(":")
        if not label or re.fullmatch(r"P\d", label.strip()):
            rows.append(_numbers(numbers, 12, f"{path}, line {number}").reshape(3, 4))
    if len(rows) not in (2, 4):
        raise InputError(f"{path}: expected 2 or 4 projections of 12 numbers, found {len(rows)}")
    left, right = rows[2:] if colour and len(rows) == 4 else rows[:2]
    intrinsics = left[:, :3]
    if not torch.allclose(intrinsics, right[:, :3], atol=1e-3):
        raise InputError(f"{path}: left and right must share one camera matrix (rectified views), and they differ")
    if not (intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
        raise InputError(f"{path}: focal lengths must be positive, not {intrinsics.diagonal()[:2].tolist()} pixels")
    if not torch.equal(intrinsics[2], torch.tensor([0.0, 0, 1], dtype=torch.float64)):
        raise InputError(f"{path}: the third row of a projection must begin 0 0 1, not {intrinsics[2].tolist()}")
    offset = torch.linalg.solve(intrinsics, left[:, 3])
    shift = offset - torch.linalg.solve(intrinsics, right[:, 3])
    if not shift[0] > 0:
        raise InputError(f"{path}: the baseline must be positive, but left to right it is {float(shift[0]):.6g} m")
    return Rig(intrinsics, float(shift[0]), offset)


def check_resolution(folder: Path, rig: Rig, size: tuple[int, int]) -> None:
    """Check that the principal point lies in images of (height, width).

    Raises:
        InputError: It does not: the calibration is that of images of another size.
    """
    cx, cy = rig.intrinsics[:2, 2].tolist()
    if not (0 < cx < size[1] and 0 < cy < size[0]):
        raise InputError(
            f"{folder}: the calibration is of another resolution: principal point ({cx:.6g}, {cy:.6g}) lies outside "
            f"the {size[1]}x{size[0]} pixels of the images"
        )


def count_poses(path: Path, count: int) -> None:
    """Check that ``poses.txt`` has as many lines as there are frames.

    Raises:
        InputError: It has more or fewer.
    """
    found = len(_lines(path))
    if found != count:
        raise InputError(f"{path}: expected {count} poses, one for each frame, found {found}")


def read_poses(path: Path, frames: Sequence[int]) -> Tensor:
    """Read KITTI's ``poses.txt``: one 3x4 camera-to-world matrix a line, metres.

    Args:
        path: The file.
        frames: Which lines are wanted, from 0; only those are looked at.

    Returns:
        [len(frames), 4, 4] float64, world-to-camera.

    Raises:
        InputError: A line is missing, holds numbers that are not finite, or is no rigid transform.
    """
    lines = _lines(path)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(frames), 1, 1)
    for index, frame in enumerate(frames):
        where = f"{path}, line {frame + 1}"
        if frame >= len(lines):
            raise InputError(f"{where}: not there; the file has {len(lines)} lines")
        poses[index, :3] = _numbers(lines[frame], 12, where).reshape(3, 4)
        rotation = poses[index, :3, :3]
        off = float((rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().max())
        if off > 1e-3 or rotation.det() < 0:
            raise InputError(f"{where}: the left 3x3 part must be a rotation, and it is not (off by {off:.2g})")
    return invert(poses)


def read_times(path: Path, count: int) -> Tensor:
    """Read KITTI's ``times.txt``: one time a line, seconds.

    Returns:
        [count] float64, seconds.

    Raises:
        InputError: There are more or fewer lines than frames, or the times do not increase.
    """
    lines = _lines(path)
    if len(lines) != count:
        raise InputError(f"{path}: expected {count} times, one for each frame, found {len(lines)}")
    numbers = [_floats(line, 1, f"{path}, line {number}")[0] for number, line in enumerate(lines, start=1)]
    times = torch.tensor(numbers, dtype=torch.float64)
    if bool((times.diff() <= 0).any()):
        raise InputError(f"{path}: the times must increase from line to line")
    return times


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _numbers(text: str, count: int, where: str) -> Tensor:
    return torch.tensor(_floats(text, count, where), dtype=torch.float64)


def _floats(text: str, count: int, where: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"{where}: expected {count} numbers ({error})") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected {count} finite numbers, got {text.strip()[:80]!r}")
    return numbers
