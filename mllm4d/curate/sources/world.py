"""A synthetic 4-D world: named solids that move, stop and turn, filmed by a moving stereo rig, with exact truth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.world_layout import COLOURS, SUBSTEPS, Layout, Lens, Solid, draw_layout
from mllm4d.curate.sources.world_motion import Array, Lengths
from mllm4d.curate.sources.world_rays import Rays
from mllm4d.curate.sources.world_render import Stage, View
from mllm4d.curate.sources.world_shapes import centroid_height, placed, surface_points, unit_mesh
from mllm4d.geometry.pose import invert, rebase, transform
from mllm4d.schema import Clip, InputError, Mask, Track

CLIPS = 100_000
"""Clips that keys have room for."""

POINTS = 400
"""Surface points of a track."""

VISIBLE_SHARE, VISIBLE_PIXELS = 0.4, 12
"""An object counts as seen when so much of its silhouette is, and so many pixels. The silhouette is that of the whole
solid, also where it is hidden or reaches out of the image."""


@dataclass(frozen=True)
class World(Source):
    """A seeded synthetic world. A clip depends on the settings, the seed and its number, and on nothing else.

    Coloured cubes, balls, cylinders and cones stand, travel straight, stop, start or turn in a yard with textured
    ground, walls and grey props. The camera stands, pans, travels straight, orbits or follows a bend, 1.2-2 m over
    the ground. Directions are uniform, lengths of paths log-uniform.
    Names say nothing about motions. Objects are inside the image for at least four fifths of the frames.

    Tracks hold the solid's centre of mass, exactly (sigma 0), and points spread over its whole surface, for the frames
    in which it is seen (``VISIBLE_SHARE`` and ``VISIBLE_PIXELS``). World coordinates are the camera axes of the first
    frame.

    Attributes:
        frames: Frames of a clip.
        fps: Frame rate, 1/s. Lengths of paths are per clip, so that a higher rate makes everything faster.
        width: Of an image, pixels.
        height: Of an image, pixels.
        baseline: Distance of the two cameras, metres.
        field_of_view: Across the image, degrees.
        objects: Least and greatest number of named objects in a clip.
        object_length: Least and greatest length of an object's path over the clip, metres.
        camera_length: Least and greatest length of the camera's path over the clip, metres.
        still_camera: Share of the clips in which the camera stands.
        farthest: Greatest distance from the camera at which an object is given its place, at some time of the clip,
            metres.
        noise: Standard deviation of the noise in the images, grey levels.
        seed: Of the whole world.
        truth: Hand over exact depth, poses, masks and tracks, and no right view. Otherwise the world is what a stereo
            camera in the field would give: both views, calibration and object masks.
    """

    frames: int = 16
    fps: float = 8.0
    width: int = 320
    height: int = 192
    baseline: float = 0.25
    field_of_view: float = 60.0
    objects: tuple[int, int] = (2, 4)
    object_length: tuple[float, float] = Lengths.object
    camera_length: tuple[float, float] = Lengths.camera
    still_camera: float = Lengths.still
    farthest: float = Lengths.farthest
    noise: float = 1.0
    seed: int = 0
    truth: bool = True

    def __post_init__(self) -> None:
        def check(key: str, good: bool, expected: str) -> None:
            if not good:
                raise InputError(f"World: {key} must be {expected}, not {getattr(self, key)}")

        check("frames", self.frames >= 2, "at least 2")
        check("fps", 0 < self.fps < float("inf"), "a positive number of frames per second")
        check("width", self.width >= 32, "at least 32 pixels")
        check("height", self.height >= 32, "at least 32 pixels")
        check("baseline", 0 < self.baseline <= 1, "in metres, greater than 0 and at most 1")
        check("field_of_view", 40 <= self.field_of_view <= 110, "in degrees, from 40 to 110")
        good = len(self.objects) == 2 and 1 <= self.objects[0] <= self.objects[1] <= len(COLOURS)
        check("objects", good, f"(least, greatest) number, from 1 to {len(COLOURS)}")
        for key in ("object_length", "camera_length"):
            length = getattr(self, key)
            check(key, len(length) == 2 and 0 < length[0] <= length[1] <= 8, "(least, greatest) metres, up to 8")
        check("still_camera", 0 <= self.still_camera <= 1, "a share from 0 to 1")
        check("farthest", 5 <= self.farthest < float("inf"), "at least 5 metres")
        check("noise", 0 <= self.noise < float("inf"), "a standard deviation in grey levels, not negative")
        check("seed", self.seed >= 0, "not negative")

    def keys(self, limit: int | None = None) -> Sequence[str]:
        """``world-00000`` and on.

        Raises:
            InputError: There is no limit, or it is not from 1 to ``CLIPS``: the world itself has no end.
        """
        if limit is None or not 1 <= limit <= CLIPS:
            raise InputError(f"World: the key 'clips' must say how many clips to make, from 1 to {CLIPS}, not {limit}")
        return [f"world-{index:05d}" for index in range(limit)]

    def load(self, key: str) -> Clip:
        """Make one clip, with the fields that ``truth`` says.

        Raises:
            InputError: There is no clip of that key.
        """
        clip = self._film(self._index(key), right=not self.truth)
        if self.truth:
            return replace(clip, baseline=None)
        return replace(clip, depth=None, world_to_camera=None, tracks=None)

    def render(self, key: str) -> Clip:
        """Make one clip with everything: both views and the truth, whatever ``truth`` says.

        Raises:
            InputError: There is no clip of that key.
        """
        return self._film(self._index(key), right=True)

    def _index(self, key: str) -> int:
        if not re.fullmatch(r"world-\d{5}", key):
            raise InputError(f"World: there is no clip {key!r}; keys go from world-00000 to world-{CLIPS - 1:05d}")
        return int(key[6:])

    def _intrinsics(self) -> Array:
        focal = self.width / 2 / np.tan(np.radians(self.field_of_view) / 2)
        return np.array([[focal, 0, (self.width - 1) / 2], [0, focal, (self.height - 1) / 2], [0, 0, 1]])

    def _film(self, index: int, right: bool) -> Clip:
        # A stream for each purpose, so that leaving out the right view changes nothing else.
        place, paint, grain_left, grain_right = np.random.SeedSequence([self.seed, index]).spawn(4)
        intrinsics = self._intrinsics()
        focal = float(intrinsics[0, 0])
        lens = Lens(self.width / 2 / focal, self.height / 2 / focal, focal)
        lengths = Lengths(self.object_length, self.camera_length, self.still_camera, self.farthest)
        layout = draw_layout(np.random.default_rng(place), self.frames, self.objects, lens, lengths)
        stage = Stage(layout, np.random.default_rng(paint))
        rays = Rays.of(intrinsics, self.height, self.width)
        left = self._views(stage, rays, 0.0, np.random.default_rng(grain_left))
        there = self._views(stage, rays, self.baseline, np.random.default_rng(grain_right)) if right else None
        stage_to_camera = invert(torch.from_numpy(stage.camera_to_stage))
        tracks, masks = [], []
        for k, solid in enumerate(layout.solids):
            pixels = np.stack([view.bodies == k for view in left])
            masks.append(Mask(k, solid.name, torch.from_numpy(pixels)))
            tracks.append(_track(k, solid, pixels, stage_to_camera, intrinsics))
        key = f"world-{index:05d}"
        return Clip(
            key=key,
            video=key,
            frames=_images(left),
            times=torch.arange(self.frames, dtype=torch.float64) / self.fps,
            fps=self.fps,
            intrinsics=torch.from_numpy(intrinsics),
            right=None if there is None else _images(there),
            baseline=self.baseline,
            depth=torch.from_numpy(np.stack([view.depth for view in left])),
            world_to_camera=rebase(stage_to_camera),
            masks=tuple(masks),
            tracks=tuple(tracks),
            provenance={"source": "world", "seed": self.seed, "index": index, **_story(layout)},
        )

    def _views(self, stage: Stage, rays: Rays, shift: float, rng: np.random.Generator) -> list[View]:
        size = (self.height, self.width, 3)
        strength = np.float32(self.noise)
        return [
            stage.look(frame, shift, rays, strength * rng.standard_normal(size, dtype=np.float32))
            for frame in range(self.frames)
        ]


def _images(views: Sequence[View]) -> Tensor:
    return torch.from_numpy(np.stack([view.image for view in views]))


def _story(layout: Layout) -> dict[str, object]:
    """What happens in the clip; directions are in degrees, clockwise from straight ahead of the first camera."""
    rig = layout.rig
    camera = {
        **rig.motion.describe(),
        "height": round(rig.height, 4),
        "pitch": round(float(np.degrees(rig.pitch)), 4),
        "yaw": round(float(np.degrees(rig.yaw[-1])), 1),
    }
    return {"camera": camera, "objects": [{"name": s.name, **s.motion.describe()} for s in layout.solids]}


def _track(id: int, solid: Solid, pixels: Array, stage_to_camera: Tensor, intrinsics: Array) -> Track:
    """The truth about one object, in the camera axes of the first frame."""
    mesh, local = unit_mesh(solid.shape), surface_points(solid, POINTS)
    middle = np.array([0.0, 0.5 - centroid_height(solid) / float(solid.size[1]), 0.0])
    centers, points = [], []
    for frame, pose in enumerate(stage_to_camera):
        step = frame * SUBSTEPS
        outline = transform(pose, torch.from_numpy(placed(solid, mesh.vertices, step))).numpy()
        if _seen(int(pixels[frame].sum()), outline, intrinsics):
            # Each frame alone, so that a solid that stands still has the same centre to the last bit.
            here = torch.from_numpy(np.concatenate([placed(solid, middle[None], step), placed(solid, local, step)]))
            here = transform(stage_to_camera[0], here)
            centers.append(here[0])
            points.append(here[1:])
        else:
            centers.append(torch.full((3,), float("nan"), dtype=torch.float64))
            points.append(torch.empty(0, 3, dtype=torch.float64))
    path = torch.stack(centers)
    sigma = torch.where(path.isfinite().all(-1), 0.0, float("nan")).double()
    return Track(id, solid.name, path, sigma, sigma, sigma, tuple(points), moving=solid.motion.length > 0)


def _seen(count: int, outline: Array, intrinsics: Array) -> bool:
    """Whether ``count`` pixels are enough of the silhouette of a convex solid with vertices [V, 3] in camera axes."""
    import cv2

    if count < VISIBLE_PIXELS or outline[:, 2].min() < 0.05:
        return False
    image = (outline @ intrinsics.T)[:, :2] / outline[:, 2:]
    return count >= VISIBLE_SHARE * cv2.contourArea(cv2.convexHull(image.astype(np.float32)))
