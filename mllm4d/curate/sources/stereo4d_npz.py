"""Stereo4D's released annotations: one npz a clip.

Keys and their meaning are those of github.com/Stereo4d/stereo4d-code (README, ``utils.py``, ``rectify.py``).
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.curate.sources.equirect import Bounds
from mllm4d.geometry.pose import invert
from mllm4d.schema import InputError

Array = NDArray[Any]


@dataclass(frozen=True)
class Annotation:
    """One npz without its tracks.

    Attributes:
        path: The file.
        name: The released clip's name, ``VIDEO_TIMESTAMP``.
        video: YouTube's name of the video.
        timestamps: [T] float64, seconds from the video's beginning, increasing.
        camera_to_world: [T, 4, 4] float64, of the rectified left camera, metres; not checked.
        rectified_to_eye: [2, 3, 3] float64, rotations from the rectified axes to those of the left and of the right
            eye's picture.
        bounds: What each eye's picture covers.
    """

    path: Path
    name: str
    video: str
    timestamps: Tensor
    camera_to_world: Tensor
    rectified_to_eye: Tensor
    bounds: Bounds

    def world_to_camera(self, frames: list[int]) -> Tensor:
        """[len(frames), 4, 4] float64, metres.

        Raises:
            InputError: One of these poses is not finite, or no rotation.
        """
        poses = self.camera_to_world[frames]
        for frame, pose in zip(frames, poses, strict=True):
            where = f"{self.path}: key 'camera2world', frame {frame}"
            if not bool(pose.isfinite().all()):
                raise InputError(f"{where}: holds numbers that are not finite")
            _check_rotation(pose[:3, :3], where)
        return invert(poses)


def read_timestamps(path: Path) -> Tensor:
    """Read the frames' times alone, which is quick however large the file.

    Returns:
        [T] float64, seconds from the video's beginning.

    Raises:
        InputError: The file cannot be read, or the times are missing or do not increase.
    """
    stamps = _read(path, {"timestamps": (None,)})["timestamps"].astype(np.float64)
    if not len(stamps) or not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        raise InputError(f"{path}: key 'timestamps' must hold finite, increasing numbers (microseconds)")
    return torch.from_numpy(stamps / 1e6)


def read_video_id(path: Path) -> str:
    """Read the video's name alone.

    Raises:
        InputError: The file cannot be read, or it is missing.
    """
    return _text(path, "video_id")


def read_annotation(path: Path) -> Annotation:
    """Read all but the tracks.

    Raises:
        InputError: The file cannot be read, a key is missing, or its value has another shape or makes no sense.
    """
    stamps = read_timestamps(path)
    shapes: dict[str, tuple[int | None, ...]] = {
        "camera2world": (len(stamps), 3, 4),
        "rectified2rig": (2, 3, 3),
        "fov_bounds": (4,),
    }
    arrays = {key: torch.from_numpy(array.astype(np.float64)) for key, array in _read(path, shapes).items()}
    poses = torch.eye(4, dtype=torch.float64).repeat(len(stamps), 1, 1)
    poses[:, :3] = arrays["camera2world"]
    for side, rotation in zip(("left", "right"), arrays["rectified2rig"], strict=True):
        _check_rotation(rotation, f"{path}: key 'rectified2rig', {side}")
    yaw_start, yaw_end, tilt_start, tilt_end = arrays["fov_bounds"].tolist()
    if not (-180 <= yaw_start < yaw_end <= 180 and -90 <= tilt_start < tilt_end <= 90):
        raise InputError(
            f"{path}: key 'fov_bounds' must be start and end of the yaw (within -180 to 180 degrees) and of the tilt "
            f"(-90 to 90), not {arrays['fov_bounds'].tolist()}"
        )
    bounds = (yaw_start, yaw_end, tilt_start, tilt_end)
    return Annotation(
        path, _text(path, "name"), _text(path, "video_id"), stamps, poses, arrays["rectified2rig"], bounds
    )


def decode_tracks(lengths: Array, indices: Array, coordinates: Array, count: int, where: str = "tracks") -> Tensor:
    """Unpack ragged tracks: track ``n`` has the next ``lengths[n]`` of the observations.

    Args:
        lengths: [N] integers, how many frames see each track.
        indices: [S] integers, the frame of each observation; S is the sum of ``lengths``.
        coordinates: [S, 3], world, metres.
        count: How many frames there are, T.
        where: What an error calls them.

    Returns:
        [N, T, 3] float64, world, metres; NaN where a track is not seen.

    Raises:
        InputError: The three do not fit together, or a frame is none of the T.
    """
    _check_ragged(lengths, indices, coordinates, count, where)
    tracks = torch.full((len(lengths), count, 3), torch.nan, dtype=torch.float64)
    owners = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    tracks[owners, torch.from_numpy(indices.astype(np.int64))] = torch.from_numpy(coordinates.astype(np.float64))
    return tracks


def read_tracks(path: Path, frames: list[int], count: int) -> Tensor:
    """Read the tracks that some frames see; only those are unpacked.

    Args:
        path: The file.
        frames: Which frames.
        count: How many frames the file is about.

    Returns:
        [N, len(frames), 3] float64, world, metres; NaN where a track is not seen. Each is seen once at least.

    Raises:
        InputError: The file cannot be read, a key is missing, or the keys do not fit together.
    """
    shapes = {"track_lengths": (None,), "track_indices": (None,), "track_coordinates": (None, 3)}
    lengths, indices, coordinates = _read(path, shapes).values()
    _check_ragged(lengths, indices, coordinates, count, str(path))
    column = np.full(count, -1)
    column[frames] = np.arange(len(frames))
    kept = column[indices] >= 0
    seen = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[kept], minlength=len(lengths))
    return decode_tracks(seen[seen > 0], column[indices[kept]], coordinates[kept], len(frames))


def _check_ragged(lengths: Array, indices: Array, coordinates: Array, count: int, where: str) -> None:
    for key, array in (("track_lengths", lengths), ("track_indices", indices)):
        if array.dtype.kind not in "iu":
            raise InputError(f"{where}: key {key!r} must hold whole numbers, not {array.dtype}")
    total = int(lengths.sum())
    if (lengths < 0).any() or not total == len(indices) == len(coordinates):
        raise InputError(
            f"{where}: key 'track_lengths' adds up to {total}, but 'track_indices' holds {len(indices)} observations "
            f"and 'track_coordinates' {len(coordinates)}; expected one number"
        )
    if total and (indices.min() < 0 or indices.max() >= count):
        raise InputError(
            f"{where}: key 'track_indices' must lie in 0 to {count - 1}, not {indices.min()} to {indices.max()}"
        )


def _read(path: Path, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, Array]:
    """Arrays of numbers by key; None in a shape is any length."""
    arrays = {}
    for key, array in _load(path, list(shapes)).items():
        expected, shape = shapes[key], array.shape
        fits = len(shape) == len(expected) and all(b in (None, a) for a, b in zip(shape, expected, strict=True))
        if not fits or array.dtype.kind not in "fiu":
            wanted = ", ".join("N" if size is None else str(size) for size in expected)
            raise InputError(f"{path}: key {key!r} must be [{wanted}] numbers, not {list(shape)} of {array.dtype}")
        arrays[key] = array
    return arrays


def _text(path: Path, key: str) -> str:
    array = _load(path, [key])[key]
    if array.size != 1 or array.dtype.kind not in "US" or not (text := str(array.astype(np.str_).item())):
        raise InputError(f"{path}: key {key!r} must be one text, not {list(array.shape)} of {array.dtype}")
    return text


def _load(path: Path, keys: list[str]) -> dict[str, Array]:
    """Members of an npz as they are; the others are not read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: is no npz file of Stereo4D")
            if missing := [key for key in keys if key not in file.files]:
                raise InputError(f"{path}: lacks the key {missing[0]!r}")
            return {key: file[key] for key in keys}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as an npz file ({error})") from error


def _check_rotation(matrix: Tensor, where: str) -> None:
    off = float((matrix @ matrix.mT - torch.eye(3, dtype=torch.float64)).abs().max())
    if not off <= 1e-3 or matrix.det() < 0:
        raise InputError(f"{where}: must be a rotation, and it is not (off by {off:.2g})")
