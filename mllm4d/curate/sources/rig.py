"""The files that come with stereo video: calibration, poses, times."""

from __future__ import annotations

import json
import math
import re
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
        baseline: Distance of the two cameras, metres.
        offset: [3] float64, takes points from the axes of the camera that poses are given for to the left camera's,
            metres.
        fps: Frame rate, 1/s, where the file says it.
    """

    intrinsics: Tensor
    baseline: float
    offset: Tensor
    fps: float | None = None


def read_calibration_json(path: Path) -> Rig:
    """Read ``calib.json``: ``fx``, ``fy``, ``cx``, ``cy`` in pixels, ``baseline`` in metres, optionally ``fps``.

    Raises:
        InputError: The file cannot be read, a key is missing, or a value is no number or not positive.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with the keys fx, fy, cx, cy, baseline and fps")
    names = ["fx", "fy", "cx", "cy", "baseline"] + ["fps"] * (content.get("fps") is not None)
    values = {}
    for name in names:
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            unit = {"baseline": "metres", "fps": "frames per second"}.get(name, "pixels")
            raise InputError(f"{path}: key {name!r} must be a positive number ({unit}), not {json.dumps(value)}")
        values[name] = float(value)
    intrinsics = [[values["fx"], 0, values["cx"]], [0, values["fy"], values["cy"]], [0, 0, 1]]
    zero = torch.zeros(3, dtype=torch.float64)
    return Rig(torch.tensor(intrinsics, dtype=torch.float64), values["baseline"], zero, values.get("fps"))


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


def read_poses(path: Path, count: int) -> Tensor:
    """Read KITTI's ``poses.txt``: one 3x4 camera-to-world matrix a line, metres.

    Args:
        path: The file.
        count: How many frames there are.

    Returns:
        [count, 4, 4] float64, world-to-camera.

    Raises:
        InputError: There are more or fewer lines than frames, or a line is no rigid transform.
    """
    lines = _lines(path)
    if len(lines) != count:
        raise InputError(f"{path}: expected {count} poses, one for each frame, found {len(lines)}")
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for index, line in enumerate(lines):
        where = f"{path}, line {index + 1}"
        poses[index, :3] = _numbers(line, 12, where).reshape(3, 4)
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
    times = torch.cat([_numbers(line, 1, f"{path}, line {number}") for number, line in enumerate(lines, start=1)])
    if bool((times.diff() <= 0).any()):
        raise InputError(f"{path}: the times must increase from line to line")
    return times


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _numbers(text: str, count: int, where: str) -> Tensor:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"{where}: expected {count} numbers ({error})") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected {count} finite numbers, got {text.strip()[:80]!r}")
    return torch.tensor(numbers, dtype=torch.float64)
