"""Real stereo video: folders of rectified pairs, pairs of video files, or films that show both views."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.annotations import boxes_of, masks_of, read_objects
from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.depth_files import read_depth
from mllm4d.curate.sources.rig import (
    Rig,
    count_poses,
    read_calibration_json,
    read_kitti_calibration,
    read_poses,
    read_times,
)
from mllm4d.curate.sources.views import PAIRS, View, open_views, shrink, stored_size
from mllm4d.geometry.camera import resize_intrinsics
from mllm4d.geometry.pose import rebase
from mllm4d.schema import Clip, InputError

LAYOUTS = (
    "image_l and image_r, image_0 and image_1, image_2 and image_3, or left and right (folders of images, or video "
    "files left.* and right.*), or a video file stereo.*"
)


@dataclass(frozen=True)
class _Video:
    """What is known about one folder before any frame is decoded."""

    folder: Path
    name: str
    left: View
    right: View | None
    rig: Rig
    fps: float
    times: Tensor
    poses: Path | None


@dataclass(frozen=True)
class StereoFolder(Source):
    """Rectified stereo video on disk, cut into clips of even length.

    A folder is one video when it holds the folders ``image_2`` and ``image_3`` (or ``image_0`` and ``image_1``,
    ``image_l`` and ``image_r``, ``left`` and ``right``) with images, or video files ``left.*`` and ``right.*``, or one
    video file ``stereo.*`` that shows the left view beside (or above) the right one. If the root itself is no such
    folder, each of its sub-folders that is one is a video; one of those that is unusable stands as a single bad clip.

    Beside the views lies the calibration: ``calib.json`` (see ``rig.read_calibration_json``) or KITTI odometry's
    ``calib.txt``. Optional are

    * ``poses.txt``, KITTI's: 3x4 camera-to-world a line, metres;
    * ``times.txt``, seconds, one a line;
    * ``objects.json``, objects as polygons, run-length masks or 3-D boxes, see ``annotations``;
    * ``depth/``, 16-bit PNGs named as the left images, z-depth times ``depth_scale`` (KITTI's 256 a metre), 0 unknown.

    With ``depth/``, or with a ``calib.json`` that has no ``baseline``, the right view may be missing.

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
        """``VIDEO-0000``, ``VIDEO-0001``, …; nothing is decoded.

        Raises:
            InputError: The root holds no video, or the only one lacks something or its files do not fit together.
        """
        keys: list[str] = []
        folders = self._folders()
        for name, folder in folders.items():
            if limit is not None and len(keys) >= limit:
                break
            try:
                count = len(self._cut(self._open(folder)))
            except InputError:
                if len(folders) == 1:
                    raise
                count = 1  # ``load`` says what is wrong, and the other videos go on
            keys += [f"{name}-{index:04d}" for index in range(count)]
        return keys[:limit]

    def video(self, key: str) -> str:
        """The name of the video's folder, as keys begin with it."""
        return key.rpartition("-")[0]

    def load(self, key: str) -> Clip:
        """Decode one clip.

        Raises:
            InputError: There is no such clip, its video is unusable, or one of its images, poses or objects is.
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
        size = _check_sizes(video, frames)
        stored = stored_size(size, self.max_width)
        times = video.times[frames]
        depth, depth_sigma = read_depth(video.folder / "depth", video.left, frames, size, stored, video.rig)
        objects = video.folder / "objects.json"
        annotated = read_objects(objects) if objects.exists() else ()
        return Clip(
            key=key,
            video=video.name,
            frames=shrink(video.left.read(frames), stored),
            times=times - times[0],
            fps=video.fps / self.stride,
            intrinsics=resize_intrinsics(video.rig.intrinsics, size, stored),
            right=None if video.right is None else shrink(video.right.read(frames), stored),
            baseline=None if video.right is None else video.rig.baseline,
            depth=depth,
            depth_sigma=depth_sigma,
            world_to_camera=None if video.poses is None else _poses(video.poses, frames, video.rig),
            masks=masks_of(objects, annotated, frames, size, lambda image: _shrink_one(image, stored)),
            boxes=boxes_of(objects, annotated, frames),
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
        rig = _read_rig(folder)
        alone = (folder / "depth").is_dir() or rig.baseline is None
        views = open_views(folder, right=not alone, stacked=rig.stacked)
        if views is None:
            raise InputError(f"{folder}: holds no stereo video; expected {LAYOUTS}")
        left, right = views
        if right is not None and rig.baseline is None:
            raise InputError(f"{folder / 'calib.json'}: key 'baseline' is missing (metres), and there is a right view")
        if -(-len(left) // self.stride) < 2:
            raise InputError(f"{left.path}: expected at least two frames, found {len(left)} (stride {self.stride})")
        fps, times = self._timing(folder, left, rig)
        poses = folder / "poses.txt"
        if self.poses == "estimate" or (self.poses == "auto" and not poses.exists()):
            return _Video(folder, folder.resolve().name, left, right, rig, fps, times, None)
        count_poses(poses, len(left))
        return _Video(folder, folder.resolve().name, left, right, rig, fps, times, poses)

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


def _is_video(path: Path) -> bool:
    files = any(any(path.glob(f"{name}.*")) for name in ("left", "stereo"))
    return path.is_dir() and (any((path / left).is_dir() for left, _ in PAIRS) or files)


def _safe(name: str) -> str:
    """A key may hold letters, digits, '-' and '_' only."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _read_rig(folder: Path) -> Rig:
    if (folder / "calib.json").exists():
        return read_calibration_json(folder / "calib.json")
    if (folder / "calib.txt").exists():
        return read_kitti_calibration(folder / "calib.txt", colour=(folder / "image_2").is_dir())
    raise InputError(f"{folder}: the calibration is missing; expected calib.json or KITTI's calib.txt")


def _check_sizes(video: _Video, frames: Sequence[int]) -> tuple[int, int]:
    """(height, width) that all these frames have on both sides, and that the calibration fits."""
    # The first frame of the clip, not of the video: what is wrong elsewhere is another clip's trouble.
    size = video.left.size(frames[0])
    for index in frames:
        for view in (video.left, video.right):
            if view is not None and view.size(index) != size:
                found = _text(view.size(index))
                raise InputError(
                    f"{view.name(index)}: is {found}, expected {_text(size)} as {video.left.name(frames[0])} is"
                )
    cx, cy = video.rig.intrinsics[:2, 2].tolist()
    if not (0 < cx < size[1] and 0 < cy < size[0]):
        raise InputError(
            f"{video.left.path.parent}: the calibration is of another resolution: principal point ({cx:.6g}, {cy:.6g}) "
            f"lies outside the {_text(size)} images"
        )
    return size


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} pixels"


def _shrink_one(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A grey image [H, W] scaled down as the frames are."""
    return shrink(torch.from_numpy(image)[None, ..., None].expand(-1, -1, -1, 3), size)[0, ..., 0].numpy()


def _poses(path: Path, frames: Sequence[int], rig: Rig) -> Tensor:
    """World-to-left-camera [T, 4, 4], based on the clip's first frame."""
    to_left = torch.eye(4, dtype=torch.float64)
    to_left[:3, 3] = rig.offset
    return rebase(to_left @ read_poses(path, frames))
