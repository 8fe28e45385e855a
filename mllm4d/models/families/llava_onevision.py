"""LLaVA-OneVision (arXiv 2408.03326)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mllm4d.models.families.family import Family, alike, expect_equal
from mllm4d.schema import InputError


class LlavaOnevision(Family):
    """A video is one run of tokens without times: they follow as text. Clips of a batch have equally many frames."""

    model_types = ("llava_onevision",)
    processors = ("LlavaOnevisionProcessor",)
    parts: Mapping[str, str] = {
        "merger": r"multi_modal_projector|image_newline",
        "vision": r"vision_tower",
        "language": r"language_model|lm_head",
    }
    fixed_size = True

    def answer(self, prompt: str, whole: str, target: str) -> str:
        """The published template writes a blank before an answer's line that its prompt for answers does not have."""
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        # After what both have: "n" is also in "<|im_end|>".
        start = whole.index(target, alike(prompt, whole))
        return target + whole[start + len(target) :]

    def features(self, processor: Any, vision: Mapping[str, Tensor]) -> int:
        """Every frame pooled to half its sides, and one token that ends the video."""
        side = math.ceil(math.isqrt(processor.num_image_tokens) / 2)
        return vision["pixel_values_videos"].shape[1] * side**2 + 1

    def collate(self, visions: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The clips' tensors of a batch.

        Raises:
            InputError: Clips have different numbers of frames, which the model cannot take together.
        """
        counts = sorted({vision["pixel_values_videos"].shape[1] for vision in visions})
        if len(counts) > 1:
            raise InputError(
                f"LLaVA-OneVision takes clips of equally many frames in a batch, not of {counts[0]} and {counts[-1]}; "
                f"set 'video.frames' to {counts[0]} or less, or batch clips by length"
            )
        return super().collate(visions)

    def check(self, config: Any, processor: Any) -> None:
        """The processor's count of tokens a frame follows from the model's sizes."""
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        expect_equal("num_image_tokens", processor.num_image_tokens, "patches of an image are", (side // patch) ** 2)
        size = processor.video_processor.size
        expect_equal("size", (size["height"], size["width"]), "vision_config.image_size", (side, side))
