"""Qwen2.5-VL (arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from mllm4d.models.families.family import Family

TOLERANCE = 0.005
"""Seconds; questions write times to 0.01 s."""


class Qwen2_5VL(Family):
    """The model gets one mean time between steps, as positions: right for even frames that begin at 0.

    Other times are written out as text too. A position is 1 / ``tokens_per_second`` (0.5 s in the released models):
    finer times are rounded down to it.
    """

    model_types = ("qwen2_5_vl",)
    processors = ("Qwen2_5_VLProcessor",)
    parts: Mapping[str, str] = {"merger": r"visual\.merger", "vision": r"visual", "language": r"language_model|lm_head"}
    patches = True

    def timing(self, processor: Any, about: VideoMetadata) -> dict[str, Tensor]:
        """Seconds of a step."""
        return {"second_per_grid_ts": torch.tensor([processor.video_processor.temporal_patch_size / about.sampled_fps])}

    def note(self, times: Tensor) -> str:
        """The times where one gap cannot say them."""
        even = torch.linspace(0, float(times[-1]), len(times), dtype=torch.float64)
        return "" if (times.double() - even).abs().max() < TOLERANCE else super().note(times)
