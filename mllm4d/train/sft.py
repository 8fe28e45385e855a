"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torchmetrics import Metric
from transformers import get_cosine_schedule_with_warmup

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import BaseModel, format_table, trained_table
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.schema import InputError
from mllm4d.train.losses import answer_loss


class SFT(LightningModule):
    """Trains a base MLLM to say the targets; validates and tests by letting it answer.

    Args:
        base: The base MLLM and what of it trains.
        video: How frames become inputs, in training and evaluation alike.
        metric: Scores the model's texts; its ``compute`` returns a flat dict.
        learning_rate: Peak of the schedule.
        warmup: Share of the steps over which the rate rises; it falls to zero as a cosine after that.
        weight_decay: On matrices only.
        betas: AdamW's.
        max_new_tokens: Longest answer in evaluation.
    """

    def __init__(
        self,
        base: BaseModel,
        video: VideoSettings,
        metric: Metric,
        learning_rate: float = 2e-5,
        warmup: float = 0.01,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        max_new_tokens: int = 16,
    ) -> None:
        super().__init__()
        self.base, self.video, self.metric = base, video, metric
        self.learning_rate, self.warmup = learning_rate, warmup
        self.weight_decay, self.betas = weight_decay, betas
        self.max_new_tokens = max_new_tokens
        # A checkpoint holds what was trained; the rest is the base model's.
        self.strict_loading = False
        self.model: Any = None
        self.inputs: VideoInputs

    def prepare_data(self) -> None:
        """Make the base model where it has to be made, on one process of the machine."""
        self.base.prepare()

    def configure_model(self) -> None:
        """Load the base model."""
        if self.model is None:
            self.model, processor = self.base.load()
            self.model.train()
            self.inputs = VideoInputs(processor, self.video)

    def on_fit_start(self) -> None:
        """Say once what trains."""
        rank_zero_info(format_table(trained_table(self.model)))

    def training_step(self, batch: QuestionBatch, batch_index: int) -> torch.Tensor:
        """Loss of one batch, nats per answer token."""
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.questions))
        return loss

    def validation_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, list[str]]:
        """Log the loss; returns the model's answers under ``texts``."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch.questions), sync_dist=True)
        return {"texts": self._answer(batch)}

    def test_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, list[str]]:
        """Returns the model's answers under ``texts``."""
        return {"texts": self._answer(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    def _loss(self, batch: QuestionBatch) -> torch.Tensor:
        logits = self.model(**batch.inputs.model_inputs()).logits
        return answer_loss(logits, batch.inputs.labels)

    @torch.no_grad()
    def _answer(self, batch: QuestionBatch) -> list[str]:
        prompts = batch.prompts.model_inputs()
        tokens = self.model.generate(**prompts, max_new_tokens=self.max_new_tokens, do_sample=False)
        answers = tokens[:, prompts["input_ids"].shape[1] :]
        texts = self.inputs.processor.batch_decode(answers, skip_special_tokens=True)
        self.metric.update(texts, batch.questions)
        return texts

    def _log_scores(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in self.metric.compute().items()})
        self.metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on what trains, decay on matrices only; linear warm-up, then a cosine to zero.

        Raises:
            InputError: Nothing trains.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not trained:
            raise InputError("model.base: nothing would train; name parts under 'train' or give 'lora'")
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate, betas=self.betas)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(self.warmup * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was made with the same parts training.

        Raises:
            InputError: It lacks a trained parameter, or has one that this configuration does not train.
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        if differing := sorted(trained ^ set(checkpoint["state_dict"])):
            raise InputError(
                f"checkpoint: {len(differing)} trained parameters differ from what this configuration trains, first "
                f"{differing[0]!r}; expected the same base, 'lora' and 'train' as in training"
            )
