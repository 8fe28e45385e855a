"""The figures of the benchmark of evaluation: ratios within a repeat, answers compared word by word."""

import pytest

from tools.benchmarks.bench import ONE_BY_ONE, WORKERS, disagreements, summarise


def run(seconds, processor, answers):
    return {"answered": seconds, "written": seconds + 1.0, "processor": processor, "answers": answers}


def test_answers_are_compared_word_by_word_and_missing_ones_count():
    first, second = {"a": "A", "b": "B", "c": "C"}, {"a": "A", "b": "b", "d": "D"}
    assert disagreements(first, second) == [("b", "B", "b"), ("c", "C", "(no answer)"), ("d", "(no answer)", "D")]
    assert disagreements(first, dict(reversed(first.items()))) == []


def test_a_slow_machine_in_one_repeat_changes_no_ratio():
    said = {"a": "A", "b": "B"}
    way, other = WORKERS
    runs = {
        # The second repeat is three times slower, for all.
        ONE_BY_ONE: [run(9.0, 8.0, said), run(27.0, 24.0, said), run(9.0, 8.0, said)],
        way: [run(3.0, 4.0, said), run(9.0, 12.0, {**said, "b": "C"}), run(3.0, 4.0, said)],
        other: [run(9.0, 8.0, {"a": "X", "b": "B"}), run(27.0, 24.0, said), run(9.0, 8.0, said)],
    }
    table = summarise(runs)
    assert table["questions"] == 2
    assert table[ONE_BY_ONE]["questions a second, answered"] == pytest.approx(2 / 9)
    assert table[way]["ratio, answered"] == 3.0
    assert table[way]["ratio, written"] == pytest.approx(10 / 4)
    assert table[way]["ratio, processor"] == 2.0
    assert (table[way]["disagreements"], table[way]["changed between repeats"]) == ([], 1)
    assert table[other]["disagreements"] == [("a", "A", "X")]
    assert "answers" not in table[way]["all"][0]
