"""The loop of the tiny model's pretraining: it can be interrupted, and goes on as if it had not been."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mllm4d.models.inputs import VideoInputs
from mllm4d.models.logprobs import answer_positions, hidden_at, token_log_probs
from mllm4d.schema import InputError
from mllm4d.train.optimizers import parameter_groups
from tools.tiny.batches import Plan, Step, Steps, loader
from tools.tiny.naming import Probe, looking_loss, naming_loss, read, vocabulary, watched
from tools.tiny.scenes import Scene

WEIGHTS = {"answers": 1.0, "features": 0.5, "states": 0.25, "probe": 0.5}
"""Of the losses: of the answers, and of what the visual tokens are asked: of the tower's features as words, of what the
language model makes of them, and of the probe."""

WARMUP = 50
"""Steps over which the learning rate rises."""

DECAY, FLOOR = 0.3, 0.03
"""Share of the steps, the last ones, over which it falls linearly, and to what share of its peak."""


@dataclass(frozen=True)
class Settings:
    """What decides the weights, together with the scenes.

    Attributes:
        looking: Steps of the vision tower alone, which come first.
        steps: Steps of the whole model.
        batch_size: Films, or questions, in a step.
        learning_rate: Its peak.
        weight_decay: On matrices only.
        seed: Of weights, films and questions.
        scenes: How many scenes the films are made of.
    """

    looking: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    scenes: int


def rate(step: int, settings: Settings) -> float:
    """Share of the peak learning rate at a step.

    For the tower alone it warms up and is flat; then once more, and at the end it falls linearly to ``FLOOR``.
    """
    asking = step - settings.looking
    if asking < 0:
        return min(1.0, (step + 1) / WARMUP)
    falling = (asking - (1 - DECAY) * settings.steps) / (DECAY * settings.steps)
    return min(1.0, (asking + 1) / WARMUP) * (1 - (1 - FLOOR) * min(max(falling, 0.0), 1.0))


def train(
    model: Any,
    inputs: VideoInputs,
    scenes: Sequence[Scene],
    settings: Settings,
    folder: Path,
    device: str,
    workers: int,
    every: int = 100,
) -> Iterator[int]:
    """Train a model in place, from where a checkpoint in ``folder`` is.

    Args:
        model: A Qwen3-VL.
        inputs: Its preprocessing.
        scenes: To train on.
        settings: What decides the weights.
        folder: Gets ``checkpoint.pt`` and ``log.jsonl``.
        device: Where to train.
        workers: Processes that make batches.
        every: Steps from one checkpoint to the next.

    Yields:
        The number of steps done, whenever a checkpoint is written.

    Raises:
        InputError: The checkpoint is of other settings.
    """
    learner = Learner(model, Probe(model, settings.seed), vocabulary(inputs.tokenizer)).to(device)
    optimizer = torch.optim.AdamW(_groups(learner, inputs, settings), betas=(0.9, 0.98))
    file = folder / "checkpoint.pt"
    first, cpu = restore(file, settings, learner, optimizer) if file.is_file() else (0, 0.0)
    steps = Steps(Plan(settings.seed, settings.looking, settings.steps, settings.batch_size), scenes, inputs)
    start, losses = time.process_time() - cpu, defaultdict[str, list[float]](list)
    batches = loader(steps, first, workers)
    learner.train()
    for step in tqdm(range(first, len(steps)), initial=first, total=len(steps), unit="step", mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(step, settings)
        found = learner(next(batches).to(device), alone=step < settings.looking)
        sum(WEIGHTS[name] * loss for name, loss in found.items()).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, loss in found.items():
            losses[name].append(loss.item())
        if (step + 1) % every == 0 or step + 1 == len(steps):
            cpu = time.process_time() - start
            save(file, settings, learner, optimizer, step + 1, cpu)
            means = {name: round(sum(values) / len(values), 4) for name, values in losses.items()}
            note(folder, {"step": step + 1, "loss": means, "cpu_minutes": round(cpu / 60, 2)})
            losses.clear()
            yield step + 1
            learner.train()


class Learner(nn.Module):
    """The model, with what asks it.

    Args:
        model: A Qwen3-VL.
        probe: Of its vision tower; thrown away in the end.
        tokens: Of the words that cells are named by.
    """

    def __init__(self, model: Any, probe: Probe, tokens: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.probe, self.tokens = model, probe, tokens

    def forward(self, step: Step, alone: bool) -> dict[str, Tensor]:
        """The losses of a step, by the names of ``WEIGHTS``.

        Args:
            step: What is shown and asked.
            alone: Whether only the vision tower runs.
        """
        batch, losses = step.batch, dict[str, Tensor]()
        weight = self.model.get_output_embeddings().weight
        with watched(self.model) as features:
            if alone:
                self.model.model.visual(batch.vision["pixel_values_videos"], batch.vision["video_grid_thw"])
            else:
                answers, targets = answer_positions(batch.labels)
                visual = batch.tokens["input_ids"] == self.model.config.video_token_id
                at = answers | visual
                states, head = hidden_at(self.model, {**batch.model_inputs(), "use_cache": False}, at)
                losses["answers"] = -token_log_probs(states[answers[at]], head, targets).mean()
        if step.cells is not None:
            # The words stay where they are: the features are to come to them.
            losses["features"] = naming_loss(read(features[0], self.model), weight.detach(), self.tokens, step.cells)
            losses["probe"] = looking_loss(self.probe, features, step.cells)
            if not alone:
                losses["states"] = naming_loss(states[visual[at]], weight, self.tokens, step.cells)
        return losses


def _groups(learner: Learner, inputs: VideoInputs, settings: Settings) -> list[dict[str, Any]]:
    groups = parameter_groups(learner.model, inputs.family, settings.learning_rate, None, settings.weight_decay)
    return [*groups, {"name": "probe", "params": list(learner.probe.parameters()), "weight_decay": 0.0}]


def save(file: Path, settings: Settings, learner: Learner, optimizer: Any, step: int, cpu: float) -> None:
    """Write a checkpoint; it appears when it is whole."""
    beside = file.with_suffix(".partial")
    torch.save(
        {
            "settings": vars(settings),
            "step": step,
            "cpu": cpu,
            "learner": learner.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        beside,
    )
    os.replace(beside, file)


def restore(file: Path, settings: Settings, learner: Learner, optimizer: Any) -> tuple[int, float]:
    """Read a checkpoint.

    Returns:
        Steps done, and the CPU seconds that they took.

    Raises:
        InputError: It is of other settings.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["settings"] != vars(settings):
        raise InputError(f"{file}: is of {state['settings']}, but {vars(settings)} is asked for; name another --out")
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["cpu"]


def note(folder: Path, entry: dict[str, Any]) -> None:
    """Add a line to the log."""
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps(entry) + "\n")


def spent(folder: Path) -> float:
    """CPU minutes that the training in a folder has taken, as its log says; batches made by workers not among them."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return max((entry["cpu_minutes"] for entry in entries if "cpu_minutes" in entry), default=0.0)
