"""Attention inside a packed row: samples do not see each other, and questions about one clip share its prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from mllm4d.schema import InputError

BLOCKS = "mllm4d_blocks"
"""Our attention, under its name in transformers' ``AttentionInterface``: one fused call a sample on any device."""


class Group(NamedTuple):
    """Tokens of a row that belong together: a prefix, and branches that each continue it.

    Attributes:
        prefix: Tokens that all branches see; 0 for a sample by itself.
        branches: Tokens of every branch, in the order of the row.
    """

    prefix: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What lies where in a row.

    Attributes:
        groups: One after the other.
    """

    groups: tuple[Group, ...]

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return sum(group.prefix + sum(group.branches) for group in self.groups)

    @property
    def unshared_length(self) -> int:
        """Tokens of its samples, each by itself with its prefix."""
        return sum(group.prefix * len(group.branches) + sum(group.branches) for group in self.groups)

    @property
    def shared(self) -> bool:
        """Whether anything is shared, which is more than a row of samples one after the other."""
        return any(group.prefix and len(group.branches) > 1 for group in self.groups)

    def mask(self) -> Tensor:
        """[L, L] bool: whether the token of the row (first) sees the other (second)."""
        return torch.block_diag(*(shared_prefix_mask(*group) for group in self.groups)).bool()


def shared_prefix_mask(prefix_len: int, branch_lens: Sequence[int]) -> Tensor:
    """Who sees whom when several continuations follow one prefix, in one row.

    The prefix is causal; a branch sees the whole prefix and, causally, itself. For questions about one clip the prefix
    is the video, for completions of one prompt it is the prompt.

    Args:
        prefix_len: Tokens of the prefix, may be 0.
        branch_lens: Tokens of each branch.

    Returns:
        [L, L] bool with L = ``prefix_len + sum(branch_lens)``: whether the token (first) sees the other (second).
    """
    numbers = torch.repeat_interleave(torch.tensor([prefix_len, *branch_lens]))  # [L], 0 is the prefix
    same = (numbers[:, None] == numbers) | (numbers == 0)
    return same.tril()


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention by a layout, without the mask: one fused call a branch, so that nothing is computed to be masked.

    Args:
        query: [1, H, L, D].
        key: [1, H, L, D].
        value: [1, H, L, D].
        layout: Of the L tokens.
        scale: Of the scores; None is ``D ** -0.5``.
        dropout: On the weights.

    Returns:
        [1, H, L, D].
    """
    # Under autocast rotary positions leave queries and keys in float32, beside values in bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    # The first branch stands right after the prefix, so that the two are one causal piece.
    sizes = [size for prefix, (first, *rest) in layout.groups for size in (prefix + first, *rest)]
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scale}
    queries, keys, values = (iter(tensor.split(sizes, dim=2)) for tensor in (query, key, value))
    outputs = []
    for prefix, (_, *rest) in layout.groups:
        whole_key, whole_value = next(keys), next(values)
        outputs.append(scaled_dot_product_attention(next(queries), whole_key, whole_value, is_causal=True, **options))
        prefix_key, prefix_value = whole_key[:, :, :prefix], whole_value[:, :, :prefix]
        for length in rest:
            branch_key, branch_value = (
                torch.cat([prefix_key, next(keys)], 2),
                torch.cat([prefix_value, next(values)], 2),
            )
            bias = causal_lower_right(length, prefix + length)
            outputs.append(
                scaled_dot_product_attention(next(queries), branch_key, branch_value, attn_mask=bias, **options)
            )
    return torch.cat(outputs, dim=2)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """``attend`` as transformers calls it where a layout is given, and its ``sdpa`` where none is.

    Args:
        module: The attention layer.
        query: [B, H, L, D].
        key: [B, H_kv, L, D].
        value: [B, H_kv, L, D].
        attention_mask: For ``sdpa``; with a layout it says nothing.
        dropout: On the weights.
        scaling: Of the scores.
        layout: Of a packed row; B is 1 then.
        more: For ``sdpa``.

    Returns:
        [B, L, H, D], and None for the weights.

    Raises:
        RuntimeError: The model did not hand the layout on to its layers.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if layout is None:
        # ``PLACEHOLDER`` by itself would let every token see every other.
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and key.shape[2] > 1:
            raise RuntimeError(f"{type(module).__name__} got a packed row without its layout")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    groups = query.shape[1] // key.shape[1]
    output = attend(query, repeat_kv(key, groups), repeat_kv(value, groups), layout, scaling, dropout)
    return output.transpose(1, 2).contiguous(), None


def use_block_attention(model: Any) -> None:
    """Let the language model attend by layouts. Padded batches and generation go on as with ``sdpa``.

    Args:
        model: The model, with or without adapters.

    Raises:
        InputError: The model's attention cannot be set.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BLOCKS, block_attention)
    AttentionMaskInterface.register(BLOCKS, sdpa_mask)
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    # The name in the configurations: Qwen3-VL's language model is "text_config", as everyone's that has a vision tower.
    inner.set_attn_implementation({"text_config": BLOCKS})
    if attention_of(model) != BLOCKS:
        raise InputError(f"{type(inner).__name__} does not let its attention be set, which packing needs")


def attention_of(model: Any) -> str:
    """The attention implementation of the language model, by transformers' name."""
    return model.config.get_text_config()._attn_implementation


def attention_inputs(layout: Layout, implementation: str) -> dict[str, Any]:
    """What a forward needs beside position ids to keep the samples of a row apart.

    Args:
        layout: Of the row.
        implementation: Of the language model's attention; see ``attention_of``.

    Returns:
        Keyword arguments of the forward: a layout, a mask [1, 1, L, L], or nothing where positions are enough.

    Raises:
        InputError: This attention cannot share a prefix, or is not known.
    """
    if implementation == BLOCKS:
        # A mask of four dimensions is taken as it is; without one transformers would make [1, 1, L, L] for nothing.
        return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool), "layout": layout}
    if implementation == "sdpa":
        return {"attention_mask": layout.mask()[None, None]}
    if implementation == "eager":
        mask = layout.mask()[None, None]
        return {"attention_mask": torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)}
    if implementation.startswith("flash_attention"):
        # Transformers finds the samples where the positions begin again (``cu_seq_lens``).
        if layout.shared:
            raise InputError(
                f"attention {implementation!r} cannot share a prefix; call use_block_attention, or set share_prefix off"
            )
        return {}
    raise InputError(f"packing knows no way with attention {implementation!r}; expected sdpa or flash_attention_2")
