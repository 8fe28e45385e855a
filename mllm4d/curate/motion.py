"""Moving objects found by geometry alone: points whose way the camera's motion does not explain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.flow import Array, FeatureTracker
from mllm4d.curate.outline import color_name, cut_out, outline
from mllm4d.curate.residual import Lifted, Scenery, lift, static_residual
from mllm4d.geometry.pointcloud import one_thread
from mllm4d.schema import Clip, InputError, Mask

Flags = NDArray[np.bool_]


BREAK = 3
"""Frames for which an object may be lost, as in a fast turn, and still be the same."""


SAMPLE = 150
"""Points, still ones among them, that show how far the camera's path is wrong."""

NOISE = 0.1
"""Depths with a larger sigma count less when points are clustered, metres."""

TILES = 8
"""Rows and columns of tiles that share the corners."""

MEDIAN_CHI = 1.54
"""Median of the square root of a chi-squared variable with three degrees of freedom."""


@dataclass(frozen=True)
class _Group:
    """Points that move together: ``pixels`` [M, T, 2], ``depths`` [M, T], metres, NaN where not seen or unknown."""

    pixels: Array
    depths: Array


@dataclass(frozen=True)
class MotionFinder(ObjectFinder):
    """Moving objects, with no weights and no classes.

    In every ``stride``-th frame corners are looked for everywhere. Those that are found again, ``gap`` frames before
    and after, where a thing that stands still would be, are done with. The others are followed through the clip and
    lifted by depth. A point moves when its pixels and depths disagree with its standing still by ``sigmas``, in at
    least three frames, and by ``displacement``. Where the camera's path is wrong everything seems to move; residuals
    are measured in units of what a sample of all points has, if that is more than it should be. Moving points are
    clustered by place and motion (Open3D's DBSCAN), clusters of different start frames are joined where their regions
    overlap, and each becomes a mask: the region around its points, as far as its depth and its colours reach.

    It takes for granted that most of what is seen stands still. Neighbours that move alike may be found as one object.
    On 60 clips of the synthetic world (seeds 0, 3, 5 and 7; depth and path estimated) 87 of 90 solids that go farther
    than 0.5 m are found, 117 of 118 masks lie mostly on one moving solid, and the mean intersection over union is 0.79.
    On 51 KITTI pairs in which nothing moves it finds nothing.

    Names are "moving object", with the colour in front where it is clear, and may repeat.

    Attributes:
        stride: Frames from one look for corners to the next.
        gap: Frames to where a still point is looked for.
        corners: Largest number of corners in a frame.
        sigmas: A point moves when its residual (square root of chi squared) exceeds this.
        displacement: And when its displacement in the world exceeds this, metres.
        drift: Standard deviation of the camera's place per metre travelled, metres.
        turn: Standard deviation of the camera's rotation between two frames, radians.
        reach: Points of one object have a chain of neighbours this close in place and in motion over ``gap`` frames
            together, metres.
        min_points: Of a cluster.
        min_frames: Objects seen in fewer frames are dropped.
        min_pixels: Smaller regions are dropped.
    """

    stride: int = 5
    gap: int = 5
    corners: int = 1200
    sigmas: float = 4.0
    displacement: float = 0.2
    drift: float = 0.01
    turn: float = 0.001
    reach: float = 0.8
    min_points: int = 5
    min_frames: int = 4
    min_pixels: int = 40

    def __post_init__(self) -> None:
        for key in self.__dataclass_fields__:
            if not getattr(self, key) > 0:
                raise InputError(f"MotionFinder: {key} must be positive, not {getattr(self, key)}")

    def __call__(self, clip: Clip, depth: Depth, world_to_camera: Tensor) -> tuple[Mask, ...]:
        """Find what moves.

        Raises:
            InputError: Depth or poses do not fit the clip.
        """
        if depth.depth.shape != clip.frames.shape[:3] or len(world_to_camera) != len(clip.frames):
            raise InputError(
                f"clip {clip.key!r}: MotionFinder needs depth and poses for its {len(clip.frames)} frames, got "
                f"{list(depth.depth.shape)} and {len(world_to_camera)}"
            )
        scenery = Scenery.of(clip, depth, world_to_camera, self.drift, self.turn)
        groups: list[_Group] = []
        for start in range(min(self.stride // 2, len(clip.frames) - 1), len(clip.frames), self.stride):
            groups += self._groups(clip, scenery, start)
        regions = [self._regions(group, clip, depth) for group in groups]
        masks: list[Mask] = []
        for members in _joined(regions):
            whole = _Group(*(np.concatenate([getattr(groups[k], n) for k in members]) for n in ("pixels", "depths")))
            pixels = self._regions(whole, clip, depth)
            for t in np.flatnonzero(pixels.any((1, 2))):
                pixels[t] = cut_out(pixels[t], clip.frames[t].numpy())
            if int(pixels.any((1, 2)).sum()) >= self.min_frames:
                color = color_name(clip.frames.numpy()[pixels])
                name = f"{color} moving object" if color else "moving object"
                masks.append(Mask(len(masks), name, torch.from_numpy(pixels)))
        return tuple(masks)

    def _groups(self, clip: Clip, scenery: Scenery, start: int) -> list[_Group]:
        """Clusters of moving points that are found in one frame."""
        tracker = FeatureTracker(count=self.corners, tiles=TILES)
        points = tracker.corners(clip.frames[start])
        if not len(points):
            return []
        first = lift(scenery, points, start)
        points, first = points[first.known], first.only(first.known)
        still = self._still(tracker, scenery, points, first, start)
        # Some of all points tell how well the camera's path explains what stands still.
        sample = np.zeros(len(points), bool)
        sample[:: max(1, len(points) // SAMPLE)] = True
        followed = ~still | sample
        if (~still).sum() < self.min_points:
            return []
        still, sample, first = still[followed], sample[followed], first.only(followed)
        tracks = tracker.follow(scenery.grey, start, points[followed]).pixels.numpy()
        residuals, depths = np.full(tracks.shape[:2], np.nan), np.full(tracks.shape[:2], np.nan)
        ways = np.full((*tracks.shape[:2], 3), np.nan)
        for t in range(len(clip.frames)):
            here = lift(scenery, tracks[:, t], t)
            depths[:, t] = here.local[:, 2]
            if t != start:
                residuals[:, t] = static_residual(scenery, first, here, start, t)
                ways[:, t] = scenery.to_world(here.local, t) - scenery.to_world(first.local, start)
        residuals /= _excess(residuals[sample])
        with np.errstate(invalid="ignore"):
            far = (residuals > self.sigmas) & (np.linalg.norm(ways, axis=-1) > self.displacement)
        moving = far.sum(1) >= 3
        elsewhere = np.arange(len(clip.frames)) != start
        if moving.sum() < self.min_points:
            return []
        steps = ways[moving] / np.where(elsewhere, np.arange(len(clip.frames)) - start, 1)[:, None]
        motion = np.nanmedian(steps[:, elsewhere], axis=1) * self.gap
        places, motion = _comparable(first.only(moving), motion @ scenery.poses[start, :3, :3].T)
        members = _clusters(places, motion, self.reach, self.min_points)
        return [_Group(tracks[moving][chosen], depths[moving][chosen]) for chosen in members]

    def _still(self, tracker: FeatureTracker, scenery: Scenery, points: Array, first: Lifted, start: int) -> Flags:
        """Which points are found where they would be if they stood still."""
        still = np.ones(len(points), bool)
        for t in (start - self.gap, start + self.gap):
            if 0 <= t < len(scenery.grey):
                expected = scenery.project(first, start, t)
                there, found = tracker.match(scenery.grey[start], scenery.grey[t], points, expected)
                residual = static_residual(scenery, first, lift(scenery, there, t), start, t)
                still &= found & (residual < self.sigmas / 2)
        return still

    def _regions(self, group: _Group, clip: Clip, depth: Depth) -> Flags:
        """Where the object of a group is, [T, H, W]."""
        regions = np.zeros(depth.depth.shape, bool)
        for t in range(len(regions)):
            known = np.isfinite(group.depths[:, t])
            if known.sum() >= self.min_points:
                regions[t] = outline(
                    group.pixels[known, t], group.depths[known, t], depth.depth[t].numpy(), depth.sigma[t].numpy()
                )
                if regions[t].sum() < self.min_pixels:
                    regions[t] = False
        return regions


def _excess(residuals: Array) -> Array:
    """By how much larger the residuals [M, T] of points of all kinds are than those of still ones ought to be, [T]."""
    known, columns = np.isfinite(residuals), residuals.T
    middles = [
        np.median(column[seen]) if seen.sum() > 10 else 0.0 for column, seen in zip(columns, known.T, strict=True)
    ]
    return np.maximum(1.0, np.array(middles) / MEDIAN_CHI)


def _comparable(points: Lifted, motion: Array) -> tuple[Array, Array]:
    """Places and motions [M, 3] (camera axes, metres) with depth drawn together where its noise exceeds ``NOISE``.

    The sigma of a depth z is ``s z^2``; where that exceeds ``NOISE`` a metre counts as ``NOISE / (s z^2)``.
    """
    z = points.local[:, 2]
    knee = np.sqrt(NOISE / points.inverse_sigma)
    places, motion = points.local.copy(), motion.copy()
    places[:, 2] = np.where(z > knee, knee * (2 - knee / z), z)
    motion[:, 2] *= np.minimum(1, (knee / z) ** 2)
    return places, motion


def _clusters(places: Array, motions: Array, reach: float, least: int) -> list[NDArray[np.int64]]:
    """Indices of points that are neighbours in place [M, 3], and among these in motion [M, 3] (DBSCAN twice)."""
    found = []
    with one_thread() as open3d:

        def scan(rows: Array) -> NDArray[np.int64]:
            cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(rows))
            return np.asarray(cloud.cluster_dbscan(eps=reach, min_points=least), np.int64)

        by_place = scan(places)
        for place in range(by_place.max(initial=-1) + 1):
            members = np.flatnonzero(by_place == place)
            by_motion = scan(motions[members])
            found += [members[by_motion == motion] for motion in range(by_motion.max(initial=-1) + 1)]
    return found


def _joined(regions: list[Flags]) -> list[list[int]]:
    """Which groups are one object: those whose regions overlap where both are seen, or where one follows the other."""
    label = list(range(len(regions)))
    for b in range(len(regions)):
        for a in range(b):
            if _overlap(regions[a], regions[b]) > 0.5:
                old, new = label[b], label[a]
                label = [new if value == old else value for value in label]
    return [[k for k, value in enumerate(label) if value == one] for one in sorted(set(label))]


def _overlap(one: Flags, other: Flags) -> float:
    """Share of the smaller region that lies in the larger, in the median of common frames.

    Without any, where one ends and the other begins at most ``BREAK`` frames later.
    """
    frames, others = (np.flatnonzero(region.any((1, 2))) for region in (one, other))
    if not len(frames) or not len(others):
        return 0.0
    common = np.intersect1d(frames, others)
    pairs = [(t, t) for t in common.tolist()]
    if not pairs:
        ends = (frames[-1], others[0]) if frames[-1] < others[0] else (frames[0], others[-1])
        pairs = [ends] if abs(ends[1] - ends[0]) <= BREAK else []
    shares = [(one[s] & other[t]).sum() / min(one[s].sum(), other[t].sum()) for s, t in pairs]
    return float(np.median(shares)) if shares else 0.0
