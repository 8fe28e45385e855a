"""What is kept out of a scene: clips, pixels, paths and tracks that cannot be trusted, each for a stated reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.curate.filters.clip import ClipChecks
from mllm4d.curate.filters.path import PathChecks
from mllm4d.curate.filters.pixels import PixelFilters
from mllm4d.curate.filters.tracks import TrackFilters
from mllm4d.schema import Camera, Clip, Mask, Track


@dataclass(frozen=True)
class Quality:
    """The quality filters, in the order in which they are asked; thresholds are theirs.

    Attributes:
        clip: Blank frames, cuts, and pairs that are not rectified.
        pixels: Depth that cannot be trusted.
        path: Jumps and jitter of the camera's path.
        tracks: Impossible sightings, and objects that are hardly known.
    """

    clip: ClipChecks = field(default_factory=ClipChecks)
    pixels: PixelFilters = field(default_factory=PixelFilters)
    path: PathChecks = field(default_factory=PathChecks)
    tracks: TrackFilters = field(default_factory=TrackFilters)

    def check_clip(self, clip: Clip) -> dict[str, float]:
        """Look at a clip before anything is measured in it; figures and errors as in ``ClipChecks``.

        Raises:
            InputError: The clip is unusable; the message names clip and frames.
        """
        return self.clip(clip)

    def clean(self, clip: Clip, depth: Depth, masks: Sequence[Mask] = ()) -> tuple[Depth, Counter[str]]:
        """Drop pixels whose depth cannot be trusted.

        Args:
            clip: The clip.
            depth: Its depth, [T, H, W].
            masks: Objects whose rim is dropped.

        Returns:
            The depth with dropped pixels unknown, and pixels by reason as in ``PixelFilters``.
        """
        return self.pixels(clip, depth, masks)

    def check_path(self, clip: Clip, camera: Camera) -> dict[str, float]:
        """Look at the camera's path; figures and errors as in ``PathChecks``.

        Raises:
            InputError: No camera can have gone there; the message names clip and frames.
        """
        return self.path(clip, camera)

    def clean_tracks(
        self, tracks: Sequence[Track], camera: Camera, times: Tensor
    ) -> tuple[tuple[Track, ...], Counter[str]]:
        """Drop what an object cannot have done, and objects that are hardly known.

        Args:
            tracks: Objects.
            camera: The camera that saw them.
            times: [T], seconds.

        Returns:
            The tracks that are left, and frames and tracks by reason as in ``TrackFilters``.
        """
        return self.tracks(tracks, camera, times)
