"""Memory of training, item by item, before a GPU is asked for: from a model without weights and a dry step.

What is counted is what tensors take. Not counted: the CUDA context and loaded kernels, what the allocator loses between
its blocks (fragmentation), workspaces of cuBLAS and cuDNN, NCCL's buffers, and what an optimiser that is not fused
needs for its step. What is computed in 4 bits is counted as its weights alone, without the matrix that is unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mllm4d.models.base import PARTS, BaseModel, set_trained
from mllm4d.models.batch import Batch, Encoded, PackedBatch
from mllm4d.models.checkpointing import checkpoint_parts, pretrained
from mllm4d.models.dry_run import PIXELS, Step
from mllm4d.models.families import Family
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError

BITS = 4.127
"""Of a weight in 4 bits, with its doubly quantised scales (arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Memory:
    """What lies in one device's memory at the highest moment of a step, bytes.

    Attributes:
        weights: Parameters and buffers; a share of them where they are sharded.
        gradients: Of what trains.
        optimizer: Its states.
        gathered: Layers that are whole for their turn, where weights are sharded.
        inputs: The batch.
        language: Activations of the language model that are kept for the backward pass.
        vision: Those of vision tower and merger.
        loss: Those of head and loss, a chunk of logits the largest of them.
        working: What comes and goes: gradients of activations, activations that are computed again, casts.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    inputs: int
    language: int
    vision: int
    loss: int
    working: int

    @property
    def total(self) -> int:
        """Sum of the items."""
        return sum(self.items().values())

    def items(self) -> dict[str, int]:
        """Item to bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class AdapterRow(NamedTuple):
    """Adapters of one kind.

    Attributes:
        part: The part that they sit on.
        name: Of the layers.
        layers: How many there are.
        shape: Inputs and outputs of a layer.
        parameters: Of all their adapters.
    """

    part: str
    name: str
    layers: int
    shape: tuple[int, int]
    parameters: int


def adapter_rows(model: nn.Module, family: Family) -> list[AdapterRow]:
    """Which layers have adapters, by part and name.

    Args:
        model: With its adapters.
        family: The model's family.
    """
    found: dict[tuple[str, str, tuple[int, int]], list[int]] = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            count = sum(p.numel() for name, p in module.named_parameters() if name.startswith("lora_"))
            key = (family.part_of(path), path.split(".")[-1], (module.in_features, module.out_features))
            found.setdefault(key, []).append(count)
    return [AdapterRow(part, name, len(counts), shape, sum(counts)) for (part, name, shape), counts in found.items()]


def meta_model(config: Any, base: BaseModel) -> Any:
    """A model without weights, with the adapters, types and checkpoints that a training would give it.

    Args:
        config: Of the model.
        base: What trains and how; its ``path`` is not read. ``dtype`` "auto" is bfloat16, as on a GPU.

    Raises:
        InputError: As in ``BaseModel.load``.
    """
    from transformers import AutoModelForImageTextToText

    family = base.family_for(config)
    dtype = torch.bfloat16 if base.dtype == "auto" else base._dtype()
    # Flash attention is not asked whether it is installed: it keeps what torch's own fused attention keeps.
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        model = set_trained(model, base.train, base.lora, family)
    if base.gradient_checkpointing:
        checkpoint_parts(model, PARTS if base.gradient_checkpointing is True else base.gradient_checkpointing, family)
    return model.train()


def example_batch(
    inputs: VideoInputs, frames: int, height: int, width: int, question: int = 64, answer: int = 8, clips: int = 1
) -> Batch | PackedBatch:
    """A batch of blank clips with one question each, through the one preprocessing.

    Args:
        inputs: The preprocessing; with ``PackedInputs`` the batch is one row.
        frames: Of a clip; ``inputs.settings.frames`` may take fewer.
        height: Of its frames, pixels, before they are scaled.
        width: Likewise.
        question: Tokens of the question's own text, beside video, times and the chat template's.
        answer: Tokens of the answer, its end not among them.
        clips: How many.

    Raises:
        InputError: As in ``VideoInputs.encode``.
    """
    pixels = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    (record,) = inputs.encode(pixels, torch.arange(frames) / 4, 4.0, ["?"], ["A"], ["clip"])
    # One token is there of each.
    record = _longer(record, record.prompt_length - 1, question - 1)
    record = replace(record, prompt_length=record.prompt_length + question - 1)
    record = _longer(record, record.prompt_length, answer - 1)

    def clip() -> Encoded:
        vision = {k: v.to("meta") if k.startswith(PIXELS) else v.clone() for k, v in record.vision.items()}
        return replace(record, vision=vision)

    return inputs.collate([clip() for _ in range(clips)])


def _longer(record: Encoded, at: int, count: int) -> Encoded:
    """The record with its token at a place repeated."""
    place = torch.arange(len(record.tokens["input_ids"]))
    place = torch.cat([place[:at], place[at : at + 1].repeat(count + 1), place[at + 1 :]])
    return replace(record, tokens={name: tensor[place] for name, tensor in record.tokens.items()})


def estimate(
    model: Any,
    batch: Batch | PackedBatch,
    step: Step,
    devices: int = 1,
    sharded: bool = False,
    autocast: torch.dtype | None = None,
    state_bytes: float | None = None,
    four_bits: bool = False,
) -> Memory:
    """Memory of one device in training.

    Args:
        model: On the meta device; see ``meta_model``.
        batch: Of one device.
        step: ``dry_step`` of the two.
        devices: That train together.
        sharded: Weights, gradients and states lie spread over them (FSDP2, ``mllm4d.train.sharding``); else each device
            has them whole (DDP with ``gradient_as_bucket_view``).
        autocast: As in ``dry_step``; sharded layers are gathered in this type.
        state_bytes: Of the optimiser, for a trained parameter; None is two numbers of the parameter's own type, as
            AdamW has them. AdamW in 8 bits has 2.
        four_bits: The language model's frozen matrices lie in 4 bits.

    Raises:
        InputError: Weights in 4 bits are to be sharded, which cannot be.
    """
    if four_bits and sharded:
        raise InputError("a model in 4 bits cannot be sharded; use DDP, for which it is small enough")
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    share = devices if sharded else 1
    weights = bytes_of(parameters) - (_saved_by_four_bits(model) if four_bits else 0)
    states = 2 * bytes_of(trained) if state_bytes is None else state_bytes * sum(p.numel() for p in trained)
    held = sum(step.kept.values())
    return Memory(
        weights=_ceil(weights, share) + bytes_of(list(model.buffers())),
        gradients=_ceil(bytes_of(trained), share),
        optimizer=_ceil(states, share),
        gathered=gathered_bytes(model, autocast) if sharded and devices > 1 else 0,
        inputs=bytes_of([t for t in [*batch.model_inputs().values(), batch.labels] if isinstance(t, Tensor)]),
        language=step.kept["language"],
        vision=step.kept["vision"],
        loss=step.kept["head"],
        working=max(0, step.peak - held),
    )


def gathered_bytes(model: Any, dtype: torch.dtype | None = None) -> int:
    """Weights that are whole on every device at once, where ``mllm4d.train.sharding.shard`` has sharded a model.

    They are what is in no layer (embeddings, head, mergers), which stays, and two layers: the one at work and the next.

    Args:
        model: With its adapters.
        dtype: They are gathered in it; None is their own.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    def whole(module: nn.Module) -> int:
        return sum(p.numel() * (dtype.itemsize if dtype else p.element_size()) for p in module.parameters())

    inner = pretrained(model)
    layers = [whole(module) for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    return whole(inner) - sum(layers) + 2 * max(layers, default=0)


def bytes_of(tensors: Sequence[Any]) -> int:
    """Bytes of tensors or parameters."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved_by_four_bits(model: nn.Module) -> int:
    matrices = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "language" in name and ".lora_" not in name
    ]
    return bytes_of(matrices) - round(sum(matrix.numel() for matrix in matrices) * BITS / 8)


def _ceil(count: float, share: int) -> int:
    return -int(-count // share)


def format_memory(columns: Mapping[str, Memory]) -> str:
    """Estimates side by side as text, GB of 10^9 bytes.

    Args:
        columns: Heading to estimate.
    """
    width = max(10, *(len(name) + 2 for name in columns))
    lines = [f"{'GB on each GPU':<16}" + "".join(f"{name:>{width}}" for name in columns)]
    rows = {name: [memory.items()[name] for memory in columns.values()] for name in Memory.__dataclass_fields__}
    rows["total"] = [memory.total for memory in columns.values()]
    return "\n".join(
        [*lines, *(f"{name:<16}" + "".join(f"{n / 1e9:>{width}.2f}" for n in counts) for name, counts in rows.items())]
    )
