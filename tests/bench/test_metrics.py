import pytest
import torch

from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.schema import Question


def question(task, answer):
    options = {"A": "left", "B": "right", "C": "forward", "D": "backward"}
    return Question("q", task, "?", options, answer, options[answer], None, (0, 1), None, {}, None)


CAMERA, OBJECT = "camera_relative_direction", "object_relative_direction"


def test_by_hand():
    metric = MultipleChoiceAccuracy()
    metric.update(["A", "B", "gibberish"], [question(CAMERA, "A"), question(CAMERA, "C"), question(CAMERA, "B")])
    metric.update(["<answer>D</answer>"], [question(OBJECT, "D")])
    scores = {name: float(value) for name, value in metric.compute().items()}
    assert scores == {
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


def test_two_halves_add_up():
    whole, halves = MultipleChoiceAccuracy(), [MultipleChoiceAccuracy(), MultipleChoiceAccuracy()]
    texts, questions = ["A", "B", "C"], [question(CAMERA, letter) for letter in "AAC"]
    whole.update(texts, questions)
    halves[0].update(texts[:2], questions[:2])
    halves[1].update(texts[2:], questions[2:])
    for name in ("count", "right", "invalid"):
        assert torch.equal(getattr(whole, name), getattr(halves[0], name) + getattr(halves[1], name))


def test_nothing_seen_is_no_score():
    assert MultipleChoiceAccuracy().compute() == {}


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 answers for 1"):
        MultipleChoiceAccuracy().update(["A", "B"], [question(CAMERA, "A")])
