from collections import Counter, defaultdict
from itertools import pairwise

import pytest
import torch

from mllm4d.prompts import LABELS
from mllm4d.qa.balance import LeakFree, balance
from mllm4d.qa.bins import distance_bin
from mllm4d.qa.blind import numeric_options, score_blind
from mllm4d.qa.generate import candidates
from mllm4d.qa.judge import Margins
from mllm4d.schema import InputError
from tests.qa.scenes import random_scene


@pytest.fixture(scope="module")
def found():
    result = []
    for seed in range(350):
        generator = torch.Generator().manual_seed(seed)
        result += candidates(f"clip-{seed:04d}", random_scene(seed), Margins(), 6, generator)[0]
    return result


@pytest.fixture(scope="module")
def questions(found):
    return balance(found, per_clip=6, ratio=1.5, seed=0).questions


def test_there_are_questions_of_every_task(questions):
    assert len(questions) > 2000
    assert min(Counter(q.task for q in questions).values()) > 100


def test_every_label_is_equally_often_right(questions):
    for task, labels in LABELS.items():
        counts = Counter(q.answer_value for q in questions if q.task == task)
        assert set(counts) == set(labels)
        assert len(set(counts.values())) == 1


def test_every_letter_is_equally_often_right(questions):
    by_task = defaultdict(Counter)
    for q in questions:
        by_task[q.task][q.answer] += 1
    for counts in by_task.values():
        assert max(counts.values()) - min(counts.values()) <= 1


def test_every_rank_is_equally_often_right(questions):
    for task in {q.task for q in questions if q.unit}:
        ranks = Counter()
        for q in questions:
            if q.task == task:
                values = numeric_options(q)
                ranks[sorted(values, key=values.get).index(q.answer)] += 1
        assert set(ranks) == {0, 1, 2, 3}
        assert max(ranks.values()) - min(ranks.values()) <= 4


def test_the_right_option_is_the_measured_one(questions):
    for q in questions:
        values = numeric_options(q)
        if values is None:
            assert q.options[q.answer] == q.answer_value
        else:
            nearest = min(values, key=lambda k: abs(values[k] - q.answer_value))
            assert nearest == q.answer
            # Half a bin (1.3 %), and two significant digits (5 %).
            assert values[q.answer] == pytest.approx(q.answer_value, rel=0.065)
            ordered = sorted(values.values())
            assert all(1.3 < b / a < 1.7 for a, b in pairwise(ordered))


def test_questions_with_the_same_options_are_right_equally_often_for_each(questions):
    groups = defaultdict(Counter)
    for q in questions:
        groups[q.task, tuple(sorted(q.options.values()))][q.options[q.answer]] += 1
    for counts in groups.values():
        assert len(set(counts.values())) == 1
        assert len(counts) in (3, 4)


def test_blind_solvers_are_at_chance(found):
    balanced = balance(found, per_clip=3, ratio=1.5, seed=0)
    assert len(balanced.questions) >= 2000
    for task, row in score_blind(balanced.questions, balanced.folds).items():
        for solver in ("median_option", "smallest_plausible", "most_frequent_letter", "option_prior"):
            if solver in row:
                assert abs(row[solver] - row["chance"]) <= 0.03, (task, solver, row)


def test_the_time_between_the_anchors_does_not_tell_the_word(questions):
    for task, labels in LABELS.items():
        counts = Counter(
            ((q.anchors[1] - q.anchors[0]).bit_length(), q.answer_value) for q in questions if q.task == task
        )
        for gap in {gap for gap, _ in counts}:
            assert len({counts[gap, label] for label in labels}) == 1


def test_both_folds_are_balanced(found):
    balanced = balance(found, per_clip=6, ratio=1.5, seed=0)
    for fold in (0, 1):
        counts = Counter(
            (q.task, q.answer_value)
            for q, f in zip(balanced.questions, balanced.folds, strict=True)
            if f == fold and q.unit is None
        )
        for task, labels in LABELS.items():
            assert len({counts[task, label] for label in labels}) == 1


def test_questions_and_drops_add_up(found):
    made = balance(found, 6, 1.5, 0)
    assert len(made.questions) + sum(made.dropped.values()) == len(found)
    assert {task: sum(table.values()) for task, table in made.bins.items()} == Counter(q.task for q in made.questions)
    assert made.bins["camera_relative_direction"]["left"] == made.bins["camera_relative_direction"]["right"]


def test_no_distance_and_no_task_fills_the_data_set(found):
    free = balance(found, 6, 1.5, 0, None, None)
    assert not any("full" in reason for reason in free.dropped)
    even = LeakFree(bin_factor=1.0, task_factor=1.0)(found, 6, 1.5, 0)
    assert any("distance bin full" in reason for reason in even.dropped)
    for task in ("camera_absolute_distance", "object_absolute_distance", "object_camera_absolute_distance"):
        before, after = (
            Counter(distance_bin(q.answer_value) for q in made.questions if q.task == task) for made in (free, even)
        )
        assert max(after.values()) <= sorted(before.values())[len(before) // 2]
    counts = Counter(q.task for q in even.questions)
    assert max(counts.values()) <= sorted(counts.values())[3]
    with pytest.raises(InputError, match="LeakFree: bin_factor must be greater than 0"):
        LeakFree(bin_factor=0)


def test_a_task_may_have_a_limit_of_its_own(found):
    free = LeakFree()(found, 6, 1.5, 0)
    most = {"camera_absolute_distance": 18, "camera_relative_direction": 0, "object_relative_direction": 10**6}
    made = LeakFree(most=most)(found, 6, 1.5, 0)
    before, after = (Counter(q.task for q in balanced.questions) for balanced in (free, made))
    # Groups of four stay whole, and with them the balance.
    del before["camera_relative_direction"]
    assert after == {**before, "camera_absolute_distance": 16}
    letters = Counter(q.answer for q in made.questions if q.task == "camera_absolute_distance")
    assert set(letters.values()) == {4}
    for bad in ({"colour": 3}, {"camera_relative_direction": -1}):
        with pytest.raises(InputError, match="LeakFree: most must give numbers to tasks"):
            LeakFree(most=bad)


def test_the_default_caps_cost_little(found):
    # Measured: 7,970 of 8,603 questions are left, and 943 of 979 on 60 clips of the synthetic world.
    assert len(balance(found, 6, 1.5, 0).questions) > 0.9 * len(balance(found, 6, 1.5, 0, None, None).questions)


def test_a_single_clip_still_gives_questions():
    counts = []
    for seed in range(10):
        found = candidates("only", random_scene(seed), Margins(), 28, torch.Generator().manual_seed(seed))[0]
        counts.append(len(balance(found, 8, 1.5, 0).questions))
        assert counts[-1] == len(balance(found, 8, 1.5, 0, None, None).questions)
    # 78 when this was written; one of the ten scenes stands almost still.
    assert sum(counts) >= 60


def test_order_of_candidates_does_not_matter_and_seed_does(found, questions):
    assert balance(list(reversed(found)), 6, 1.5, 0).questions == questions
    assert balance(found, 6, 1.5, 1).questions != questions


def test_no_more_than_the_cap_per_clip_and_task(found):
    counts = Counter((q.id.split("/")[0], q.task) for q in balance(found, 2, 1.5, 0).questions)
    assert max(counts.values()) <= 2


def test_ids_are_unique_and_reasoning_ends_in_the_answer(questions):
    assert len({q.id for q in questions}) == len(questions)
    for q in questions[:200]:
        assert q.reasoning.endswith(f"<answer>{q.answer}</answer>")
        assert q.reasoning.count("- Camera Center: [") == 2
        assert q.reasoning.count("- Object Center: ") == 2
        assert q.options[q.answer] in q.reasoning
