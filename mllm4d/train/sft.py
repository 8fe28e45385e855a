"""Supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import BaseModel
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.logprobs import CHUNK, answer_positions, hidden_at, token_log_probs
from mllm4d.schema import InputError
from mllm4d.train.module import MLLMModule
from mllm4d.train.seeds import step_seed


class SFT(MLLMModule):
    """Trains a base MLLM to say the targets; validates and tests by letting it answer.

    The loss is the mean over all answer tokens of an optimiser step, over all its micro-batches and ranks: each token
    weighs the same wherever it lies. So the losses are summed, and the gradients divided once, when it is known by
    what.

    Args:
        base: The base MLLM and what of it trains.
        video: How frames become inputs, in training and evaluation alike.
        metric: Scores the model's texts; its ``compute`` returns a flat dict.
        learning_rate: Peak of the schedule.
        warmup: Share of the steps over which the rate rises; it falls to zero as a cosine after that.
        weight_decay: On matrices only.
        betas: For optimisers that have them; None leaves theirs.
        max_new_tokens: Longest answer in evaluation.
        optimizer: From groups of parameters to an optimiser; any class of torch's or another library's.
        learning_rates: Peaks for parts ("vision", "merger", "language") and for the adapters ("lora") that are not
            ``learning_rate``.
        packing: From the preprocessing and the model to a preprocessing whose training batches are packed rows, such
            as ``mllm4d.models.packing.PackedInputs``; None pads.
        chunk: Answer tokens whose logits are in memory at once.
        seed: Of new adapters and of dropout; None takes that of ``seed_everything``.
    """

    def __init__(
        self,
        base: BaseModel,
        video: VideoSettings,
        metric: Metric,
        learning_rate: float = 2e-5,
        warmup: float = 0.01,
        weight_decay: float = 0.0,
        betas: tuple[float, float] | None = None,
        max_new_tokens: int = 16,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        learning_rates: Mapping[str, float] | None = None,
        packing: Callable[[VideoInputs, torch.nn.Module], VideoInputs] | None = None,
        chunk: int = CHUNK,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            base=base,
            video=video,
            metric=metric,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            betas=betas,
            max_new_tokens=max_new_tokens,
            optimizer=optimizer,
            learning_rates=learning_rates,
            seed=seed,
        )
        self.packing, self.chunk = packing, chunk
        # Of the optimiser step that is under way, on this rank: nats, and answer tokens.
        self._sums: Tensor | None = None

    def make_inputs(self, inputs: VideoInputs, model: torch.nn.Module) -> VideoInputs:
        """Packed where that is asked for.

        Args:
            inputs: The preprocessing of the base model.
            model: The model, with adapters.
        """
        return self.packing(inputs, model) if self.packing else inputs

    def on_fit_start(self) -> None:
        """Say once what trains.

        Raises:
            InputError: The strategy keeps gradients to itself, so that micro-batches could not be weighted.
        """
        if self._hidden_gradients and self.trainer.accumulate_grad_batches > 1:
            raise InputError(
                "trainer.accumulate_grad_batches: with DeepSpeed, answer tokens of several micro-batches cannot be "
                "weighted alike; set it to 1, or use ddp or mllm4d.train.sharding.ShardedStrategy"
            )
        super().on_fit_start()

    def training_step(self, batch: QuestionBatch, batch_index: int) -> Tensor:
        """Sum of the losses of one batch, nats; ``on_before_optimizer_step`` makes a mean of its gradients."""
        # Nothing that was drawn before counts, so that a resumed run has the dropout of the run that was not stopped.
        torch.manual_seed(step_seed(self.seed, self.trainer.current_epoch, batch_index, self.global_rank))
        total, count = self._loss(batch)
        sums = torch.stack([total.detach(), total.new_tensor(count)])  # [2]
        self._sums = sums if self._sums is None else self._sums + sums
        if self._hidden_gradients:
            tokens = self.trainer.strategy.reduce(sums[1].clone(), reduce_op="sum")
            return total * self.trainer.world_size / tokens.clamp(min=1)
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make gradients of the sum those of the mean over the step's answer tokens, before they are clipped."""
        assert self._sums is not None
        total, tokens = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = None
        self.log("train/loss", total / max(tokens, 1), prog_bar=True)
        if self._hidden_gradients:
            return
        # Ranks' gradients come averaged, and Lightning has divided each loss by the number of micro-batches.
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches / max(tokens, 1)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)

    def validation_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, list[str]]:
        """Log the loss; returns the model's answers under ``texts``."""
        total, count = self._loss(batch)
        # Weighted by the tokens.
        self.log("val/loss", total / max(count, 1), batch_size=count, sync_dist=True)
        return {"texts": self.answer(batch)}

    def _loss(self, batch: QuestionBatch) -> tuple[Tensor, int]:
        """Sum over the answer tokens of a batch, nats, and how many they are."""
        at, targets = answer_positions(batch.inputs.labels)
        states, head = hidden_at(self.model, {**batch.inputs.model_inputs(), "use_cache": False}, at)
        return -token_log_probs(states, head, targets, self.chunk).sum(), len(targets)

    @property
    def _hidden_gradients(self) -> bool:
        """DeepSpeed keeps gradients in buffers of its own: losses are weighted before its backward pass."""
        return self.trainer.strategy.handles_gradient_accumulation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser on what trains, by parts; linear warm-up, then a cosine to zero.

        Raises:
            InputError: Nothing trains, or a part that has a learning rate does not.
        """
        optimizer, schedule = self.make_optimizer(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
