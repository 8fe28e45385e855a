"""SmolVLM2 (arXiv 2504.05299)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from mllm4d.models.families.family import Family, expect_equal


class SmolVLM(Family):
    """The processor writes every frame's time as minutes and whole seconds; the exact ones follow as text.

    Its processor needs the package num2words.
    """

    model_types = ("smolvlm",)
    processors = ("SmolVLMProcessor",)
    parts: Mapping[str, str] = {"merger": r"connector", "vision": r"vision_model", "language": r"text_model|lm_head"}
    fixed_size = True
    after_video = "\n\n"
    # Without any, transformers 5.17 adds some of its own and warns about them at every question.
    template_options: Mapping[str, Any] = {"processor_kwargs": {"do_sample_frames": False}}

    def visuals(self, pixels: Tensor, about: VideoMetadata) -> dict[str, Any]:
        """A list of videos for every text: in transformers 5.17 this processor takes a video alone for four images."""
        return {"videos": [[pixels]], "video_metadata": [[about]], "do_sample_frames": False}

    def placeholder(self, processor: Any) -> int:
        """Frames are images to the model."""
        return processor.image_token_id

    def features(self, processor: Any, vision: Mapping[str, Tensor]) -> int:
        """The same for every frame."""
        return vision["pixel_values"].shape[1] * processor.image_seq_len

    def collate(self, visions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Clips one after the other in a single row: the model takes the frames as they come, whatever the row."""
        return {name: torch.cat([vision[name] for vision in visions], dim=1) for name in visions[0]}

    def check(self, config: Any, processor: Any) -> None:
        """The processor's count of tokens a frame follows from the model's sizes."""
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        tokens = (side // patch) ** 2 // config.scale_factor**2
        expect_equal("image_seq_len", processor.image_seq_len, "tokens of an image are", tokens)
        longest = processor.video_processor.max_image_size["longest_edge"]
        expect_equal("video_processor.max_image_size", longest, "vision_config.image_size", side)
