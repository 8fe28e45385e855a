"""What the meta device lacks to run a whole model: real whole numbers, fused attention, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten

LOWERED = (F.linear, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.Tensor.matmul)
RAISED = (F.layer_norm, F.softmax, F.cross_entropy, torch.rsqrt, torch.exp, torch.pow, torch.Tensor.pow, torch.cumsum)
"""What autocast computes in 16 bits on a GPU, and what in 32, as far as models of this kind have it."""

CHOOSING = (aten.index.Tensor, aten.masked_select.default)
PUTTING = (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


def run_on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the meta device where any of its tensors is there; what is made of real ones alone stays real.

    Whole numbers that are made for the meta device (``torch.arange(..., device=hidden.device)``) are real too, since
    they decide how code goes on.

    Args:
        func: The operation, as a ``TorchDispatchMode`` gets it.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor.is_meta for tensor in tensors]
    if not any(there):
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if "device" in kwargs and any(t.is_meta and not t.is_floating_point() for t in made):
            return func(*args, **{**kwargs, "device": torch.device("cpu")})
        return out
    if func in (aten.eq.Scalar, aten.eq.Tensor):
        # SmolVLM looks for frames whose pixels are all 0: there are none.
        return torch.zeros(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)), dtype=torch.bool)
    if func in CHOOSING:
        # How many are chosen is known, since masks are real.
        source, masks = args[0], args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        if len(masks) == 1 and masks[0].dtype == torch.bool:
            chosen = int(masks[0].expand(source.shape[: masks[0].ndim]).sum())
            return source.new_empty((chosen, *source.shape[masks[0].ndim :]), device="meta")
    if func in PUTTING:
        return args[0] if func is not aten.index_put.default else torch.empty_like(args[0], device="meta")
    if not all(there):
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    return func(*args, **kwargs)


class Kernels(TorchFunctionMode):
    """Fused attention and autocast, neither of which the meta device has of its own.

    Args:
        autocast: Type that matrices are computed in; None is their own.
        cached: As autocast keeps what it has made of a trained weight, to the end of the forward.
    """

    def __init__(self, autocast: torch.dtype | None, cached: bool = True) -> None:
        super().__init__()
        self.autocast, self.cached = autocast, cached
        self.cache: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast is not None and func in LOWERED:
            args, kwargs = tree_map_only(Tensor, self._lower, (args, kwargs))
        if self.autocast is not None and func in RAISED:
            args, kwargs = tree_map_only(Tensor, _raise, (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32 or not tensor.is_meta:
            return tensor
        if not (self.cached and tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.autocast)
        if id(tensor) not in self.cache:
            self.cache[id(tensor)] = tensor.to(self.autocast)
        return self.cache[id(tensor)]


def _raise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_meta and tensor.is_floating_point() else tensor


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernels that torch takes on a GPU."""
    if attn_mask is None or isinstance(attn_mask, CausalBias):
        causal = is_causal or attn_mask is not None
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, causal, scale=scale)[0]
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape)
    attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
