"""Sample clips in TensorBoard: the film, the question, what the model answers, and where it thinks things are."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from mllm4d.answers import Point, read_centers
from mllm4d.data.stream import QuestionBatch
from mllm4d.schema import Question, Sample
from mllm4d.train.scene_views import paths_of, plan, scene_points
from mllm4d.video import decode
from mllm4d.viz import read_ply

CLOUDS = "clouds"
"""Folder beside ``index.json`` with the coloured points of some clips, ``KEY.ply``."""


class SampleClips(Callback):
    """Shows some validation questions with their clips and the model's answers in TensorBoard.

    Each place N has ``samples/N``: the question with its options, the truth and the answer (Text), and the clip
    (Images); ``samples/N/paths``: the scene from above with the true paths, which goes along with the clip, and after
    every validation whose answer says centres the true ones as rings and the predicted ones as crosses; and
    ``samples/N/scene``: the same in 3-D with the points of the scene, where the shards have them (Mesh). Clips without
    a camera have no such views.

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
            tag = f"samples/{len(self.shown)}"
            self.shown.add(clip)
            logger.experiment.add_text(tag, describe(question, text), trainer.global_step)
            first = trainer.current_epoch == 0  # the clip itself does not change
            if first or any(read_centers(text)):
                sample = _read(trainer, clip)
                if first:
                    show_clip(logger, tag, sample, _cloud(trainer, clip), trainer.global_step)
                show_answer(logger, tag, sample, question, text, trainer.global_step)


def describe(question: Question, said: str) -> str:
    """A question, its options, the truth and an answer with the errors of the centres that it says, as Markdown."""
    options = "\n".join(f"- **{letter}** {option}" for letter, option in question.options.items())
    lines = [question.question, options, f"truth: **{question.answer}**, model: `{said}` (`{question.id}`)"]
    for kind, predicted in zip(("camera", "object"), read_centers(said), strict=True):
        if (error := center_error(predicted, question.solution.get(f"{kind}_center"))) is not None:
            lines.append(f"{kind} centres: off by {error:.2f} m")
    return "\n\n".join(lines)


def center_error(predicted: Sequence[Point | str | None], true: Sequence[Point] | None) -> float | None:
    """Mean distance of predicted centres from the true ones, metres; None where they cannot be paired one by one.

    Args:
        predicted: As ``mllm4d.answers.read_centers`` reads them.
        true: One for each anchor, or None.
    """
    points = [point for point in predicted if isinstance(point, tuple)]
    if true is None or not len(points) == len(predicted) == len(true) or None in true:
        return None
    return sum(map(math.dist, points, true)) / len(true)


def show_clip(logger: TensorBoardLogger, tag: str, sample: Sample, cloud: Mapping[str, Any] | None, step: int) -> None:
    """Log a clip, its paths from above as they go along with it, and its scene in 3-D.

    Args:
        logger: The logger.
        tag: Of the clip; the others are below it.
        sample: The clip.
        cloud: Coloured points of its scene, as ``mllm4d.viz.read_ply`` reads them, or None.
        step: Training step.
    """
    frames, times = decode(sample.video, name=f"{sample.key}.mp4")
    add_clip(logger, tag, frames, times, step)
    if paths := paths_of(sample.scene):
        drawn = [pil_to_tensor(plan(paths, frame=t)).permute(1, 2, 0) for t in range(len(paths.camera))]
        stored = torch.tensor(sample.scene["times"], dtype=torch.float64)
        add_clip(logger, f"{tag}/paths", torch.stack(drawn), stored, step)
        points, colors = scene_points(sample.scene, cloud)
        add_points(logger, f"{tag}/scene", torch.from_numpy(points), torch.from_numpy(colors), step)


def show_answer(logger: TensorBoardLogger, tag: str, sample: Sample, question: Question, said: str, step: int) -> None:
    """Log the scene from above with true and predicted centres, where an answer says any."""
    camera, target = read_centers(said)
    paths = paths_of(sample.scene)
    if paths is None or not any(isinstance(point, tuple) for point in (*camera, *target)):
        return
    true = [point for name in ("camera_center", "object_center") for point in question.solution.get(name) or ()]
    image = plan(paths, true, [*camera, *target])
    logger.experiment.add_image(f"{tag}/centres", pil_to_tensor(image), step)


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


def add_points(logger: TensorBoardLogger, tag: str, points: Tensor, colors: Tensor, step: int) -> None:
    """Log coloured points in 3-D.

    Args:
        logger: The logger.
        tag: Name of the summary.
        points: [N, 3], OpenCV axes, metres.
        colors: [N, 3] uint8 RGB.
        step: Training step.
    """
    # The viewer has y up and looks along -z.
    turned = points.float() * torch.tensor([1.0, -1.0, -1.0])
    look = {"material": {"cls": "PointsMaterial", "size": 0.05}}
    logger.experiment.add_mesh(tag, turned[None], colors[None], config_dict=look, global_step=step)


def _read(trainer: Trainer, clip: str) -> Sample:
    return trainer.datamodule.read(clip)  # type: ignore[attr-defined]


def _cloud(trainer: Trainer, clip: str) -> Mapping[str, Any] | None:
    """The points of a clip, where one of the local folders of shards has them."""
    for known in getattr(trainer.datamodule, "sets", ()):  # type: ignore[attr-defined]
        path = Path(known.path) / CLOUDS / f"{clip}.ply"
        if path.is_file():
            return read_ply(path)
    return None
