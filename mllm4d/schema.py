"""The records that travel along the way of the data. Every field says its shape, unit and frame of reference.

Axes, units and the direction of extrinsics are stated once, in the package's docstring (``mllm4d/__init__.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TASKS = (
    "camera_absolute_distance",
    "camera_relative_direction",
    "object_absolute_distance",
    "object_relative_direction",
    "object_camera_absolute_distance",
    "object_camera_relative_distance",
    "object_camera_relative_direction",
)
"""The seven relations; a question's ``task`` is one of them."""


class InputError(ValueError):
    """Something a person gave is unusable: the message is one sentence that names file, key and what was expected."""


class UnfinishedError(InputError):
    """Work stopped for a reason that lies outside the input: what is done is kept, and the same command goes on."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on its way through the world.

    Attributes:
        intrinsics: [3, 3], pixels of the stored frames.
        world_to_camera: [T, 4, 4], metres.
        center_sigma: [T], standard deviation of the camera centre relative to the first frame's (per axis), metres; 0
            is exact.
        rotation_sigma: [T], standard deviation of the rotation relative to the first frame's (per axis), radians.
    """

    intrinsics: Tensor
    world_to_camera: Tensor
    center_sigma: Tensor
    rotation_sigma: Tensor


@dataclass(frozen=True)
class Track:
    """One named object over time.

    Attributes:
        id: Unique in the clip.
        name: What a question calls it; unique in the clip.
        centers: [T, 3], world, metres; NaN in frames where it is not seen.
        center_sigma: [T], standard deviation of the centre (per axis), metres; NaN where not seen.
        motion_sigma: [T], the same without the error that all frames share (where in the body its centre is), metres:
            how well ``centers`` follows one point of the body. What counts for displacements.
        surface_sigma: [T], standard deviation of the distance to its nearest points, metres; NaN where ``points`` is
            empty.
        points: T tensors [M, 3] of surface points, world, metres; M may be 0.
        moving: Whether it moves in the world; None when that cannot be told.

    All three sigmas are those of the object as seen from the camera; the camera's own are added where frames of
    different times meet.
    """

    id: int
    name: str
    centers: Tensor
    center_sigma: Tensor
    motion_sigma: Tensor
    surface_sigma: Tensor
    points: tuple[Tensor, ...]
    moving: bool | None


@dataclass(frozen=True)
class Mask:
    """Where one named object is in the left view: ``pixels`` is [T, H, W] bool."""

    id: int
    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Boxes:
    """Where one named object is, as a box that each frame places by itself.

    Attributes:
        id: Unique in the clip.
        name: What it is; names may repeat here.
        centers: [T, 3], the box's middle, camera axes of each frame, metres; NaN where it is not seen.
        rotations: [T, 3, 3], box axes to camera axes.
        sizes: [T, 3], lengths of the edges along the box's x, y and z axes, metres.
        sigma: [T], standard deviation of the centre (per axis), metres.
    """

    id: int
    name: str
    centers: Tensor
    rotations: Tensor
    sizes: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Clip:
    """What a source hands out: a piece of stereo video and whatever else the source knows about it.

    Attributes:
        key: Unique in the source, safe as a file name.
        video: The source video that it was cut from.
        frames: [T, H, W, 3] uint8 RGB, left view.
        times: [T] float64, seconds, the first is 0.
        fps: Nominal frame rate of the stored frames, 1/s.
        intrinsics: [3, 3], pixels of ``frames``.
        right: [T, H, W, 3] uint8 RGB, rectified right view, or None.
        baseline: Distance of the two cameras, metres, or None.
        depth: [T, H, W] float32 z-depth, metres, 0 unknown, or None.
        depth_sigma: [T, H, W] float32, standard deviation of ``depth``, metres, or None where it is exact.
        world_to_camera: [T, 4, 4] float64, metres, or None when it has to be estimated.
        center_sigma: [T] float64, metres, as in ``Camera``, for poses that are given; None where they are exact.
        rotation_sigma: [T] float64, radians, likewise.
        masks: Objects as image regions, where the source has them.
        boxes: Objects as 3-D boxes, where the source has them.
        tracks: Objects as tracks in the world of the given poses, where the source knows them so; then neither masks
            nor boxes are looked at.
        provenance: Where it comes from; plain JSON values.
    """

    key: str
    video: str
    frames: Tensor
    times: Tensor
    fps: float
    intrinsics: Tensor
    right: Tensor | None = None
    baseline: float | None = None
    depth: Tensor | None = None
    depth_sigma: Tensor | None = None
    world_to_camera: Tensor | None = None
    center_sigma: Tensor | None = None
    rotation_sigma: Tensor | None = None
    masks: tuple[Mask, ...] = ()
    boxes: tuple[Boxes, ...] = ()
    tracks: tuple[Track, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cloud:
    """Points of a scene for people to look at: ``points`` [N, 3], world, metres; ``colors`` [N, 3] uint8 RGB."""

    points: Tensor
    colors: Tensor


@dataclass(frozen=True)
class Scene:
    """The 4-D truth about a clip, as far as it is known.

    Attributes:
        fps: Nominal frame rate of the stored frames, 1/s.
        times: [T] float64, seconds.
        camera: The left camera.
        objects: Named objects.
        quality: Figures about how the scene was measured; plain JSON values.
        provenance: Where it comes from; plain JSON values.
        cloud: Some of its points in colour, where depth was at hand.
    """

    fps: float
    times: Tensor
    camera: Camera
    objects: tuple[Track, ...]
    quality: Mapping[str, Any]
    provenance: Mapping[str, Any]
    cloud: Cloud | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of ``scene.json``: plain JSON values, metres to 6 decimals, unseen centres null."""
        return {
            "units": "m",
            "axes": "opencv",
            "fps": self.fps,
            "times": _numbers(self.times),
            "camera": {
                "intrinsics": _numbers(self.camera.intrinsics),
                "world_to_camera": _numbers(self.camera.world_to_camera),
                "center_sigma": _numbers(self.camera.center_sigma),
                "rotation_sigma": _numbers(self.camera.rotation_sigma),
            },
            "objects": [
                {
                    "id": track.id,
                    "name": track.name,
                    "centers": [None if None in row else row for row in _numbers(track.centers)],
                    "center_sigma": _numbers(track.center_sigma),
                    "moving": track.moving,
                }
                for track in self.objects
            ],
            "quality": dict(self.quality),
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class Question:
    """One multiple-choice question about a clip; the fields of an entry of ``qa.json``.

    Attributes:
        id: Unique in the data set.
        task: One of ``TASKS``.
        question: The wording, without the options.
        options: Letter to text, in order A, B, ….
        answer: The right letter.
        answer_value: The measured relation: metres, or the label in words.
        unit: "m" or None.
        anchors: Indices [i, j] of the stored frames that the question is about.
        object: The object's id, or None.
        solution: ``camera_center`` and ``object_center``: two [x, y, z] in metres (at anchor i and j), or None, in the
            camera axes of the clip's first stored frame.
        reasoning: The ST-CoT text, or None.
    """

    id: str
    task: str
    question: str
    options: Mapping[str, str]
    answer: str
    answer_value: float | str
    unit: str | None
    anchors: tuple[int, int]
    object: int | None
    solution: Mapping[str, Any]
    reasoning: str | None

    def to_dict(self) -> dict[str, Any]:
        """An entry of ``qa.json``."""
        return {**self.__dict__, "options": dict(self.options), "anchors": list(self.anchors)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], where: str) -> Question:
        """Read an entry of ``qa.json``.

        Args:
            entry: The parsed entry.
            where: The file it came from, for the message.

        Raises:
            InputError: A key is missing or unknown, the task is unknown, or the answer is not one of the options.
        """
        names = cls.__dataclass_fields__
        if missing := [name for name in names if name not in entry]:
            raise InputError(f"{where}: question {entry.get('id')!r} lacks the key {missing[0]!r}")
        if entry["task"] not in TASKS:
            raise InputError(
                f"{where}: question {entry['id']!r}: task {entry['task']!r} is not one of {', '.join(TASKS)}"
            )
        if not isinstance(entry["options"], Mapping) or entry["answer"] not in entry["options"]:
            raise InputError(
                f"{where}: question {entry['id']!r}: answer {entry['answer']!r} is not among the options "
                f"{', '.join(entry['options'])}"
            )
        if len(entry["anchors"]) != 2:
            raise InputError(f"{where}: question {entry['id']!r}: anchors must be two frame indices")
        return cls(**{**{name: entry[name] for name in names}, "anchors": tuple(entry["anchors"])})


@dataclass(frozen=True)
class Sample:
    """One clip with all its questions, as a shard holds it.

    Attributes:
        key: The clip's key.
        video: MP4 bytes of the stored frames (left view).
        scene: The content of ``scene.json``.
        questions: All questions about the clip.
    """

    key: str
    video: bytes
    scene: Mapping[str, Any]
    questions: tuple[Question, ...]


def _numbers(tensor: Tensor) -> Any:
    """Nested lists of floats rounded to 6 decimals, None for values that are not finite."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(item) for item in value]
        return round(value, 6) + 0.0 if math.isfinite(value) else None

    return convert(tensor.double().tolist())
