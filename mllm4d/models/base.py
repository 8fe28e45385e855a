"""The base MLLM: any Hugging Face image-text-to-text model, and what of it trains."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from mllm4d.models.checkpointing import checkpoint_parts, use_liger
from mllm4d.models.checkpointing import pretrained as pretrained
from mllm4d.models.families import Family, family_of
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.schema import InputError

PARTS = tuple(Family.parts)
"""The parts of a multimodal LLM; which module belongs to which is the family's to say."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on linear layers (arXiv 2106.09685); the defaults are those of MLLM-4D (arXiv 2603.00515).

    Attributes:
        r: Rank.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: On the adapters' inputs.
        targets: Names of the layers that get one.
        parts: Parts whose layers of those names get one: any of "language", "vision", "merger".
        dora: Weights split into magnitude and direction, and the magnitude trains too (arXiv 2402.09353).

    Raises:
        InputError: A part is unknown, or none is named.
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts: Sequence[str] = ("language",)
    dora: bool = False

    def __post_init__(self) -> None:
        _check_parts("base.lora.parts", self.parts)
        if not self.parts:
            raise InputError("base.lora.parts: names no part; expected some of " + ", ".join(PARTS))


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
        lora: Adapters; their parts must not be among ``train``.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them: of every part
            that needs gradients, or of the parts that are named.
        quantization: "4bit" keeps the language model's frozen weights in 4 bits (QLoRA, arXiv 2305.14314), for which
            it needs the package bitsandbytes and a GPU.
        family: How this kind of model wants its video; None finds it by the ``model_type`` of the model's own
            configuration.
        liger: Put Liger's fused Triton kernels (arXiv 2410.10989) in place of the model's norms, rotary positions and
            MLPs, for which it needs the package liger-kernel and a GPU. Its losses are not used: ours never makes all
            logits either.

    Raises:
        InputError: A part is unknown, or has both, or is to train in full in 4 bits.
    """

    # Not a dataclass: jsonargparse takes subclasses by ``class_path`` only of ordinary classes.
    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        train: Sequence[str] = (),
        lora: LoRA | None = None,
        gradient_checkpointing: bool | Sequence[str] = False,
        quantization: Literal["4bit"] | None = None,
        family: Family | None = None,
        liger: bool = False,
    ) -> None:
        self.path, self.dtype, self.attn_implementation = path, dtype, attn_implementation
        self.train, self.lora, self.gradient_checkpointing = train, lora, gradient_checkpointing
        self.quantization, self.family, self.liger = quantization, family, liger
        _check_parts("base.train", train)
        if not isinstance(gradient_checkpointing, bool):
            _check_parts("base.gradient_checkpointing", gradient_checkpointing)
        if lora is not None and (both := [part for part in lora.parts if part in train]):
            raise InputError(f"base.train: {both[0]!r} trains in full or has adapters ('lora'), not both")
        if quantization is not None and "language" in train:
            raise InputError("base.train: 'language' cannot train in full while 'quantization' keeps it in 4 bits")

    def prepare(self) -> None:
        """Make what ``load`` reads; called on one process of a machine. A pretrained model has nothing to make."""

    def load(self) -> tuple[Any, Any]:
        """Read model and processor, and set what trains.

        Returns:
            The model (a PeftModel with ``lora``) and its processor.

        Raises:
            InputError: A local folder has no ``config.json``, the processor is not the model's, a part does not exist,
                no layer fits ``lora.targets``, or a package is missing.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        folder = Path(self.path)
        # A hub name is "owner/name"; anything else can only be meant as a folder.
        named_folder = folder.is_dir() or folder.is_absolute() or self.path.startswith(".") or len(folder.parts) > 2
        if named_folder and not (folder / "config.json").is_file():
            raise InputError(f"{folder / 'config.json'}: not found; expected the folder of a Hugging Face model")
        options: dict[str, Any] = {"dtype": self._dtype()}
        if self.attn_implementation:
            options["attn_implementation"] = self.attn_implementation
        family = self.family_for(AutoConfig.from_pretrained(self.path))
        if self.quantization is not None:
            options["quantization_config"] = quantization_config(family, options["dtype"])
        model = AutoModelForImageTextToText.from_pretrained(self.path, **options)
        try:
            processor = AutoProcessor.from_pretrained(self.path)
        except ImportError as error:
            raise InputError(f"base.path: {self.path}: its processor needs another package: {error}") from error
        family.check(model.config, processor)
        if self.liger:
            use_liger(model)
        model = set_trained(model, self.train, self.lora, family)
        if self.gradient_checkpointing:
            parts = PARTS if self.gradient_checkpointing is True else self.gradient_checkpointing
            checkpoint_parts(model, parts, family)
        return model, processor

    def family_for(self, config: Any) -> Family:
        """The family named in ``family``, else the one that the model's configuration says."""
        return self.family or family_of(config)

    def inputs(self, model: Any, processor: Any, settings: VideoSettings) -> VideoInputs:
        """The preprocessing for what ``load`` gave.

        Args:
            model: The model, with or without adapters.
            processor: Its processor.
            settings: How frames become inputs.

        Raises:
            InputError: The processor takes no videos.
        """
        return VideoInputs(processor, settings, self.family_for(model.config))

    def _dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"base.dtype: {self.dtype!r} is not a type of torch, such as 'float32' or 'bfloat16'")
        return dtype


def quantization_config(family: Family, dtype: torch.dtype) -> Any:
    """Settings of bitsandbytes: 4-bit normal floats, doubly quantised, for the language model's layers alone.

    Args:
        family: Knows which modules the other parts are.
        dtype: In which layers compute.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("base.quantization: '4bit' needs the package bitsandbytes (pip install bitsandbytes)")
    others = [rf"(?:.*\.)?(?:{pattern})" for part, pattern in family.parts.items() if part != "language"]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*others, "lm_head"],
    )


def part_of(name: str, family: Family | None = None) -> str:
    """The part that a parameter or module belongs to.

    Args:
        name: Its dotted name.
        family: The model's family; None tries the names of all that are known.

    Raises:
        InputError: No part's pattern matches.
    """
    return (family or Family()).part_of(name)


def set_trained(model: nn.Module, train: Sequence[str], lora: LoRA | None, family: Family | None = None) -> Any:
    """Freeze everything but the named parts, and add adapters.

    Args:
        model: A Hugging Face model.
        train: Parts that train in full, also beside adapters.
        lora: Adapters, or None.
        family: The model's family; None finds it by its configuration.

    Returns:
        The model, or the PeftModel around it.

    Raises:
        InputError: A named part does not exist, or has no layer that fits ``lora.targets``.
    """
    family = family or family_of(getattr(model, "config", None))
    parts = {name: family.part_of(name) for name, _ in model.named_parameters()}
    if missing := set(train) - set(parts.values()):
        top = ", ".join(sorted({".".join(name.split(".")[:2]) for name in parts}))
        raise InputError(f"base.train: the model has no part {sorted(missing)[0]!r}; its modules are {top}")
    wrapped: Any = model
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        layers = [layer for part in lora.parts for layer in _layers(model, family, part, lora.targets)]
        wrapped = get_peft_model(
            wrapped,
            LoraConfig(
                r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_dora=lora.dora, target_modules=layers
            ),
        )
    # After PEFT, which freezes everything else whatever it was told before.
    for name, parameter in wrapped.named_parameters():
        trained = ".lora_" in name or family.part_of(name) in train
        # Weights in 4 bits are integers, which cannot even be asked.
        if trained or parameter.requires_grad:
            parameter.requires_grad_(trained)
    return wrapped


def _layers(model: nn.Module, family: Family, part: str, targets: Sequence[str]) -> list[str]:
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and family.part_of(name) == part
    ]
    layers = [name for name in linear if name.split(".")[-1] in targets]
    if not layers:
        where = "the language model" if part == "language" else f"part {part!r}"
        there = ", ".join(sorted({name.split(".")[-1] for name in linear})) or "none"
        raise InputError(
            f"base.lora.targets: no layer of {where} is named {', '.join(targets)}; its linear layers are {there}"
        )
    return layers


@contextmanager
def reference(model: Any, family: Family | None = None) -> Iterator[Any]:
    """The base model inside an adapted one: adapters off, dropout off, no gradient.

    Args:
        model: A PeftModel.
        family: The model's family; None finds it by its configuration.

    Raises:
        InputError: The model has no adapters, or parts of it train in full, so that its base is not there any more.
    """
    if not hasattr(model, "disable_adapter"):
        raise InputError("base.lora: a reference is the model without its adapters, and this model has none")
    full = [row.part for row in trained_table(model, family) if row.part != "lora" and row.trained]
    if full:
        raise InputError(f"base.train: {full[0]!r} trains in full, so that the reference would change with it")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with model.disable_adapter(), torch.no_grad():
            yield model
    finally:
        # Not ``train()``: some parts may have been in evaluation before.
        for module in training:
            module.training = True


def row_of(name: str, family: Family) -> str:
    """The row of the table of what trains that a parameter counts in: its part, or "lora" for adapters of any part.

    Args:
        name: Its dotted name.
        family: The model's family.

    Raises:
        InputError: No part's pattern matches.
    """
    return "lora" if ".lora_" in name else family.part_of(name)


def trained_table(model: nn.Module, family: Family | None = None) -> list[PartRow]:
    """How many parameters of each part train; adapters are a part of their own.

    Args:
        model: The model, with or without adapters.
        family: The model's family; None finds it by its configuration.
    """
    family = family or family_of(getattr(model, "config", None))
    rows: dict[str, PartRow] = {}
    for name, parameter in model.named_parameters():
        part = row_of(name, family)
        known = rows.get(part, PartRow(part, 0, 0))
        # Weights in 4 bits lie packed; their quantisation knows how many they are.
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else state.shape.numel()
        rows[part] = PartRow(part, known.trained + count * parameter.requires_grad, known.total + count)
    return list(rows.values())


def format_table(rows: Sequence[PartRow]) -> str:
    """The table as text, one part a line."""
    lines = [f"{'part':<10}{'trained':>15}{'parameters':>15}"]
    return "\n".join([*lines, *(f"{row.part:<10}{row.trained:>15,}{row.total:>15,}" for row in rows)])


def _check_parts(key: str, parts: Sequence[str]) -> None:
    if unknown := set(parts) - set(PARTS):
        raise InputError(f"{key}: {sorted(unknown)[0]!r} is not one of {', '.join(sorted(PARTS))}")
