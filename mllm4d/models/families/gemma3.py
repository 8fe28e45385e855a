"""Gemma 3 (arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mllm4d.models.families.family import Family, expect_equal


class Gemma3(Family):
    """No video input: every frame is an image, with its time as text before it."""

    model_types = ("gemma3",)
    processors = ("Gemma3Processor",)
    parts: Mapping[str, str] = {
        "merger": r"multi_modal_projector",
        "vision": r"vision_tower",
        "language": r"language_model|lm_head",
    }
    as_images = True
    fixed_size = True
    after_video = "\n\n"

    def placeholder(self, processor: Any) -> int:
        """The processor's own ``image_token_id`` is the token before an image."""
        return processor.tokenizer.image_token_id

    def features(self, processor: Any, vision: Mapping[str, Tensor]) -> int:
        """The same for every frame."""
        return len(vision["pixel_values"]) * processor.image_seq_length

    def check(self, config: Any, processor: Any) -> None:
        """The processor's count of tokens a frame is the model's."""
        expect_equal("image_seq_length", processor.image_seq_length, "mm_tokens_per_image", config.mm_tokens_per_image)
        size, side = processor.image_processor.size, config.vision_config.image_size
        expect_equal("size", (size["height"], size["width"]), "vision_config.image_size", (side, side))
