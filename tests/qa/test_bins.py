import math
from random import Random

import pytest

from mllm4d.qa.bins import bin_name, distance_bin, even_out, middle_cap


@pytest.mark.parametrize(("metres", "index"), [(1, 0), (1.41, 0), (1.42, 1), (2, 2), (0.5, -2), (0.99, -1), (8, 6)])
def test_half_octaves(metres, index):
    assert distance_bin(metres) == index


def test_names_of_bins():
    assert bin_name(0) == "1 to 1.4 m"
    assert bin_name(-2) == "0.5 to 0.71 m"


def test_the_middle_bin_sets_the_cap():
    counts = {"a": 1, "b": 5, "c": 9, "d": 0}
    assert middle_cap(counts, 1.0, 4) == 5
    assert middle_cap(counts, 2.0, 4) == 10
    assert middle_cap(counts, 0.2, 4) == 4
    assert middle_cap(counts, None, 4) == math.inf
    assert middle_cap({}, 1.0, 4) == math.inf


def test_evened_by_hand():
    # Singles: five at 1 m, two at 2 m, one at 4 m; the median is 2.
    groups = [[1.0]] * 5 + [[2.0]] * 2 + [[4.0]]
    kept = even_out(groups, 1.0)
    assert [groups[k][0] for k in kept] == [1, 1, 2, 2, 4]
    assert even_out(groups, None) == list(range(8))
    assert even_out([[1.0, 1.0, 2.0]], 1.0) == [0]
    assert even_out([], 1.0) == []


def test_no_bin_is_fuller_than_the_cap_and_the_ends_are_spared():
    random = Random(0)
    lows = [random.lognormvariate(0, 0.8) for _ in range(400)]
    groups = [[low * 1.5**k for k in range(4)] for low in lows]

    def count(chosen):
        table = {}
        for group in chosen:
            for value in group:
                table[distance_bin(value)] = table.get(distance_bin(value), 0) + 1
        return table

    before, kept = count(groups), even_out(groups, 1.0)
    after = count([groups[k] for k in kept])
    median = sorted(before.values())[len(before) // 2]
    assert max(after.values()) <= median + 1
    assert max(before.values()) > 2 * median
    assert after[min(before)] == before[min(before)]
    assert after[max(before)] == before[max(before)]
