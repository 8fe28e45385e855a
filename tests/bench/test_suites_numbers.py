"""Numbers as answers."""

import random

import pytest

from mllm4d.bench.suites.numbers import mean_relative_accuracy, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3.0),
        ("3.5 m", 3.5),
        ("-2", -2.0),
        ("1e3", 1000.0),
        ("about three", 3.0),
        ("The answer is 3.5 meters.", 3.5),
        ("<answer>2</answer>", 2.0),
        ("I count 3 and then 4. <answer>four</answer>", 4.0),
        ("There are 3 chairs and 2 tables, so the answer is: 5.", 5.0),
        ("Answer: approximately 1,250 cm", 1250.0),
        ("The final answer is **4.2**", 4.2),
        ("Answer: .5", 0.5),
        ("", None),
        ("none", None),
        ("no one", None),
        ("nan", None),
        ("1e999", None),
        ("the answer is 1e999", None),
        ("3-4", None),
        ("The answer is 3 or 4", None),
        ("The answer is 3 m to 4 m", None),
        ("I see 3 chairs and 2 tables", None),
        ("I cannot answer; there are 3 cars and 2 dogs", None),
        ("<answer>3 or 4</answer>", None),
        ("x2", None),
    ],
)
def test_the_number_that_is_said_or_none(text, value):
    assert read_number(text) == value


def test_no_text_breaks_the_reader():
    draw = random.Random(0)
    pieces = [
        "answer",
        " is ",
        ":",
        "-",
        "+",
        ".",
        ",",
        "3",
        "0",
        "1e9",
        "e",
        "one",
        " no ",
        "<answer>",
        "</answer>",
        "\n",
    ]
    for _ in range(3000):
        value = read_number("".join(draw.choices(pieces, k=draw.randint(0, 9))))
        assert value is None or value - value == 0


@pytest.mark.parametrize(
    ("value", "truth", "score"),
    [(10, 10, 1), (9.4, 10, 0.9), (5, 10, 0), (5.1, 10, 0.1), (0, 0, 1), (0.1, 0, 0), (-9.4, -10, 0.9)],
)
def test_mean_relative_accuracy_is_strict_and_a_zero_truth_divides_nothing(value, truth, score):
    assert mean_relative_accuracy(value, truth) == pytest.approx(score)
