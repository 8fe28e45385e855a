"""Real stereo video: folders of rectified pairs, pairs of video files, or films that show both views."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.annotations import Annotated, boxes_of, masks_of, read_objects
from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.depth_files import open_depth, read_depth
from mllm4d.curate.sources.rig import Rig, check_resolution, count_poses, read_poses, read_rig
from mllm4d.curate.sources.stereo_layout import EXPECTED, frame_times, is_video, open_views
from mllm4d.curate.sources.views import FolderView, View, common_size, shrink, stored_size
from mllm4d.geometry.camera import resize_intrinsics
from mllm4d.geometry.pose import rebase
from mllm4d.schema import Clip, InputError


@dataclass(frozen=True)
class _Video:
    """What is known about one folder before any frame is decoded."""

    folder: Path
    name: str
    left: View
    right: View | None
    depth: FolderView | None
    rig: Rig
    fps: float
    times: Tensor
    poses: Path | None
    objects: tuple[Annotated, ...]


@dataclass(frozen=True)
class StereoFolder(Source):
    """Rectified stereo video on disk, cut into clips of even length.

    A folder is one video when it holds the folders ``image_2`` and ``image_3`` (or ``image_0`` and ``image_1``,
    ``image_l`` and ``image_r``, ``left`` and ``right``) with images, or one video file ``stereo.*`` that shows the left
    view beside (or above) the right one, or video files ``left.*`` and ``right.*``; the first of these that is there
    counts. If the root itself is no such folder, each of its sub-folders that is one is a video. Where there are
    several, one that is unusable stands as a single bad clip and the others go on.

    Beside the views lies the calibration: ``calib.json`` (see ``rig.read_calibration_json``) or KITTI odometry's
    ``calib.txt``. It is that of one view, so that of a film that shows both it means the image after cutting.

    * ``calib.json``: ``fx``, ``fy``, ``cx``, ``cy``, pixels; ``baseline``, metres; ``fps``, 1/s; ``layout`` of
      ``stereo.*``, "side_by_side" (the default) or "top_bottom"; ``depth_scale`` and ``depth_sigma`` of ``depth``.

    Optional are

    * ``poses.txt``, KITTI's: 3x4 camera-to-world a line, metres;
    * ``times.txt``, seconds, one a line; without it the video file's own times or the frame rate count;
    * ``objects.json``, objects as polygons, run-length masks or 3-D boxes, see ``annotations``;
    * ``depth``, 16-bit PNGs with the numbers that the left images have in their names: z-depth times ``depth_scale``
      (KITTI's 256 a metre), 0 unknown, with a standard deviation of ``depth_sigma`` (0.02) times the depth. It is taken
      instead of an estimate, also where there is a right view.

    With ``depth`` (RGB-D), or with a ``calib.json`` that has no ``baseline`` (a single camera), the right view may be
    missing; its clips have neither right view nor baseline, which whoever needs them then says.

    What is wrong with a folder as a whole is said by ``keys``; what is wrong with one frame is said by ``load``, and
    only clips that use the frame are lost.

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
        folder = self._folders(name).get(name)
        if folder is None or not number.isdecimal():
            raise InputError(f"{self.root}: has no clip {key!r}")
        video = self._open(folder)
        cuts = self._cut(video)
        if int(number) >= len(cuts):
            raise InputError(f"{self.root}: has no clip {key!r}, video {video.name!r} makes {len(cuts)} clips")
        frames = cuts[int(number)]
        size = common_size(video.left, video.right, frames)
        check_resolution(folder, video.rig, size)
        stored = stored_size(size, self.max_width)
        times, objects = video.times[frames], folder / "objects.json"
        depth, depth_sigma = None, None
        if video.depth is not None:
            depth, depth_sigma = read_depth(video.depth, frames, size, stored, video.rig)
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
            masks=masks_of(objects, video.objects, frames, size, stored),
            boxes=boxes_of(objects, video.objects, frames),
            provenance={
                "source": "stereo",
                "video": video.name,
                "view": video.left.path.name,
                "frames": frames,
                "poses": "estimated" if video.poses is None else "folder",
            },
        )

    def _folders(self, wanted: str | None = None) -> dict[str, Path]:
        """The videos' folders (only the one that is wanted) by the names that keys begin with, in order."""
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"{root}: there is no such folder")
        if is_video(root):
            return {_safe(root.resolve().name): root}
        named: dict[str, Path] = {}
        for name in sorted(os.listdir(root)):
            safe = _safe(name)
            if wanted not in (None, safe) or not is_video(root / name):
                continue
            if safe in named:
                raise InputError(f"{root}: {named[safe].name} and {name} would have the same keys, {safe!r}")
            named[safe] = root / name
        if not named and wanted is None:
            raise InputError(f"{root}: holds no stereo video, nor does a folder in it; expected {EXPECTED}")
        return named

    def _open(self, folder: Path) -> _Video:
        rig = read_rig(folder)
        alone = (folder / "depth").is_dir() or rig.baseline is None
        left, right = open_views(folder, right=not alone, stacked=rig.stacked)
        if right is not None and rig.baseline is None:
            raise InputError(f"{folder / 'calib.json'}: key 'baseline' is missing (metres), and there is a right view")
        if -(-len(left) // self.stride) < 2:
            raise InputError(f"{left.path}: expected at least two frames, found {len(left)} (stride {self.stride})")
        fps, times = frame_times(folder, left, rig, self.fps)
        poses: Path | None = folder / "poses.txt"
        if self.poses == "estimate" or (self.poses == "auto" and not (folder / "poses.txt").exists()):
            poses = None
        else:
            count_poses(folder / "poses.txt", len(left))
        objects = folder / "objects.json"
        annotated = read_objects(objects, len(left)) if objects.exists() else ()
        name = Path(self.root).resolve().name if folder == Path(self.root) else folder.name
        depth = open_depth(folder / "depth", left)
        return _Video(folder, name, left, right, depth, rig, fps, times, poses, annotated)

    def _cut(self, video: _Video) -> list[list[int]]:
        """Frame numbers of every clip."""
        used = np.arange(0, len(video.left), self.stride)
        return [part.tolist() for part in np.array_split(used, -(-len(used) // self.clip_frames))]


def _safe(name: str) -> str:
    """A key may hold letters, digits, '-' and '_' only."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _poses(path: Path, frames: Sequence[int], rig: Rig) -> Tensor:
    """World-to-left-camera [T, 4, 4], based on the clip's first frame."""
    to_left = torch.eye(4, dtype=torch.float64)
    to_left[:3, 3] = rig.offset
    return rebase(to_left @ read_poses(path, frames))
