"""Small sets of shards with real videos, a preprocessing without a model, and a module that notes what it is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import lightning
import torch

from mllm4d.schema import InputError, Question, Sample
from mllm4d.shards import write_index, write_shards
from mllm4d.video import encode


def question(clip, number, **changes):
    fields = {
        "id": f"{clip}/{number:03d}",
        "task": "camera_absolute_distance",
        "question": "How far did the camera move?",
        "options": {"A": "1 m", "B": "2 m"},
        "answer": "B",
        "answer_value": 2.0,
        "unit": "m",
        "anchors": (0, 1),
        "object": None,
        "solution": {"camera_center": None, "object_center": None},
        "reasoning": None,
    }
    return Question(**{**fields, **changes})


def sample(clip, count, frames=2, size=16, words=0):
    """A clip with ``count`` questions; the n-th has ``words * n`` words more than the first."""
    generator = torch.Generator().manual_seed(sum(map(ord, clip)))
    pixels = torch.randint(0, 255, (frames, size, size, 3), generator=generator, dtype=torch.uint8)
    times = torch.arange(frames, dtype=torch.float64) / 4
    scene = {"units": "m", "axes": "opencv", "fps": 4.0, "times": times.tolist()}
    questions = (
        question(clip, n, question="How far did the camera move?" + " really" * (words * n)) for n in range(count)
    )
    return Sample(clip, encode(pixels, times), scene, tuple(questions))


def write_set(folder, splits, name="clip", clips_per_shard=4, **settings):
    """Write shards and index; ``splits`` gives each split's numbers of questions, clip by clip."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, counts in splits.items():
        samples = [sample(f"{name}-{split}-{n}", count, **settings) for n, count in enumerate(counts)]
        shards += write_shards(samples, folder, split, clips_per_shard)
    write_index(folder, shards, {"source": "test"})
    return folder


@dataclass(frozen=True)
class Record:
    id: str
    tokens: dict
    vision: dict


@dataclass(frozen=True)
class Padded:
    ids: tuple
    tokens: torch.Tensor

    def to(self, device):
        return replace(self, tokens=self.tokens.to(device))


class PlainInputs:
    """Four tokens a frame and one a word; no model."""

    def __init__(self, max_length=None):
        self.max_length = max_length
        self.clips = []  # of this process
        self.questions = []

    def encode(self, frames, times, fps, prompts, targets, ids):
        self.clips.append(ids[0].rsplit("/", 1)[0])
        vision = {"pixels": frames.float()}
        records = []
        for prompt, id in zip(prompts, ids, strict=True):
            length = 4 * len(frames) + len(prompt.split())
            if self.max_length is not None and length > self.max_length:
                raise InputError(f"question {id!r} has {length} tokens")
            records.append(Record(id, {"input_ids": torch.arange(length)}, vision))
        self.questions += ids
        return records

    def collate(self, encoded, side):
        rows = [record.tokens["input_ids"] for record in encoded]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Padded(tuple(record.id for record in encoded), padded)

    def prompt_only(self, encoded):
        return encoded


class Recorder(lightning.LightningModule):
    """Notes the questions of every training batch, with the epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.stepped = []

    def training_step(self, batch, index):
        self.seen.append((self.trainer.current_epoch, [question.id for question in batch.questions]))
        return self.weight * len(batch.questions)

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = list(self.seen)


def trainer(folder, **settings):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": str(folder),
    }
    return lightning.Trainer(**{**defaults, **settings})
