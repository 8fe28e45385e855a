"""One model spread over all GPUs: FSDP2 (``torch.distributed.fsdp.fully_shard``) through Lightning."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh

from mllm4d.models.checkpointing import pretrained
from mllm4d.schema import InputError


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all GPUs of all nodes, with ordinary checkpoints: one file with what trains, as DDP's.

    Args:
        settings: As in Lightning's ``ModelParallelStrategy``; sizes are set here.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"save_distributed_checkpoint": False, **settings})

    def setup_environment(self) -> None:
        """Shard over all processes. Lightning's own default splits single matrices inside a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, whole, on rank 0; the base model is never gathered."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=not self._save_distributed_checkpoint, cpu_offload=True, ignore_frozen_params=True
        )
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint, running nothing that it may hold unless told otherwise."""
        return super().load_checkpoint(checkpoint_path, True if weights_only is None else weights_only)


def shard(model: Any, mesh: DeviceMesh, precision: str) -> None:
    """Shard a model's layers, and what is around them, over a mesh.

    Args:
        model: The model, with or without adapters, the same on all ranks.
        mesh: As ``ModelParallelStrategy`` makes it.
        precision: The trainer's: with "bf16-…" layers are gathered and compute in bfloat16, gradients are summed in
            float32.

    Raises:
        InputError: The mesh splits matrices, or the model's weights are in 4 bits.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    if mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "trainer.strategy: tensor_parallel_size is above 1, but matrices are not split here; name "
            "mllm4d.train.sharding.ShardedStrategy"
        )
    inner = pretrained(model)
    if getattr(inner, "is_quantized", False):
        raise InputError("trainer.strategy: a model in 4 bits cannot be sharded; use DDP, for which it is small enough")
    half = precision.startswith("bf16")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    # Layers of the language model and of the vision tower: each is gathered when its turn comes.
    for module in inner.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh["data_parallel"], mp_policy=policy)
    # The rest: embeddings and head, which may be one, and norms and mergers. They stay from the forward to the
    # backward pass, so that the head can be used after the forward is done.
    fully_shard(inner, mesh=mesh["data_parallel"], mp_policy=policy, reshard_after_forward=False)
