from math import ceil
from random import Random

import pytest

from mllm4d.data.mixing import Part
from mllm4d.data.pieces import Piece, batch_work, fill, kind_of, pieces_of, steps_for, work_of
from mllm4d.shards import Shard


def part(tokens, shared=None):
    shards = tuple(
        Shard(f"{n}", "train", tuple(map(str, range(len(clips)))), tuple(map(len, clips)), "")
        for n, clips in enumerate(tokens)
    )
    return Part(shards, 1.0, tokens, shared)


def test_pieces_by_hand():
    # 100 tokens of video; the questions have 20, 30 and 40 of their own.
    clips = part((((120, 130, 140), ()),), ((100, 100),))
    assert pieces_of(clips, 190, by_tokens=True) == [[(Piece(0, 3, 190),), ()]]
    assert pieces_of(clips, 189, by_tokens=True) == [[(Piece(0, 2, 150), Piece(2, 1, 140)), ()]]
    assert pieces_of(clips, 140, by_tokens=True) == [[(Piece(0, 1, 120), Piece(1, 1, 130), Piece(2, 1, 140)), ()]]
    # Nothing is known to be shared: each counts in full.
    assert pieces_of(part(clips.tokens), 250, by_tokens=True) == [[(Piece(0, 2, 250), Piece(2, 1, 140)), ()]]
    # More than a question has cannot be shared.
    assert pieces_of(part(clips.tokens, ((500, 0),)), 150, by_tokens=True) == [[(Piece(0, 3, 150),), ()]]
    assert pieces_of(clips, 2, by_tokens=False) == [[(Piece(0, 2, 2), Piece(2, 1, 1)), ()]]


def test_kinds_by_hand():
    assert [kind_of(size, 100) for size in (100, 51, 50, 34, 33, 13, 9, 8, 1)] == [1, 1, 2, 2, 3, 7, 11, 0, 0]
    assert 3 * work_of(33, 100) == work_of(60, 100) == batch_work(100)
    # Of small ones a batch holds more than 100 - 8 for certain: the next has at most 8.
    assert 23 * work_of(4, 100) == batch_work(100)
    assert fill([60, 10, 40, 10, 50, 5, 90], 100) == [[0], [2, 4], [6], [1, 3], [5]]
    assert fill([8] * 13, 100) == [list(range(12)), [12]]


@pytest.mark.parametrize("seed", range(20))
def test_steps_suffice_in_any_order_and_are_not_many_more_than_needed(seed):
    random = Random(seed)
    largest, budget = random.choice(((1000, 1000), (300, 1000), (60, 1000), (5, 7)))
    sizes = [random.randint(1, largest) for _ in range(400)]
    whole = part((tuple((size,) for size in sizes),))
    pieces = pieces_of(whole, budget, by_tokens=True)
    steps = steps_for([whole], [pieces], budget, 1)
    for _ in range(5):
        random.shuffle(sizes)
        batches = fill(sizes, budget)
        assert sorted(number for batch in batches for number in batch) == list(range(len(sizes)))
        assert all(sum(sizes[number] for number in batch) <= budget for batch in batches)
        assert len(batches) <= steps
    # The harmonic algorithm takes at most 1.7 times the fewest batches in the end (Lee and Lee 1985).
    assert steps <= ceil(1.75 * sum(sizes) / budget) + 12
