"""Which sightings and tracks of objects cannot be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mllm4d.curate.filters.clip import SIGMAS, require_positive
from mllm4d.curate.objects import moves
from mllm4d.geometry.pose import center
from mllm4d.schema import Camera, Track


@dataclass(frozen=True)
class TrackFilters:
    """Drops what an object cannot have done, and objects that are hardly known.

    Attributes:
        max_speed: Of an object in the world, metres per second; ``SIGMAS`` of the centres are forgiven.
        min_sightings: A track with fewer is dropped; it takes two to say anything about motion.
        max_relative_sigma: A track whose centre's sigma is never below this, relative to its distance, is dropped.
    """

    max_speed: float = 40.0
    min_sightings: int = 2
    max_relative_sigma: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self)

    def __call__(
        self, tracks: Sequence[Track], camera: Camera, times: Tensor
    ) -> tuple[tuple[Track, ...], Counter[str]]:
        """Filter tracks.

        Args:
            tracks: Objects.
            camera: The camera that saw them.
            times: [T], seconds.

        Returns:
            The tracks that are left, and what was dropped: "track_jump" counts frames, "track_sightings" and
            "track_uncertain" count tracks.
        """
        kept, dropped = [], Counter({"track_jump": 0, "track_sightings": 0, "track_uncertain": 0})
        eyes = center(camera.world_to_camera.double())
        for track in tracks:
            seen = track.centers.isfinite().all(-1)
            chain = torch.zeros_like(seen)
            chain[seen] = longest_chain(
                track.centers[seen].double(), track.motion_sigma[seen], times[seen], self.max_speed, SIGMAS
            )
            jumps = seen & ~chain
            if bool(jumps.any()):
                dropped["track_jump"] += int(jumps.sum())
                track = leave_out(track, jumps)
                track = replace(track, moving=moves(track.centers, track.motion_sigma, camera))
            if int(chain.sum()) < self.min_sightings:
                dropped["track_sightings"] += 1
            elif not bool((track.center_sigma < self.max_relative_sigma * (track.centers - eyes).norm(dim=-1)).any()):
                dropped["track_uncertain"] += 1
            else:
                kept.append(track)
        return tuple(kept), dropped


def longest_chain(centers: Tensor, sigmas: Tensor, times: Tensor, max_speed: float, sigmas_allowed: float) -> Tensor:
    """The largest set of sightings that one object can make without ever being too fast.

    Args:
        centers: [N, 3], metres.
        sigmas: [N], standard deviation of the centres against one another (per axis), metres.
        times: [N], seconds.
        max_speed: Metres per second.
        sigmas_allowed: A distance may be longer by so many of its standard deviations.

    Returns:
        [N] bool; of sets of one size the one that ends first.
    """
    count = len(centers)
    kept = torch.zeros(count, dtype=torch.bool)
    if not count:
        return kept
    distance = (centers[:, None] - centers).norm(dim=-1)
    spread = (sigmas[:, None].square() + sigmas.square()).sqrt()
    possible = distance <= max_speed * (times[:, None] - times).abs() + sigmas_allowed * spread
    lengths, previous = [1], [-1]
    for n in range(1, count):
        reached = torch.where(possible[n, :n], torch.tensor(lengths), 0)
        best = int(reached.argmax())
        lengths.append(int(reached[best]) + 1)
        previous.append(best if reached[best] else -1)
    n = lengths.index(max(lengths))
    while n >= 0:
        kept[n] = True
        n = previous[n]
    return kept


def leave_out(track: Track, frames: Tensor) -> Track:
    """Make a track unseen in some frames.

    Args:
        track: Of T frames; ``moving`` is left as it is.
        frames: [T] bool.
    """

    def unseen(values: Tensor) -> Tensor:
        gone = frames.reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(gone, torch.nan, values)

    points = tuple(p[:0] if gone else p for p, gone in zip(track.points, frames.tolist(), strict=True))
    return replace(
        track,
        centers=unseen(track.centers),
        center_sigma=unseen(track.center_sigma),
        motion_sigma=unseen(track.motion_sigma),
        surface_sigma=unseen(track.surface_sigma),
        points=points,
    )
