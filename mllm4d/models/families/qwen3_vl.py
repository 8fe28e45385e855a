"""Qwen3-VL (arXiv 2511.21631)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mllm4d.models.families.family import Family


class Qwen3VL(Family):
    """Every step of the video carries the middle of its frames' times as text, to 0.1 s, uneven or not."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    processors: tuple[str, ...] = ("Qwen3VLProcessor",)
    parts: Mapping[str, str] = {
        "merger": r"visual\.(?:merger|deepstack_merger_list)",
        "vision": r"visual",
        "language": r"language_model|lm_head",
    }
    patches = True

    def note(self, times: Tensor) -> str:
        """Empty: the processor writes the times."""
        return ""

    def template(self, template: str) -> str:
        """Without the start and end around the video token.

        The published template has them, and the processor of transformers 4.57 (and vLLM) took them out; that of
        transformers 5 keeps them and frames every step as well, which doubles them.
        """
        return template.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
