"""Which parameter learns how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mllm4d.models.base import PARTS, row_of
from mllm4d.models.families import Family
from mllm4d.schema import InputError

GROUPS = (*PARTS, "lora")
"""What can have a learning rate of its own: a part that trains in full, or the adapters."""


def parameter_groups(
    model: nn.Module,
    family: Family,
    learning_rate: float,
    learning_rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: for each part its matrices, which decay, and its norms and biases, which do not.

    Args:
        model: The model, with or without adapters.
        family: The model's family.
        learning_rate: Of all that ``learning_rates`` does not name.
        learning_rates: Of parts, and of "lora".
        weight_decay: On matrices only.

    Returns:
        Dicts with ``name``, ``params``, ``lr`` and ``weight_decay``; never an empty one.

    Raises:
        InputError: Nothing trains, a rate is negative, or is for a part that is unknown or does not train.
    """
    rates = dict(learning_rates or {})
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((row_of(name, family), parameter.ndim > 1), []).append(parameter)
    if not found:
        raise InputError("model.base: nothing would train; name parts under 'train' or give 'lora'")
    trained = sorted({part for part, _ in found})
    for part, rate in rates.items():
        if part not in trained:
            raise InputError(f"model.learning_rates: {part!r} does not train; what trains is {', '.join(trained)}")
        if rate < 0:
            raise InputError(f"model.learning_rates: that of {part!r} is {rate:g}; expected at least 0")
    return [
        {
            "name": part if matrices else f"{part}_vectors",
            "params": parameters,
            "lr": rates.get(part, learning_rate),
            "weight_decay": weight_decay if matrices else 0.0,
        }
        for (part, matrices), parameters in sorted(found.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def format_groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """The groups as text, one a line."""
    lines = [f"{'group':<16}{'tensors':>9}{'parameters':>15}{'learning rate':>15}{'weight decay':>14}"]
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        # A schedule has set "lr" for its first step by now.
        rate = group.get("initial_lr", group["lr"])
        row = f"{len(group['params']):>9,}{count:>15,}{rate:>15g}{group['weight_decay']:>14g}"
        lines.append(f"{group['name']:<16}{row}")
    return "\n".join(lines)
