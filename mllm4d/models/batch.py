"""What a model takes: encoded questions, and padded batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One question about one clip.

    Attributes:
        id: The question's id.
        tokens: Per-token tensors [L], ``input_ids`` and what else the processor makes (``mm_token_type_ids``, …).
        prompt_length: How many of the tokens are the prompt; the rest is the answer with its end token.
        vision: The clip's tensors (``pixel_values_videos``, ``video_grid_thw``, …), shared by all its questions.
    """

    id: str
    tokens: Mapping[str, Tensor]
    prompt_length: int
    vision: Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Padded questions.

    Attributes:
        ids: The questions' ids.
        tokens: Per-token tensors [B, L], with ``attention_mask``.
        labels: [B, L], token ids of the answers, -100 elsewhere.
        vision: The clips' tensors, concatenated in the order of the rows.
    """

    ids: tuple[str, ...]
    tokens: Mapping[str, Tensor]
    labels: Tensor
    vision: Mapping[str, Tensor]

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward and ``generate``."""
        return {**self.tokens, **self.vision}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        tokens = {name: tensor.to(device) for name, tensor in self.tokens.items()}
        vision = {name: tensor.to(device) for name, tensor in self.vision.items()}
        return replace(self, tokens=tokens, labels=self.labels.to(device), vision=vision)
