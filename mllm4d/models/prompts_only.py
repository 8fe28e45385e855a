"""Training batches that are prompts alone: what is said to them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mllm4d.models.batch import Encoded
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.patches import moved


@dataclass(frozen=True)
class Prompts:
    """Prompts, each by itself.

    Attributes:
        records: Encoded prompts, without answers.
    """

    records: tuple[Encoded, ...]

    def to(self, device: torch.device | str) -> Prompts:
        """The prompts on a device; clips that several share go there once."""
        clips: dict[int, Any] = {}
        records = []
        for record in self.records:
            if id(record.vision) not in clips:
                clips[id(record.vision)] = moved(record.vision, device)
            tokens = {name: tensor.to(device) for name, tensor in record.tokens.items()}
            records.append(replace(record, tokens=tokens, vision=clips[id(record.vision)]))
        return Prompts(tuple(records))


class PromptInputs(VideoInputs):
    """The one preprocessing, with prompts where others make batches with targets; batches for generation stay.

    Args:
        inputs: The preprocessing.
    """

    def __init__(self, inputs: VideoInputs) -> None:
        super().__init__(inputs.processor, inputs.settings, inputs.family)

    def collate(self, encoded: Sequence[Encoded], side: str = "right") -> Any:
        """Records to their prompts, or to a padded batch with ``side="left"``."""
        if side == "left":
            return super().collate(encoded, side)
        return Prompts(tuple(self.prompt_only(record) for record in encoded))
