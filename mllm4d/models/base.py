"""The base MLLM: any Hugging Face image-text-to-text model, and what of it trains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mllm4d.schema import InputError

PARTS = {
    "merger": r"(?:^|\.)(?:merger|deepstack_merger_list|(?:multi_modal_)?projector|connector|aligner|embed_vision"
    r"|visual_embeddings_table|image_newline)\.",
    "vision": r"(?:^|\.)(?:visual|vision_tower|vision_model)\.",
    "language": r"(?:^|\.)(?:language_model|text_model|lm_head)\.",
}
"""Names of the parts of a multimodal LLM in Hugging Face's model classes; the first that matches counts."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on linear layers of the language model (arXiv 2106.09685).

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: On the adapters' inputs.
        targets: Names of the layers that get one.
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")


class PartRow(NamedTuple):
    """One row of the table of what trains; counts are of parameters."""

    part: str
    trained: int
    total: int


class BaseModel:
    """Settings of a base MLLM; nothing is read before ``load``.

    Args:
        path: Local folder or hub name. Nothing is fetched unless it is a hub name, and no remote code is run.
        dtype: "auto" is bfloat16 where a GPU has it, else float32; or a name such as "float32".
        attn_implementation: As in transformers; None leaves the choice to it.
        train: Parts that train in full: any of "vision", "merger", "language".
        lora: Adapters on the language model, which then must not be among ``train``.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.

    Raises:
        InputError: A part is unknown, or the language model has both.
    """

    # Not a dataclass: jsonargparse takes subclasses by ``class_path`` only of ordinary classes.
    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        train: Sequence[str] = (),
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.path, self.dtype, self.attn_implementation = path, dtype, attn_implementation
        self.train, self.lora, self.gradient_checkpointing = train, lora, gradient_checkpointing
        if unknown := set(train) - set(PARTS):
            raise InputError(f"base.train: {sorted(unknown)[0]!r} is not one of {', '.join(sorted(PARTS))}")
        if lora is not None and "language" in train:
            raise InputError("base.train: 'language' trains in full or has adapters ('lora'), not both")

    def prepare(self) -> None:
        """Make what ``load`` reads; called on one process of a machine. A pretrained model has nothing to make."""

    def load(self) -> tuple[Any, Any]:
        """Read model and processor, and set what trains.

        Returns:
            The model (a PeftModel with ``lora``) and its processor.

        Raises:
            InputError: A local folder has no ``config.json``, a part does not exist, or no layer fits ``lora.targets``.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = Path(self.path)
        # A hub name is "owner/name"; anything else can only be meant as a folder.
        named_folder = folder.is_dir() or folder.is_absolute() or self.path.startswith(".") or len(folder.parts) > 2
        if named_folder and not (folder / "config.json").is_file():
            raise InputError(f"{folder / 'config.json'}: not found; expected the folder of a Hugging Face model")
        options = {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        model = AutoModelForImageTextToText.from_pretrained(self.path, dtype=self._dtype(), **options)
        processor = AutoProcessor.from_pretrained(self.path)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.config.use_cache = False
        return set_trained(model, self.train, self.lora), processor

    def _dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"base.dtype: {self.dtype!r} is not a type of torch, such as 'float32' or 'bfloat16'")
        return dtype


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to.

    Args:
        name: Its dotted name.

    Raises:
        InputError: No part's pattern matches.
    """
    for part, pattern in PARTS.items():
        if re.search(pattern, f"{name}."):
            return part
    raise InputError(f"{name!r} belongs to none of the known parts of a multimodal LLM ({', '.join(PARTS)})")


def set_trained(model: nn.Module, train: Sequence[str], lora: LoRA | None) -> Any:
    """Freeze everything but the named parts, and add adapters.

    Args:
        model: A Hugging Face model.
        train: Parts that train in full.
        lora: Adapters, or None.

    Returns:
        The model, or the PeftModel around it.

    Raises:
        InputError: A named part does not exist, or no layer fits ``lora.targets``.
    """
    parts = {name: part_of(name) for name, _ in model.named_parameters()}
    if missing := set(train) - set(parts.values()):
        top = ", ".join(sorted({".".join(name.split(".")[:2]) for name in parts}))
        raise InputError(f"base.train: the model has no part {sorted(missing)[0]!r}; its modules are {top}")
    wrapped: Any = model
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        layers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.split(".")[-1] in lora.targets and part_of(name) == "language"
        ]
        if not layers:
            raise InputError(f"base.lora.targets: no layer of the language model is named {', '.join(lora.targets)}")
        wrapped = get_peft_model(
            wrapped,
            LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers),
        )
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(".lora_" in name or part_of(name) in train)
    return wrapped


def trained_table(model: nn.Module) -> list[PartRow]:
    """How many parameters of each part train; adapters are a part of their own."""
    rows: dict[str, PartRow] = {}
    for name, parameter in model.named_parameters():
        part = "lora" if ".lora_" in name else part_of(name)
        known = rows.get(part, PartRow(part, 0, 0))
        trained = parameter.numel() if parameter.requires_grad else 0
        rows[part] = PartRow(part, known.trained + trained, known.total + parameter.numel())
    return list(rows.values())


def format_table(rows: Sequence[PartRow]) -> str:
    """The table as text, one part a line."""
    lines = [f"{'part':<10}{'trained':>15}{'parameters':>15}"]
    return "\n".join([*lines, *(f"{row.part:<10}{row.trained:>15,}{row.total:>15,}" for row in rows)])
