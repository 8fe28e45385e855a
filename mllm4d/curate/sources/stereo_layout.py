"""How stereo video lies in a folder: which files are the left view, which the right one, and when each frame is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mllm4d.curate.sources.rig import Rig, read_times
from mllm4d.curate.sources.video_files import FileView, HalfView
from mllm4d.curate.sources.views import IMAGES, FolderView, View, check_numbers
from mllm4d.schema import InputError

PAIRS = (("image_2", "image_3"), ("image_0", "image_1"), ("image_l", "image_r"), ("left", "right"))
"""Names of the left and the right folder, colour before grey."""

EXPECTED = (
    "image_l and image_r, image_0 and image_1, image_2 and image_3, or left and right (folders of images, or video "
    "files left.* and right.*), or a video file stereo.*"
)


def is_video(folder: Path) -> bool:
    """Whether a folder holds a left view, or a film with both."""
    if not folder.is_dir():
        return False
    if any((folder / left).is_dir() for left, _ in PAIRS):
        return True
    return any(_video_files(folder, name) for name in ("left", "stereo"))


def open_views(folder: Path, right: bool = True, stacked: bool = False) -> tuple[View, View | None]:
    """Find the left and the right view in a folder.

    Args:
        folder: Holds one of ``PAIRS`` as folders of images, one video file ``stereo.*`` that shows both views, or two
            video files ``left.*`` and ``right.*``; the first of these that is there counts.
        right: Whether there has to be a right view.
        stacked: ``stereo.*`` shows the left view above the right one, not beside it.

    Returns:
        The two views, the second None where there is none and need not be.

    Raises:
        InputError: A view is missing or empty, or the two do not go together frame by frame.
    """
    for one, other in PAIRS:
        if (folder / one).is_dir():
            if not (folder / other).is_dir():
                if right:
                    raise InputError(f"{folder / other}: the right view's folder is missing beside {one}")
                return FolderView(folder / one), None
            views = FolderView(folder / one), FolderView(folder / other)
            _check_count(*views)
            check_numbers(*views)
            return views
    if both := _video_file(folder, "stereo"):
        film = FileView(both)
        return HalfView(film, 0, stacked), HalfView(film, 1, stacked)
    left_file, right_file = (_video_file(folder, side) for side in ("left", "right"))
    if left_file is None:
        raise InputError(f"{folder}: holds no stereo video; expected {EXPECTED}")
    if right_file is None:
        if right:
            raise InputError(f"{folder}: there is {left_file.name} but no video file right.*")
        return FileView(left_file), None
    videos = FileView(left_file), FileView(right_file)
    _check_count(*videos)
    _check_times(*videos)
    return videos


def frame_times(folder: Path, left: View, rig: Rig, fps: float | None) -> tuple[float, Tensor]:
    """Nominal frame rate, 1/s, and the frames' times, [N] float64, seconds: both as far as possible from the files.

    Args:
        folder: May hold ``times.txt``, which counts more than a video file's own times.
        left: The left view.
        rig: May say the frame rate.
        fps: The frame rate as the user says it, 1/s.

    Raises:
        InputError: Nothing tells the frame rate, or two that do are more than 5 % apart.
    """
    path = folder / "times.txt"
    times = read_times(path, len(left)) if path.exists() else left.times()
    rates = {"the argument 'fps'": fps, "calib.json": rig.fps}
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
    rate = next(iter(known.values()))
    return rate, torch.arange(len(left), dtype=torch.float64) / rate if times is None else times


def _video_files(folder: Path, name: str) -> list[Path]:
    """The files called ``name`` that are not lists or pictures."""
    others = (*IMAGES, ".txt", ".json", ".yaml", ".md")
    return [file for file in sorted(folder.glob(f"{name}.*")) if file.suffix.lower() not in others and file.is_file()]


def _video_file(folder: Path, name: str) -> Path | None:
    found = _video_files(folder, name)
    if len(found) > 1:
        raise InputError(f"{folder}: expected one video file {name}.*, found {', '.join(file.name for file in found)}")
    return found[0] if found else None


def _check_count(left: View, right: View) -> None:
    if len(left) != len(right):
        raise InputError(f"{left.path} holds {len(left)} frames and {right.path} {len(right)}; expected as many")


def _check_times(left: FileView, right: FileView) -> None:
    one, other = left.times(), right.times()
    apart = (one - one[0] - other + other[0]).abs()
    if len(left) > 1 and float(apart.max()) > 0.5 * float(one.diff().min()):
        index = int(apart.argmax())
        raise InputError(
            f"{left.path} and {right.path.name} drift apart: frame {index} differs by {float(apart[index]):.3g} s"
        )
