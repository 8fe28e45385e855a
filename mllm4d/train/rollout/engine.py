"""What a rollout engine is, and what all of them share."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy, Rollout
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError


class RolloutEngine(Protocol):
    """Lets a model answer prompts, several times each.

    Attributes:
        max_new_tokens: Longest completion.
    """

    max_new_tokens: int

    def sync(self, model: Any) -> None:
        """Take over the model's present weights. An engine that runs the model itself has nothing to do.

        Args:
            model: The model that trains.
        """
        ...

    def generate(
        self, model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], group: int, seed: int, first: int = 0
    ) -> list[Rollout]:
        """Draw completions.

        What is drawn for a prompt depends on the seed, the prompt's id and the completion's number alone: not on the
        other prompts, nor on how prompts and groups are spread over calls and ranks.

        Args:
            model: The model that trains.
            inputs: Its preprocessing.
            prompts: Without answers, on any device.
            group: Completions of each.
            seed: Of the drawing.
            first: Number of the first completion, where a group is split over ranks.

        Returns:
            One rollout a prompt, in their order, on the model's device.
        """
        ...


def check_sampling(max_new_tokens: int, top_p: float | None, top_k: int | None) -> None:
    """See that settings of sampling make sense, and say what cutting the distribution does.

    Raises:
        InputError: A setting is out of its range.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens: {max_new_tokens} is below 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p: {top_p} is not above 0 and at most 1")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k: {top_k} is below 1; null keeps all tokens")
    if top_k is not None or (top_p is not None and top_p < 1):
        warnings.warn(
            "rollout: top_p and top_k cut the distribution that is drawn from, but not the one that is trained: the "
            "importance ratio is biased, and not 1 even for the policy's own completions",
            stacklevel=3,
        )


def prompt_alone(prompt: Encoded) -> Encoded:
    """The prompt, if it has no answer.

    Raises:
        InputError: It has one.
    """
    if len(prompt.tokens["input_ids"]) != prompt.prompt_length:
        raise InputError(f"question {prompt.id!r}: is to be answered, but has an answer; take VideoInputs.prompt_only")
    return prompt


def numbers_of(prompts: Sequence[Encoded], group: int, first: int) -> list[list[int]]:
    """Numbers of the completions of each prompt: a prompt that comes again goes on counting."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        start = first + group * seen[prompt.id]
        numbers.append(list(range(start, start + group)))
        seen[prompt.id] += 1
    return numbers


def stream_seed(seed: int, id: str, number: int) -> int:
    """The seed of one completion; 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{id}/{number}".encode()).digest()[:8], "big") >> 1


def uniforms(seed: int, id: str, numbers: Sequence[int], count: int) -> Tensor:
    """[G, count] float64 in [0, 1): what decides the tokens of each completion."""
    generators = [torch.Generator().manual_seed(stream_seed(seed, id, number)) for number in numbers]
    return torch.stack([torch.rand(count, generator=generator, dtype=torch.float64) for generator in generators])


def finish(
    inputs: VideoInputs, prompt: Encoded, tokens: Tensor, log_probs: Tensor, policy: Policy, full_support: bool
) -> Rollout:
    """A rollout from what was drawn: cut after the first end token, padded to the longest.

    Args:
        inputs: The preprocessing.
        prompt: The prompt.
        tokens: [G, S]; what stands after an end token says nothing.
        log_probs: [G, S].
        policy: What they were drawn from.
        full_support: As in ``Rollout``.
    """
    ended = torch.isin(tokens, torch.tensor(policy.ends, device=tokens.device))  # [G, S]
    truncated = ~ended.any(1)
    lengths = torch.where(truncated, tokens.shape[1], ended.long().argmax(1) + 1)
    longest = int(lengths.max())
    mask = torch.arange(longest, device=tokens.device) < lengths[:, None]
    tokens = torch.where(mask, tokens[:, :longest], inputs.tokenizer.pad_token_id)
    said = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
    return Rollout(
        prompt=prompt,
        tokens=tokens,
        lengths=lengths,
        log_probs=torch.where(mask, log_probs[:, :longest], 0.0),
        truncated=truncated,
        texts=tuple(inputs.processor.batch_decode(said, skip_special_tokens=True)),
        policy=policy,
        full_support=full_support,
    )


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; afterwards all is as it was, positions that a generation leaves included."""
    training = [module for module in model.modules() if module.training]
    # Offsets that ``generate`` keeps on the model, and that a later forward may take for its own.
    offsets = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # Not ``train()``: some parts may have been in evaluation before.
        for module in training:
            module.training = True
        for module, kept in offsets:
            module.rope_deltas = kept
