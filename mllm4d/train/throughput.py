"""How much is trained a second, and what it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.batch import Batch, PackedBatch


class Throughput(Callback):
    """Logs how much is trained a second, over all ranks, and what it takes.

    ``train/tokens_per_second`` are the tokens that the model computes, without padding (what questions share in a
    packed row counts once), ``train/questions_per_second`` the questions; validation does not count, waiting for data
    and checkpoints do. ``train/skipped`` are the questions left out so far (``ClipDataModule.skipped``), and
    ``train/gpu_memory`` is the most that torch held on the fullest GPU since the last time, GiB.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.begun, self.questions = time.perf_counter(), 0
        self.tokens: Tensor | int = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: QuestionBatch, batch_idx: int
    ) -> None:
        """Count, and log at the logger's steps."""
        # A tensor until it is logged: asking for its value would wait for the GPU at every step.
        self.tokens = self.tokens + computed_tokens(batch.inputs)
        self.questions += len(batch.questions)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        device = pl_module.device
        mine = torch.tensor([float(self.tokens), self.questions, sum(skipped(trainer).values())], device=device)
        tokens, questions, left_out = trainer.strategy.reduce(mine, reduce_op="sum").tolist()
        seconds = time.perf_counter() - self.begun
        values = {"tokens_per_second": tokens / seconds, "questions_per_second": questions / seconds}
        values["skipped"] = left_out
        if device.type == "cuda":
            memory = torch.tensor(torch.cuda.max_memory_allocated(device) / 2**30, device=device)
            values["gpu_memory"] = float(trainer.strategy.reduce(memory, reduce_op="max"))
            torch.cuda.reset_peak_memory_stats(device)
        pl_module.log_dict({f"train/{name}": value for name, value in values.items()})
        self._restart()


def computed_tokens(inputs: Batch | PackedBatch) -> Tensor | int:
    """Tokens of a batch that are no padding, [] or a number."""
    mask = inputs.tokens.get("attention_mask")
    return inputs.tokens["input_ids"].numel() if mask is None else mask.sum()


def skipped(trainer: Trainer) -> Mapping[str, int]:
    """Questions that this process left out so far, for each kind of loader; none where the data module cannot say."""
    return getattr(trainer.datamodule, "skipped", {})  # type: ignore[attr-defined]
