"""Train ``mllm4d-tiny``, the base MLLM of ``configs/quickstart.yaml``, from random weights.

It learns what a general MLLM knows and 4-D does not need: to name, locate and count coloured solids in single frames
and short clips, to read and copy options, to answer by letter and by text. It is never asked one of the seven
relations. Interrupted, the same command goes on.

    python -m tools.train_tiny --out runs/tiny
    python -m tools.train_tiny --out runs/tiny --device cuda --steps 8000

``OUT/model`` is then the folder of the model, ``OUT/log.jsonl`` says how it learned. The one that comes with the
package (``mllm4d/models/mllm4d_tiny``) is what the first command made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.tiny import build_model, build_processor, build_tokenizer
from mllm4d.schema import InputError
from tools.tiny import exercises
from tools.tiny.card import card
from tools.tiny.evaluation import evaluate, name_cells
from tools.tiny.induction import add_induction_heads, soften_vision
from tools.tiny.scenes import CHUNK, read_scenes, render_missing
from tools.tiny.training import Settings, note, spent, train

VIDEO = VideoSettings(frames=8, max_pixels=4096)

ROPE_THETA = 10_000.0
"""With 100, which suffices to tell patches apart, options are too far from the answer to be looked up."""


def run(
    out: Path, settings: Settings, scenes: Path, device: str, workers: int, evaluate_every: int, per_task: int
) -> Path:
    """Render, train, score and write the model's folder.

    Args:
        out: Folder for the checkpoint, the log and the model.
        settings: What decides the weights.
        scenes: Folder of the rendered scenes, which several runs may share.
        device: Where to train.
        workers: Processes that make batches ahead.
        evaluate_every: Steps from one evaluation to the next.
        per_task: Questions of each kind in an evaluation.

    Returns:
        The model's folder.

    Raises:
        InputError: A setting is not possible, or ``out`` holds a run of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    # The last file of scenes is held out.
    for done in render_missing(scenes, settings.scenes + CHUNK):
        print(f"\r{done} scenes", end="", file=sys.stderr, flush=True)
    pictures = read_scenes(scenes, settings.scenes + CHUNK)
    tokenizer = build_tokenizer(exercises.sentences())
    inputs = VideoInputs(build_processor(tokenizer), VIDEO)
    model = build_model(tokenizer, settings.seed, rope_theta=ROPE_THETA)
    add_induction_heads(model, settings.seed)
    soften_vision(model)
    model.to(device)
    for step in train(model, inputs, pictures[:-CHUNK], settings, out, device, workers):
        if step % evaluate_every == 0:
            named = name_cells(model, inputs, pictures[-CHUNK:], 200, device)
            table = evaluate(model, inputs, pictures[-CHUNK:], per_task, device) if step > settings.looking else {}
            note(out, {"step": step, "cells": named, "held out": table})
            found = {task: score["accuracy"] for task, score in table.items()}
            print(f"\n{step} cells {named} {found}", file=sys.stderr)
    # Also where a run that was finished is only written again.
    table = evaluate(model, inputs, pictures[-CHUNK:], per_task, device)
    named = name_cells(model, inputs, pictures[-CHUNK:], 200, device)
    text = card(settings, table, per_task, named, spent(out))
    return write(model.cpu(), inputs, text, out / "model")


def write(model: Any, inputs: VideoInputs, card: str, folder: Path) -> Path:
    """Write the model's folder with its card; it appears when it is whole."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    inputs.save(beside)
    (beside / "README.md").write_text(card)
    for file in beside.iterdir():
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(beside, folder)
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1400, help="scenes to render, a multiple of 100")
    parser.add_argument("--scene-folder", type=Path, help="where they are kept; OUT/scenes by default")
    parser.add_argument("--looking", type=int, default=600, help="steps of the vision tower alone, at first")
    parser.add_argument("--steps", type=int, default=1600, help="steps of the whole model")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch; on a CPU more than its cores is far slower")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches ahead")
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps")
    parser.add_argument("--per-task", type=int, default=40, help="questions of each kind in an evaluation")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = Settings(
        given.looking,
        given.steps,
        given.batch_size,
        given.learning_rate,
        given.weight_decay,
        given.seed,
        given.scenes,
    )
    scenes = given.scene_folder or given.out / "scenes"
    try:
        folder = run(given.out, settings, scenes, given.device, given.workers, given.evaluate_every, given.per_task)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(folder)


if __name__ == "__main__":
    main()
