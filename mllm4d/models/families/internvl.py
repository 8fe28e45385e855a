"""InternVL 2.5, 3 and 3.5 in Hugging Face's own classes (arXiv 2504.10479)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mllm4d.models.families.family import Family, expect_equal


class InternVL(Family):
    """The processor writes "Frame1: ", "Frame2: " and so on, without times: they follow as text."""

    model_types = ("internvl",)
    processors = ("InternVLProcessor",)
    parts: Mapping[str, str] = {
        "merger": r"multi_modal_projector",
        "vision": r"vision_tower",
        "language": r"language_model|lm_head",
    }
    fixed_size = True

    def placeholder(self, processor: Any) -> int:
        """Frames are images to the model."""
        return processor.image_token_id

    def features(self, processor: Any, vision: Mapping[str, Tensor]) -> int:
        """The same for every frame."""
        return len(vision["pixel_values"]) * processor.image_seq_length

    def check(self, config: Any, processor: Any) -> None:
        """The processor's count of tokens a frame follows from the model's sizes."""
        (height, width), patch = config.vision_config.image_size, config.vision_config.patch_size
        tokens = int((height // patch[0]) * (width // patch[1]) * config.downsample_ratio**2)
        expect_equal("image_seq_length", processor.image_seq_length, "tokens of an image are", tokens)
        size = processor.video_processor.size
        expect_equal("size", (size["height"], size["width"]), "vision_config.image_size", (height, width))
