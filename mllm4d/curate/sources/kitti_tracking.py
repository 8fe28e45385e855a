"""KITTI tracking: street scenes whose objects are 3-D boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.box_drawing import SolidBox, draw_frame
from mllm4d.curate.sources.kitti_files import turn
from mllm4d.curate.sources.kitti_labels import Label, read_labels
from mllm4d.curate.sources.kitti_layout import KittiSequence, open_sequence, sequence_names
from mllm4d.curate.sources.views import shrink, stored_size
from mllm4d.geometry.camera import resize_intrinsics
from mllm4d.geometry.pose import center, invert, rebase
from mllm4d.schema import Boxes, Clip, InputError

NAMES = {
    "Car": "car",
    "Van": "van",
    "Truck": "truck",
    "Pedestrian": "pedestrian",
    "Person": "sitting person",
    "Person_sitting": "sitting person",
    "Cyclist": "cyclist",
    "Tram": "tram",
    "Misc": None,
}
"""KITTI's classes in plain words. ``Misc`` (trailers and whatever else) has no word that a question could use, so that
such boxes are drawn and not asked about."""

COLOURS = {
    "Car": (196, 60, 52),
    "Van": (226, 142, 44),
    "Truck": (232, 202, 60),
    "Pedestrian": (52, 104, 200),
    "Person": (84, 168, 210),
    "Person_sitting": (84, 168, 210),
    "Cyclist": (56, 160, 84),
    "Tram": (142, 76, 168),
    "Misc": (120, 120, 120),
}
"""RGB, of drawn boxes."""


@dataclass(frozen=True)
class KittiTracking(Source):
    """KITTI tracking's sequences, cut into clips of even length, with its boxes as objects.

    Two layouts are read. KITTI's own: ``label_02/NNNN.txt``, ``image_02/NNNN/*.png``, ``calib/NNNN.txt``, where it is
    there ``image_03/NNNN``, and the camera's path from ``poses/NNNN.txt`` (3x4 camera-to-world a line, of the rectified
    reference camera) or else from ``oxts/NNNN.txt`` (GPS/IMU). And a flat one without images: ``NNNN.label.txt`` and
    ``NNNN.poses.txt`` (of the camera that the labels are given for); its frames are drawn, as the provenance says, and
    its intrinsics are arguments.

    The sigmas' defaults are measured (``tools/benchmarks/kitti_tracking.py``) on parked vehicles of six sequences
    with poses from stereo SLAM. They seem to follow the camera by 3.2 % of its path: 3.1 to 3.8 % in four sequences,
    5.2 % in one with a single truck beyond 30 m, none is parked in the sixth; and 3.1 to 3.4 % whether the path is
    0.5 m or 32 m long, so that the error grows with the path and not with its square root (root mean square 3.4 %
    over 8-16 m, rounded up). They swing sideways by 0.0002 rad/m over 16-32 m and 0.0007 over 8-16 m, boxes' own
    errors included. Boxes wander by 0.017 m per axis nearer than 10 m, and by 0.022, 0.045 and 0.062 m in the next
    three steps of 10 m.

    Attributes:
        root: The folder.
        clip_frames: Largest number of frames in a clip; no frame is lost.
        stride: Every so many frames one is used.
        fps: Frame rate of the sequences, 1/s; KITTI's is 10.
        fx: Focal length, pixels, for the flat layout; as ``cx`` and ``cy`` refused where ``calib`` tells.
        cx: Principal point from the left, pixels.
        cy: Principal point from the top, pixels.
        max_width: Wider frames are scaled down to this, pixels, and to even sides; intrinsics follow.
        max_distance: A box whose middle is farther away counts as not seen in that frame, metres.
        max_truncated: So does one that is more truncated (0, 1 or 2).
        max_occluded: So does one that is more hidden (0 to 3).
        box_sigma: Standard deviation of a box's centre near the camera (per axis), metres.
        box_sigma_per_metre: What is added to it (in squares) for each metre of distance.
        drift: Standard deviation of the camera's centre per metre of path.
        turn_drift: Standard deviation of the camera's rotation per metre of path, radians.
    """

    root: str
    clip_frames: int = 16
    stride: int = 1
    fps: float = 10.0
    fx: float | None = None
    cx: float | None = None
    cy: float | None = None
    max_width: int | None = None
    max_distance: float = 40.0
    max_truncated: int = 1
    max_occluded: int = 1
    box_sigma: float = 0.02
    box_sigma_per_metre: float = 0.002
    drift: float = 0.035
    turn_drift: float = 0.0004

    def __post_init__(self) -> None:
        if self.clip_frames < 2 or self.stride < 1:
            raise InputError(f"'clip_frames' must be at least 2, 'stride' 1; got {self.clip_frames} and {self.stride}")
        if self.max_width is not None and self.max_width < 16:
            raise InputError(f"'max_width' must be at least 16 pixels, not {self.max_width}")
        for name in ("fps", "fx", "cx", "cy", "max_distance"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name!r} must be positive, not {value}")
        for name in ("box_sigma", "box_sigma_per_metre", "drift", "turn_drift"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name!r} must not be negative, it is {getattr(self, name)}")

    def keys(self, limit: int | None = None) -> Sequence[str]:
        """``NNNN-0000``, ``NNNN-0001``, …; labels and poses are not read yet.

        Raises:
            InputError: A file is missing, or a calibration malformed.
        """
        keys: list[str] = []
        for name in sequence_names(Path(self.root)):
            if limit is not None and len(keys) >= limit:
                break
            keys += [f"{name}-{index:04d}" for index in range(len(self._cut(self._open(name))))]
        return keys[:limit]

    def video(self, key: str) -> str:
        """The sequence's number."""
        return key.rpartition("-")[0]

    def load(self, key: str) -> Clip:
        """Read or draw one clip.

        Raises:
            InputError: There is no such clip, or a line or an image that it needs is missing or malformed; the message
                names file and line.
        """
        name, _, number = key.rpartition("-")
        if name not in sequence_names(Path(self.root)) or not number.isdigit():
            raise InputError(f"{self.root}: has no clip {key!r}")
        sequence = self._open(name)
        cuts = self._cut(sequence)
        if int(number) >= len(cuts):
            raise InputError(f"{self.root}: has no clip {key!r}, sequence {name} makes {len(cuts)} clips")
        frames = cuts[int(number)]
        labels = read_labels(sequence.labels, frames)
        poses = sequence.world_to_camera(frames)
        stored = stored_size(sequence.size, self.max_width)
        intrinsics = resize_intrinsics(sequence.intrinsics, sequence.size, stored)
        if sequence.left is None:
            images = _draw(frames, labels, stored, intrinsics, poses)
        else:
            images = shrink(sequence.left.read(frames), stored)
        steps = center(poses).diff(dim=0).norm(dim=-1)
        travelled = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
        return Clip(
            key=key,
            video=name,
            frames=images,
            times=(torch.tensor(frames, dtype=torch.float64) - frames[0]) / self.fps,
            fps=self.fps / self.stride,
            intrinsics=intrinsics,
            right=None if sequence.right is None else shrink(sequence.right.read(frames), stored),
            baseline=None if sequence.right is None else sequence.baseline,
            world_to_camera=rebase(poses),
            center_sigma=self.drift * travelled,
            rotation_sigma=self.turn_drift * travelled,
            boxes=self._boxes(sequence, frames, labels),
            provenance={
                "source": "kitti_tracking",
                "video": name,
                "view": "drawn" if sequence.left is None else "image_02",
                "frames": frames,
                "poses": sequence.poses.parent.name if sequence.left else "poses",
            },
        )

    def _boxes(self, sequence: KittiSequence, frames: Sequence[int], labels: Sequence[Label]) -> tuple[Boxes, ...]:
        """The objects that are seen at least once."""
        index = {frame: t for t, frame in enumerate(frames)}
        kinds: dict[int, str] = {}
        places: dict[int, dict[int, Label]] = {}
        for label in labels:
            if label.kind not in NAMES:
                raise InputError(
                    f"{sequence.labels}: frame {label.frame}: class {label.kind!r} is not one of {', '.join(NAMES)}"
                )
            if kinds.setdefault(label.track, label.kind) != label.kind:
                raise InputError(
                    f"{sequence.labels}: frame {label.frame}: track {label.track} is a {label.kind}, before it was a "
                    f"{kinds[label.track]}"
                )
            if NAMES[label.kind] and self._sees(label):
                places.setdefault(label.track, {})[index[label.frame]] = label
        return tuple(self._box(track, kinds[track], places[track], sequence, len(frames)) for track in sorted(places))

    def _sees(self, label: Label) -> bool:
        clear = label.truncated <= self.max_truncated and label.occluded <= self.max_occluded
        return clear and float(np.linalg.norm(label.center)) <= self.max_distance

    def _box(self, track: int, kind: str, places: dict[int, Label], sequence: KittiSequence, count: int) -> Boxes:
        centers, sizes = (torch.full((count, 3), torch.nan, dtype=torch.float64) for _ in range(2))
        rotations = torch.full((count, 3, 3), torch.nan, dtype=torch.float64)
        for t, label in places.items():
            centers[t] = torch.tensor(label.center, dtype=torch.float64) + sequence.offset
            rotations[t] = turn(label.yaw, 1)
            sizes[t] = torch.tensor(label.size, dtype=torch.float64)
        sigma = (self.box_sigma**2 + (self.box_sigma_per_metre * centers.norm(dim=-1)).square()).sqrt()
        return Boxes(track, str(NAMES[kind]), centers, rotations, sizes, sigma)

    def _open(self, name: str) -> KittiSequence:
        given = (self.fx, self.cx, self.cy)
        if all(value is None for value in given):
            return open_sequence(Path(self.root), name, None)
        if self.fx is None or self.cx is None or self.cy is None:
            raise InputError(f"'fx', 'cx' and 'cy' must be given together, not {given}")
        matrix = [[self.fx, 0, self.cx], [0, self.fx, self.cy], [0, 0, 1]]
        return open_sequence(Path(self.root), name, torch.tensor(matrix, dtype=torch.float64))

    def _cut(self, sequence: KittiSequence) -> list[list[int]]:
        """Frame numbers of every clip."""
        used = np.arange(0, sequence.count, self.stride)
        if len(used) < 2:
            raise InputError(f"{sequence.labels}: sequence {sequence.name} has fewer than two frames")
        return [part.tolist() for part in np.array_split(used, -(-len(used) // self.clip_frames))]


def _draw(
    frames: Sequence[int], labels: Sequence[Label], size: tuple[int, int], intrinsics: Tensor, poses: Tensor
) -> Tensor:
    """Frames [T, H, W, 3] with every labelled box, whether it counts as seen or not."""
    images = []
    for frame, pose in zip(frames, invert(poses).numpy(), strict=True):
        solids = [
            SolidBox(
                np.array(label.center),
                turn(label.yaw, 1).numpy(),
                np.array(label.size),
                COLOURS.get(label.kind, COLOURS["Misc"]),
            )
            for label in labels
            if label.frame == frame
        ]
        images.append(draw_frame(size, intrinsics.numpy(), pose, solids))
    return torch.from_numpy(np.stack(images))
