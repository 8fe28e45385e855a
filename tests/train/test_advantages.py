"""Advantages by hand, and what must not change them."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from mllm4d.train.advantages import (
    EPS,
    across_ranks,
    batch_scaled,
    flat_share,
    group_scaled,
    leave_one_out,
    unscaled,
)

ALL = (group_scaled, batch_scaled, unscaled, leave_one_out)
NAN, INF = math.nan, math.inf
REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.6, 0.6, 0.9])
GROUPS = torch.tensor([7, 7, 7, 2, 2, 2])
# Means 1/3 and 0.7; deviations with n - 1: sqrt((4/9 + 1/9 + 1/9) / 2) and sqrt((0.01 + 0.01 + 0.04) / 2).
CENTRED = torch.tensor([2 / 3, -1 / 3, -1 / 3, -0.1, -0.1, 0.2])
DEVIATIONS = torch.tensor([1 / math.sqrt(3)] * 3 + [math.sqrt(0.03)] * 3)


def test_by_hand():
    assert_close(unscaled(REWARDS, GROUPS).values, CENTRED)
    assert_close(group_scaled(REWARDS, GROUPS).values, CENTRED / (DEVIATIONS + 1e-4))
    # Of 1, 0, 0, 0.6, 0.6, 0.9: the squares sum to 2.53, the mean is 3.1 / 6.
    everything = math.sqrt((2.53 - 3.1**2 / 6) / 5)
    assert_close(batch_scaled(REWARDS, GROUPS).values, CENTRED / (everything + 1e-4))
    # 1 minus the mean of 0 and 0; 0 minus that of 1 and 0; 0.6 minus that of 0.6 and 0.9; 0.9 minus that of 0.6 twice.
    assert_close(leave_one_out(REWARDS, GROUPS).values, torch.tensor([1, -0.5, -0.5, -0.15, -0.15, 0.3]))


@pytest.mark.parametrize("function", ALL)
def test_the_order_of_completions_does_not_matter(function):
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.rand(60, generator=generator), torch.randint(9, (60,), generator=generator)
    expected = function(rewards, groups)
    order = torch.randperm(60, generator=generator)
    assert_close(function(rewards[order], groups[order]).values, expected.values[order], rtol=1e-6, atol=1e-7)
    # Nor do the names of the groups.
    assert_close(function(rewards, 100 - groups).values, expected.values, rtol=0, atol=0)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7 + 1e-9, -3.3, 1e6])
def test_a_group_without_variance_is_exactly_zero_and_counted(function, reward):
    rewards = torch.tensor([reward] * 12 + [0.0, 1.0], dtype=torch.float64)
    # What is equal but for its rounding is equal.
    rewards[3] *= 1 + 1e-12
    result = function(rewards, torch.tensor([1] * 12 + [0] * 2))
    assert result.values[:12].tolist() == [0.0] * 12
    assert result.values[13] == -result.values[12] > 0
    assert (int(result.flat_groups), int(result.groups), int(result.skipped)) == (1, 2, 0)
    assert result.informative.tolist() == [False] * 12 + [True] * 2


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("missing", [NAN, INF, -INF])
def test_a_reward_that_is_none_or_not_finite_is_skipped_and_counted(function, missing):
    rewards = torch.tensor([1.0, missing, 0.0, 0.5, missing, missing, missing, 0.25])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    result = function(rewards, groups)
    kept = torch.tensor([0, 2, 3])
    assert_close(result.values[kept], function(rewards[rewards.isfinite()], groups[rewards.isfinite()]).values[:3])
    assert result.values[[1, 4, 5, 6, 7]].tolist() == [0] * 5
    # A group of which one is left has nobody to be compared with.
    assert (int(result.flat_groups), int(result.groups), int(result.skipped)) == (2, 3, 4)
    assert result.informative.tolist() == [True, False, True, True, False, False, False, False]


@pytest.mark.parametrize("function", ALL)
def test_nothing_to_compare_gives_zeros_and_no_nan(function):
    for rewards in (torch.tensor([0.5]), torch.full((4,), NAN), torch.tensor([])):
        result = function(rewards, torch.zeros(len(rewards), dtype=torch.long))
        assert result.values.tolist() == [0.0] * len(rewards)
        assert not result.informative.any()


def test_a_small_variance_is_one():
    result = group_scaled(torch.tensor([0.5, 0.5, 0.501]), torch.zeros(3, dtype=torch.long))
    assert int(result.flat_groups) == 0
    assert (result.values[:2] < 0).all()


def test_the_deviation_is_that_of_torch():
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(1))
    values = group_scaled(rewards, torch.zeros(12, dtype=torch.long)).values
    assert_close(values, (rewards - rewards.mean()) / (rewards.std() + EPS))


def test_share_of_groups_in_which_a_part_is_flat():
    parts = torch.tensor([1.0, 1, 0, 1, NAN, NAN, NAN, 0.5])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    # Groups 0 and 3 have no variance, 1 has; group 2 has no value at all.
    assert_close(flat_share(parts, groups), torch.tensor(2 / 3))
    assert flat_share(parts[4:6], groups[4:6]).isnan()


def _rank(rank, folder, parts):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rewards, groups = parts[rank]
    torch.save([list(across_ranks(function, rewards, groups)) for function in ALL], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_groups_split_over_ranks_are_as_they_are_together(tmp_path):
    rewards = torch.tensor([0.0, 1.0, 0.3, NAN, 0.3, 0.7, 0.1, 0.1, 0.1])
    groups = torch.tensor([5, 5, 9, 9, 9, 5, 1, 1, 1])
    # Six here and three there, so that no group is whole anywhere.
    mine = torch.tensor([True, False, True, True, True, True, True, False, False])
    parts = [(rewards[mine], groups[mine]), (rewards[~mine], groups[~mine])]
    mp.spawn(_rank, (str(tmp_path), parts), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, function in enumerate(ALL):
        together = across_ranks(function, rewards, groups)
        for part, chosen in ((found[0][number], mine), (found[1][number], ~mine)):
            assert_close(part[0], together.values[chosen], rtol=0, atol=1e-7)
            assert_close(part[1], together.informative[chosen])
            assert [int(x) for x in part[2:]] == [int(x) for x in together[2:]] == [2, 3, 1]
