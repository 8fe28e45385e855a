"""What people look at: a score table on the terminal, sample clips with questions and answers in TensorBoard."""

from __future__ import annotations

import io
import os
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from mllm4d.data.stream import QuestionBatch
from mllm4d.schema import TASKS
from mllm4d.shards import read_shard
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
    data = trainer.datamodule  # type: ignore[attr-defined]
    shard = next(shard for shard in data.index.shards if clip in shard.keys)
    sample = next(iter(read_shard(data.folder / shard.path, {clip})))
    return decode(sample.video, name=f"{clip}.mp4")
