"""Questions about one clip, with the clip read once: one pass of the vision tower, one set of keys and values.

What stands before the questions (words, video) runs once for each clip of a batch. Its keys and values are repeated for
the clip's questions, whose own words run on top of them, at the positions that they have in the whole prompt. That is
exact where every layer attends to all that came before; models with sliding windows or recurrent states read each
prompt in full.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm4d.models.base import pretrained
from mllm4d.models.batch import Encoded
from mllm4d.models.completions import positions_after
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.patches import identity
from mllm4d.train.rollout.cache import RoomyLayer
from mllm4d.train.rollout.hf import prefill


class Read(NamedTuple):
    """R prompts that a model has read.

    Attributes:
        logits: [R, V] of what follows.
        cache: Keys and values, with R rows.
        mask: [R, L] attention mask.
        places: [R, count] or [4, R, count], positions of what follows.
    """

    logits: Tensor
    cache: Any
    mask: Tensor
    places: Tensor


class Heads(NamedTuple):
    """What stands before the questions of C clips, read once.

    Attributes:
        cache: Keys and values, with C rows.
        mask: [C, L] attention mask.
        lengths: Tokens of each.
    """

    cache: Any
    mask: Tensor
    lengths: tuple[int, ...]


def groups_of(prompts: Sequence[Encoded]) -> list[list[int]]:
    """Places of the prompts that are about the very same clip, in the order of their first; without one, each alone."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        found.setdefault(identity(prompt.vision) or (-1 - place,), []).append(place)
    return list(found.values())


def common_length(prompts: Sequence[Encoded]) -> int:
    """Tokens that all prompts begin with, at least one less than the shortest has."""
    shortest = min(len(prompt.tokens["input_ids"]) for prompt in prompts) - 1
    ids = torch.stack([prompt.tokens["input_ids"][:shortest] for prompt in prompts])  # [R, L]
    same = (ids == ids[0]).all(0)
    return int(same.long().cumprod(0).sum())


def read_heads(model: Any, inputs: VideoInputs, groups: Sequence[Sequence[Encoded]]) -> Heads | None:
    """Run what stands before the questions of some clips.

    Args:
        model: The model, in evaluation mode.
        inputs: Its preprocessing.
        groups: The prompts about each clip.

    Returns:
        None where the model's layers do not all attend to everything, so that nothing can be shared.
    """
    lengths = tuple(common_length(group) for group in groups)
    heads = [cut(group[0], length) for group, length in zip(groups, lengths, strict=True)]
    _, cache, mask, _ = prefill(model, inputs, heads, 1)
    # ``prefill`` gives room to the layers of full attention, and to no other.
    return Heads(cache, mask, lengths) if all(type(layer) is RoomyLayer for layer in cache.layers) else None


def cut(prompt: Encoded, length: int) -> Encoded:
    """The first tokens of a prompt."""
    tokens = {name: tensor[:length] for name, tensor in prompt.tokens.items()}
    return replace(prompt, tokens=tokens, prompt_length=length)


def read_on(model: Any, inputs: VideoInputs, heads: Heads, rows: Sequence[tuple[int, Encoded]], count: int) -> Read:
    """Read questions on top of their clips.

    Args:
        model: The model, in evaluation mode.
        inputs: Its preprocessing.
        heads: The clips.
        rows: Number of the clip, and the whole prompt.
        count: Tokens that may follow.
    """
    device = heads.mask.device
    clips = torch.tensor([clip for clip, _ in rows], device=device)
    own = [prompt.tokens["input_ids"][heads.lengths[clip] :] for clip, prompt in rows]
    longest = max(map(len, own))
    pad = inputs.tokenizer.pad_token_id
    ids = torch.stack([_left(ids, longest, pad) for ids in own]).to(device)  # [R, S]
    there = torch.stack([_left(torch.ones_like(ids), longest, 0) for ids in own]).to(heads.mask)
    mask = torch.cat([heads.mask[clips], there], 1)  # [R, L + S]
    places = torch.stack(
        [
            _left(positions_after(model, inputs, prompt, count)[..., heads.lengths[clip] :], longest + count, 0)
            for clip, prompt in rows
        ],
        dim=-2,
    ).to(device)  # [R, S + count] or [4, R, S + count]
    cache = chosen(heads.cache, clips)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places[..., :longest],
        past_key_values=cache,
        use_cache=True,
        **last_logits(model),
    )
    return Read(output.logits[:, -1], cache, mask, places[..., longest:])


def read_whole(model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], count: int) -> Read:
    """Read prompts each by itself, in one padded batch.

    Args:
        model: The model, in evaluation mode.
        inputs: Its preprocessing.
        prompts: The prompts.
        count: Tokens that may follow.
    """
    return Read(*prefill(model, inputs, prompts, count))


def chosen(cache: Any, rows: Tensor) -> Any:
    """Another cache with these rows, in this order; the one that is given stays as it is.

    Args:
        cache: One whose layers all have room.
        rows: [N] numbers of rows.
    """
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        # Selecting makes new tensors, so that nothing of the other layer's is written to.
        layer.reorder_cache(rows)
    return other


def last_logits(model: Any) -> dict[str, int]:
    """The keyword argument that asks for the last position's logits alone, of models that take it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(pretrained(model).forward).parameters else {}


def _left(row: Tensor, length: int, fill: int) -> Tensor:
    """A row of tokens or positions [..., n] padded on the left."""
    return torch.nn.functional.pad(row, (length - row.shape[-1], 0), value=fill)
