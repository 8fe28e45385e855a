from collections import Counter

import pytest

from mllm4d.data.mixing import Part, Run, ShardSet, cut, draw, interleave
from mllm4d.data.plan import plan_epoch
from mllm4d.schema import InputError
from mllm4d.shards import Shard


def part(name, rows, weight=1.0):
    shards = [
        Shard(f"{name}-{n}", "train", tuple(f"{name}-{n}-{k}" for k in range(len(r))), r, "")
        for n, r in enumerate(rows)
    ]
    return Part(tuple(shards), weight)


FIRST = [(2, 3, 1), (4, 1), (3,), (2, 2, 2)]  # 20 questions
SECOND = [(1,) * 10]


def asked(plan):
    return Counter((plan.clips[clip], question) for batch in plan.batches for clip, question in batch)


@pytest.mark.parametrize("weight", [0.5, 0.3, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_weight_is_how_often_an_epoch_asks_each_question(weight, world_size):
    parts = [part("a", FIRST), part("b", SECOND, weight)]
    seen = Counter()
    for epoch in range(20):
        plans = [
            plan_epoch(parts, 3, epoch=epoch, rank=rank, world_size=world_size, window=8) for rank in range(world_size)
        ]
        counted = sum((asked(plan) for plan in plans), Counter())
        assert sum(n for (ref, _), n in counted.items() if ref.part == 0) == 20
        assert sum(n for (ref, _), n in counted.items() if ref.part == 1) == round(10 * weight)
        assert {len(plan.batches) for plan in plans} == {-(-((20 + round(10 * weight)) // world_size) // 3)}
        seen += counted
        # Never one question much more often than another.
        own = [seen[item] for item in seen if item[0].part == 1]
        assert max(own) - min(own) <= 1
    assert set(seen[item] for item in seen if item[0].part == 0) == {20}
    assert sum(n for (ref, _), n in seen.items() if ref.part == 1) == 20 * round(10 * weight)
    assert len([item for item in seen if item[0].part == 1]) == 10


def test_two_epochs_of_half_are_one_of_the_whole():
    halves = [asked(plan_epoch([part("b", SECOND, 0.5)], 3, epoch=epoch, window=8)) for epoch in (0, 1)]
    assert halves[0] + halves[1] == asked(plan_epoch([part("b", SECOND)], 3))


def test_sets_are_spread_evenly_over_the_epoch():
    streams = [[Run(0, 0, k, 0, (1,)) for k in range(6)], [Run(1, 0, k, 0, (1,)) for k in range(2)]]
    assert "".join(str(run.part) for run in interleave(streams)) == "00100010"


def test_a_stretch_has_the_questions_that_begin_in_it():
    runs = [Run(0, 0, 0, 0, (2, 2, 2)), Run(0, 0, 1, 0, (3,)), Run(0, 0, 2, 0, (1, 1))]
    assert list(cut(runs, 0, 11)) == runs
    assert list(cut(runs, 1, 7)) == [Run(0, 0, 0, 1, (2, 2)), Run(0, 0, 1, 0, (3,))]
    for border in range(12):
        pieces = [*cut(runs, 0, border), *cut(runs, border, 11)]
        questions = [(run.clip, run.first + n) for run in pieces for n in range(len(run.work))]
        assert questions == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


def test_a_pass_has_an_order_of_its_own():
    work = [[(1,)] for _ in range(20)]
    first, second = (draw(0, work, 1.0, seed=0, epoch=epoch, shuffled=True) for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second
    twice = draw(0, work, 2.0, seed=0, epoch=0, shuffled=True)
    assert twice == first + second


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_that_are_none(weight):
    with pytest.raises(InputError, match="expected more than 0"):
        ShardSet("a", weight)
