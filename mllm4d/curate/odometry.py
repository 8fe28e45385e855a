"""The camera's path from stereo video."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.curate.lifting import LiftedFrames
from mllm4d.curate.pnp import Array, Fit, Matches, solve_step
from mllm4d.curate.refinement import refine_step
from mllm4d.curate.tracking import CornerTracker, FeatureMatcher
from mllm4d.geometry.pose import center
from mllm4d.schema import Clip, InputError

STILL_STEP = 0.01
"""Steps shorter than this are measured against this in ``shake``, metres: what a still camera does is noise."""


@dataclass(frozen=True)
class Path:
    """Where the left camera was.

    Attributes:
        world_to_camera: [T, 4, 4] float64; the world is the camera axes of the clip's first frame, metres.
        center_sigma: [T] float64, standard deviation of the centre relative to the first frame's (per axis), metres.
        rotation_sigma: [T] float64, standard deviation of the rotation since the first frame (per axis), radians.
        quality: Figures about the estimate; plain JSON values.
    """

    world_to_camera: Tensor
    center_sigma: Tensor
    rotation_sigma: Tensor
    quality: Mapping[str, float | int]


class Odometry(ABC):
    """Anything that finds a clip's camera path. Subclass it and name the class in YAML by ``class_path``."""

    @abstractmethod
    def __call__(self, clip: Clip, depth: Depth) -> Path:
        """Estimate the path; the same input gives the same path.

        Raises:
            InputError: The path cannot be found; the message names the clip and the frame.
        """


@dataclass(frozen=True)
class _Step:
    """From a key frame to a later frame: their numbers, the fit, the refined transform [4, 4] or None, and the try."""

    key: int
    frame: int
    fit: Fit
    refined: Array | None
    matched: bool

    @property
    def transform(self) -> Array:
        return self.fit.transform if self.refined is None else self.refined


@dataclass(frozen=True)
class _Key:
    """A key frame: its number, its corners [N, 2], their points [N, 3] (its own axes, metres) and depth's sigma [N]."""

    frame: int
    corners: Array
    points: Array
    depth_sigma: Array


@dataclass(frozen=True)
class StereoOdometry(Odometry):
    """Odometry by key frames: corners with known depth, followed by optical flow, PnP with RANSAC and a weighted fit.

    Every frame is placed relative to a key frame, so that a camera that stands does not drift. When too few of its
    corners are still seen, the frame before becomes the new key frame. Where flow finds too little, SIFT features of
    the two frames are matched instead; ``matched_steps`` of the path's quality counts these second tries.

    On 51 KITTI pairs (59.9 m): 0.25 m RMS error without alignment, end drift 0.70 % of the path. The sigmas are
    calibrated on 88 clips of the synthetic world and on KITTI: over all frames, error over sigma (per axis) has a root
    mean square of 0.80 for the centre and 0.81 for the rotation, and exceeds 3 in 0.7 % and 0.3 %; on 20 other clips
    0.92 and 0.93, 1.3 % and 2.7 %. Between pairs of frames, where what they have in common is taken off, they are
    cautious: 0.63 and 0.58.

    Attributes:
        corners: Largest number of corners in a key frame.
        keep: A key frame is given up when a smaller share of its corners agrees with the step.
        features: Largest number of SIFT features in a frame, for second tries.
        ratio: Lowe's ratio for them: the best match's distance over the second best's must be below it.
        max_relative_sigma: Depths with a larger sigma, relative to the depth, are not used.
        pixel_sigma: Standard deviation of a followed corner's pixel coordinates.
        reprojection: RANSAC's inlier threshold, pixels.
        min_inliers: With fewer inliers a step counts as lost.
        min_share: Likewise with a smaller share of inliers among the matches.
        doubt: With a smaller share of inliers among the corners followed, a step gets its second try.
        refine: Whether Open3D refines the steps.
        depth_outlier: Pixels whose depth disagrees by more are left out of the refinement, metres.
        agree: A refined step is taken where the inliers' reprojection error is at most so many times PnP's.
        drift: Standard deviation of the centre per metre of path (per axis), beside the steps' own variance: matches of
            one step share errors of the depth, and so do steps.
        turn_drift: Standard deviation of the rotation per metre of path (per axis), radians, likewise.
        inflation: How many times larger a step's error is than its fit says: neighbouring depths err together.
        seed: Of RANSAC.
    """

    corners: int = 800
    keep: float = 0.8
    features: int = 2000
    ratio: float = 0.8
    max_relative_sigma: float = 0.2
    pixel_sigma: float = 0.25
    reprojection: float = 1.0
    min_inliers: int = 20
    min_share: float = 0.2
    doubt: float = 0.5
    refine: bool = False
    depth_outlier: float = 0.1
    agree: float = 1.2
    drift: float = 0.008
    turn_drift: float = 0.0007
    inflation: float = 1.5
    seed: int = 0

    def __call__(self, clip: Clip, depth: Depth) -> Path:
        """Estimate the path.

        Raises:
            InputError: Depth and frames differ in shape, or a step has too few matches that agree.
        """
        import cv2

        if depth.depth.shape != clip.frames.shape[:3]:
            raise InputError(
                f"clip {clip.key!r}: depth must be {list(clip.frames.shape[:3])} as the frames are, "
                f"not {list(depth.depth.shape)}"
            )
        cv2.setRNGSeed(self.seed)
        scene = LiftedFrames(clip, depth, self.max_relative_sigma)
        poses: list[Array] = [np.eye(4)]
        steps: list[_Step] = []
        key = self._key(scene, 0)
        for t in range(1, len(clip.frames)):
            step = self._step(scene, key, t, poses)
            if key.frame < t - 1 and (step is None or len(step.fit.inliers) < self.keep * len(key.corners)):
                key = self._key(scene, t - 1)
                step = self._step(scene, key, t, poses)
            if step is None or step.fit.share < self.doubt:
                step = self._second_try(scene, t, step)
            poses.append(step.transform @ poses[step.key])
            steps.append(step)
        path = torch.from_numpy(np.stack(poses))
        return Path(path, *self._sigmas(path, steps), self._quality(path, steps))

    def _key(self, scene: LiftedFrames, t: int) -> _Key:
        depth = scene.trusted(t)
        found = CornerTracker(self.corners).corners(scene.grey(t), (depth > 0).astype(np.uint8))
        return _Key(t, found, *scene.lift(t, found))

    def _step(self, scene: LiftedFrames, key: _Key, t: int, poses: Sequence[Array]) -> _Step | None:
        """The step from the key frame by optical flow, or None."""
        last, before = poses[-1], poses[max(0, len(poses) - 2)]
        # As the camera moved last, so it goes on.
        ahead = last @ np.linalg.inv(before) @ last @ np.linalg.inv(poses[key.frame])
        seen = key.points @ ahead[:3, :3].T + ahead[:3, 3]
        image = seen @ scene.intrinsics.T
        guess = np.where(seen[:, 2:] > 0.1, image[:, :2] / image[:, 2:].clip(0.1), key.corners)
        pixels, good = CornerTracker(self.corners).follow(scene.grey(key.frame), scene.grey(t), key.corners, guess)
        fit = self._solve(Matches(key.points, key.depth_sigma, pixels)[good], scene)
        return None if isinstance(fit, int) else self._refined(scene, key.frame, t, fit, False)

    def _second_try(self, scene: LiftedFrames, t: int, first: _Step | None) -> _Step:
        """The step from the frame before by SIFT matches, unless the first try agrees better."""
        start, end = FeatureMatcher(self.features, self.ratio).match(scene.grey(t - 1), scene.grey(t))
        points, sigma = scene.lift(t - 1, start)
        matches = Matches(points, sigma, end)[points[:, 2] > 0]
        fit = self._solve(matches, scene)
        if not isinstance(fit, int) and (first is None or fit.share > first.fit.share):
            return self._refined(scene, t - 1, t, fit, True)
        if first is not None:
            return first
        raise InputError(
            f"clip {scene.clip.key!r}: the camera's path is lost between frames {t - 1} and {t}: {fit} matches of "
            f"{len(matches)} agree, {self._needed(matches)} are needed"
        )

    def _needed(self, matches: Matches) -> int:
        return max(self.min_inliers, round(self.min_share * len(matches)))

    def _solve(self, matches: Matches, scene: LiftedFrames) -> Fit | int:
        return solve_step(matches, scene.intrinsics, self.reprojection, self.pixel_sigma, minimum=self._needed(matches))

    def _refined(self, scene: LiftedFrames, key: int, t: int, fit: Fit, matched: bool) -> _Step:
        if not self.refine:
            return _Step(key, t, fit, None, matched)
        here, there = ((scene.grey(frame), scene.trusted(frame)) for frame in (key, t))
        refined = refine_step(here, there, fit, scene.intrinsics, self.depth_outlier, self.agree)
        return _Step(key, t, fit, refined, matched)

    def _sigmas(self, path: Tensor, steps: Sequence[_Step]) -> tuple[Tensor, Tensor]:
        """Standard deviations of centre and rotation, [T] each, from the steps' own and from drift."""
        own = [(0.0, 0.0)]
        for n, step in enumerate(steps):
            # From frame to frame two errors meet, unless the frame before is the key frame itself.
            met = [step.fit] if step.key == step.frame - 1 else [step.fit, steps[n - 1].fit]
            own.append((sum(fit.variance for fit in met), sum(fit.angle_variance for fit in met)))
        jitter = self.inflation**2 * torch.tensor(own, dtype=path.dtype).cumsum(0)
        travelled = torch.cat([path.new_zeros(1), center(path).diff(dim=0).norm(dim=-1).cumsum(0)])
        drift = travelled[:, None] * torch.tensor([self.drift, self.turn_drift], dtype=path.dtype)
        shift, turn = (drift.square() + jitter).sqrt().unbind(-1)
        return shift, turn

    def _quality(self, path: Tensor, steps: Sequence[_Step]) -> dict[str, float | int]:
        moves = center(path).diff(dim=0)
        lengths = moves.norm(dim=-1)
        quality: dict[str, float | int] = {"path_length": round(float(lengths.sum()), 4)}
        if not steps:
            return quality
        change = moves.diff(dim=0).norm(dim=-1).square()
        shake = float(change.mean().sqrt() / lengths.mean().clamp(min=STILL_STEP)) if len(change) else 0.0
        inliers = [len(step.fit.inliers) for step in steps]
        return quality | {
            "step_max": round(float(lengths.max()), 4),
            "shake": round(shake, 4),
            "inliers_min": min(inliers),
            "inliers_median": median(inliers),
            "inlier_share_min": round(min(step.fit.share for step in steps), 4),
            "key_frames": len({step.key for step in steps}),
            "matched_steps": sum(step.matched for step in steps),
            "refined_share": round(sum(step.refined is not None for step in steps) / len(steps), 4),
        }
