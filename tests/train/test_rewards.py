"""The paper's spatiotemporal reward: worked by hand, and on texts and truths as nasty as they come."""

import json
import math
import time
from random import Random

import pytest

from mllm4d.data.formats import read_r1
from mllm4d.data.rows import question_of
from mllm4d.qa.balance import balance
from mllm4d.qa.generate import candidates
from mllm4d.qa.judge import Margins
from mllm4d.train import rewards
from mllm4d.train.rewards import paper_reward
from tests.data.test_formats import question

KEYS = ("accuracy", "format", "camera", "object", "total")
TRUTH = {
    "answer": "B",
    "camera_center": [[0, 0, 0], [0.5, 0, 1.25]],
    "object_center": [[1, 2, 3], [1, 2, 4]],
}


def said(camera=("[0, 0, 0]", "[0.5, 0, 1.25]"), target=("[1, 2, 3]", "[1, 2, 4]"), answer="B", thinking="x" * 21):
    lines = [f"- Camera Center: {value}" for value in camera] + [f"- Object Center: {value}" for value in target]
    return f"<thinking>\n{thinking}\n" + "\n".join(lines) + f"\n</thinking>\n<answer>{answer}</answer>"


def test_all_right_is_one():
    assert paper_reward(said(), TRUTH) == dict.fromkeys(KEYS, 1.0)
    assert paper_reward(said(), [TRUTH]) == dict.fromkeys(KEYS, 1.0)


def test_by_hand():
    # The camera is off by 3-4-0 = 5 m at the first anchor and right at the last, the object by 1 m at both.
    text = said(camera=("[3, 4, 0]", "[0.5, 0, 1.25]"), target=("[1, 2, 2]", "[2, 2, 4]"), answer="C")
    scores = paper_reward(text, TRUTH)
    assert scores["accuracy"] == 0
    assert scores["format"] == 1
    assert scores["camera"] == pytest.approx(math.exp(-2.5), abs=1e-12)
    assert scores["object"] == pytest.approx(math.exp(-1), abs=1e-12)
    assert scores["total"] == pytest.approx(0.2 + 0.1 * math.exp(-2.5) + 0.1 * math.exp(-1), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>B</answer>", 1),
        ("<answer>\n B </answer>", 1),
        ("<answer>b</answer>", 0),
        ("<answer>B.</answer>", 0),
        ("<answer>A</answer> or <answer>B</answer>", 0),
        ("<answer>B", 0),
        ("B</answer><answer>", 0),
        ("B", 0),
        ("", 0),
    ],
)
def test_accuracy_is_what_stands_between_the_tags(text, value):
    assert paper_reward(text, TRUTH)["accuracy"] == value


CAMERA, TARGET = "- Camera Center: [0, 0, 0]\n", "- Object Center: null\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("<thinking></thinking><answer></answer>", 0.5),
        ("<answer>A</answer>" + "<thinking></thinking>", 0.5),
        (f"<thinking>{'x' * 20}</thinking>", 0),
        (f"<thinking>{'x' * 21}</thinking>", 0.1),
        (f"<thinking> \n{'x' * 20}{' ' * 9}</thinking>", 0),
        (f"<thinking>{'x' * 21}</thinking><answer></answer>", 0.6),
        (CAMERA + TARGET, 0.4),
        (CAMERA + CAMERA, 0),
        (TARGET, 0),
        (f"<thinking>{CAMERA}</thinking><answer>A</answer>", 0.6),
        (f"<thinking>\n{CAMERA}{TARGET}</thinking>", 0.5),
        (f"<thinking>\n{CAMERA}{TARGET}</thinking><answer>A</answer>", 1),
        (f"</thinking>\n{CAMERA}{TARGET}<thinking></answer><answer>", 0.4),
        ("- Camera Center: here\n" + TARGET, 0),
    ],
)
def test_format_by_hand(text, value):
    assert paper_reward(text, TRUTH)["format"] == pytest.approx(value, abs=1e-12)


def test_what_made_the_papers_parser_raise_scores_nothing():
    for value in ("['x','y','z']", "[None,0,0]", "[{1},0,0]"):
        for place in (0, 1):
            camera = ["[0, 0, 0]", "[0.5, 0, 1.25]"]
            camera[place] = value
            assert paper_reward(said(camera=camera), TRUTH)["camera"] == 0
        assert paper_reward(said(camera=(value, value)), {**TRUTH, "camera_center": None})["camera"] == 0


def test_a_null_never_moves_a_centre_to_another_anchor():
    truth = {**TRUTH, "object_center": [[1, 2, 3], None]}
    assert paper_reward(said(target=("[1, 2, 3]", "null")), truth)["object"] == 1
    # The right numbers at the wrong anchor; and one line, of which nobody can say which anchor it is for.
    assert paper_reward(said(target=("null", "[1, 2, 3]")), truth)["object"] == 0
    assert paper_reward(said(target=("[1, 2, 3]",)), truth)["object"] == 0
    assert (
        paper_reward(said(target=("null", "[1, 2, 3]")), {**TRUTH, "object_center": [None, [1, 2, 3]]})["object"] == 1
    )


@pytest.mark.parametrize(
    "target",
    [
        (),
        ("[1, 2, 3]",),
        ("[1, 2, 3]", "null"),
        ("[1, 2, 3]", "[1, 2, 4]", "[1, 2, 4]"),
        ("[1, 2, 3]", "[1, 2, 4]", "null"),
        ("[1, 2]", "[1, 2, 4]"),
        ("[1, 2, 3, 4]", "[1, 2, 4]"),
        ("[[1, 2, 3]]", "[1, 2, 4]"),
        ("[1, 2, 1e999]", "[1, 2, 4]"),
        ("[1, 2, nan]", "[1, 2, 4]"),
        ("[1, 2, ٣]", "[1, 2, 4]"),
        ("1, 2, 3", "[1, 2, 4]"),
        ("1 + 2", "__import__('os').getcwd()"),
    ],
)
def test_another_number_or_shape_than_the_truths_is_zero(target):
    scores = paper_reward(said(target=target), TRUTH)
    assert scores["object"] == 0
    assert scores["camera"] == 1


@pytest.mark.parametrize("truth", [None, [], [None, None], "missing"])
def test_where_the_truth_has_none_it_is_right_to_predict_none(truth):
    record = {"answer": "B"} if truth == "missing" else {**TRUTH, "camera_center": truth}
    assert paper_reward(said(camera=()), record)["camera"] == 1
    assert paper_reward(said(camera=("null", "null")), record)["camera"] == 1
    assert paper_reward(said(camera=("null", "[0, 0, 0]")), record)["camera"] == 0
    assert paper_reward(said(camera=("[0, 0, 0]", "[0, 0, 0]")), record)["camera"] == 0


@pytest.mark.parametrize(
    "truth",
    [
        {},
        [],
        None,
        {"answer": None, "camera_center": "x", "object_center": 3},
        {"answer": 0, "camera_center": [[1, 2]], "object_center": [[1, 2, "3"], [1, 2, 3]]},
        {"answer": ["A"], "camera_center": [[math.nan, 0, 0]] * 2, "object_center": [[True, 0, 0]] * 2},
        {"answer": "A", "camera_center": [[10**400, 0, 0]] * 2, "object_center": [[1e308, -1e308, 0]] * 2},
    ],
)
def test_a_truth_in_another_form_never_raises(truth):
    for text in ("", said(), said(("[-1.7e308, 0, 0]",) * 2, ("[-1.7e308, 1.7e308, 0]",) * 2)):
        scores = paper_reward(text, truth)
        assert set(scores) == set(KEYS)
        assert all(0 <= value <= 1 for value in scores.values())


PIECES = [
    "<thinking>",
    "</thinking>",
    "<answer>",
    "</answer>",
    "<Answer>",
    "<<answer>>",
    "- Camera Center:",
    "- Object Center:",
    "\n- Camera Center: [0, 0, 0]\n",
    "\n- Camera Center: [1.5, -2, 1]\n",
    "\n* Object Center: null\n",
    "Camera Center: ",
    "\n",
    "\r\n",
    "\x00",
    "\ud800",
    "\u2028",
    " ",
    "\t",
    "null",
    "None",
    "[0, 0, 0]",
    "[1.5, -2e0, +.5]",
    "[",
    "]",
    ",",
    "1e999",
    "-1e999",
    "[1e308, 1e308, -1e308]",
    "['x','y','z']",
    "[None,0,0]",
    "[{1},0,0]",
    "[٣, 1_0, 0x1]",
    "９",
    "nan",
    "inf",
    "__import__('os').abort()",
    "A",
    "B",
    "x" * 30,
    "9" * 5000,
    "[" * 500,
]
CENTERS = [None, [], [None, None], [[0, 0, 0], [0.5, 0, 1.25]], [[1.5, -2, 0.5], None], [None, [0, 0, 0]]]


def test_no_text_and_no_truth_makes_it_raise():
    random = Random(0)
    seen = set()
    for _ in range(4000):
        text = "".join(random.choice(PIECES) for _ in range(random.randrange(40)))
        truth = {"answer": random.choice("AB"), "camera_center": random.choice(CENTERS)}
        if random.random() < 0.8:
            truth["object_center"] = random.choice(CENTERS)
        scores = paper_reward(text, truth)
        assert list(scores) == list(KEYS)
        assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())
        parts = scores["accuracy"] * 0.6 + scores["format"] * 0.2 + (scores["camera"] + scores["object"]) * 0.1
        assert scores["total"] == pytest.approx(parts)
        seen |= {(key, value) for key, value in scores.items() if key != "total"}
    # The pieces do reach what is scored.
    assert {("accuracy", 1.0), ("format", 0.5), ("camera", 1.0), ("object", 1.0), ("camera", 0.0)} <= seen
    assert any(key == "camera" and 0 < value < 1 for key, value in seen)


LONG = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * (LONG // 8),
        "<thinking>" * (LONG // 10),
        "</thinking><thinking>" * (LONG // 21),
        "- Camera Center:" + " " * LONG + "x",
        "- Camera Center: [" + "1" * LONG,
        "- Camera Center: [" + "1" * LONG + ", 0, 0]",
        "- Camera Center: [0." + "1" * LONG + ", 0, 0]",
        "- Camera Center: [1" + " " * LONG + "x",
        "- Camera Center: [1e" + "1" * LONG,
        "- Camera Center: [0, 0, 0]\n" * (LONG // 27),
        "- " * (LONG // 2),
        " \t" * (LONG // 2) + "-",
        "[" * LONG,
        "\n" * LONG,
    ],
    ids=range(14),
)
def test_a_megabyte_takes_linear_time(text):
    begun = time.process_time()
    paper_reward(f"<thinking>\n{text}", TRUTH)
    paper_reward(f"<thinking>\n{text}\n</thinking><answer>B</answer>", TRUTH)
    # Some milliseconds each; anything quadratic would take hours.
    assert time.process_time() - begun < 10


def test_the_parts_as_rewards_are_those_of_the_whole():
    asked = question(solution={"camera_center": TRUTH["camera_center"], "object_center": [[1, 2, 3], None]})
    for text in (said(), said(target=("[1, 2, 2]", "null")), said(camera=("[3, 4, 0]", "null"), answer="A"), ""):
        whole = paper_reward(text, {"answer": asked.answer, **asked.solution})
        assert rewards.accuracy(text, asked) == whole["accuracy"]
        assert rewards.answer_format(text, asked) == whole["format"]
        assert rewards.camera_center(text, asked) == whole["camera"]
        assert rewards.object_center(text, asked) == whole["object"]


def test_our_own_reasoning_scores_all_but_the_rounding():
    import torch

    from tests.qa.scenes import random_scene

    found = []
    for seed in range(12):
        found += candidates(f"c{seed}", random_scene(seed), Margins(), 4, torch.Generator().manual_seed(seed))[0]
    asked = balance(found, 3, 1.5, 0).questions
    assert len(asked) > 20
    for q in asked:
        scores = paper_reward(q.reasoning, {"answer": q.answer, **q.solution})
        assert (scores["accuracy"], scores["format"]) == (1, 1)
        # Centres are written to the centimetre.
        assert min(scores["camera"], scores["object"]) > math.exp(-0.005 * math.sqrt(3) - 1e-9)


@pytest.mark.parametrize("target", [[[1, 2, 3], [1, 2, 4]], [[1, 2, 3], None], None, []])
def test_a_released_line_gives_a_question_whose_solution_is_scored(target):
    line = json.dumps(
        {
            "messages": [{"role": "user", "content": "<video>\nHow far did the car move?\nA. 1 m\nB. 2 m"}],
            "videos": ["videos/a.mp4"],
            "solution": [{**TRUTH, "object_center": target}],
        }
    )
    entry = json.loads(line)
    (row,) = read_r1(entry)
    asked = question_of(row, "a/000", 9, lambda wording: "object_absolute_distance")
    values = ["null" if point is None else str(point) for point in target or [None, None]]
    assert paper_reward(said(target=values), {"answer": asked.answer, **asked.solution})["total"] == 1
    assert paper_reward(said(target=values), entry["solution"])["total"] == 1
    assert rewards.object_center(said(target=values), asked) == 1


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        (" right<answer>B</answer>", 1.0),
        (" right", 1.0),
        ("B", 1.0),
        (" left<answer>B</answer>", 1.0),  # the tags say what counts
        (" right<answer>A</answer>", 0.0),
        (" up", 0.0),
        ("", 0.0),
    ],
)
def test_a_choice_by_letter_or_by_text(text, worth):
    asked = question(options={"A": "left", "B": "right", "C": "forward"}, answer="B")
    assert rewards.choice(text, asked) == worth


def test_options_that_share_a_text_are_right_together():
    asked = question(options={"A": "left", "B": "right", "C": "right"}, answer="B")
    assert [rewards.choice(text, asked) for text in ("B", "C", "right", "A")] == [1, 1, 1, 0]
