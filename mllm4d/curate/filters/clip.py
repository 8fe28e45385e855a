"""Whether a clip's pictures and poses can be used at all; what cannot is told with its clip and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mllm4d.curate.filters.cuts import contrast, find_cuts, repeated
from mllm4d.curate.filters.rectified import match_pairs, rectification
from mllm4d.schema import Clip, InputError

SIGMAS = 5.0
"""So many standard deviations of its own are forgiven to a path or a track."""

ENOUGH_MATCHES = 20
"""With fewer matches nothing is said about a pair."""


@dataclass(frozen=True)
class ClipChecks:
    """Looks at a clip before anything is measured in it.

    "Measured" means on the 51 pairs of ``kitti_stereo`` and on 60 clips of the synthetic world.

    Attributes:
        min_contrast: A frame whose grey levels have a smaller standard deviation shows nothing. Measured: at least 22.
        min_change: No cut where the colours change less (total variation, 0-1). Measured: neighbours up to 0.08, frames
            of two clips, and of one street 36 m apart, from 0.11.
        min_tracked: No cut where such a share of the corners is found again. Measured: neighbours from 0.59, others up
            to 0.08.
        min_matched: No cut where such a share of ORB features matches. Measured: neighbours from 0.23, frames of the
            street 6 m apart from 0.049, others up to 0.042.
        max_vertical: Largest median vertical disparity of a rectified pair, pixels; as in Stereo4D's filter. Measured:
            KITTI 0.42, aloe 0.22, the world 0.02.
        max_tilt: Largest rotation of the right view against the left, degrees. Measured: KITTI 0.06, the world 0.00.
        min_paired: Share of the corners that must be found in the other view. Measured: from 0.71 (aloe 0.46), pairs of
            two scenes 0.02.
    """

    min_contrast: float = 3.0
    min_change: float = 0.08
    min_tracked: float = 0.15
    min_matched: float = 0.045
    max_vertical: float = 1.0
    max_tilt: float = 0.2
    min_paired: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, zero=("min_contrast", "min_tracked", "min_matched", "min_paired"))

    def __call__(self, clip: Clip) -> dict[str, float]:
        """Check a clip.

        Returns:
            ``contrast_min`` (grey levels), ``repeated_frames``, and for a pair ``pair_matches``, ``vertical_disparity``
            (median, pixels) and ``vertical_tilt`` (degrees).

        Raises:
            InputError: Blank frames, a cut, or a pair that shows two scenes, is swapped, or is not rectified.
        """
        levels = contrast(clip.frames)
        if blank := torch.nonzero(levels < self.min_contrast)[:, 0].tolist():
            raise InputError(
                f"clip {clip.key!r}: nothing to see in {frames_text(blank)} (contrast {float(levels.min()):.1f} grey "
                f"levels, at least {self.min_contrast:g} is needed)"
            )
        if cuts := find_cuts(clip.frames, self.min_change, self.min_tracked, self.min_matched):
            places = [f"frames {t} and {t + 1} ({float(clip.times[t]):.2f} s)" for t in cuts[:3]]
            more = f", and {len(cuts) - 3} more" if len(cuts) > 3 else ""
            raise InputError(f"clip {clip.key!r}: a cut between {', '.join(places)}{more}; a clip must be one shot")
        figures = {
            "contrast_min": round(float(levels.min()), 2),
            "repeated_frames": float(repeated(clip.frames).sum()),
        }
        return figures if clip.right is None else {**figures, **self._check_pair(clip, clip.right)}

    def _check_pair(self, clip: Clip, right: Tensor) -> dict[str, float]:
        """Whether left and right go together, in the first, the middle and the last frame."""
        if right.shape != clip.frames.shape:
            raise InputError(
                f"clip {clip.key!r}: left and right views must have one shape, got {tuple(clip.frames.shape)} and "
                f"{tuple(right.shape)}"
            )
        count, height, width = clip.frames.shape[:3]
        looked = sorted({0, count // 2, count - 1})
        matches = match_pairs(clip.frames[looked], right[looked])
        found, where = len(matches.left), frames_text(looked)
        if matches.corners >= 50 and found < self.min_paired * matches.corners:
            raise InputError(
                f"clip {clip.key!r}: left and right views do not show one scene: {found} of {matches.corners} corners "
                f"are found again in {where}"
            )
        if found < ENOUGH_MATCHES:
            return {"pair_matches": float(found)}
        fit = rectification(matches, height, width)
        if fit.backwards > 0.5:
            raise InputError(
                f"clip {clip.key!r}: left and right views are swapped: the median disparity in {where} is "
                f"{fit.disparity:.1f} px"
            )
        if fit.vertical > self.max_vertical or abs(fit.tilt) > self.max_tilt:
            raise InputError(
                f"clip {clip.key!r}: the pair is not rectified: in {where} the rows of matches differ by "
                f"{fit.vertical:.2f} px (at most {self.max_vertical:g} is allowed), the right view lies "
                f"{fit.offset:.2f} px lower and is turned by {fit.tilt:.2f} degrees (at most {self.max_tilt:g})"
            )
        return {
            "pair_matches": float(found),
            "vertical_disparity": round(fit.vertical, 3),
            "vertical_tilt": round(fit.tilt, 3),
        }


def require_positive(settings: Any, zero: Sequence[str] = ()) -> None:
    """Check that all fields of a dataclass are positive, finite numbers.

    Args:
        settings: The dataclass.
        zero: Fields that may be 0.

    Raises:
        InputError: One is not; the message names it.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not (0 < value < float("inf") or (value == 0 and field.name in zero)):
            expected = "0 or a positive number" if field.name in zero else "a positive number"
            raise InputError(f"{type(settings).__name__}: {field.name} must be {expected}, not {value}")


def frames_text(frames: Sequence[int]) -> str:
    """Frames by their numbers, at most five of them."""
    if len(frames) == 1:
        return f"frame {frames[0]}"
    if len(frames) > 5:
        return f"frames {', '.join(map(str, frames[:4]))} and {len(frames) - 4} more"
    return f"frames {', '.join(map(str, frames[:-1]))} and {frames[-1]}"
