from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from mllm4d.data.mixing import Part
from mllm4d.data.plan import ClipRef, plan_epoch
from mllm4d.schema import InputError
from mllm4d.shards import Shard

COUNTS = [[3, 5, 1, 4], [7, 2], [6, 6, 6, 1, 1]]
SHARDS = [
    Shard(f"train-{s}.tar", "train", tuple(f"{s}-{k}" for k in range(len(row))), tuple(row), "")
    for s, row in enumerate(COUNTS)
]
PARTS = [Part(tuple(SHARDS))]
TOTAL = sum(map(sum, COUNTS))


def questions(plan):
    return [(plan.clips[clip], question) for batch in plan.batches for clip, question in batch]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [0, 10])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_question_exactly_once_and_equal_steps(world_size, window, batch_size):
    plans = [
        plan_epoch(PARTS, batch_size, rank=rank, world_size=world_size, window=window) for rank in range(world_size)
    ]
    counted = Counter(item for plan in plans for item in questions(plan))
    assert len(counted) == TOTAL
    assert set(counted.values()) == {1}
    assert len({len(plan.batches) for plan in plans}) == 1
    assert all(0 < len(batch) <= batch_size + (world_size > 1) for plan in plans for batch in plan.batches)


def test_without_a_window_the_order_is_that_of_the_shards():
    plan = plan_epoch(PARTS, 4)
    expected = [
        (ClipRef(0, number, clip), question)
        for number, shard in enumerate(SHARDS)
        for clip, count in enumerate(shard.questions)
        for question in range(count)
    ]
    assert questions(plan) == expected


def test_the_order_depends_on_seed_and_epoch_alone():
    first = plan_epoch(PARTS, 4, seed=1, window=10)
    assert plan_epoch(PARTS, 4, seed=1, window=10) == first
    assert questions(plan_epoch(PARTS, 4, seed=2, window=10)) != questions(first)
    assert questions(plan_epoch(PARTS, 4, seed=1, epoch=1, window=10)) != questions(first)


def test_a_question_waits_for_no_more_than_the_window():
    plan = plan_epoch(PARTS, 1, window=10)
    order = [clip for batch in plan.batches for clip, _ in batch]
    unread = [max(order[: n + 1]) for n in range(len(order))]
    per_clip = Counter(order)
    for n, newest in enumerate(unread):
        read = sum(per_clip[clip] for clip in range(newest + 1))
        assert read - n <= 10 + max(per_clip.values()) + 1
    assert any(a > b for a, b in pairwise(order))


def test_more_ranks_than_questions_is_an_error():
    with pytest.raises(ValueError, match="too few for 50 ranks"):
        plan_epoch(PARTS, 1, world_size=50)


def test_two_nodes_of_two_ranks_with_three_readers_each():
    """On paper: rank = node * 2 + local rank, and reader w of W takes every W-th clip of its rank."""
    plans = [plan_epoch(PARTS, 3, rank=node * 2 + local, world_size=4, window=6) for node in (0, 1) for local in (0, 1)]
    assert len({len(plan.batches) for plan in plans}) == 1
    counted = Counter(item for plan in plans for item in questions(plan))
    assert len(counted) == sum(counted.values()) == TOTAL
    for plan in plans:
        readers = [set(range(len(plan.clips))[worker::3]) for worker in range(3)]
        assert set().union(*readers) == set(range(len(plan.clips)))
        assert sum(map(len, readers)) == len(plan.clips)
    # A clip is decoded once, or twice where the border between two ranks runs through it.
    assert sum(len(plan.clips) for plan in plans) <= len({ref for plan in plans for ref in plan.clips}) + 3


LENGTHS = {"even": [40, 60, 100, 150], "long": [260, 300, 400], "mixed": [30, 45, 99, 130, 200, 390]}


def measured(name, clips=60, weight=1.0, seed=0):
    random = Random(f"{name}{seed}")
    tokens = tuple(
        tuple(tuple(random.choice(LENGTHS[name]) for _ in range(random.randint(1, 4))) for _ in range(clips // 6))
        for _ in range(6)
    )
    shards = [
        Shard(f"{name}-{n}", "train", tuple(f"{name}-{n}-{k}" for k in range(len(row))), tuple(map(len, row)), "")
        for n, row in enumerate(tokens)
    ]
    return Part(tuple(shards), weight, tokens)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("names", [["even"], ["long"], ["mixed", "even"]], ids=str)
def test_batches_by_tokens(names, world_size):
    parts, budget = [measured(name) for name in names], 400
    tokens = {
        (ClipRef(p, s, c), q): length
        for p, part in enumerate(parts)
        for s, shard in enumerate(part.tokens)
        for c, clip in enumerate(shard)
        for q, length in enumerate(clip)
    }
    steps = set()
    for epoch in range(6):
        plans = [
            plan_epoch(parts, 1, epoch=epoch, rank=rank, world_size=world_size, window=20, batch_tokens=budget)
            for rank in range(world_size)
        ]
        counted = Counter(item for plan in plans for item in questions(plan))
        assert len(counted) == sum(counted.values()) == len(tokens)
        steps |= {len(plan.batches) for plan in plans}
        for plan in plans:
            for batch in plan.batches:
                lengths = [tokens[plan.clips[clip], question] for clip, question in batch]
                # Padded to the longest, and still within the budget.
                assert len(lengths) * max(lengths, default=0) <= budget
            empty = sum(not batch for batch in plan.batches)
            assert empty == 0 or (names == ["long"] and empty == 1)
    assert len(steps) == 1
    # As many batches as the lengths ask for, and one more for each way to fill one.
    share = sum(1 / (budget // length) for length in tokens.values()) / world_size
    kinds = len({budget // length for length in tokens.values()})
    assert share <= steps.pop() <= share + kinds + 1


def test_batches_by_tokens_have_questions_of_similar_length():
    part = measured("mixed")
    plan = plan_epoch([part], 1, window=100, batch_tokens=400)
    lengths = [[part.tokens[plan.clips[c].shard][plan.clips[c].clip][q] for c, q in batch] for batch in plan.batches]
    padded = sum(len(row) * max(row) for row in lengths)
    assert sum(map(sum, lengths)) / padded > 0.98


def test_weights_and_tokens_together_keep_the_number_of_steps():
    parts = [measured("mixed", weight=0.37), measured("even", weight=1.6)]
    found = {
        len(plan_epoch(parts, 1, epoch=epoch, rank=rank, world_size=2, window=20, batch_tokens=400).batches)
        for epoch in range(15)
        for rank in (0, 1)
    }
    assert len(found) == 1


def test_a_question_that_is_more_than_the_budget_is_named():
    with pytest.raises(InputError, match=r"batch_tokens: 350 are fewer .* about clip 'long-\d-\d' of long-\d has"):
        plan_epoch([measured("long")], 1, batch_tokens=350)
    with pytest.raises(InputError, match="lengths of the questions are not known"):
        plan_epoch(PARTS, 1, batch_tokens=350)
