"""Advantages of completions over the others of their group, as pure functions; one is chosen by import path.

A group are the completions for one prompt. A reward that is not finite takes its completion out: it has an advantage of
0 and no part in its group's mean and deviation. Nor has a group without variance any advantage: exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

EPS = 1e-4
"""Added to a deviation before it divides, as in TRL."""

SPREAD = 1e-6
"""Largest difference of two rewards, relative to the largest of them, that counts as none."""


class Advantages(NamedTuple):
    """Advantages, and what they say about the step.

    Attributes:
        values: [N] float32.
        informative: [N] bool, whether there is something to learn from the completion: its reward is finite, and its
            group has variance.
        flat_groups: [], groups without variance, those with fewer than two finite rewards among them.
        groups: [], all groups.
        skipped: [], completions whose reward is not finite.
    """

    values: Tensor
    informative: Tensor
    flat_groups: Tensor
    groups: Tensor
    skipped: Tensor


AdvantageFunction = Callable[[Tensor, Tensor], Advantages]
"""From rewards [N] and groups [N] to advantages."""


def group_scaled(rewards: Tensor, groups: Tensor) -> Advantages:
    """Reward minus the group's mean, over the group's standard deviation: GRPO (arXiv 2402.03300).

    Args:
        rewards: [N]; NaN where no reward applies.
        groups: [N], any integers: which prompt a completion is for, in any order.

    Returns:
        The advantages, in the order of ``rewards``.
    """
    group = _Groups(rewards, groups)
    return group.advantages(group.centred / (group.deviation[group.member] + EPS))


def batch_scaled(rewards: Tensor, groups: Tensor) -> Advantages:
    """Reward minus the group's mean, over the standard deviation of all rewards of the step (arXiv 2508.08221).

    Args:
        rewards: [N], see ``group_scaled``.
        groups: [N], see there.

    Returns:
        The advantages.
    """
    group = _Groups(rewards, groups)
    finite = group.rewards[group.finite]  # [M]
    deviation = finite.std() if len(finite) > 1 else finite.new_zeros(())  # []
    return group.advantages(group.centred / (deviation + EPS))


def unscaled(rewards: Tensor, groups: Tensor) -> Advantages:
    """Reward minus the group's mean: Dr. GRPO (arXiv 2503.20783).

    Args:
        rewards: [N], see ``group_scaled``.
        groups: [N], see there.

    Returns:
        The advantages.
    """
    group = _Groups(rewards, groups)
    return group.advantages(group.centred)


def leave_one_out(rewards: Tensor, groups: Tensor) -> Advantages:
    """Reward minus the mean of the group's others: RLOO (arXiv 2402.14740).

    Args:
        rewards: [N], see ``group_scaled``.
        groups: [N], see there.

    Returns:
        The advantages.
    """
    group = _Groups(rewards, groups)
    count = group.count[group.member]  # [N]
    return group.advantages(group.centred * count / (count - 1).clamp(min=1))


def flat_share(values: Tensor, groups: Tensor) -> Tensor:
    """Share of the groups in which a value has no variance: of one part of the reward, for example.

    Args:
        values: [N]; NaN where it does not apply.
        groups: [N].

    Returns:
        [], 0 to 1; NaN where no group has a finite value.
    """
    group = _Groups(values, groups)
    return group.flat[group.count > 0].float().mean()


def across_ranks(function: AdvantageFunction, rewards: Tensor, groups: Tensor) -> Advantages:
    """Advantages of this rank's completions where groups are split over ranks.

    Every rank has to call it; without ranks it is the function itself.

    Args:
        function: The advantages.
        rewards: [N], of this rank; N may differ from rank to rank.
        groups: [N], integers that mean the same prompt on every rank.

    Returns:
        Those of this rank; the counts are those of all ranks together.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return function(rewards, groups)
    count = torch.tensor([len(rewards)], device=rewards.device)  # [1]
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    every_reward = _gather(rewards.double(), sizes)  # [M]
    every_group = _gather(groups.long(), sizes)  # [M]
    result = function(every_reward, every_group)
    start = sum(sizes[: dist.get_rank()])
    mine = slice(start, start + len(rewards))
    return result._replace(values=result.values[mine], informative=result.informative[mine])


def _gather(values: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' values, one rank after the other."""
    padded = values.new_zeros(max(sizes))  # [K]
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Groups:
    """Rewards by group, in float64, so that neither order nor scale is seen in the result."""

    def __init__(self, rewards: Tensor, groups: Tensor) -> None:
        if rewards.ndim != 1 or rewards.shape != groups.shape:
            raise ValueError(f"rewards {list(rewards.shape)} and groups {list(groups.shape)} must be [N] both")
        names, self.member = groups.unique(return_inverse=True)  # [P], [N]
        self.finite = rewards.isfinite()  # [N]
        self.rewards = torch.where(self.finite, rewards.detach().double(), 0.0)  # [N]
        self.count = self._sum(self.finite.double(), len(names))  # [P]
        self.mean = self._sum(self.rewards, len(names)) / self.count.clamp(min=1)  # [P]
        self.centred = self.rewards - self.mean[self.member]  # [N]
        squares = torch.where(self.finite, self.centred**2, 0.0)  # [N]
        self.deviation = (self._sum(squares, len(names)) / (self.count - 1).clamp(min=1)).sqrt()  # [P]
        # Not by the deviation: that of equal rewards need not be exactly 0.
        high, low = self._extreme("amax", -torch.inf), self._extreme("amin", torch.inf)  # [P], [P]
        self.flat = (self.count < 2) | (high - low <= SPREAD * torch.maximum(high.abs(), low.abs()))  # [P]

    def advantages(self, values: Tensor) -> Advantages:
        """Those that are left, [N]."""
        informative = self.finite & ~self.flat[self.member]  # [N]
        return Advantages(
            values=torch.where(informative, values, 0.0).float(),
            informative=informative,
            flat_groups=self.flat.sum(),
            groups=torch.tensor(len(self.flat), device=values.device),
            skipped=(~self.finite).sum(),
        )

    def _sum(self, values: Tensor, groups: int) -> Tensor:
        return values.new_zeros(groups).index_add(0, self.member, values)  # [P]

    def _extreme(self, reduce: str, otherwise: float) -> Tensor:
        values = torch.where(self.finite, self.rewards, otherwise)  # [N]
        start = values.new_full((len(self.count),), otherwise)  # [P]
        return start.scatter_reduce(0, self.member, values, reduce)  # [P]
