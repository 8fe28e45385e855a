"""What a policy said to a prompt, several times, and which tokens it could have said at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm4d.models.base import pretrained
from mllm4d.models.batch import Encoded
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.patches import moved
from mllm4d.schema import InputError


@dataclass(frozen=True)
class Policy:
    """Which distribution tokens are drawn from; sampling and scoring take it from one record, so that they agree.

    Attributes:
        temperature: Divides the logits.
        banned: Token ids that are never said, ascending: the others share their probability. Placeholders of vision
            features among them, which would crash or mislead the next forward.
        ends: Token ids that end a completion; none is banned.
    """

    temperature: float
    banned: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """A group of completions of one prompt.

    Attributes:
        prompt: The prompt with its clip, without an answer.
        tokens: [G, T] int64, what was said, the end token included; padded after it.
        lengths: [G] int64, tokens of each completion, at least 1.
        log_probs: [G, T] float32, nats, of the tokens under the distribution that they were drawn from; 0 where padded.
        truncated: [G] bool, stopped by the limit before an end token.
        texts: G texts, without special tokens.
        policy: What the tokens were drawn from.
        full_support: Whether every token that is not banned could be drawn; else (top-p, top-k) ``log_probs`` are those
            of the cut distribution, and a ratio to a policy's own is biased.
    """

    prompt: Encoded
    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    truncated: Tensor
    texts: tuple[str, ...]
    policy: Policy
    full_support: bool = True

    @property
    def mask(self) -> Tensor:
        """[G, T] bool: where there are tokens; the end token is one, what stands after it is not."""
        return torch.arange(self.tokens.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def to(self, device: torch.device | str) -> Rollout:
        """The rollout on a device, its prompt too."""
        tokens = {name: tensor.to(device) for name, tensor in self.prompt.tokens.items()}
        vision = moved(self.prompt.vision, device)
        names = ("tokens", "lengths", "log_probs", "truncated")
        own = {name: getattr(self, name).to(device) for name in names}
        return replace(self, prompt=replace(self.prompt, tokens=tokens, vision=vision), **own)


class Completions(NamedTuple):
    """All completions of some rollouts, group by group; N of them, T tokens the longest.

    Attributes:
        tokens: [N, T] int64.
        mask: [N, T] bool.
        log_probs: [N, T] float32, nats, of the behaviour policy; 0 where padded.
        truncated: [N] bool.
        groups: [N] int64, the number of the rollout that each is from.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    truncated: Tensor
    groups: Tensor


def stack(rollouts: Sequence[Rollout]) -> Completions:
    """The completions of several rollouts as one batch.

    Args:
        rollouts: One or more, in the order that the completions get.
    """
    longest = max(rollout.tokens.shape[1] for rollout in rollouts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])

    counts = torch.tensor([len(rollout.lengths) for rollout in rollouts])
    return Completions(
        tokens=joined([rollout.tokens for rollout in rollouts]),
        mask=joined([rollout.mask for rollout in rollouts]),
        log_probs=joined([rollout.log_probs for rollout in rollouts]),
        truncated=torch.cat([rollout.truncated for rollout in rollouts]),
        groups=torch.arange(len(rollouts)).repeat_interleave(counts).to(rollouts[0].tokens.device),
    )


def policy_of(model: Any, inputs: VideoInputs, temperature: float = 1.0) -> Policy:
    """What a model may say: all tokens but special ones that end nothing, and ids that its tokenizer does not know.

    Completions end with any of the tokens that the model's generation settings name (Qwen's models have two), or with
    the tokenizer's own end token.

    Args:
        model: The model, with or without adapters.
        inputs: Its preprocessing.
        temperature: Of the sampling; 1 is the model's own distribution.

    Raises:
        InputError: The temperature is not above 0, or nothing ends a completion.
    """
    if not temperature > 0:
        raise InputError(f"temperature: {temperature} is not above 0; completions are drawn, never the likeliest taken")
    tokenizer, config = inputs.tokenizer, pretrained(model).config
    named = pretrained(model).generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])} - {None}
    if not ends:
        raise InputError("neither the model's generation settings nor its tokenizer name a token that ends an answer")
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    placeholders = {getattr(config, name, None) for name in PLACEHOLDERS} | {
        inputs.family.placeholder(inputs.processor)
    }
    size = pretrained(model).get_output_embeddings().weight.shape[0]
    unknown = set(range(size)) - set(tokenizer.get_vocab().values())
    banned = [number for number in (special | placeholders | unknown) - ends if number is not None and number < size]
    return Policy(temperature, tuple(sorted(banned)), tuple(sorted(ends)))


PLACEHOLDERS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index", "audio_token_id")
"""Names under which configurations keep the tokens whose places features take."""


def extended(prompt: Encoded, tokens: Tensor) -> Encoded:
    """A prompt with a completion after it, as a record of its own.

    Args:
        prompt: The prompt alone.
        tokens: [n] of the completion.
    """
    after = {
        name: tokens if name == "input_ids" else values.new_zeros(len(tokens)) for name, values in prompt.tokens.items()
    }
    return replace(prompt, tokens={name: torch.cat([values, after[name]]) for name, values in prompt.tokens.items()})


def positions_after(model: Any, inputs: VideoInputs, prompt: Encoded, count: int) -> Tensor:
    """Position ids of a prompt and of a completion after it.

    Args:
        model: The model, or its ``skeleton``.
        inputs: Its preprocessing.
        prompt: The prompt alone.
        count: Tokens of the completion.

    Returns:
        [P + count] or [4, P + count], as ``Family.positions`` gives them.
    """
    length = len(prompt.tokens["input_ids"])
    # Any token of text stands for all that may come: where it stands is the same.
    text = prompt.tokens["input_ids"].new_full((1,), inputs.tokenizer.eos_token_id or 0)
    places = inputs.family.positions(model, extended(prompt, text))  # [..., P + 1]
    steps = torch.arange(count, device=places.device)
    return torch.cat([places[..., :length], places[..., length:] + steps], dim=-1)
