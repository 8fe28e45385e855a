"""What follows a prompt that was read: token by token, or how likely given texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm4d.bench.prefix import Heads, Read, chosen, last_logits, read_on, read_whole
from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy, Rollout, policy_of
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.logprobs import hidden_at, token_log_probs
from mllm4d.models.sharing import Plain, score_all
from mllm4d.train.rollout.hf import Drawer


def say(
    model: Any,
    read: Read,
    policy: Policy,
    limit: int,
    noise: Tensor | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
) -> Tensor:
    """Answer prompts that were read, until all have ended.

    Args:
        model: The model, in evaluation mode.
        read: The prompts, R of them; the cache is used up.
        policy: What ends an answer; with noise also temperature and bans.
        limit: Most tokens.
        noise: [R, limit] random numbers in [0, 1) that decide what is drawn; None takes the likeliest token.
        top_p: With noise: draw only from the likeliest tokens that together have this probability.
        top_k: With noise: draw only from so many likeliest tokens.

    Returns:
        [R, S] token ids, S at most ``limit``; what stands after an end token says nothing.
    """
    logits, cache, mask, places = read
    device = logits.device
    drawer = Drawer(policy, top_p, top_k, device)
    noise = None if noise is None else noise.to(device)
    rows = torch.arange(len(logits), device=device)  # [A], which rows are still in the batch
    ended = torch.zeros(len(logits), dtype=torch.bool, device=device)  # [A]
    tokens = torch.full((len(logits), limit), policy.ends[0], device=device)
    for step in range(limit):
        said = logits.argmax(-1) if noise is None else drawer(logits, noise[rows, step])[0]  # [A]
        tokens[rows, step] = torch.where(ended, policy.ends[0], said)
        ended = ended | drawer.ends(said)
        if step + 1 == limit or ended.all():
            return tokens[:, : step + 1]
        going = (~ended).nonzero()[:, 0]
        if 2 * len(going) <= len(rows):
            # Only at every halving: making a smaller batch copies all keys and values.
            cache.reorder_cache(going)
            rows, said, mask, places, ended = rows[going], said[going], mask[going], places[..., going, :], ended[going]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = model(
            input_ids=said[:, None],
            attention_mask=mask,
            position_ids=places[..., step : step + 1],
            past_key_values=cache,
            use_cache=True,
            **last_logits(model),
        ).logits[:, -1]
    raise AssertionError  # the last step returns


def option_sums(
    model: Any,
    inputs: VideoInputs,
    prompts: Sequence[tuple[int, Encoded]],
    options: Sequence[Sequence[Tensor]],
    heads: Heads | None,
) -> list[list[float]]:
    """Log-likelihood of everything that may be said to some prompts.

    Args:
        model: The model, in evaluation mode.
        inputs: Its preprocessing.
        prompts: Number of the clip in ``heads``, and the prompt.
        options: The tokens [n] of everything that may follow each prompt, n at least 1.
        heads: The clips as they have been read; None where each prompt is read by itself.

    Returns:
        A sum over tokens for each option of each prompt, nats.
    """
    longest = max(len(tokens) for some in options for tokens in some)
    if heads is None and longest > 1:
        return _without_sharing(model, inputs, [prompt for _, prompt in prompts], options)
    read = read_on(model, inputs, heads, prompts, longest) if heads else None
    read = read or read_whole(model, inputs, [prompt for _, prompt in prompts], longest)
    first = read.logits.float().log_softmax(-1)  # [R, V]
    rows = torch.tensor([row for row, some in enumerate(options) for _ in some], device=first.device)  # [N]
    flat = [tokens.to(first.device) for some in options for tokens in some]
    sums = first[rows, torch.stack([tokens[0] for tokens in flat])]  # [N]
    if longest > 1:
        sums = sums + _rest(model, read, rows, flat)
    values = iter(sums.tolist())
    return [[next(values) for _ in some] for some in options]


def _rest(model: Any, read: Read, rows: Tensor, flat: Sequence[Tensor]) -> Tensor:
    """[N] log-probabilities of all tokens but the first."""
    device, steps = rows.device, max(map(len, flat)) - 1
    lengths = torch.tensor([len(tokens) for tokens in flat], device=device)[:, None]  # [N, 1]
    said = torch.stack([torch.nn.functional.pad(tokens, (0, steps + 1 - len(tokens))) for tokens in flat])  # [N, S + 1]
    at = torch.arange(steps, device=device) < lengths - 1  # [N, S], places that say a further token
    inputs = {
        "input_ids": said[:, :-1],
        "attention_mask": torch.cat([read.mask[rows], at.to(read.mask)], 1),
        "position_ids": read.places[..., rows, :steps],
        "past_key_values": chosen(read.cache, rows),
        "use_cache": True,
    }
    states, head = hidden_at(model, inputs, at)
    values = token_log_probs(states, head, said[:, 1:][at])
    return torch.zeros(at.shape, device=device).masked_scatter(at, values.float()).sum(1)


def _without_sharing(
    model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], options: Sequence[Sequence[Tensor]]
) -> list[list[float]]:
    """Each option after its whole prompt, in padded batches, which any model takes."""
    policy = Policy(1.0, (), policy_of(model, inputs).ends)
    rollouts = []
    for prompt, some in zip(prompts, options, strict=True):
        tokens = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens in some])
        zeros = torch.zeros(tokens.shape)
        rollouts.append(Rollout(prompt, tokens, lengths, zeros, lengths < 0, ("",) * len(some), policy))
    found = score_all(Plain(), model, inputs, rollouts).log_probs.sum(1).tolist()
    values = iter(found)
    return [[next(values) for _ in some] for some in options]
