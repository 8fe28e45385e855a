import pytest

from mllm4d.answers import read_option

WORDS = {"A": "left", "B": "right", "C": "clockwise", "D": "counter-clockwise"}
METRES = {"A": "0.5 m", "B": "1.5 m", "C": "2.3 m", "D": "5 m"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B.", "B"),
        ("(C)", "C"),
        ("B. right", "B"),
        ("<answer>D</answer>", "D"),
        ("A or B? <thinking>A</thinking><answer>B</answer>", "B"),
        ("<answer>right</answer>", "B"),
        ("The answer is C", "C"),
        ("Answer: clockwise", "C"),
        ("It turns counter-clockwise.", "D"),
        ("away", None),
        ("<answer>A car</answer>", None),
        ("A car moved right", "B"),
        ("left or right", None),
        ("", None),
        ("E", None),
        ("The answer is A. No, the answer is B.", None),
        ("right <answer>B</answer>", "B"),
    ],
)
def test_words(text, letter):
    assert read_option(text, WORDS) == letter


@pytest.mark.parametrize(
    ("text", "letter"), [("5 m", "D"), ("1.5 m", "B"), ("about 2.3 m.", "C"), ("15 m", None), ("3.5 m", None)]
)
def test_numbers_are_not_read_inside_numbers(text, letter):
    assert read_option(text, METRES) == letter
