"""Real stereo video: folders of rectified pairs, or pairs of video files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.rig import Rig, read_calibration_json, read_kitti_calibration, read_poses, read_times
from mllm4d.curate.sources.views import PAIRS, View, open_views
from mllm4d.geometry.camera import resize_intrinsics
from mllm4d.geometry.pose import rebase
from mllm4d.schema import Clip, InputError

LAYOUTS = (
    "image_l and image_r, image_0 and image_1, image_2 and image_3, or left and right (folders of images, or video "
    "files left.* and right.*)"
)


@dataclass(frozen=True)
class _Video:
    """What is known about one folder before any frame is decoded; ``poses`` are world-to-camera [N, 4, 4]."""

    name: str
    left: View
    right: View
    rig: Rig
    fps: float
    times: Tensor
    poses: Tensor | None


@dataclass(frozen=True)
class StereoFolder(Source):
    """Rectified stereo video on disk, cut into clips of even length.

    A folder is one video when it holds the folders ``image_2`` and ``image_3`` (or ``image_0`` and ``image_1``,
    ``image_l`` and ``image_r``, ``left`` and ``right``) with images, or video files ``left.*`` and ``right.*``. Beside
    them lies the calibration: ``calib.json`` (fx, fy, cx, cy in pixels, baseline in metres, fps) or KITTI odometry's
    ``calib.txt``. Optional are ``poses.txt`` (KITTI's: 3x4 camera-to-world a line) and ``times.txt`` (seconds, one a
    line). If the root itself is no such folder, each of its sub-folders that is one is a video.

    Attributes:
        root: The folder.
        poses: "folder": ``poses.txt`` must be there; "estimate": it is not looked at; "auto": used where it is there.
        clip_frames: Largest number of frames in a clip. No frame is lost: 51 frames become clips of 13, 13, 13 and 12.
        stride: Every so many frames one is used.
        fps: Frame rate of the source, 1/s. Needed where neither ``calib.json`` nor ``times.txt`` nor the video file
            tells (KITTI odometry: 10); where one does, it has to agree.
        max_width: Wider frames are scaled down to this, pixels, and to even sides; intrinsics follow.
    """

    root: str
    poses: Literal["auto", "folder", "estimate"] = "auto"
    clip_frames: int = 16
    stride: int = 1
    fps: float | None = None
    max_width: int | None = None

    def __post_init__(self) -> None:
        if self.poses not in ("auto", "folder", "estimate"):
            raise InputError(f"'poses' must be auto, folder or estimate, not {self.poses!r}")
        if self.clip_frames < 2 or self.stride < 1:
            raise InputError(f"'clip_frames' must be at least 2, 'stride' 1; got {self.clip_frames} and {self.stride}")
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"'fps' must be positive, not {self.fps}")
        if self.max_width is not None and self.max_width < 16:
            raise InputError(f"'max_width' must be at least 16 pixels, not {self.max_width}")

    def keys(self, limit: int | None = None) -> Sequence[str]:
        """``VIDEO-0000``, ``VIDEO-0001``, …; all is checked but the pixels.

        Raises:
            InputError: A file is missing or malformed, or files do not fit together.
        """
        keys: list[str] = []
        for folder in self._folders().values():
            if limit is not None and len(keys) >= limit:
                break
            video = self._open(folder)
            _check_sizes(video, range(len(video.left)))
            keys += [f"{_safe(video.name)}-{index:04d}" for index in range(len(self._cut(video)))]
        return keys[:limit]

    def load(self, key: str) -> Clip:
        """Decode one clip.

        Raises:
            InputError: There is no such clip, or one of its images is damaged.
        """
        name, _, number = key.rpartition("-")
        folders = self._folders()
        if name not in folders or not number.isdigit():
            raise InputError(f"{self.root}: has no clip {key!r}")
        video = self._open(folders[name])
        cuts = self._cut(video)
        if int(number) >= len(cuts):
            raise InputError(f"{self.root}: has no clip {key!r}, video {video.name!r} makes {len(cuts)} clips")
        frames = cuts[int(number)]
        size, stored = _check_sizes(video, frames), self._stored_size(video)
        times = video.times[frames]
        return Clip(
            key=key,
            video=video.name,
            frames=_resize(video.left.read(frames), stored),
            times=times - times[0],
            fps=video.fps / self.stride,
            intrinsics=resize_intrinsics(video.rig.intrinsics, size, stored),
            right=_resize(video.right.read(frames), stored),
            baseline=video.rig.baseline,
            world_to_camera=None if video.poses is None else rebase(video.poses[frames]),
            provenance={
                "source": "stereo",
                "video": video.name,
                "view": video.left.path.name,
                "frames": frames,
                "poses": "estimated" if video.poses is None else "folder",
            },
        )

    def _folders(self) -> dict[str, Path]:
        """The videos' folders by the names that keys begin with, in order."""
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"{root}: there is no such folder")
        folders = [root] if _is_video(root) else [path for path in sorted(root.iterdir()) if _is_video(path)]
        if not folders:
            raise InputError(f"{root}: holds no stereo video, nor does a folder in it; expected {LAYOUTS}")
        named: dict[str, Path] = {}
        for folder in folders:
            safe = _safe(folder.resolve().name)
            if safe in named:
                raise InputError(f"{root}: {named[safe].name} and {folder.name} would have the same keys, {safe!r}")
            named[safe] = folder
        return named

    def _open(self, folder: Path) -> _Video:
        views = open_views(folder)
        if views is None:
            raise InputError(f"{folder}: holds no stereo video; expected {LAYOUTS}")
        left, right = views
        if -(-len(left) // self.stride) < 2:
            raise InputError(f"{left.path}: expected at least two frames, found {len(left)} (stride {self.stride})")
        rig = _read_rig(folder, colour=left.path.name == "image_2")
        fps, times = self._timing(folder, left, rig)
        poses = None
        path = folder / "poses.txt"
        if self.poses == "folder" or (self.poses == "auto" and path.exists()):
            to_left = torch.eye(4, dtype=torch.float64)
            to_left[:3, 3] = rig.offset
            poses = to_left @ read_poses(path, len(left))
        return _Video(folder.resolve().name, left, right, rig, fps, times, poses)

    def _timing(self, folder: Path, left: View, rig: Rig) -> tuple[float, Tensor]:
        """Nominal frame rate and the frames' times, both as far as possible from the files."""
        path = folder / "times.txt"
        times = read_times(path, len(left)) if path.exists() else left.times()
        rates = {"the argument 'fps'": self.fps, "calib.json": rig.fps}
        if times is not None:
            rates[path.name if path.exists() else left.path.name] = 1 / float(times.diff().median())
        known = {name: rate for name, rate in rates.items() if rate is not None}
        if not known:
            raise InputError(
                f"{folder}: no frame rate: neither calib.json nor a file times.txt gives one; name it under the key "
                "'fps' (KITTI odometry has 10)"
            )
        if max(known.values()) > 1.05 * min(known.values()):
            said = ", ".join(f"{name} says {rate:.4g}" for name, rate in known.items())
            raise InputError(f"{folder}: the frame rate is contradictory: {said}")
        fps = next(iter(known.values()))
        return fps, torch.arange(len(left), dtype=torch.float64) / fps if times is None else times

    def _cut(self, video: _Video) -> list[list[int]]:
        """Frame numbers of every clip."""
        used = np.arange(0, len(video.left), self.stride)
        return [part.tolist() for part in np.array_split(used, -(-len(used) // self.clip_frames))]

    def _stored_size(self, video: _Video) -> tuple[int, int]:
        """(height, width) of the stored frames."""
        height, width = video.left.size(0)
        if self.max_width is None or width <= self.max_width:
            return height, width
        # Even sides, because video codecs halve the colour's resolution.
        new_width = self.max_width // 2 * 2
        return max(2, round(height * new_width / width / 2) * 2), new_width


def _is_video(path: Path) -> bool:
    return path.is_dir() and (any((path / left).is_dir() for left, _ in PAIRS) or any(path.glob("left.*")))


def _safe(name: str) -> str:
    """A key may hold letters, digits, '-' and '_' only."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _read_rig(folder: Path, colour: bool) -> Rig:
    if (folder / "calib.json").exists():
        return read_calibration_json(folder / "calib.json")
    if (folder / "calib.txt").exists():
        return read_kitti_calibration(folder / "calib.txt", colour)
    raise InputError(f"{folder}: the calibration is missing; expected calib.json or KITTI's calib.txt")


def _check_sizes(video: _Video, frames: Sequence[int]) -> tuple[int, int]:
    """(height, width) that all these frames have on both sides, and that the calibration fits."""
    size = video.left.size(0)
    for index in frames:
        for view in (video.left, video.right):
            if view.size(index) != size:
                found = _text(view.size(index))
                raise InputError(f"{view.name(index)}: is {found}, expected {_text(size)} as {video.left.name(0)} is")
    cx, cy = video.rig.intrinsics[:2, 2].tolist()
    if not (0 < cx < size[1] and 0 < cy < size[0]):
        raise InputError(
            f"{video.left.path.parent}: the calibration is of another resolution: principal point ({cx:.6g}, {cy:.6g}) "
            f"lies outside the {_text(size)} images"
        )
    return size


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} pixels"


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale [T, H, W, 3] frames down to (height, width), each pixel the mean of the area it covers."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    import cv2

    area = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(area))
