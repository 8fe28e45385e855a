"""Where KITTI tracking's sequences lie on disk, in its own layout or in a flat one without images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllm4d.curate.sources.kitti_files import count_poses, read_calibration, read_camera_poses, read_imu_poses
from mllm4d.curate.sources.kitti_labels import last_frame
from mllm4d.curate.sources.views import FolderView
from mllm4d.geometry.pose import invert
from mllm4d.schema import InputError

DRAWN_SIZE = (374, 1242)
"""(height, width) of frames where there are no images, pixels: KITTI's, with even sides."""


@dataclass(frozen=True)
class KittiSequence:
    """What is known about one sequence before its labels and poses are read.

    Attributes:
        name: Its number.
        labels: File of its labels.
        poses: File of its poses or of the car's GPS/IMU.
        count: Number of frames.
        size: (height, width) of its frames, pixels.
        intrinsics: [3, 3] float64, pixels.
        offset: [3] float64, takes points from the axes of labels and poses to those of the camera ``left``, metres.
        baseline: Distance of the colour cameras, metres, where known.
        imu_to_camera: [4, 4] float64, GPS/IMU axes to those of the labels, metres; None where poses are the camera's.
        left: Its images, where there are any.
        right: Likewise.
    """

    name: str
    labels: Path
    poses: Path
    count: int
    size: tuple[int, int]
    intrinsics: Tensor
    offset: Tensor
    baseline: float | None = None
    imu_to_camera: Tensor | None = None
    left: FolderView | None = None
    right: FolderView | None = None

    def world_to_camera(self, frames: Sequence[int]) -> Tensor:
        """Poses of the camera ``left`` in some frames, [T, 4, 4] float64, metres.

        Raises:
            InputError: A line is missing or malformed; the message names it.
        """
        to_left = torch.eye(4, dtype=torch.float64)
        to_left[:3, 3] = self.offset
        if self.imu_to_camera is None:
            return to_left @ read_camera_poses(self.poses, frames)
        return to_left @ self.imu_to_camera @ invert(read_imu_poses(self.poses, frames))


def sequence_names(root: Path) -> list[str]:
    """The sequences in a folder, in order.

    Raises:
        InputError: There is no such folder, or no sequence in it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    if _is_official(root):
        names = [path.stem for path in (root / "label_02").glob("*.txt")]
    else:
        names = [path.name.removesuffix(".label.txt") for path in root.glob("*.label.txt")]
    if not names:
        raise InputError(f"{root}: holds no sequence; expected label_02/NNNN.txt or NNNN.label.txt")
    return sorted(names)


def open_sequence(root: Path, name: str, intrinsics: Tensor | None) -> KittiSequence:
    """Find out about one sequence.

    Args:
        root: The folder.
        name: As in ``sequence_names``.
        intrinsics: [3, 3] float64, pixels, for the flat layout; None for KITTI's own, which tells them.

    Raises:
        InputError: A file or an image is missing, the calibration is malformed, or intrinsics are given or not against
            the above.
    """
    if _is_official(root):
        if intrinsics is not None:
            raise InputError(f"{root}: calib/{name}.txt gives the intrinsics; leave 'fx', 'cx' and 'cy' out")
        return _open_official(root, name)
    if intrinsics is None:
        raise InputError(f"{root}: there is no calibration; give 'fx', 'cx' and 'cy' in pixels")
    labels, poses = root / f"{name}.label.txt", root / f"{name}.poses.txt"
    # Whichever speaks of more frames tells their number: a pose that is missing must not go unnoticed.
    count = max(count_poses(poses), last_frame(labels) + 1)
    return KittiSequence(name, labels, poses, count, DRAWN_SIZE, intrinsics, torch.zeros(3, dtype=torch.float64))


def _is_official(root: Path) -> bool:
    return (root / "label_02").is_dir()


def _open_official(root: Path, name: str) -> KittiSequence:
    calibration_file = root / "calib" / f"{name}.txt"
    calibration = read_calibration(calibration_file)
    left_folder, right_folder = root / "image_02" / name, root / "image_03" / name
    left = _open_images(left_folder)
    right = _open_images(right_folder) if right_folder.is_dir() else None
    if right is not None and (len(right), right.size(0)) != (len(left), left.size(0)):
        raise InputError(f"{right_folder}: must hold as many images of the same size as {left_folder}")
    poses, oxts = root / "poses" / f"{name}.txt", root / "oxts" / f"{name}.txt"
    own = poses.exists()
    if not own and not oxts.exists():
        raise InputError(f"{poses}: is missing, and so is {oxts}; one of them must tell the camera's path")
    if not own and calibration.imu_to_camera is None:
        raise InputError(f"{calibration_file}: the entry 'Tr_imu_velo' is missing; {oxts} needs it")
    return KittiSequence(
        name=name,
        labels=root / "label_02" / f"{name}.txt",
        poses=poses if own else oxts,
        count=len(left),
        size=left.size(0),
        intrinsics=calibration.intrinsics,
        offset=calibration.offset,
        baseline=calibration.baseline,
        imu_to_camera=None if own else calibration.imu_to_camera,
        left=left,
        right=right,
    )


def _open_images(path: Path) -> FolderView:
    """A folder of images in which no frame is missing: the labels go by their numbers."""
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder")
    view = FolderView(path)
    for index, file in enumerate(view.files):
        if not file.stem.isdigit() or int(file.stem) != index:
            raise InputError(f"{file}: expected frame {index}; the images' names must be the numbers 0, 1, 2, …")
    return view
