"""Stereo4D in its released form: annotations from the data set, VR180 videos from the user."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.equirect import covers, sampling_map, take_view, view_intrinsics
from mllm4d.curate.sources.stereo4d_npz import Annotation, read_annotation, read_timestamps, read_tracks, read_video_id
from mllm4d.curate.sources.stereo4d_video import find_video, read_frames
from mllm4d.geometry.pose import center, rebase, transform
from mllm4d.schema import Clip, InputError


@dataclass(frozen=True)
class Stereo4D(Source):
    """Stereo4D (Jin et al., CVPR 2025): clips of VR180 videos with camera paths.

    The release holds annotations only, one ``NAME.npz`` a clip (at most some 200 frames at 30 frames a second). The
    videos have to be there as ``VIDEO_ID.mp4``, ``.mkv`` or ``.webm``, with the left eye on the left half and both eyes
    equirectangular. Every frame is rectified here (``equirect.py``) to what the authors worked with: 512x512 pixels, 60
    degrees wide. Frames are those nearest to the annotated times.

    How well the poses are known has not been published. All cameras are taken to have a baseline of 63 mm
    (stereo4d-code, issue 30), and they have not: Canon's RF 5.2 mm lens has 60 mm, others have 65. The standard
    deviations below are therefore guesses on the careful side, not measurements.

    Attributes:
        annotations: Folder of npz files; the release has two, ``train`` and ``test``.
        videos: Folder of videos.
        clip_frames: Largest number of frames in a clip. An npz is cut into clips of even length without overlap, and no
            frame is lost: 200 frames at stride 6 become clips of 12, 11 and 11.
        stride: Every so many annotated frames one is used; 6 makes 5 frames a second.
        size: Width and height of the rectified frames, pixels, even.
        fov: Angle that they cover, degrees.
        baseline: Of all cameras, metres.
        min_height: Videos of fewer rows are refused, as in the authors' code: YouTube's smaller formats are no VR180.
        center_sigma: Standard deviation of the camera centre (per axis) after one second, metres; grows with the root
            of the time, as a random walk's does.
        rotation_sigma: Standard deviation of the rotation (per axis) after one second, radians; grows likewise.
        scale_sigma: Standard deviation of the scale, relative; 2 mm of 63. It adds this share of the camera's way to
            its centre's sigma. Depth errs by the same share, which its own sigma leaves out.
    """

    annotations: str
    videos: str
    clip_frames: int = 16
    stride: int = 6
    size: int = 512
    fov: float = 60.0
    baseline: float = 0.063
    min_height: int = 2000
    center_sigma: float = 0.01
    rotation_sigma: float = 0.002
    scale_sigma: float = 0.032

    def __post_init__(self) -> None:
        if self.clip_frames < 2 or self.stride < 1:
            raise InputError(f"'clip_frames' must be at least 2, 'stride' 1; got {self.clip_frames} and {self.stride}")
        if self.size < 16 or self.size % 2:
            raise InputError(f"'size' must be even and at least 16 pixels, not {self.size}")
        if not 0 < self.fov < 170:
            raise InputError(f"'fov' must lie between 0 and 170 degrees, not {self.fov}")
        if not self.baseline > 0:
            raise InputError(f"'baseline' must be positive, not {self.baseline} m")
        for name in ("center_sigma", "rotation_sigma", "scale_sigma"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name!r} must not be negative, got {getattr(self, name)}")

    def keys(self, limit: int | None = None) -> Sequence[str]:
        """``NAME-0000``, ``NAME-0001``, … of every npz, from its times alone.

        An npz that cannot be used has one key, so that loading it says why.

        Raises:
            InputError: There is no such folder, or no npz in it.
        """
        for name, folder in (("annotations", self.annotations), ("videos", self.videos)):
            if not Path(folder).is_dir():
                raise InputError(f"{folder}: there is no such folder (key {name!r})")
        paths = sorted(Path(self.annotations).glob("*.npz"))
        if not paths:
            raise InputError(f"{self.annotations}: holds no npz file; expected those of Stereo4D (key 'annotations')")
        keys = (f"{path.stem}-{index:04d}" for path in paths for index in range(self._clips(path)))
        return list(itertools.islice(keys, limit))

    def video(self, key: str) -> str:
        """The video's id; of an npz that cannot be used, its name."""
        path, _ = self._find(key)
        try:
            return read_video_id(path)
        except InputError:
            return path.stem  # Loading it says what is wrong.

    def load(self, key: str) -> Clip:
        """Decode and rectify one clip.

        Raises:
            InputError: There is no such clip, its annotation or its video cannot be used, or the video is missing.
        """
        annotation, frames = self._open(key)
        times = annotation.timestamps[frames]
        path = annotation.world_to_camera(frames)
        intrinsics = view_intrinsics(self.size, self.fov)
        left, right = self._rectify(annotation, times, intrinsics)
        center_sigma, rotation_sigma = self._sigmas(times, path)
        microseconds = (times * 1e6).round().long().tolist()
        return Clip(
            key=key,
            video=annotation.video,
            frames=left,
            times=times - times[0],
            fps=1 / float(times.diff().median()),
            intrinsics=intrinsics,
            right=right,
            baseline=self.baseline,
            world_to_camera=rebase(path),
            center_sigma=center_sigma,
            rotation_sigma=rotation_sigma,
            provenance={
                "source": "stereo4d",
                "video": annotation.video,
                "name": annotation.name,
                "frames": frames,
                "timestamps": [microseconds[0], microseconds[-1]],
                "poses": "released",
            },
        )

    def tracks(self, key: str) -> Tensor:
        """The released 3-D point tracks that a clip sees; they name no object.

        Returns:
            [N, T, 3] float64, in the axes of the clip's first camera, as the clip's poses are, metres; NaN where a
            track is not seen.

        Raises:
            InputError: There is no such clip, or its annotation cannot be used.
        """
        annotation, frames = self._open(key)
        tracks = read_tracks(annotation.path, frames, len(annotation.timestamps))
        return transform(annotation.world_to_camera(frames[:1]), tracks)

    def _find(self, key: str) -> tuple[Path, int]:
        name, _, number = key.rpartition("-")
        path = Path(self.annotations) / f"{name}.npz"
        if not number.isdigit() or not path.is_file():
            raise InputError(f"{self.annotations}: has no clip {key!r}")
        return path, int(number)

    def _open(self, key: str) -> tuple[Annotation, list[int]]:
        """The annotation, and which of its frames the clip has."""
        path, number = self._find(key)
        annotation = read_annotation(path)
        cuts = self._cut(len(annotation.timestamps))
        if not cuts:
            raise InputError(
                f"{path}: key 'timestamps' holds {len(annotation.timestamps)} frames, too few for two at stride "
                f"{self.stride}"
            )
        if number >= len(cuts):
            raise InputError(f"{self.annotations}: has no clip {key!r}, {path.name} makes {len(cuts)} clips")
        return annotation, cuts[number]

    def _clips(self, path: Path) -> int:
        try:
            return max(1, len(self._cut(len(read_timestamps(path)))))
        except InputError:
            return 1  # Loading it says what is wrong.

    def _cut(self, count: int) -> list[list[int]]:
        """Frame numbers of every clip."""
        used = np.arange(0, count, self.stride)
        if len(used) < 2:
            return []
        return [part.tolist() for part in np.array_split(used, -(-len(used) // self.clip_frames))]

    def _rectify(self, annotation: Annotation, times: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right views [T, size, size, 3]; one frame of the video is held at a time."""
        file = find_video(Path(self.videos), annotation.video)
        half = 0.5 * float(annotation.timestamps.diff().median())
        maps: list[Tensor] = []
        views: list[list[Tensor]] = [[], []]
        for frame in read_frames(file, times.tolist(), half):
            height, width = frame.shape[0], frame.shape[1] // 2
            if not maps:
                if height < self.min_height or frame.shape[1] % 2:
                    raise InputError(
                        f"{file}: is {frame.shape[1]}x{height} pixels; expected an even width and at least "
                        f"{self.min_height} rows (key 'min_height')"
                    )
                maps = self._maps(annotation, intrinsics, (height, width))
            for side in range(2):
                views[side].append(take_view(frame[:, side * width : (side + 1) * width], maps[side], self.size))
        return torch.stack(views[0]), torch.stack(views[1])

    def _maps(self, annotation: Annotation, intrinsics: Tensor, picture: tuple[int, int]) -> list[Tensor]:
        """Where the left and the right view take their samples in the eyes' pictures."""
        maps = []
        for side, rotation in zip(("left", "right"), annotation.rectified_to_eye, strict=True):
            maps.append(sampling_map(intrinsics, self.size, rotation, annotation.bounds, picture))
            if not covers(maps[-1], picture):
                raise InputError(
                    f"{annotation.path}: key 'fov_bounds': the {side} view of {self.fov:g} degrees reaches beyond the "
                    f"picture, whose yaw and tilt are {list(annotation.bounds)} degrees"
                )
        return maps

    def _sigmas(self, times: Tensor, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        """[T] each, metres and radians, relative to the first frame."""
        root = (times - times[0]).sqrt()
        steps = center(world_to_camera).diff(dim=0).norm(dim=-1)
        way = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
        return torch.hypot(self.center_sigma * root, self.scale_sigma * way), self.rotation_sigma * root
