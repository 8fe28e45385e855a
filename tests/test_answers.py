import pytest

from mllm4d import prompts
from mllm4d.answers import alike, read_option, read_or_judge, read_states, right_letters
from mllm4d.schema import InputError

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


# Traps: scoring

TURNS = {"A": "away", "B": "left", "C": "counter-clockwise", "D": "clockwise"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: clockwise", "D"),  # not the C that it begins with
        ("Answer: counterclockwise", "C"),
        ("The bear turns anti-clockwise", "C"),
        ("away", "A"),
        ("a", "A"),
        ("as far as I see", None),
        ("<answer>A car</answer>", None),
        ("<answer>A</answer>", "A"),
        ("Definitely", None),
        ("A car and a bus", None),
    ],
)
def test_trap_letters_need_word_boundaries_and_long_options_hide_short_ones(text, letter):
    assert read_option(text, TURNS) == letter


def test_trap_an_article_before_the_text_of_option_a():
    options = {"A": "bed", "B": "chair", "C": "table"}
    assert read_option("a bed and a chair", options) is None
    assert read_option("A bed.", options) == "A"
    assert read_option("A chair.", options) == "B"


def test_trap_options_that_share_one_text_are_right_together():
    options = {"A": "left", "B": "right", "C": " Left.", "D": "up"}
    assert right_letters(options, "left ") == right_letters(options, "C") == right_letters(options, "A") == {"A", "C"}
    assert right_letters(options, "B") == {"B"}
    assert read_option("The answer is left", options) in right_letters(options, "A")
    assert alike(options, "DA") == {"A", "C", "D"}


@pytest.mark.parametrize(("answer", "right"), [(0, "D"), (2, "A"), ("0", "D"), (" 3 ", "C"), ("c", "C"), ("C ", "C")])
def test_trap_answers_that_are_numbers_zero_among_them_and_stray_blanks(answer, right):
    assert right_letters({"A": 2, "B": "1", "C": " 3", "D": 0}, answer) == {right}


def test_numbers_that_differ_by_a_point_are_not_alike():
    assert right_letters({"A": ".5 m", "B": "5 m"}, "B") == {"B"}


@pytest.mark.parametrize("answer", ["E", "", None, "sideways", "5"])
def test_an_answer_that_is_none_of_the_options_is_refused(answer):
    with pytest.raises(InputError, match="is neither letter nor text of one of the options"):
        right_letters({"A": "left", "B": "right"}, answer)


def test_an_answer_that_is_one_options_letter_and_anothers_text_is_refused():
    with pytest.raises(InputError, match="the letter of one option and the text of another"):
        right_letters({"A": "B", "B": "C", "C": "D"}, "B")
    assert right_letters({"A": "A", "B": "B"}, "B") == {"B"}


def test_trap_a_judge_reads_only_what_rules_cannot_and_what_it_says_is_read_by_the_same_rules():
    asked = []

    def judge(said, question, options):
        asked.append((said, question, dict(options)))
        return {"to port": "The answer is A.", "to starboard": "clockwise or counter-clockwise"}.get(said, "")

    texts = ["B", "to port", "to starboard", "…", "", " ", "gibberish"]
    found = [read_or_judge(text, "Where?", WORDS, judge) for text in texts]
    assert found == [("B", False), ("A", True), *[(None, False)] * 5]
    # A text without a word is nobody's answer: the judge is not asked.
    assert asked == [(text, "Where?", WORDS) for text in ("to port", "to starboard", "gibberish")]
    assert read_or_judge("to port", "Where?", WORDS, None) == (None, False)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("20 kilometers per hour", "B"),
        ("It drives at 40 km/h.", "C"),
        ("40 m/s", None),
        ("40", "C"),
        ("15 km/h", None),
    ],
)
def test_units_that_are_quotients(text, letter):
    assert read_option(text, {"A": "10 km/h", "B": "20 km/h", "C": "40 km/h"}) == letter


@pytest.mark.parametrize(
    ("text", "letter"), [("45 cm", "A"), ("0.45 m", "A"), ("1.2", "B"), ("120 cm", "B"), ("2", None)]
)
def test_a_number_without_unit_is_the_one_that_is_written_so(text, letter):
    assert read_option(text, {"A": "45 cm", "B": "1.2 m", "C": "3.1 m"}) == letter


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
