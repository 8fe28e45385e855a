"""Steps of the pretraining as batches: what step k shows depends on the seed, the scenes and k, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mllm4d.models.batch import Batch, Encoded
from mllm4d.models.inputs import VideoInputs
from mllm4d.prompts import Dialogue
from mllm4d.schema import Question
from tools.tiny.exercises import MAKERS, draw_dialogue, draw_drill, draw_exercise, draw_list, in_words, pose
from tools.tiny.films import Film, draw_film
from tools.tiny.naming import Cells, cells, stack
from tools.tiny.scenes import Scene


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        until: Share of all steps at which it ends.
        drill: Share of its steps that are about options alone, without a video.
        listing: Share of the others that ask for a list of all that is there.
        open: Share of the rest that are asked without options.
    """

    until: float
    drill: float
    listing: float
    open: float


STAGES = (
    Stage(0.06, drill=1.0, listing=0.0, open=0.0),
    Stage(0.45, drill=0.1, listing=0.25, open=0.8),
    Stage(0.9, drill=0.15, listing=0.1, open=0.25),
    Stage(1.0, drill=0.1, listing=0.0, open=0.0),
)
"""First that letters stand for texts, then what is seen, then both together."""


UNASKED = Dialogue("?", "?")
"""Goes with a film that only the vision tower sees."""


class Plan(NamedTuple):
    """What decides the steps.

    Attributes:
        seed: Of everything that is drawn.
        looking: Steps of the vision tower alone, which come first.
        steps: Steps of the whole model.
        batch_size: Films, or questions, in a step.
    """

    seed: int
    looking: int
    steps: int
    batch_size: int


class Step(NamedTuple):
    """What a step shows and asks.

    Attributes:
        batch: Films with questions; a step of the tower alone has only the films.
        cells: What the visual tokens show; None without films.
    """

    batch: Batch
    cells: Cells | None

    def to(self, device: torch.device | str) -> Step:
        """The step on a device."""
        if self.cells is None:
            return Step(self.batch.to(device), None)
        words = {name: shares.to(device) for name, shares in self.cells.words.items()}
        return Step(self.batch.to(device), Cells(words, self.cells.shares.to(device)))


def stage_at(step: int, steps: int) -> Stage:
    """The stage of a step."""
    return next((stage for stage in STAGES if step < stage.until * steps), STAGES[-1])


class Steps(Dataset):
    """The batches of the steps, by their number.

    Args:
        plan: What decides them.
        scenes: What films are made of.
        inputs: The preprocessing.
    """

    def __init__(self, plan: Plan, scenes: Sequence[Scene], inputs: VideoInputs) -> None:
        self.plan, self.scenes, self.inputs = plan, scenes, inputs

    def __len__(self) -> int:
        return self.plan.looking + self.plan.steps

    def __getitem__(self, step: int) -> Step:
        random, asking = Random(f"{self.plan.seed}/{step}"), step - self.plan.looking
        rows = range(self.plan.batch_size)
        if asking < 0:
            return self._films([(draw_film(self.scenes, random), UNASKED) for _ in rows])
        stage = stage_at(asking, self.plan.steps)
        # One kind of question a step: they are about as long, so that little is padded.
        if random.random() < stage.drill:
            questions = [pose(draw_drill(random), "drill", random) for _ in rows]
            texts = [encode_text(self.inputs, draw_dialogue(question, random)) for question in questions]
            return Step(self.inputs.collate(texts), None)
        if random.random() < stage.listing:
            return self._films([draw_list(self.scenes, random) for _ in rows])
        openly = random.random() < stage.open
        return self._films([_ask(self.scenes, random, openly) for _ in rows])

    def _films(self, asked: Sequence[tuple[Film, Dialogue]]) -> Step:
        rows = [encode_film(self.inputs, film, dialogue) for film, dialogue in asked]
        return Step(self.inputs.collate(rows), stack([cells(film.kinds) for film, _ in asked]))


def _ask(scenes: Sequence[Scene], random: Random, openly: bool) -> tuple[Film, Dialogue]:
    while True:
        film, exercise = draw_exercise(scenes, random)
        if exercise.open or not openly:
            question = pose(exercise, "film", random)
            return film, in_words(question) if openly else draw_dialogue(question, random)


def loader(steps: Steps, first: int, workers: int) -> Iterator[Step]:
    """Steps from ``first`` on; ``workers`` processes make them ahead, in the same order."""
    numbers = range(first, len(steps))
    return iter(DataLoader(steps, batch_size=None, sampler=numbers, num_workers=workers))


def encode_film(inputs: VideoInputs, film: Film, dialogue: Dialogue) -> Encoded:
    """A question about a film, by the package's own preprocessing."""
    frames = torch.from_numpy(film.frames.copy())
    times = torch.arange(len(frames)) / film.fps
    return inputs.encode(frames, times, film.fps, [dialogue.prompt], [dialogue.target], [""])[0]


def encode_text(inputs: VideoInputs, dialogue: Dialogue) -> Encoded:
    """A question without a video, by the same chat template."""
    message: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": dialogue.prompt}]}]
    prompt = inputs.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    start = inputs.chat.tokens(prompt)
    ids = torch.tensor(start + inputs.chat.tokens(f"{dialogue.target}<|im_end|>"))
    return Encoded("", {"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)}, len(start), {})


def held_out(scenes: Sequence[Scene], per_task: int, seed: int = 1) -> list[tuple[Film, Question]]:
    """Questions with options about scenes that no step shows, so many of each kind.

    Args:
        scenes: The scenes.
        per_task: Questions of each kind.
        seed: Of the choice.
    """
    random, found, counts = Random(f"held out/{seed}"), [], dict[str, int]()
    while sum(counts.values()) < per_task * len(MAKERS):
        film, exercise = draw_exercise(scenes, random)
        if counts.get(exercise.task, 0) < per_task:
            counts[exercise.task] = counts.get(exercise.task, 0) + 1
            found.append((film, pose(exercise, f"{exercise.task}-{counts[exercise.task]}", random)))
    return found


def drills(count: int, seed: int = 1) -> list[Question]:
    """Questions about options alone."""
    random = Random(f"drills/{seed}")
    return [pose(draw_drill(random), f"drill-{k}", random) for k in range(count)]


def prompt_tensors(inputs: VideoInputs, rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Rows without their answers, for generation."""
    return inputs.collate([inputs.prompt_only(row) for row in rows], side="left").model_inputs()
