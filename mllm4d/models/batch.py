"""What a model takes: encoded questions, and padded or packed batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mllm4d.models.attention import Layout
from mllm4d.models.patches import moved


@dataclass(frozen=True)
class Encoded:
    """One question about one clip.

    Attributes:
        id: The question's id.
        tokens: Per-token tensors [L], ``input_ids`` and what else the processor makes (``mm_token_type_ids``, …).
        prompt_length: How many of the tokens are the prompt; the rest is the answer with its end token.
        vision: The clip's tensors (``pixel_values_videos``, ``video_grid_thw``, …), shared by all its questions; where
            the family allows it, pixels are bytes until they are asked for (``mllm4d.models.patches``).
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
        return replace(self, tokens=tokens, labels=self.labels.to(device), vision=moved(self.vision, device))


@dataclass(frozen=True)
class PackedBatch:
    """Questions one after the other in a single row, without padding.

    Attributes:
        ids: The questions' ids, in the order of the row.
        tokens: Per-token tensors [1, L], and ``position_ids`` [1, L] or [4, 1, L].
        labels: [1, L], token ids of the answers, -100 elsewhere; no sample's first token is one.
        vision: The clips' tensors, concatenated in the order of the row.
        layout: Which tokens belong together.
        attention: What else the forward needs to keep the samples apart.
    """

    ids: tuple[str, ...]
    tokens: Mapping[str, Tensor]
    labels: Tensor
    vision: Mapping[str, Tensor]
    layout: Layout
    attention: Mapping[str, Any]

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model's forward; a row is not for ``generate``."""
        return {**self.tokens, **self.vision, **self.attention, "use_cache": False}

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on a device."""
        tokens, attention = (
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}
            for values in (self.tokens, self.attention)
        )
        vision = moved(self.vision, device)
        return replace(self, tokens=tokens, labels=self.labels.to(device), vision=vision, attention=attention)
