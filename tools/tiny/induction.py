"""Induction heads from the start: attention that finds where a word stood before, and what stood next to it.

To say the letter of an option, a model must find its text in the prompt and look two tokens back. Large models have
heads that do such things (Olsson et al., arXiv 2209.11895). From random weights a tiny model does not find them in any
time that we have: after 900 steps of nothing else, letters were still at chance. Put in as initial weights, they make
it right after 50. They are about words alone, they know no letter, option or picture, and they train like all else.

- The embeddings share a constant in their first entry, by which a head can attend to a place whatever stands there.
- Layer 0: one head reads the token before, one the token before that, by the rotary angle of that step.
- Layer 1: one head looks for the token that the first of these has read, in entries that rotate slowly, so that the
  distance hardly matters, and says what the second of these has read there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CONSTANT = 0.5
"""First entry of every embedding."""

FAST, SLOW = 5, 7
"""Rotary pairs below the first tell places apart; those from the second on are for what stands there."""

SHARP = 0.6
"""Weight of the constant in the queries and keys of layer 0, and how little (``LEAK``) of the random ones is left."""

LEAK = 0.05

CARRY, COPY = 0.3, 1.0
"""Strength at which layer 0 hands on what it has read, and layer 1 says it."""

APART, HEAR = 2.0, 0.2
"""How strongly words are kept from finding words, and how loud it is what they hear of what is seen."""

QUIET = 0.1
"""Other outputs of attention and MLPs begin this much smaller, so that words are not drowned."""


@torch.no_grad()
def add_induction_heads(model: Any, seed: int = 0) -> None:
    """Write induction heads into the first heads of a fresh Qwen3-VL's language model, layers 0 and 1.

    Args:
        model: As ``mllm4d.models.tiny.build_model`` makes it, with a large ``rope_theta``.
        seed: Of the random directions that the heads use.
    """
    language, config = model.model.language_model, model.config.text_config
    width, size = config.hidden_size, config.head_dim
    half = size // 2
    generator = torch.Generator().manual_seed(seed)
    for layer in language.layers:
        layer.self_attn.o_proj.weight *= QUIET
        layer.mlp.down_proj.weight *= QUIET
    language.embed_tokens.weight[:, 0] = CONSTANT
    read = torch.zeros(size, width)  # what a word is, in the entries of a head
    read[:, 1:] = _orthonormal(width - 1, size, generator).T
    carried = torch.zeros(width, 2 * size)  # where the words one and two tokens back are put
    carried[1:] = _orthonormal(width - 1, 2 * size, generator)

    before = language.layers[0].self_attn
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(FAST) / half)  # [FAST], radians a token
    here = torch.zeros(size)
    here[:FAST] = SHARP
    _attend(before.k_proj.weight[:size], here)
    for head, back in enumerate((1, 2)):
        there = torch.zeros(size)
        there[:FAST] = SHARP * torch.cos(back * angles)
        there[half : half + FAST] = -SHARP * torch.sin(back * angles)
        _attend(before.q_proj.weight[head * size : (head + 1) * size], there)
    before.v_proj.weight[:size] = read
    before.o_proj.weight[:, : 2 * size] = CARRY * carried

    find = language.layers[1].self_attn
    find.k_proj.weight[:size] = _slow(read)
    find.q_proj.weight[:size] = _slow(carried[:, :size].T)
    find.v_proj.weight[:size] = carried[:, size:].T
    find.o_proj.weight[:, :size] = COPY * read.T


@torch.no_grad()
def add_sight_head(model: Any, sought: Tensor, said: Tensor, seed: int = 0) -> None:
    """Write a head into layer 0 by which a word finds the visual tokens that it names, and hears what else they say.

    The vision tower learns to put words into its features (``naming``). A word of the question looks for its own
    embedding there, but not among words: all of those share the constant, which keys carry with the opposite sign.

    Args:
        model: As above, with induction heads.
        sought: Tokens that name what is seen.
        said: Tokens that may be heard.
        seed: Of the directions that are left over.
    """
    language, config = model.model.language_model, model.config.text_config
    width, size, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    group = heads // config.num_key_value_heads
    half, generator = size // 2, torch.Generator().manual_seed(seed)
    words = language.embed_tokens.weight
    layer = language.layers[0].self_attn
    # Entries that hardly rotate; the last two are for the constant.
    slow = [*range(SLOW, half - 1), *range(half + SLOW, size - 1)]
    find = torch.zeros(size, width)
    find[slow] = _spanned(words[sought], len(slow), generator)
    find[[half - 1, size - 1], 0] = APART
    layer.q_proj.weight[group * size : (group + 1) * size] = find
    find[:, 0] *= -1
    layer.k_proj.weight[size : 2 * size] = find
    hear = _spanned(words[said], size, generator)
    layer.v_proj.weight[size : 2 * size] = hear
    layer.o_proj.weight[:, group * size : (group + 1) * size] = HEAR * hear.T


@torch.no_grad()
def soften_vision(model: Any) -> None:
    """Make the vision tower's features begin about as large as words, 0.1 to 0.2 instead of 2.

    A layer adds to a token what it has found; beside so large a feature that would hardly be seen.
    """
    visual = model.model.visual
    for merger in (visual.merger, *visual.deepstack_merger_list):
        merger.linear_fc2.weight *= QUIET


def _attend(weight: Tensor, direction: Tensor) -> None:
    """Let a head's queries or keys be a direction, whatever the word."""
    weight *= LEAK
    weight[:, 0] = direction


def _slow(rows: Tensor) -> Tensor:
    """Only the entries that rotate slowly."""
    kept, half = rows.clone(), len(rows) // 2
    kept[:SLOW] = 0
    kept[half : half + SLOW] = 0
    return kept


def _spanned(words: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows [rows, D] that span words [N, D] without the constant, filled up at random."""
    spanning = torch.cat([words[:rows], torch.randn(max(rows - len(words), 0), words.shape[1], generator=generator)])
    spanning = spanning.clone()
    spanning[:, 0] = 0
    return torch.linalg.qr(spanning.T)[0].T


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]
