"""One step's experience: what was said, what it was worth, and what of it there is to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm4d.answers import read_option
from mllm4d.models.completions import Completions, Rollout
from mllm4d.schema import Question
from mllm4d.train.advantages import flat_share
from mllm4d.train.losses import Tokens, tokens_of


@dataclass(frozen=True)
class Experience:
    """N completions of some prompts; T tokens the longest.

    Attributes:
        rollouts: The groups.
        questions: The question of each group.
        said: The completions of all groups.
        rewards: [N], NaN where no reward applies.
        parts: Each part of the reward, [N], unweighted; NaN where it does not apply.
        advantages: [N].
        mask: [N, T] bool, tokens that count.
        chosen: [m] int64, completions that there is something to learn from.
        old_log_probs: [N, T] of the policy before the first of several updates; None with a single update.
        reference_log_probs: [N, T] of the reference, or None.
        weights: [N, T] importance weights, or None.
    """

    rollouts: tuple[Rollout, ...]
    questions: tuple[Question, ...]
    said: Completions
    rewards: Tensor
    parts: dict[str, Tensor]
    advantages: Tensor
    mask: Tensor
    chosen: Tensor
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    weights: Tensor | None = None

    def invalid(self) -> Tensor:
        """[N] bool: completions whose answer cannot be read."""
        pairs = zip(self.rollouts, self.questions, strict=True)
        read = [read_option(text, question.options) for rollout, question in pairs for text in rollout.texts]
        return torch.tensor([letter is None for letter in read], device=self.rewards.device)

    def tokens(self, numbers: Tensor, log_probs: Tensor, beta: float, max_tokens: int | None) -> Tokens:
        """What a loss takes, of some of the completions.

        Args:
            numbers: [n], which.
            log_probs: [n, T], of the policy that learns, with gradient.
            beta: Weight of the divergence from the reference.
            max_tokens: Longest completion that may be sampled.
        """

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[numbers]

        return tokens_of(
            log_probs,
            of(self.old_log_probs),
            self.advantages[numbers],
            self.mask[numbers],
            weights=of(self.weights),
            reference_log_probs=of(self.reference_log_probs),
            beta=beta,
            max_tokens=max_tokens,
        )


def flat_prompts(informative: Tensor, groups: Tensor) -> list[int]:
    """Numbers of the groups with nothing to learn from, ascending.

    Args:
        informative: [N] bool, of each completion.
        groups: [N], the group of each.
    """
    return sorted(set(groups.tolist()) - set(groups[informative].tolist()))


def in_minibatches(chosen: Tensor, count: int) -> list[Tensor]:
    """Completions dealt to several optimiser steps, evenly: each gets some of every group.

    Args:
        chosen: [m], numbers of completions.
        count: How many steps.

    Returns:
        ``count`` tensors; the last may be empty.
    """
    return [chosen[start::count] for start in range(count)]


def step_sums(experience: Experience) -> dict[str, Tensor]:
    """Sums for the log, over this rank's completions.

    Args:
        experience: Of the step.

    Returns:
        Name to [2] float64: a sum, and of how many values.
    """
    said, rewards = experience.said, experience.rewards.double()

    def pair(values: Tensor) -> Tensor:
        finite = values.double()[values.isfinite()]
        return torch.stack([finite.sum(), finite.new_tensor(len(finite))]).to(rewards.device)

    sums = {
        "reward/mean": pair(rewards),
        "reward/std": pair(torch.stack([rewards[said.groups == k].std() for k in said.groups.unique()])),
        "length": pair(said.mask.sum(1)),
        "truncated": pair(said.truncated),
        "invalid": pair(experience.invalid()),
    }
    for name, values in experience.parts.items():
        sums[f"reward/{name}"] = pair(values)
        # Of groups as this rank has them.
        sums[f"zero_variance/{name}"] = pair(flat_share(values, said.groups.to(values.device))[None])
    return sums


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; itself where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up every rank's gradients, in place.

    Ranks run as many micro-batches as their own completions take, so that nothing can be added while they run.

    Args:
        parameters: What trains, in the same order on all ranks; without a gradient it counts as 0.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    work = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        work.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
    for handle in work:
        handle.wait()
