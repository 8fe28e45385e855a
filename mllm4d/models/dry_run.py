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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mllm4d.models.batch import Batch, PackedBatch
from mllm4d.models.families import Family, family_of
from mllm4d.models.logprobs import CHUNK, answer_positions, head_of, hidden_at, token_log_probs
from mllm4d.models.meta import Kernels, run_on_meta
from mllm4d.schema import InputError

PIXELS = "pixel_values"
"""What the names of inputs begin with that are many numbers which nothing branches on."""


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
        batch: On the CPU; its pixels may be on the meta device.
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
    known = [
        t.untyped_storage()
        for t in [*parameters, *model.buffers(), *tree_leaves(inputs), at, targets]
        if isinstance(t, Tensor)
    ]
    recorder.ignore(known)
    with _watched(model, family or family_of(model.config), recorder), recorder:
        with Kernels(autocast):
            states, head = hidden_at(model, inputs, at)
            loss = -token_log_probs(states, head, targets, chunk).sum()
        del states
        kept = dict(recorder.live)
        recorder.phase = "backward"
        with Kernels(autocast, cached=False):
            # ``loss.backward()`` without its shell, which would take the mode away while layers are computed again.
            run_backward = torch.autograd.Variable._execution_engine.run_backward
            run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )
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
        out = run_on_meta(func, args, kwargs or {})
        if formula := flop_registry.get(func._overloadpacket):
            # Layers that are computed again are so with gradients on, inside a backward pass that has them off.
            phase = "again" if self.phase == "backward" and torch.is_grad_enabled() else self.phase
            self.flops[phase][self.part] += formula(*_with_equal_heads(func, args), **(kwargs or {}), out_val=out)
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


def _with_equal_heads(func: Any, args: Any) -> Any:
    """Attention's arguments with as many heads of keys as of queries, as torch's formulas want them."""
    if "scaled_dot_product" not in func.__name__:
        return args
    first = 1 if "backward" in func.__name__ else 0
    query, key, value = args[first : first + 3]
    key, value = (t.new_empty(t.shape[0], query.shape[1], *t.shape[2:], device="meta") for t in (key, value))
    return (*args[: first + 1], key, value, *args[first + 3 :])


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
