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


def test_many_different_lengths_are_shared_out_exactly():
    """The unit in which they are all whole numbers has some forty digits."""
    random = Random(0)
    tokens = tuple(tuple(tuple(random.randint(100, 4000) for _ in range(4)) for _ in range(20)) for _ in range(5))
    shards = tuple(Shard(f"{n}", "train", tuple(map(str, range(20))), (4,) * 20, "") for n in range(5))
    for epoch in range(3):
        plans = [
            plan_epoch([Part(shards, 1.0, tokens)], 1, epoch=epoch, rank=rank, world_size=2, batch_tokens=16384)
            for rank in (0, 1)
        ]
        counted = Counter(item for plan in plans for item in questions(plan))
        assert len(counted) == sum(counted.values()) == 400
        assert len(plans[0].batches) == len(plans[1].batches)
        # Only a border between ranks runs through a clip.
        assert sum(len(plan.clips) for plan in plans) <= 101


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


def test_questions_of_one_clip_stand_next_to_each_other():
    for plan in (plan_epoch(PARTS, 7, window=10), plan_epoch([measured("mixed")], 1, window=50, batch_tokens=400)):
        split = 0
        for batch in plan.batches:
            clips = [clip for clip, _ in batch]
            assert len([a for a, b in pairwise(clips) if a != b]) == len(set(clips)) - 1
            split += len(set(clips)) < len(clips)
        assert split


def shared_cost(parts, plan, batch):
    """Tokens of a packed row that has what a clip's questions share once."""
    total = 0
    for number in {clip for clip, _ in batch}:
        ref = plan.clips[number]
        lengths = [parts[ref.part].tokens[ref.shard][ref.clip][q] for clip, q in batch if clip == number]
        shared = parts[ref.part].shared[ref.shard][ref.clip]
        total += shared + sum(length - shared for length in lengths)
    return total


def with_shared(name, weight=1.0, share=0.7, seed=0):
    """Lengths as above, of which each clip's shortest question has the larger part in common with the others."""
    part = measured(name, weight=weight, seed=seed)
    shared = tuple(tuple(int(share * min(clip)) for clip in shard) for shard in part.tokens)
    return Part(part.shards, weight, part.tokens, shared)


def together(parts, budget, by_tokens, **settings):
    size = {"batch_size": 1, "batch_tokens": budget} if by_tokens else {"batch_size": budget}
    return plan_epoch(parts, together=True, **size, **settings)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize(
    ("names", "budget", "by_tokens"),
    [
        (["even"], 400, True),
        (["even"], 170, True),  # most clips exceed it
        (["long"], 900, True),
        (["mixed", "even"], 1000, True),
        (["mixed", "even"], 3000, True),
        (["mixed"], 8, False),
        (["mixed", "long"], 3, False),  # clips have up to four questions
        (["even"], 1, False),
    ],
    ids=str,
)
def test_together_each_question_once_equal_steps_no_batch_over_budget(names, budget, by_tokens, window, world_size):
    parts = [with_shared(name, seed=n) for n, name in enumerate(names)]
    whole = Counter(
        ClipRef(p, s, c)
        for p, part in enumerate(parts)
        for s, shard in enumerate(part.tokens)
        for c, clip in enumerate(shard)
        for _ in clip
    )
    steps = set()
    for epoch in range(4):
        settings = {"epoch": epoch, "world_size": world_size, "window": window}
        plans = [together(parts, budget, by_tokens, rank=rank, **settings) for rank in range(world_size)]
        counted = Counter(item for plan in plans for item in questions(plan))
        assert set(counted.values()) == {1}
        assert Counter(ref for ref, _ in counted) == whole
        steps |= {len(plan.batches) for plan in plans}
        places = {}
        for rank, plan in enumerate(plans):
            for number, batch in enumerate(plan.batches):
                cost = shared_cost(parts, plan, batch) if by_tokens else len(batch)
                assert cost <= budget
                for clip, _ in batch:
                    places.setdefault(plan.clips[clip], set()).add((rank, number))
        for ref, found in places.items():
            lengths = parts[ref.part].tokens[ref.shard][ref.clip]
            shared = parts[ref.part].shared[ref.shard][ref.clip]
            alone = shared + sum(length - shared for length in lengths) if by_tokens else len(lengths)
            # It is in one step, unless it does not fit in one.
            assert (len(found) > 1) == (alone > budget)
    assert len(steps) == 1


def test_together_with_weights_keeps_the_number_of_steps_and_clips_whole():
    parts = [with_shared("mixed", weight=0.37), with_shared("even", weight=1.6, seed=1)]
    counts, found = Counter(), set()
    for epoch in range(100):
        for rank in (0, 1):
            plan = together(parts, 3000, True, epoch=epoch, rank=rank, world_size=2, window=20)
            found.add(len(plan.batches))
            assert all(shared_cost(parts, plan, batch) <= 3000 for batch in plan.batches)
            counts.update(ref.part for ref, _ in questions(plan))
            # Every clip that is drawn comes with all its questions.
            whole = Counter(clip for batch in plan.batches for clip, _ in batch)
            assert all(
                n == len(parts[plan.clips[c].part].tokens[plan.clips[c].shard][plan.clips[c].clip])
                for c, n in whole.items()
            )
    assert len(found) == 1
    for number, part in enumerate(parts):
        everything = sum(len(clip) for shard in part.tokens for clip in shard)
        assert counts[number] == pytest.approx(100 * part.weight * everything, rel=0.01)


def test_together_is_shuffled_by_seed_and_epoch():
    parts = [with_shared("mixed")]
    first = together(parts, 2000, True, seed=1, window=40)
    assert together(parts, 2000, True, seed=1, window=40) == first
    assert questions(together(parts, 2000, True, seed=2, window=40)) != questions(first)
    assert questions(together(parts, 2000, True, seed=1, epoch=1, window=40)) != questions(first)
    order = [clip for batch in first.batches for clip, _ in batch]
    assert any(a > b for a, b in pairwise(order))


def test_together_takes_fewer_steps_and_fills_them():
    """Clips of 200 or 400 tokens with four questions of 20 to 80 each: shared, that is about a third."""
    random = Random(0)
    starts = [[random.choice((200, 400)) for _ in range(200)] for _ in range(8)]
    tokens = tuple(
        tuple(tuple(start + random.randint(20, 80) for _ in range(4)) for start in shard) for shard in starts
    )
    shards = tuple(
        Shard(f"{n}", "train", tuple(f"{n}-{k}" for k in range(200)), (4,) * 200, "") for n in range(len(starts))
    )
    part = Part(shards, 1.0, tokens, tuple(map(tuple, starts)))
    alone = plan_epoch([part], 1, window=100, batch_tokens=6000)
    plan = together([part], 6000, True, window=100)
    cost = sum(shared_cost([part], plan, batch) for batch in plan.batches)
    assert cost == sum(
        start + sum(length - start for length in clip)
        for shard, own in zip(starts, tokens, strict=True)
        for start, clip in zip(shard, own, strict=True)
    )
    assert len(plan.batches) < 0.45 * len(alone.batches)
    assert cost / (6000 * len(plan.batches)) > 0.85


def test_together_too_few_clips_for_the_ranks():
    with pytest.raises(InputError, match="clips that stay whole, are too few for 20 ranks"):
        together(PARTS, 100, False, world_size=20)
