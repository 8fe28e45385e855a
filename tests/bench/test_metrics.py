"""Metrics by hand, the traps they avoid, and two real ranks."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mllm4d.bench.metrics import CenterError, GroupedAccuracy, MeanRelativeAccuracy, MultipleChoiceAccuracy
from mllm4d.bench.scoring import center_errors, circular, right_in_groups, right_options
from mllm4d.bench.suites.records import CHOICE, RELATIVE, BenchQuestion
from mllm4d.schema import InputError, Question
from tests.bench.ranks import CAMERA, OBJECT, OPTIONS, choice, number, scores_of
from tests.conftest import ROOT


def floats(scores):
    return {name: float(value) for name, value in scores.items()}


def answers(scores):
    """How many count, over all tasks."""
    return sum(float(value) for name, value in scores.items() if name.startswith("count"))


def test_by_hand():
    metric = MultipleChoiceAccuracy()
    metric.update(["A", "B", "gibberish"], [choice(1, CAMERA, "A"), choice(2, CAMERA, "C"), choice(3, CAMERA, "B")])
    metric.update(["<answer>D</answer>"], [choice(4, OBJECT, "D")])
    assert floats(metric.compute()) == {
        "accuracy": 0.5,
        "accuracy_macro": pytest.approx((1 / 3 + 1) / 2),
        "invalid": 0.25,
        f"accuracy/{CAMERA}": pytest.approx(1 / 3),
        f"invalid/{CAMERA}": pytest.approx(1 / 3),
        f"count/{CAMERA}": 3.0,
        f"count/{OBJECT}": 1.0,
        f"accuracy/{OBJECT}": 1.0,
        f"invalid/{OBJECT}": 0.0,
    }
    metric.reset()
    metric.update(["D"], [choice(4, OBJECT, "D")])
    assert answers(metric.compute()) == 1


def test_nothing_seen_is_no_score():
    for metric in (MultipleChoiceAccuracy(), GroupedAccuracy(), MeanRelativeAccuracy(["size"]), CenterError()):
        metric.update([], [], *([[]] if isinstance(metric, GroupedAccuracy) else []))
        assert metric.compute() == {}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 answers for 1"):
        MultipleChoiceAccuracy().update(["A", "B"], [choice(1, CAMERA, "A")])
    with pytest.raises(ValueError, match="0 groups for 1"):
        GroupedAccuracy().update(["A"], [choice(1, CAMERA, "A")], [])


def test_a_task_without_a_name_is_refused():
    with pytest.raises(InputError, match="task 'real' is not one of camera_absolute_distance"):
        MultipleChoiceAccuracy().update(["A"], [replace(choice(1, CAMERA, "A"), task="real")])
    metric = MultipleChoiceAccuracy(tasks=["real"])
    metric.update(["A"], [replace(choice(1, CAMERA, "A"), task="real")])
    assert float(metric.compute()["accuracy/real"]) == 1


# Traps: scoring


def test_trap_repeated_rows_of_a_distributed_sampler_count_once():
    metric = MultipleChoiceAccuracy()
    metric.update(["A", "B"], [choice(1, CAMERA, "A"), choice(2, CAMERA, "A")])
    metric.update(["A", "A"], [choice(1, CAMERA, "A"), choice(1, CAMERA, "A")])
    scores = floats(metric.compute())
    assert (answers(scores), scores["accuracy"]) == (2, 0.5)


def test_trap_questions_that_share_an_id_but_not_what_they_ask_stay_apart():
    real = choice("validation_1", CAMERA, "A")
    same_words = replace(real, solution={"camera_center": [[0, 0, 0], [1, 0, 0]], "object_center": None})
    bench = BenchQuestion("q", "real/a.mp4", "?", {"A": "x", "B": "y"}, frozenset("A"), None, CHOICE, CAMERA)
    metric = MultipleChoiceAccuracy()
    questions = [real, replace(real, question="Another?"), replace(real, answer="B"), same_words]
    metric.update(["A"] * 6, [*questions, bench, replace(bench, video="synthetic/a.mp4")])
    assert answers(metric.compute()) == 6


def test_trap_options_that_share_the_right_text_are_all_right():
    question = replace(choice(1, CAMERA, "A"), options={"A": "left", "B": "right", "C": " left ", "D": "up"})
    assert right_options(question) == {"A", "C"}
    for text, right in (("C", 1), ("A", 1), ("left", 1), ("B", 0)):
        metric = MultipleChoiceAccuracy()
        metric.update([text], [question])
        assert float(metric.compute()["accuracy"]) == right


def test_trap_what_cannot_be_read_is_invalid_before_a_judge_is_asked_and_the_rate_is_reported():
    asked = []

    def judge(said, question, options):
        asked.append(said)
        return "A" if "port" in said else ""

    questions = [choice(k, CAMERA, "A") for k in range(5)]
    texts = ["A", "to port", "no idea", "", "<answer>B</answer>"]
    metric = MultipleChoiceAccuracy(judge=judge)
    metric.update(texts, questions)
    scores = floats(metric.compute())
    assert asked == ["to port", "no idea"]
    assert scores["accuracy"] == pytest.approx(2 / 5)
    assert scores["invalid"] == pytest.approx(3 / 5)
    assert scores["judged"] == pytest.approx(1 / 5)
    metric = MultipleChoiceAccuracy()
    metric.update(texts, questions)
    assert float(metric.compute()["accuracy"]) == pytest.approx(1 / 5)


def test_trap_a_judge_never_sees_the_truth():
    seen = []

    def judge(*arguments):
        seen.append(arguments)
        return ""

    for answer in "ABCD":
        metric = MultipleChoiceAccuracy(judge=judge)
        metric.update(["to port"], [choice(1, CAMERA, answer)])
    assert seen == [("to port", "?", OPTIONS)] * 4


def relative(values, inclusive=False):
    metric = MeanRelativeAccuracy(["size"], inclusive)
    metric.update([text for text, _ in values], [number(k, truth) for k, (_, truth) in enumerate(values)])
    return floats(metric.compute())


@pytest.mark.parametrize(
    ("said", "strict", "inclusive"),
    # Error 0.5: no threshold is kept by <, the first by <=. 0.25: 0.5-0.7 by <, 0.75 as well by <=.
    [("50", 0.0, 0.1), ("75", 0.5, 0.6), ("100", 1.0, 1.0), ("99", 1.0, 1.0), ("175", 0.0, 0.0), ("125", 0.5, 0.6)],
)
def test_trap_mean_relative_accuracy_at_a_threshold_says_less_or_less_equal(said, strict, inclusive):
    assert relative([(said, 100.0)])["mean_relative_accuracy"] == pytest.approx(strict)
    assert relative([(said, 100.0)], inclusive=True)["mean_relative_accuracy"] == pytest.approx(inclusive)


def test_trap_mean_relative_accuracy_of_a_zero_truth_divides_by_nothing():
    assert relative([("0", 0.0)])["mean_relative_accuracy"] == 1
    assert relative([("0.001", 0.0)])["mean_relative_accuracy"] == 0


def test_mean_relative_accuracy_counts_what_cannot_be_read():
    scores = relative([("100", 100.0), ("many", 100.0), ("It is 100 m, or 50 m", 100.0)])
    assert scores["invalid"] == pytest.approx(2 / 3)
    assert scores["mean_relative_accuracy"] == scores["mean_relative_accuracy_macro"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="asks for no number"):
        MeanRelativeAccuracy(["size"]).update(["1"], [replace(number(1, 1.0), value=None)])


# Groups


def test_a_group_is_right_only_if_all_or_so_many_of_its_variants_are():
    right, groups = [True, True, True, False, False, False, True], ["a", "a", "b", "b", "c", "c", "d"]
    assert right_in_groups(right, groups) == (0.5, 4, 0)
    assert right_in_groups(right, groups, needed=1) == (0.75, 4, 0)
    # d has one variant: it does not count.
    assert right_in_groups(right, groups, needed=2) == (pytest.approx(1 / 3), 3, 1)


def test_always_the_same_letter_is_right_in_no_turned_group():
    question = choice("q", CAMERA, "B")
    turned = circular(question)
    assert [q.answer for q in turned] == ["B", "A", "D", "C"]
    assert all(q.options[q.answer] == "right" for q in turned)
    assert len({q.id for q in turned}) == len({tuple(q.options.values()) for q in turned}) == 4
    letters, words, three = GroupedAccuracy(), GroupedAccuracy(), GroupedAccuracy(needed=3)
    letters.update(["B"] * 4, turned, ["q"] * 4)
    words.update(["right"] * 4, turned, ["q"] * 4)
    three.update(["right"] * 3 + ["left"], turned, ["q"] * 4)
    assert floats(letters.compute())["accuracy_grouped"] == 0
    assert floats(letters.compute())["accuracy"] == 0.25
    assert floats(words.compute())["accuracy_grouped"] == 1
    assert floats(three.compute())["accuracy_grouped"] == 1
    with pytest.raises(InputError, match="needed is 0"):
        GroupedAccuracy(needed=0)


def test_variants_are_grouped_by_what_the_benchmark_says_or_by_their_ids():
    bench = BenchQuestion("b", "v", "?", {"A": "x", "B": "y", "C": "x"}, frozenset("AC"), None, CHOICE, CAMERA)
    turned = circular(bench)
    assert [set(q.right) for q in turned] == [{"A", "C"}, {"B", "C"}, {"A", "B"}]
    assert all({q.options[letter] for letter in q.right} == {"x"} for q in turned)
    mirrored = [replace(bench, id=f"{kind}/7", variants="7") for kind in ("std", "hflip")]
    metric = GroupedAccuracy()
    # One question right in all three turns, one question in one of two mirror images.
    metric.update(["x"] * 3 + ["A", "B"], [*turned, *mirrored])
    scores = floats(metric.compute())
    assert scores["accuracy"] == pytest.approx(0.8)
    assert (scores["groups"], scores["accuracy_grouped"]) == (2, 0.5)


def test_a_repeated_variant_does_not_make_a_group_whole():
    turned = circular(choice("q", CAMERA, "B"))
    metric = GroupedAccuracy(needed=2)
    metric.update(["B", "B"], [turned[0], turned[0]], ["q", "q"])
    scores = floats(metric.compute())
    assert scores["groups_small"] == 1
    assert "accuracy_grouped" not in scores


# Centres

REASONING = """<thinking>
- Camera Center: [0, 0, 0]
- Object Center: {first}
- Camera Center: [0, 3, 4]
- Object Center: {last}
</thinking><answer>A</answer>"""


def test_centre_errors_are_paired_by_anchor():
    truth = [None, [1.0, 0.0, 0.0]]
    assert center_errors(((1.0, 0.0, 0.0), None), truth) == (None,)
    assert center_errors((None, (1.0, 0.0, 2.0)), truth) == (2.0,)
    assert center_errors(None, truth) == (None,)
    assert center_errors(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), None) == ()


def test_centre_error_by_hand():
    solution = {"camera_center": [[0, 0, 0], [0, 0, 0]], "object_center": [[1, 0, 0], [2, 0, 0]]}
    questions = [replace(choice(k, OBJECT, "A"), solution=solution) for k in range(3)]
    metric = CenterError()
    # The second says the last anchor's centre at the first: 1 m off, and none at the last.
    metric.update(
        [
            REASONING.format(first="[1, 0, 0]", last="[2, 0, 3]"),
            REASONING.format(first="[2, 0, 0]", last="null"),
            "<answer>A</answer>",
        ],
        questions,
    )
    scores = floats(metric.compute())
    assert scores["center_error_camera"] == pytest.approx((0 + 5 + 0 + 5) / 4)
    assert scores["center_error_object"] == pytest.approx((0 + 3 + 1) / 3)
    assert scores["center_error"] == pytest.approx(14 / 7)
    assert scores["center_missing"] == pytest.approx(5 / 12)
    assert scores[f"center_error/{OBJECT}"] == pytest.approx(2)
    assert answers(scores) == 3


# Ranks


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two real processes compute."""
    out = tmp_path_factory.mktemp("ranks") / "scores.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, "-m", "tests.bench.ranks", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("deal", ["in turns", "all on one rank"])
def test_trap_strings_do_not_sync_yet_two_ranks_give_the_one_rank_result(two_ranks, deal):
    """Seven questions on two ranks; those of the sampler's padding are there twice, or one rank has none."""
    one = scores_of(range(7))
    assert set(one) == {"choice", "groups", "numbers", "centers"}
    assert answers(one["choice"]) == 7
    assert two_ranks[deal] == {name: pytest.approx(scores) for name, scores in one.items()}


def test_figures_are_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    metric = MultipleChoiceAccuracy()
    metric.update(["A", "B"], [choice(1, CAMERA, "A"), choice(2, OBJECT, "A")])
    figure, axes = metric.plot()
    # Accuracies alone: counts would spoil the axis.
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "accuracy",
        f"accuracy/{CAMERA}",
        f"accuracy/{OBJECT}",
    }
    assert figure is axes.figure


@pytest.mark.parametrize("metric", [GroupedAccuracy(), MeanRelativeAccuracy(["size"]), CenterError()])
def test_every_metric_draws_its_main_figure(metric):
    pytest.importorskip("matplotlib").use("Agg")
    if isinstance(metric, MeanRelativeAccuracy):
        metric.update(["1"], [number(1, 2.0)])
        task = "size"
    else:
        task = CAMERA
        metric.update([REASONING.format(first="null", last="null")], [choice(1, CAMERA, "A")])
    _, axes = metric.plot()
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert names == {metric.main, f"{metric.main}/{task}"}


def test_forward_gives_the_batchs_score_and_goes_on_counting():
    metric = MultipleChoiceAccuracy()
    for answer, batch, whole in (("A", 1, 1), ("B", 0, 0.5)):
        assert float(metric(["A"], [choice(answer, CAMERA, answer)])["accuracy"]) == batch
        assert float(metric.compute()["accuracy"]) == whole
    copy = metric.clone()
    copy.update(["A"], [choice("C", CAMERA, "C")])
    assert (answers(copy.compute()), answers(metric.compute())) == (3, 2)


def test_scores_are_scalars_of_single_precision():
    metric = MultipleChoiceAccuracy()
    metric.update(["A"], [choice(1, CAMERA, "A")])
    assert all(value.shape == () and value.dtype == torch.float32 for value in metric.compute().values())


def test_questions_of_both_kinds_are_scored():
    bench = BenchQuestion("b", "v", "?", {"A": "x", "B": "x", "C": "y"}, frozenset("AB"), None, CHOICE, CAMERA)
    assert right_options(bench) == {"A", "B"}
    assert isinstance(choice(1, CAMERA, "A"), Question)
    assert number(1, 2.0).scoring == RELATIVE
