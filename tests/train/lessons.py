"""The tiny model with a few questions that are all of other lengths, and trainers that write nothing."""

import os
import subprocess
import sys

import lightning
import torch

from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.data.stream import QuestionBatch
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.tiny import TinyQwen3VL
from mllm4d.train.sft import SFT
from tests.conftest import ROOT
from tests.data.shard_sets import question

# Answers of very different lengths: a mean of means is far from the mean.
ANSWERS = ["A", " left and then back again", "B", "the red cube is closer and the blue ball is farther"] * 2


def sft(folder, packing=None, metric=None, video=None, **settings):
    names = ("train", "lora", "gradient_checkpointing", "dtype")
    base = TinyQwen3VL(str(folder / "tiny"), **{n: settings.pop(n) for n in names if n in settings})
    defaults = {"learning_rate": 1.0, "warmup": 0.0, "optimizer": torch.optim.SGD, "max_new_tokens": 3, "seed": 0}
    return SFT(
        base, video or VideoSettings(), metric or MultipleChoiceAccuracy(), packing=packing, **{**defaults, **settings}
    )


class Batches:
    """Not a list: to Lightning that is several loaders. Not a DataLoader: it would deal to the ranks once more."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Lessons(lightning.LightningDataModule):
    """The same questions in every epoch, in batches of so many, dealt to the ranks in turns."""

    def __init__(self, batch_size, count=8, evaluate=False):
        super().__init__()
        self.batch_size, self.count, self.evaluate = batch_size, count, evaluate

    def rows(self, inputs):
        rows = []
        for clip in range(self.count // 2):
            generator = torch.Generator().manual_seed(clip)
            frames = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=generator)
            ids = [f"clip{clip}/{n}" for n in (0, 1)]
            prompts = ["Where?", "Which way did the camera go?" + " And then?" * clip]
            targets = ANSWERS[2 * clip : 2 * clip + 2]
            encoded = inputs.encode(frames, torch.arange(8) / 4, 4.0, prompts, targets, ids)
            rows += list(zip(encoded, (question(f"clip{clip}", n) for n in (0, 1)), strict=True))
        return rows

    def batches(self, generation=False):
        trainer = self.trainer
        inputs = trainer.lightning_module.inputs
        rows = self.rows(inputs)
        pieces = [rows[n : n + self.batch_size] for n in range(0, len(rows), self.batch_size)]
        for piece in pieces[trainer.global_rank :: trainer.world_size]:
            encoded = [record for record, _ in piece]
            prompts = [inputs.prompt_only(record) for record in encoded]
            yield QuestionBatch(
                inputs.collate(encoded, side="right"),
                inputs.collate(prompts, side="left") if generation else None,
                tuple(asked for _, asked in piece),
            )

    def train_dataloader(self):
        return Batches(self.batches())

    def val_dataloader(self):
        return Batches(self.batches(generation=True)) if self.evaluate else []


def trainer(folder, **settings):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": str(folder),
        "log_every_n_steps": 1,
    }
    return lightning.Trainer(**{**defaults, **settings})


class Losses(lightning.Callback):
    """The logged loss of every optimiser step."""

    def __init__(self):
        self.values, self.step = [], 0

    def on_train_start(self, trainer, pl_module):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def trained_weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def torchrun(script, port, *arguments):
    """Run a script on two ranks of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    result = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-4000:]
