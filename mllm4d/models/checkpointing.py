"""What keeps a model's memory down, and the model that it is done to."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from mllm4d.models.families import Family, family_of
from mllm4d.schema import InputError


def checkpoint_parts(model: Any, parts: Sequence[str], family: Family | None = None) -> None:
    """Let the layers of some parts compute their activations again in the backward pass instead of keeping them.

    Args:
        model: The model, with or without adapters.
        parts: Any of "vision", "merger", "language"; a part that needs no gradients keeps nothing anyway.
        family: The model's family; None finds it by its configuration.

    Raises:
        InputError: A named part has no layer that can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    inner = pretrained(model)
    family = family or family_of(inner.config)
    # The old name warns since transformers 5.2x.
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # It makes the outputs of all embeddings ask for gradients, the vision tower's too, so that all activations of a
    # frozen tower would be kept for nothing. Only checkpoints of the reentrant kind need that.
    inner.disable_input_require_grads()
    found = set()
    for name, module in inner.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            part = family.part_of(name)
            module.gradient_checkpointing = part in parts
            found.add(part)
    if missing := [] if set(parts) == set(family.parts) else sorted(set(parts) - found):
        raise InputError(
            f"base.gradient_checkpointing: part {missing[0]!r} has no layers that can be computed again; "
            f"there are some in {', '.join(sorted(found))}"
        )
    inner.config.use_cache = False


def pretrained(model: Any) -> Any:
    """A Hugging Face model without the adapters around it.

    Raises:
        InputError: There is none in it.
    """
    from transformers import PreTrainedModel

    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None:
        raise InputError(f"{type(model).__name__} is no Hugging Face model")
    return inner


def use_liger(model: Any) -> None:
    """Put Liger's kernels into a model; see ``BaseModel``.

    Raises:
        InputError: The package is missing, or has no kernels for this kind of model.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise InputError("base.liger: needs the package liger-kernel (pip install liger-kernel)")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise InputError(f"base.liger: has no kernels for a {model.config.model_type} model; it has for {known}")
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
