"""KITTI's calibration, poses and GPS/IMU. Lines that a clip does not need are not looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllm4d.geometry.pose import invert
from mllm4d.schema import InputError

EARTH_RADIUS = 6378137.0
"""Of the sphere in KITTI's Mercator formulas, metres."""


@dataclass(frozen=True)
class Calibration:
    """What ``calib/NNNN.txt`` says.

    Attributes:
        intrinsics: [3, 3] float64, of the colour cameras, pixels.
        offset: [3] float64, takes points from the rectified reference camera's axes to the left colour camera's,
            metres.
        baseline: Distance of the colour cameras, metres.
        imu_to_camera: [4, 4] float64, GPS/IMU axes to the rectified reference camera's, metres; None where not told.
    """

    intrinsics: Tensor
    offset: Tensor
    baseline: float
    imu_to_camera: Tensor | None


def count_poses(path: Path) -> int:
    """Number of lines of a file of poses.

    Raises:
        InputError: The file cannot be read.
    """
    return len(read_lines(path))


def read_camera_poses(path: Path, frames: Sequence[int]) -> Tensor:
    """Read some lines of a file of poses, one 3x4 camera-to-world matrix a line, metres.

    Args:
        path: The file; its first line is frame 0.
        frames: Numbers of the frames.

    Returns:
        [T, 4, 4] float64, world-to-camera.

    Raises:
        InputError: A line is missing or no rigid transform.
    """
    poses = torch.eye(4, dtype=torch.float64).repeat(len(frames), 1, 1)
    for t, (where, line) in enumerate(_pick(path, frames)):
        poses[t, :3] = read_numbers(line.split(), 12, where).reshape(3, 4)
        rotation = poses[t, :3, :3]
        off = float((rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().max())
        if off > 1e-3 or rotation.det() < 0:
            raise InputError(f"{where}: the left 3x3 part must be a rotation, and it is not (off by {off:.2g})")
    return invert(poses)


def read_imu_poses(path: Path, frames: Sequence[int]) -> Tensor:
    """Read the car's path from some lines of a GPS/IMU file (latitude, longitude, altitude, roll, pitch, yaw, …).

    Places follow the Mercator projection at the latitude of the file's first line, turns are ``Rz(yaw) Ry(pitch)
    Rx(roll)``, as in KITTI's development kit (Geiger et al., IJRR 2013).

    Returns:
        [T, 4, 4] float64, GPS/IMU axes to a world with x east, y north, z up, metres; its origin is the first line's
        place.

    Raises:
        InputError: A line is missing or does not begin with six numbers (degrees, metres, radians).
    """
    poses = torch.eye(4, dtype=torch.float64).repeat(len(frames) + 1, 1, 1)
    scale = 1.0
    for t, (where, line) in enumerate(_pick(path, [0, *frames])):
        latitude, longitude, altitude, roll, pitch, yaw = read_numbers(line.split()[:6], 6, where).tolist()
        if not (abs(latitude) < 90 and abs(longitude) <= 180):
            raise InputError(f"{where}: expected latitude and longitude in degrees, got {latitude} and {longitude}")
        scale = math.cos(math.radians(latitude)) if t == 0 else scale
        north = scale * EARTH_RADIUS * math.log(math.tan(math.radians(90 + latitude) / 2))
        place = [scale * EARTH_RADIUS * math.radians(longitude), north, altitude]
        poses[t, :3, :3] = turn(yaw, 2) @ turn(pitch, 1) @ turn(roll, 0)
        poses[t, :3, 3] = torch.tensor(place, dtype=torch.float64)
    poses[:, :3, 3] -= poses[0, :3, 3].clone()
    return poses[1:]


def read_calibration(path: Path) -> Calibration:
    """Read ``calib/NNNN.txt``.

    It holds ``P2`` and ``P3`` (3x4), and where poses come from GPS/IMU ``R_rect`` (3x3), ``Tr_velo_cam`` and
    ``Tr_imu_velo`` (3x4).

    Raises:
        InputError: An entry is missing or malformed, the two cameras differ, or the baseline is not positive.
    """
    rows = {}
    for number, line in enumerate(read_lines(path), start=1):
        if words := line.split():
            rows[words[0].rstrip(":")] = (f"{path}, line {number}", words[1:])
    left, right = (_matrix(rows, name, 4, path) for name in ("P2", "P3"))
    intrinsics = left[:, :3]
    if not torch.allclose(intrinsics, right[:, :3], atol=1e-3):
        raise InputError(f"{path}: P2 and P3 must share one camera matrix (rectified views), and they differ")
    if not (intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
        raise InputError(f"{path}: focal lengths must be positive, not {intrinsics.diagonal()[:2].tolist()} pixels")
    offset = torch.linalg.solve(intrinsics, left[:, 3])
    baseline = float(offset[0] - torch.linalg.solve(intrinsics, right[:, 3])[0])
    if not baseline > 0:
        raise InputError(f"{path}: the baseline must be positive, but from P2 to P3 it is {baseline:.6g} m")
    imu_to_camera = None
    if "Tr_imu_velo" in rows:
        imu_to_camera = torch.eye(4, dtype=torch.float64)
        for name, columns in (("Tr_imu_velo", 4), ("Tr_velo_cam", 4), ("R_rect", 3)):
            step = torch.eye(4, dtype=torch.float64)
            step[:3, :columns] = _matrix(rows, name, columns, path)
            imu_to_camera = step @ imu_to_camera
    return Calibration(intrinsics, offset, baseline, imu_to_camera)


def turn(angle: float, axis: int) -> Tensor:
    """Rotation by an angle (radians, right-handed) about axis 0, 1 or 2.

    Returns:
        [3, 3] float64.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[one, one] = rotation[other, other] = cos
    rotation[one, other], rotation[other, one] = -sin, sin
    return rotation


def _matrix(rows: dict[str, tuple[str, list[str]]], name: str, columns: int, path: Path) -> Tensor:
    if name not in rows:
        raise InputError(f"{path}: the entry {name!r} is missing")
    where, words = rows[name]
    return read_numbers(words, 3 * columns, f"{where} ({name})").reshape(3, columns)


def _pick(path: Path, frames: Sequence[int]) -> list[tuple[str, str]]:
    """Lines by frame, each with what an error calls it."""
    lines = read_lines(path)
    if missing := [frame for frame in frames if frame >= len(lines) or not lines[frame].strip()]:
        raise InputError(f"{path}: line {missing[0] + 1} (frame {missing[0]}) is missing")
    return [(f"{path}, line {frame + 1}", lines[frame]) for frame in frames]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones at its end.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return path.read_text().rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def read_whole(word: str, where: str) -> int:
    """A whole number; ``where`` begins the message if it is none.

    Raises:
        InputError: It is none.
    """
    try:
        return int(word)
    except ValueError as error:
        raise InputError(f"{where} must be a whole number, not {word!r}") from error


def read_numbers(words: Sequence[str], count: int, where: str) -> Tensor:
    """Finite numbers, [count] float64; ``where`` begins the message if they are not.

    Raises:
        InputError: There are more or fewer, or one is no finite number.
    """
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{where}: expected {count} numbers ({error})") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected {count} finite numbers, got {' '.join(words)[:80]!r}")
    return torch.tensor(numbers, dtype=torch.float64)
