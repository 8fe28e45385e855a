from collections import Counter
from itertools import pairwise

import pytest

from mllm4d.data.plan import plan_epoch
from mllm4d.shards import Shard

COUNTS = [[3, 5, 1, 4], [7, 2], [6, 6, 6, 1, 1]]
SHARDS = [
    Shard(f"train-{s}.tar", "train", tuple(f"{s}-{k}" for k in range(len(row))), tuple(row), "")
    for s, row in enumerate(COUNTS)
]
TOTAL = sum(map(sum, COUNTS))


def questions(plan):
    return [(plan.clips[clip], question) for batch in plan.batches for clip, question in batch]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [0, 10])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_question_exactly_once_and_equal_steps(world_size, window, batch_size):
    plans = [
        plan_epoch(SHARDS, batch_size, rank=rank, world_size=world_size, window=window) for rank in range(world_size)
    ]
    counted = Counter(item for plan in plans for item in questions(plan))
    assert len(counted) == TOTAL
    assert set(counted.values()) == {1}
    assert len({len(plan.batches) for plan in plans}) == 1
    assert all(0 < len(batch) <= batch_size + (world_size > 1) for plan in plans for batch in plan.batches)


def test_without_a_window_the_order_is_that_of_the_shards():
    plan = plan_epoch(SHARDS, 4)
    expected = [
        ((shard.path, key), question)
        for shard in SHARDS
        for key, count in zip(shard.keys, shard.questions, strict=True)
        for question in range(count)
    ]
    assert questions(plan) == expected


def test_the_order_depends_on_seed_and_epoch_alone():
    first = plan_epoch(SHARDS, 4, seed=1, window=10)
    assert plan_epoch(SHARDS, 4, seed=1, window=10) == first
    assert questions(plan_epoch(SHARDS, 4, seed=2, window=10)) != questions(first)
    assert questions(plan_epoch(SHARDS, 4, seed=1, epoch=1, window=10)) != questions(first)


def test_a_question_waits_for_no_more_than_the_window():
    plan = plan_epoch(SHARDS, 1, window=10)
    order = [clip for batch in plan.batches for clip, _ in batch]
    unread = [max(order[: n + 1]) for n in range(len(order))]
    per_clip = Counter(order)
    for n, newest in enumerate(unread):
        read = sum(per_clip[clip] for clip in range(newest + 1))
        assert read - n <= 10 + max(per_clip.values()) + 1
    assert any(a > b for a, b in pairwise(order))


def test_more_ranks_than_questions_is_an_error():
    with pytest.raises(ValueError, match="too few for 50 ranks"):
        plan_epoch(SHARDS, 1, world_size=50)
