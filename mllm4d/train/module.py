"""What supervised and reinforcement fine-tuning have in common: the model, its inputs, its answers, its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torchmetrics import Metric
from transformers import get_cosine_schedule_with_warmup

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import BaseModel, format_table, trained_table
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.patch_embedding import embed_by_products
from mllm4d.schema import InputError
from mllm4d.train.optimizers import format_groups, parameter_groups
from mllm4d.train.seeds import global_seed
from mllm4d.train.sharding import shard


class MLLMModule(LightningModule):
    """A base MLLM of which something trains, and which answers questions in validation and test.

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
        seed: Of new adapters and of what is drawn in training; None takes that of ``seed_everything``.
    """

    inputs: VideoInputs

    def __init__(
        self,
        base: BaseModel,
        video: VideoSettings,
        metric: Metric,
        learning_rate: float,
        warmup: float,
        weight_decay: float,
        betas: tuple[float, float] | None,
        max_new_tokens: int,
        optimizer: Callable[[Iterable], Optimizer],
        learning_rates: Mapping[str, float] | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.base, self.video, self.metric = base, video, metric
        self.learning_rate, self.warmup, self.learning_rates = learning_rate, warmup, learning_rates
        self.weight_decay, self.betas, self.optimizer = weight_decay, betas, optimizer
        self.max_new_tokens = max_new_tokens
        self.seed = global_seed() if seed is None else seed
        # A checkpoint holds what was trained; the rest is the base model's.
        self.strict_loading = False
        self.model: Any = None

    def prepare_data(self) -> None:
        """Make the base model where it has to be made, on one process of the machine."""
        self.base.prepare()

    def configure_model(self) -> None:
        """Load the base model, and shard it where the strategy does."""
        if self.model is not None:
            return
        # New adapters begin the same on all ranks.
        torch.manual_seed(self.seed)
        model, processor = self.base.load()
        self.inputs = self.make_inputs(self.base.inputs(model, processor, self.video), model)
        model.train()
        if self.device_mesh is not None:
            shard(model, self.device_mesh, self.trainer.precision)
        self.model = model

    def make_inputs(self, inputs: VideoInputs, model: torch.nn.Module) -> VideoInputs:
        """The preprocessing whose batches this module takes.

        Args:
            inputs: That of the base model.
            model: The model, with adapters.
        """
        return inputs

    def on_fit_start(self) -> None:
        """Say once what trains, on the terminal and in TensorBoard; patches are embedded by products from here on."""
        embed_by_products(self.model)
        table = format_table(trained_table(self.model, self.inputs.family))
        groups = format_groups([group for optimizer in self.trainer.optimizers for group in optimizer.param_groups])
        rank_zero_info(f"{table}\n\n{groups}")
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                for tag, text in (("trained/parts", table), ("trained/groups", groups)):
                    # Four blanks make a block of code of it, whose columns stay.
                    logger.experiment.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def test_step(self, batch: QuestionBatch, batch_index: int) -> dict[str, list[str]]:
        """Returns the model's answers under ``texts``."""
        return {"texts": self.answer(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._log_scores("test")

    @torch.no_grad()
    def answer(self, batch: QuestionBatch) -> list[str]:
        """Let the model answer, always with the likeliest token, and score it.

        Args:
            batch: The questions, with prompts.

        Returns:
            One text a question.
        """
        prompts = batch.prompts.model_inputs()
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        if self.device_mesh is not None:
            # Ranks gather each layer together, so that all have to take as many steps as the longest answer has.
            settings["synced_gpus"] = True
        tokens = self.model.generate(**prompts, **settings)
        answers = tokens[:, prompts["input_ids"].shape[1] :]
        texts = self.inputs.processor.batch_decode(answers, skip_special_tokens=True)
        self.metric.update(texts, batch.questions)
        return texts

    def _log_scores(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in self.metric.compute().items()})
        self.metric.reset()

    def make_optimizer(self, steps: int) -> tuple[Optimizer, Any]:
        """The optimiser on what trains, by parts; linear warm-up, then a cosine to zero.

        Args:
            steps: Of the whole schedule.

        Returns:
            The optimiser and its schedule, which takes one step for each of the optimiser's.

        Raises:
            InputError: Nothing trains, or a part that has a learning rate does not.
        """
        groups = parameter_groups(
            self.model, self.inputs.family, self.learning_rate, self.learning_rates, self.weight_decay
        )
        if self.betas is not None:
            groups = [{**group, "betas": tuple(self.betas)} for group in groups]
        optimizer = self.optimizer(groups)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, round(self.warmup * steps), steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained, and what decides the inputs."""
        trained = self._trained()
        checkpoint["trained"], checkpoint["inputs"] = sorted(trained), self.inputs.describe()
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was made with the same parts training, and the same preprocessing.

        Raises:
            InputError: It lacks a trained parameter, has one that this configuration does not train, or was made with
                other inputs.
        """
        saved = checkpoint.get("trained", checkpoint.get("state_dict", {}))
        if differing := sorted(self._trained() ^ set(saved)):
            raise InputError(
                f"checkpoint: {len(differing)} trained parameters differ from what this configuration trains, first "
                f"{differing[0]!r}; expected the same base, 'lora' and 'train' as in training"
            )
        if "inputs" in checkpoint:
            self.inputs.check_same(checkpoint["inputs"], "checkpoint")

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}
