"""What the tiny model can do: exercises about scenes that it was not trained on, and the names of their cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from mllm4d import prompts
from mllm4d.answers import read_option
from mllm4d.models.inputs import VideoInputs
from tools.tiny.batches import UNASKED, drills, encode_film, encode_text, held_out, prompt_tensors
from tools.tiny.films import draw_film
from tools.tiny.naming import cells, named, read, stack, vocabulary, watched
from tools.tiny.scenes import Scene


def evaluate(
    model: Any, inputs: VideoInputs, scenes: Sequence[Scene], per_task: int, device: str
) -> dict[str, dict[str, float]]:
    """Accuracy of each kind of exercise on scenes that were not trained on, answered by generation.

    Args:
        model: The model.
        inputs: Its preprocessing.
        scenes: Held out.
        per_task: Questions of each kind.
        device: Where the model is.

    Returns:
        Task to ``{"accuracy": …, "chance": …}``; the drill, and by letter alone "letter …", among them.
    """
    films, texts = held_out(scenes, per_task), drills(2 * per_task)
    rows = [encode_film(inputs, film, prompts.text_and_letter(question)) for film, question in films]
    rows += [encode_text(inputs, prompts.text_and_letter(question)) for question in texts]
    questions = [question for _, question in films] + texts
    said = [*answer(model, inputs, rows[: len(films)], device), *answer(model, inputs, rows[len(films) :], device)]
    table: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for text, question in zip(said, questions, strict=True):
        table[question.task].append((read_option(text, question.options) == question.answer, 1 / len(question.options)))
    return {
        task: {
            "accuracy": round(sum(right for right, _ in found) / len(found), 3),
            "chance": round(sum(chance for _, chance in found) / len(found), 3),
        }
        for task, found in table.items()
    }


@torch.no_grad()
def answer(model: Any, inputs: VideoInputs, rows: Sequence[Any], device: str, tokens: int = 10) -> list[str]:
    """What a model says, greedily.

    Args:
        model: The model.
        inputs: Its preprocessing.
        rows: Encoded questions, all with a video or all without.
        device: Where the model is.
        tokens: At most so many.
    """
    model.eval()
    said: list[str] = []
    for first in range(0, len(rows), 64):
        given = prompt_tensors(inputs, rows[first : first + 64])
        given = {name: tensor.to(device) for name, tensor in given.items()}
        ids = model.generate(**given, max_new_tokens=tokens, do_sample=False)[:, given["input_ids"].shape[1] :]
        said += inputs.processor.batch_decode(ids, skip_special_tokens=True)
    return said


@torch.no_grad()
def name_cells(
    model: Any, inputs: VideoInputs, scenes: Sequence[Scene], films: int, device: str, seed: int = 1
) -> dict[str, float]:
    """Share of the cells of films that the vision tower's features name rightly, for each kind of word.

    Args:
        model: The model.
        inputs: Its preprocessing.
        scenes: Held out.
        films: How many.
        device: Where the model is.
        seed: Of the films.
    """
    random = Random(f"cells/{seed}")
    drawn = [draw_film(scenes, random) for _ in range(films)]
    batch = inputs.collate([encode_film(inputs, film, UNASKED) for film in drawn]).to(device)
    model.eval()
    with watched(model) as features:
        model.model.visual(batch.vision["pixel_values_videos"], batch.vision["video_grid_thw"])
    weight, asked = model.get_output_embeddings().weight, stack([cells(film.kinds) for film in drawn])
    found = named(read(features[0], model), weight, vocabulary(inputs.tokenizer), asked)
    return {name: round(right / max(count, 1), 3) for name, (right, count) in found.items()}
