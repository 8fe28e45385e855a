"""The model card of a tiny base MLLM."""

from __future__ import annotations

from collections.abc import Mapping

from tools.tiny.training import Settings

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# mllm4d-tiny

A Qwen3-VL of 2.4 M parameters for eight frames of 64 x 64 pixels, to try MLLM-4D's whole way (SFT, cold start, RFT,
scoring) on two CPU cores without a download. It is a base model: it was never asked about motion, distance or direction
in space.

## What it has learned
To name, locate and count coloured solids (cube, ball, cylinder, cone) in single frames, cuts and short clips of the
synthetic world, to copy options, and to answer as `mllm4d.prompts.text_and_letter`, `letter` and `text` ask. Nothing
else: it knows a few hundred words, and no real picture.

## How it was trained
`{command}`, from random weights with induction heads as initial weights (`tools/tiny/induction.py`): {looking} steps of
{batch_size} films for the vision tower alone, whose features are asked for the words of what stands in their cell of
the image (`tools/tiny/naming.py`), then {steps} steps of {batch_size} questions for the whole model; {cpu_minutes:.0f}
CPU minutes in all. AdamW at {learning_rate:g}, weight decay {weight_decay:g}, seed {seed}, {scenes} scenes of which
only frames and silhouettes are kept. No scene is in any data set that a shipped configuration makes. The words of the
seven relations' options occur only in exercises that are about copying options, and "left" and "right" also where
something is to be located in an image.

## What it scores
Questions with options about 100 scenes that it was not trained on, {per_task} of each kind ({drills} about options
alone), answered greedily in words with a letter; the letter counts.

| exercise | accuracy | chance |
|---|---|---|
{rows}

Of the cells of 200 films about these scenes, 16 a film, so many are given the right word by the tower's features,
read by the model's own head; "nothing" is about cells without a solid, the others about those with one.

| word | accuracy |
|---|---|
{cells}

## Use
```python
from mllm4d.models.tiny import PretrainedTiny

model, processor = PretrainedTiny().load()
```
"""


def card(
    settings: Settings,
    table: Mapping[str, Mapping[str, float]],
    per_task: int,
    cells: Mapping[str, float],
    cpu_minutes: float,
) -> str:
    """The card's text.

    Args:
        settings: Of the training.
        table: As ``evaluation.evaluate`` gives it.
        per_task: Questions of each kind in it.
        cells: As ``evaluation.name_cells`` gives it.
        cpu_minutes: How long the training took.
    """
    rows = "\n".join(f"| {task} | {s['accuracy']:.2f} | {s['chance']:.2f} |" for task, s in sorted(table.items()))
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(settings).items())
    words = "\n".join(f"| {name} | {share:.2f} |" for name, share in cells.items())
    return CARD.format(
        **vars(settings),
        rows=rows,
        per_task=per_task,
        drills=2 * per_task,
        cells=words,
        command=f"python -m tools.train_tiny --out runs/tiny {options}",
        cpu_minutes=cpu_minutes,
    )
