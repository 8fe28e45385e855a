"""Completions as they were sampled: which of their tokens count, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm4d.train.losses import MOST


def completion_mask(
    tokens: Tensor, end_ids: Sequence[int], lengths: Tensor | None = None, drop_truncated: bool = False
) -> Tensor:
    """Which tokens of completions count: those up to the first end token, and that itself.

    Args:
        tokens: [B, T], token ids, padded on the right.
        end_ids: All tokens that end a completion; chat models have two.
        lengths: [B], how many tokens were sampled. Needed where rows without an end token are padded, since padding
            may itself be an end token, which was never sampled.
        drop_truncated: Whether nothing counts of a completion that has no end token.

    Returns:
        [B, T] bool.
    """
    ends = _ends(tokens, end_ids, lengths)  # [B, T]
    mask = ends.cumsum(1) - ends.long() == 0  # [B, T], no end token before
    if lengths is not None:
        mask = mask & _sampled(tokens, lengths)
    return mask & ends.any(1, keepdim=True) if drop_truncated else mask


def truncated(tokens: Tensor, end_ids: Sequence[int], lengths: Tensor | None = None) -> Tensor:
    """[B] bool: which completions have no end token; the arguments are those of ``completion_mask``."""
    return ~_ends(tokens, end_ids, lengths).any(1)


def importance_weights(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    """Truncated importance weights of tokens that another policy, or the same one in another engine, has sampled.

    min(policy / sampler, cap), as in https://fengyao.notion.site/off-policy-rl. A token for which either
    log-probability is missing or not finite has a weight of 0: its advantage counts for nothing.

    Args:
        log_probs: [B, T] or [N], of the policy that trains, before its update, nats.
        sampler_log_probs: The same shape, of what has sampled, nats; NaN where it is not known.
        mask: The same shape, true on the tokens that count.
        cap: Largest weight.

    Returns:
        The same shape, without gradient; 0 outside the mask.
    """
    log_ratio = (log_probs - sampler_log_probs).detach()  # [B, T]
    kept = mask.bool() & log_ratio.isfinite()  # [B, T]
    return torch.where(kept, log_ratio.clamp(-MOST, MOST).exp().clamp(max=cap), 0.0)  # [B, T]


def masked_sum(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the tokens that count and how many they are, for a mean over batches: of entropies, for example.

    Args:
        values: [B, T] or [N].
        mask: The same shape, true on the tokens that count.

    Returns:
        [] and [], without gradient.
    """
    chosen = values.detach()[mask.bool()]  # [N]
    return chosen.sum(), torch.tensor(float(len(chosen)), device=chosen.device)


def _ends(tokens: Tensor, end_ids: Sequence[int], lengths: Tensor | None) -> Tensor:
    """[B, T]."""
    ends = torch.isin(tokens, torch.tensor(list(end_ids), device=tokens.device))  # [B, T]
    return ends if lengths is None else ends & _sampled(tokens, lengths)


def _sampled(tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B, T]."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
