"""Losses as pure functions."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answer tokens of a batch.

    Args:
        logits: [B, L, V], position t predicts token t + 1.
        labels: [B, L], token ids, -100 everywhere but on the answers.

    Returns:
        [], nats per answer token; 0 (with a gradient of 0) when no token is an answer.
    """
    targets = labels[:, 1:]  # [B, L-1]
    answered = targets != -100  # [B, L-1]
    chosen = logits[:, :-1][answered].float()  # [N, V], only where there is an answer
    total = cross_entropy(chosen, targets[answered], reduction="sum")  # []
    return total / answered.sum().clamp(min=1)
