"""What people look at: a score table on the terminal, sample clips with questions and answers in TensorBoard."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from mllm4d.data.stream import QuestionBatch
from mllm4d.models.batch import Batch, PackedBatch
from mllm4d.schema import TASKS
from mllm4d.video import decode


class ScoreTable(Callback):
    """Prints a table per task after validation and test, and at the end where everything lies."""

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the validation scores."""
        if not trainer.sanity_checking:
            print_table(trainer, "val")

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the test scores."""
        print_table(trainer, "test")

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where TensorBoard's files and the checkpoint lie."""
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "") or getattr(
            trainer.checkpoint_callback, "best_model_path", ""
        )
        print(f"\nTensorBoard: tensorboard --logdir {trainer.log_dir}")
        print(f"checkpoint:  {os.path.relpath(checkpoint) if checkpoint else 'none was written'}")


def print_table(trainer: Trainer, split: str) -> None:
    """Print accuracy and invalid rate per task, beside chance and the best blind solver where the shards say them.

    Args:
        trainer: Its ``callback_metrics`` hold the scores, its data module the index.
        split: "val" or "test".
    """
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    index = getattr(trainer.datamodule, "index", None)  # type: ignore[attr-defined]
    blind = index.notes.get("blind", {}) if index else {}
    print(f"\n{split:<34}{'n':>6}{'accuracy':>9}{'invalid':>9}{'chance':>9}{'blind':>9}   in %")
    for task in (task for task in TASKS if f"{split}/accuracy/{task}" in scores):
        known = blind.get(task, {})
        best = max((v for k, v in known.items() if k not in ("n", "chance")), default=None)
        cells = (scores[f"{split}/accuracy/{task}"], scores[f"{split}/invalid/{task}"], known.get("chance"), best)
        count = scores.get(f"{split}/count/{task}", float("nan"))
        print(f"{task:<34}{count:>6.0f}" + "".join("        -" if c is None else f"{100 * c:>9.1f}" for c in cells))
    for name in ("accuracy_macro", "accuracy"):
        if f"{split}/{name}" in scores:
            print(f"{name:<34}{'':>6}{100 * scores[f'{split}/{name}']:>9.1f}{100 * scores[f'{split}/invalid']:>9.1f}")


class SampleClips(Callback):
    """Shows some validation questions with their clips and the model's answers in TensorBoard.

    Args:
        count: Questions to show, all about different clips.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self.shown: set[str] = set()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self.shown = set()

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: QuestionBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the first question of each new clip until there are enough."""
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or trainer.sanity_checking:
            return
        for text, question in zip(outputs["texts"], batch.questions, strict=True):
            clip = question.id.rsplit("/", 1)[0]
            if len(self.shown) == self.count or clip in self.shown:
                continue
            place = len(self.shown)
            self.shown.add(clip)
            options = "\n".join(f"- **{k}** {option}" for k, option in question.options.items())
            words = (
                f"{question.question}\n\n{options}\n\ntruth: **{question.answer}**, model: `{text}` (`{question.id}`)"
            )
            logger.experiment.add_text(f"samples/{place}", words, trainer.global_step)
            if trainer.current_epoch == 0:  # the clip itself does not change
                frames, times = _frames(trainer, clip)
                add_clip(logger, f"samples/{place}", frames, times, trainer.global_step)


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


def add_clip(logger: TensorBoardLogger, tag: str, frames: Tensor, times: Tensor, step: int) -> None:
    """Log a clip as an animation.

    TensorBoard's own ``add_video`` needs an encoder package and without it writes nothing and raises nothing; an
    animated GIF in an image summary needs none.

    Args:
        logger: The logger.
        tag: Name of the summary.
        frames: [T, H, W, 3] uint8 RGB.
        times: [T] seconds.
        step: Training step.
    """
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    # A GIF keeps time in hundredths of a second; the last frame stays as long as the one before it.
    gaps = [max(20, round(1000 * gap)) for gap in times.diff().tolist()] or [1000]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=[*gaps, gaps[-1]], loop=0)
    height, width = frames.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    writer = logger.experiment._get_file_writer()
    writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _frames(trainer: Trainer, clip: str) -> tuple[Tensor, Tensor]:
    sample = trainer.datamodule.read(clip)  # type: ignore[attr-defined]
    return decode(sample.video, name=f"{clip}.mp4")
