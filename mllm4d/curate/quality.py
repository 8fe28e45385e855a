"""Quality filters (placeholder by the lead; the helper who writes the filters overwrites this file)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.schema import Camera, Clip, Mask, Track


@dataclass(frozen=True)
class Quality:
    """Filters."""

    def check_clip(self, clip: Clip) -> dict[str, float]:
        """Check a clip."""
        return {}

    def clean(self, clip: Clip, depth: Depth, masks: Sequence[Mask] = ()) -> tuple[Depth, Counter[str]]:
        """Clean depth."""
        return depth, Counter()

    def check_path(self, clip: Clip, camera: Camera) -> dict[str, float]:
        """Check a path."""
        return {}

    def clean_tracks(
        self, tracks: Sequence[Track], camera: Camera, times: Tensor
    ) -> tuple[tuple[Track, ...], Counter[str]]:
        """Clean tracks."""
        return tuple(tracks), Counter()
