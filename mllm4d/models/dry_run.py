"""A training step without weights: what it would keep in memory, and how much it would compute.

The model is on the meta device, where tensors have shapes and no values. Its own forward, our own loss and autograd's
own backward run there, so that what is counted is what the installed versions do, whatever the family, the adapters
and the layers that are computed again. Whole numbers (token ids, grids, masks) stay real: code that branches on them
goes on as ever.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from mllm4d.models.batch import Batch, PackedBatch
from mllm4d.models.families import Family, family_of
from mllm4d.models.logprobs import CHUNK, answer_positions, head_of, hidden_at, token_log_probs
from mllm4d.schema import InputError

aten = torch.ops.aten

PIXELS = "pixel_values"
"""What the names of inputs begin with that are many numbers which nothing branches on."""

LOWERED = (F.linear, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.Tensor.matmul)
RAISED = (F.layer_norm, F.softmax, F.cross_entropy, torch.rsqrt, torch.exp, torch.pow, torch.Tensor.pow, torch.cumsum)
"""What autocast computes in 16 bits, and what in 32, as far as models of this kind have it."""


CHOOSING = (aten.index.Tensor, aten.masked_select.default)
PUTTING = (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


@dataclass(frozen=True)
class Step:
    """One forward and backward of one batch on one device; weights, gradients and inputs are not in it.

    Parts are "vision" (with its merger), "language" and "head" (logits and loss).

    Attributes:
        tokens: Of the language model, padding included.
        kept: Part to bytes that are there between forward and backward.
        peak: Bytes at the highest moment.
        forward: Part to floating-point operations (a multiplication and an addition are two).
        backward: Part to operations for gradients.
        again: Part to operations of the forward that are done again in the backward pass.
    """

    tokens: int
    kept: Mapping[str, int]
    peak: int
    forward: Mapping[str, int]
    backward: Mapping[str, int]
    again: Mapping[str, int]

    @property
    def flops(self) -> int:
        """Operations that the model asks for, which is what its utilisation (MFU, arXiv 2204.02311) is measured by.

        Without what is done again. Attention counts in full, though half of it is behind the causal mask, as there.
        """
        return sum(self.forward.values()) + sum(self.backward.values())

    def flops_per_token(self) -> dict[str, float]:
        """The same for each token of the language model, by part; "vision" is its whole work over all tokens."""
        return {part: (self.forward[part] + self.backward.get(part, 0)) / self.tokens for part in self.forward}


def dry_step(
    model: Any,
    batch: Batch | PackedBatch,
    family: Family | None = None,
    chunk: int = CHUNK,
    autocast: torch.dtype | None = None,
) -> Step:
    """Run a step of supervised fine-tuning on the meta device.

    Attention is counted as a fused kernel, which keeps no [L, L] weights; a dense mask stays one.

    Args:
        model: On the meta device, in training, with its adapters and checkpoints.
        batch: Its tokens are real; its pixels may be on the meta device.
        family: The model's family; None finds it by its configuration.
        chunk: Answer tokens whose logits are there at once.
        autocast: Type that matrices are computed in (``bf16-mixed``); None is the weights' own.

    Raises:
        InputError: Weights are not on the meta device, or nothing trains.
    """
    parameters = list(model.parameters())
    if not all(parameter.is_meta for parameter in parameters):
        raise InputError("the model has weights; expected one on the meta device")
    if not any(parameter.requires_grad for parameter in parameters):
        raise InputError("model.base: nothing would train; name parts under 'train' or give 'lora'")
    inputs = {**batch.model_inputs(), "use_cache": False}
    inputs = {name: value.to("meta") if name.startswith(PIXELS) else value for name, value in inputs.items()}
    at, targets = answer_positions(batch.labels)
    recorder = _Recorder()
    known = [t.untyped_storage() for t in [*parameters, *model.buffers(), *tree_leaves(inputs), at, targets]
             if isinstance(t, Tensor)]
    recorder.ignore(known)
    with _watched(model, family or family_of(model.config), recorder), recorder:
        with _Kernels(autocast):
            states, head = hidden_at(model, inputs, at)
            loss = -token_log_probs(states, head, targets, chunk).sum()
        del states
        kept = dict(recorder.live)
        recorder.phase = "backward"
        with _Kernels(autocast, cached=False):
            # ``loss.backward()`` without its shell, which would take the mode away while layers are computed again.
            run_backward = torch.autograd.Variable._execution_engine.run_backward
            run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    return Step(
        tokens=batch.tokens["input_ids"].numel(),
        kept={part: kept.get(part, 0) for part in ("vision", "language", "head")},
        peak=recorder.peak,
        **{phase: dict(counts) for phase, counts in recorder.flops.items()},
    )


class _Recorder(TorchDispatchMode):
    """Runs operations on meta tensors, whole numbers on the CPU, and counts bytes and operations by part."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.phase = "language", "forward"
        self.live: Counter[str] = Counter()
        self.total = self.peak = 0
        self.flops: dict[str, Counter[str]] = {name: Counter() for name in ("forward", "backward", "again")}
        self._seen: set[int] = set()

    def ignore(self, storages: list[torch.UntypedStorage]) -> None:
        """Leave storages that were there before out of the count."""
        self._before = storages
        self._seen |= {storage._cdata for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _run(func, args, kwargs or {})
        if formula := flop_registry.get(func._overloadpacket):
            # Layers that are computed again are so with gradients on, inside a backward pass that has them off.
            phase = "again" if self.phase == "backward" and torch.is_grad_enabled() else self.phase
            self.flops[phase][self.part] += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, part, size = storage._cdata, self.part, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live[part] += size
        self.total += size
        self.peak = max(self.peak, self.total)
        weakref.finalize(storage, self._drop, key, part, size)

    def _drop(self, key: int, part: str, size: int) -> None:
        self._seen.discard(key)
        self.live[part] -= size
        self.total -= size


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the meta device where any tensor of it is there, but whole numbers made of such stay real."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_meta for tensor in tensors):
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
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    return func(*args, **kwargs)


class _Kernels(TorchFunctionMode):
    """Fused attention, and autocast, neither of which the meta device has of its own."""

    def __init__(self, autocast: torch.dtype | None, cached: bool = True) -> None:
        super().__init__()
        self.autocast, self.cached = autocast, cached
        # As autocast keeps what it has made of a trained weight to the end of the forward.
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


@contextmanager
def _watched(model: Any, family: Family, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder whose turn it is; gradients of weights go as soon as they are there."""

    def turn_to(part: str) -> Callable[..., None]:
        def turn(*_: Any) -> None:
            recorder.part = part

        return turn

    def leave_vision(module: nn.Module, args: Any, output: Any) -> None:
        recorder.part = "language"
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(turn_to("vision"))

    def enter_head(module: nn.Module, args: Any) -> None:
        recorder.part = "head"
        if args[0].requires_grad:
            args[0].register_hook(turn_to("language"))

    handles: list[Any] = [head_of(model)[1].register_forward_pre_hook(enter_head)]
    for module in _towers(model, family):
        handles.append(module.register_forward_pre_hook(turn_to("vision")))
        handles.append(module.register_forward_hook(leave_vision))
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _towers(model: nn.Module, family: Family) -> list[nn.Module]:
    """The outermost modules of vision tower and merger."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        try:
            part = family.part_of(name)
        except InputError:
            continue  # what is around the parts
        if part != "language" and "language_model" not in name:
            found[name] = module
    return list(found.values())
