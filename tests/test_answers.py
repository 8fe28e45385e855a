import pytest

from mllm4d import prompts
from mllm4d.answers import read_option, read_states

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


def states(*lines):
    return read_states("<thinking>\nHere:\n" + "\n".join(lines) + "\n</thinking>\n<answer>A</answer>")


def test_states_are_paired_by_anchor():
    said = states(
        "- Camera Center: [0, 0, 0]",
        "- Object Center: null",
        "- Camera Center: [0.10, -2.5, 1e1]",
        "- Object Center: [+1, .5, 3.]",
    )
    assert said.camera_center == ((0, 0, 0), (0.1, -2.5, 10))
    # A null at the first anchor must not move the last anchor's centre there.
    assert said.object_center == (None, (1, 0.5, 3))
    assert said.thinking.startswith("Here:\n- Camera")


@pytest.mark.parametrize(
    "value",
    [
        "['x', 'y', 'z']",
        "[None, 0, 0]",
        "[{1}, 0, 0]",
        "[0, 0]",
        "[0, 0, 0, 0]",
        "[1e999, 0, 0]",
        "[nan, 0, 0]",
        "[0, 0, 0] or so",
        "__import__('os').getcwd()",
        "[٣, 0, 0]",
        "",
        "Null",
    ],
)
def test_another_form_is_no_centre(value):
    said = states("- Camera Center: [0, 0, 0]", f"- Camera Center: {value}", "- Object Center: null")
    assert said.camera_center is None
    assert said.object_center is None


def test_a_third_line_leaves_unclear_which_anchor_is_meant():
    assert states(*["- Camera Center: [0, 0, 0]"] * 3).camera_center is None


@pytest.mark.parametrize(
    "text",
    [
        "- Camera Center: [0, 0, 0]",
        "<thinking>- Camera Center: [0, 0, 0]",
        "<thinking>a</thinking><thinking>b</thinking>",
        "</thinking>a<thinking>",
    ],
)
def test_one_thinking_block_or_none(text):
    assert read_states(text) is None


def test_centres_outside_the_block_do_not_count():
    text = "<thinking>\n- Camera Center: null\n- Camera Center: null\n</thinking>\n- Camera Center: [1, 1, 1]"
    assert read_states(text).camera_center == (None, None)


def test_our_own_reasoning_is_read():
    filled = prompts.REASONING.format(
        align="a",
        first="b",
        camera_i="[0.00, 0.00, 0.00]",
        object_i="null",
        follow="c",
        last="d",
        camera_j="[0.10, 0.00, -1.25]",
        object_j="[1.00, 2.00, 3.00]",
        conclude="e",
        letter="B",
    )
    said = read_states(filled)
    assert said.camera_center == ((0, 0, 0), (0.1, 0, -1.25))
    assert said.object_center == (None, (1, 2, 3))
