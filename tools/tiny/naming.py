"""Dense naming: every visual token is asked what stands in its cell of the image, in the model's own words.

One answer a film teaches a vision tower next to nothing. A film has 16 cells of 16 x 16 pixels, though, and each of
them can be named: colour and shape, or nothing, and in which part of the image it is. The tower's features are read by
the model's own head, so that they come to lie where the words lie, and the language model finds them by their words. A
probe, which is thrown away, asks how much of each colour every frame has in every patch: so a feature keeps what single
frames show, and where. All of it is about single frames; nothing is asked about motion, distance or direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, rms_norm

from mllm4d.curate.sources.world_layout import COLOURS, SHAPES
from tools.tiny.exercises import BORDERS, NOTHING, ROWS, SIDES
from tools.tiny.scenes import FRAMES, SIZE, Bytes

PATCH, MERGE = 8, 2
"""Pixels of a patch's side, and patches of a cell's."""

LEAST = 8
"""Pixels, on the mean of the frames, from which on a cell is said to have a solid; with fewer, but any, it is not
asked."""

WORDS = {"colour": (NOTHING, *COLOURS), "shape": (NOTHING, *SHAPES), "column": SIDES, "row": ROWS}
"""What the words of a cell are chosen from."""

WEIGHTS = {"colour": 1.0, "shape": 1.0, "column": 0.5, "row": 0.5}

_CELLS = SIZE // (PATCH * MERGE)


class Cells(NamedTuple):
    """What cells show, in the order of the visual tokens. A row of zeros is not asked.

    Attributes:
        words: A key of ``WORDS`` to [N, words], shares that add up to 1.
        shares: [N, MERGE * MERGE * FRAMES, 1 + colours], share of each patch's pixels in each frame, nothing first.
    """

    words: dict[str, Tensor]
    shares: Tensor


def cells(kinds: Bytes) -> Cells:
    """What the 16 cells of a film show.

    Args:
        kinds: [T, H, W], as ``Film.kinds``.
    """
    frames = len(kinds)
    # [rows, columns, MERGE, MERGE, T, PATCH, PATCH]
    cut = kinds.reshape(frames, _CELLS, MERGE, PATCH, _CELLS, MERGE, PATCH).transpose(1, 4, 2, 5, 0, 3, 6)
    cut = cut.reshape(-1, PATCH * PATCH)
    names = 1 + len(COLOURS) * len(SHAPES)
    bins = cut + names * np.arange(len(cut))[:, None]
    pixels = np.bincount(bins.reshape(-1), minlength=names * len(cut)).reshape(_CELLS**2, -1, names).astype(np.float32)
    solids = pixels[..., 1:].reshape(*pixels.shape[:2], len(COLOURS), len(SHAPES))
    shares = np.concatenate([pixels[..., :1], solids.sum(3)], 2) / PATCH**2
    counts = solids.sum(1)
    total = counts.sum((1, 2))
    there, empty = total >= LEAST * frames, total == 0
    scale = np.where(there, 1 / np.maximum(total, 1), 0)[:, None]
    words = {
        "colour": np.concatenate([empty[:, None], counts.sum(2) * scale], 1),
        "shape": np.concatenate([empty[:, None], counts.sum(1) * scale], 1),
        "column": _parts(kinds, axis=2) * scale,
        "row": _parts(kinds, axis=1) * scale,
    }
    return Cells({name: torch.from_numpy(np.float32(found)) for name, found in words.items()}, torch.from_numpy(shares))


def _parts(kinds: Bytes, axis: int) -> np.ndarray:
    """Pixels [N, 3] of solids in the first, middle and last part of the image, along an axis."""
    first, last = (BORDERS[0] + BORDERS[1]) / 2, (BORDERS[2] + BORDERS[3]) / 2
    places = (np.arange(SIZE) + 0.5) / SIZE
    belongs = np.stack([places < first, (places >= first) & (places < last), places >= last], 1).astype(np.float32)
    there = (kinds > 0).sum(0).astype(np.float32)  # [H, W]
    weighed = there[..., None] * (belongs[None] if axis == 2 else belongs[:, None])
    side = PATCH * MERGE
    return weighed.reshape(_CELLS, side, _CELLS, side, 3).sum((1, 3)).reshape(-1, 3)


def stack(films: Sequence[Cells]) -> Cells:
    """The cells of several films, one after the other."""
    words = {name: torch.cat([film.words[name] for film in films]) for name in WORDS}
    return Cells(words, torch.cat([film.shares for film in films]))


class Probe(nn.Module):
    """From the vision tower's features to the colours of each patch in each frame.

    Args:
        model: A Qwen3-VL.
        seed: Of the weights.
    """

    def __init__(self, model: Any, seed: int = 0) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size * len(mergers(model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.colours = nn.Linear(width, MERGE * MERGE * FRAMES * (1 + len(COLOURS)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits [N, MERGE * MERGE * FRAMES, 1 + colours] of features, each [N, D]."""
        logits = self.colours(torch.cat(list(features), 1))
        return logits.view(len(logits), -1, 1 + len(COLOURS))


def mergers(model: Any) -> list[nn.Module]:
    """What makes the vision tower's features: those that stand for tokens first."""
    visual = model.model.visual
    return [visual.merger, *visual.deepstack_merger_list]


@contextmanager
def watched(model: Any) -> Iterator[list[Tensor]]:
    """Collect the vision tower's features [N, D] of the forwards that run inside, in the order of ``mergers``."""
    seen: list[Tensor] = [torch.empty(0) for _ in mergers(model)]

    def keep(place: int) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            seen[place] = output

        return hook

    hooks = [module.register_forward_hook(keep(place)) for place, module in enumerate(mergers(model))]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def vocabulary(tokenizer: Any) -> dict[str, Tensor]:
    """The tokens [words] of ``WORDS``, each with its leading blank.

    Raises:
        ValueError: A word is not one token.
    """
    tokens = {name: [tokenizer(f" {word}")["input_ids"] for word in words] for name, words in WORDS.items()}
    if any(len(ids) != 1 for several in tokens.values() for ids in several):
        raise ValueError(f"the tokenizer splits one of {list(WORDS.values())}")
    return {name: torch.tensor([ids[0] for ids in several]) for name, several in tokens.items()}


def read(features: Tensor, model: Any) -> Tensor:
    """Features [N, D] as the language model's final norm would hand them to the head; its weights get no gradient."""
    norm = model.model.language_model.norm
    return rms_norm(features, features.shape[-1:], norm.weight.detach(), norm.variance_epsilon)


def naming_loss(states: Tensor, weight: Tensor, tokens: dict[str, Tensor], asked: Cells) -> Tensor:
    """Mean cross entropy of the words of all cells that are asked.

    Args:
        states: [N, D], of the visual tokens, after the final norm.
        weight: [V, D], of the head.
        tokens: Of the words.
        asked: What is to be said.
    """
    loss = states.new_zeros(())
    for name, shares in asked.words.items():
        said = log_softmax(linear(states, weight[tokens[name]]).float(), -1)
        loss = loss - WEIGHTS[name] * (shares * said).sum() / shares.sum().clamp(min=1)
    return loss


def looking_loss(probe: Probe, features: Sequence[Tensor], asked: Cells) -> Tensor:
    """Mean cross entropy of the colours of all patches in all frames."""
    said = log_softmax(probe(features).float(), -1)
    return -(asked.shares * said).sum(-1).mean()


@torch.no_grad()
def named(states: Tensor, weight: Tensor, tokens: dict[str, Tensor], asked: Cells) -> dict[str, tuple[int, int]]:
    """How many cells with a solid are given its word (the one of most pixels), and how many there are.

    "nothing" is about the cells without one.
    """
    found = {}
    for name, shares in asked.words.items():
        right = linear(states, weight[tokens[name]]).argmax(-1) == shares.argmax(-1)
        there = shares.sum(-1) > 0
        if WORDS[name][0] == NOTHING:
            empty = shares[:, 0] > 0
            found[NOTHING] = int((right & empty).sum()), int(empty.sum())
            there &= ~empty
        found[name] = int((right & there).sum()), int(there.sum())
    return found
