"""Released formats: what is read, what is refused and why, and that our own questions come back as they were."""

import json

import pytest

from mllm4d import prompts
from mllm4d.data.formats import FORMATS, OURS, read_conversations, read_r1, read_vlm4d
from mllm4d.data.rows import question_of
from mllm4d.data.texts import BadRow, read_prompt, read_truth, task_of
from mllm4d.schema import Question

WORDS = {"A": "left", "B": "right", "C": "left", "D": "counter-clockwise"}


def question(**changes):
    fields = {
        "id": "street/004",
        "task": "object_absolute_distance",
        "question": "From 0 s to 1.5 s, how far did the car move?\nA second line.",
        "options": {"A": "0.5 m", "B": "1.3 m", "C": "2.1 m", "D": "5 m"},
        "answer": "B",
        "answer_value": 1.2873,
        "unit": "m",
        "anchors": (0, 6),
        "object": 3,
        "solution": {"camera_center": [[0, 0, 0], [0.5, 0, 1.25]], "object_center": [[1, 2, 3], None]},
        "reasoning": "<thinking>\nState é\n- Camera Center: null\n</thinking>\n<answer>B</answer>",
    }
    return Question(**{**fields, **changes})


@pytest.mark.parametrize("name", FORMATS)
def test_our_questions_come_back_as_they_were(name):
    for original in (question(), question(object=None, solution={"camera_center": None, "object_center": None})):
        entry = json.loads(json.dumps(FORMATS[name].write("videos/street.mp4", original)))
        (row,) = FORMATS[name].read(entry)
        assert row.video == "videos/street.mp4"
        assert question_of(row, "another", 7, lambda wording: None) == original


@pytest.mark.parametrize("name", FORMATS)
def test_without_our_record_the_text_alone_is_read(name):
    entry = FORMATS[name].write("a.mp4", question())
    del entry[OURS]
    (row,) = FORMATS[name].read(entry)
    read = question_of(row, "a/000", 9, lambda wording: "object_absolute_distance")
    assert (read.question, read.options, read.answer) == (question().question, question().options, "B")
    # What the text says, not what was measured; the whole clip, since nothing says otherwise.
    assert (read.answer_value, read.unit, read.anchors) == (1.3, "m", (0, 8))
    assert read.reasoning == (question().reasoning if name == "cold_start" else None)
    assert read.solution["object_center"] == ([[1, 2, 3], None] if name == "r1" else None)


def test_what_people_change_in_a_written_file_counts():
    entry = FORMATS["sft"].write("a.mp4", question())
    entry["conversations"][1]["value"] = "D"
    (row,) = read_conversations(entry)
    assert question_of(row, "a/000", 7, lambda wording: None).answer == "D"


def test_the_layout_of_the_formats():
    sft = FORMATS["sft"].write("a.mp4", question(question="How far?"))
    assert list(sft) == ["video", "conversations", OURS]
    assert sft["conversations"] == [
        {
            "from": "user",
            "value": "<video>\nHow far?\nA. 0.5 m\nB. 1.3 m\nC. 2.1 m\nD. 5 m\n" + prompts.LETTER_INSTRUCTION,
        },
        {"from": "assistant", "value": "B"},
    ]
    r1 = FORMATS["r1"].write("a.mp4", question())
    assert r1["videos"] == ["a.mp4"]
    assert r1["messages"][0]["role"] == "user"
    assert r1["solution"] == [{"answer": "B", **question().solution}]
    vlm4d = FORMATS["vlm4d"].write("a.mp4", question())
    assert (vlm4d["question_type"], vlm4d["answer"], vlm4d["response"]) == ("multiple-choice", "1.3 m", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<video>\nHow far?\nA. 1 m\nB. 2 m\nAnswer.", ("How far?", {"A": "1 m", "B": "2 m"})),
        (
            "<video>Question: Which way?\nOptions: A: left\nB: not moving\n\nThink.",
            ("Which way?", ["left", "not moving"]),
        ),
        ("Which way?\n\nOptions:\n(A) left\n(B) right", ("Which way?", ["left", "right"])),
        ("A. is a letter?\nA) yes\nB) no\nD) perhaps", ("A. is a letter?", ["yes", "no"])),
    ],
)
def test_prompts_are_taken_apart(text, expected):
    wording, options = read_prompt(text)
    assert wording == expected[0]
    assert options == (expected[1] if isinstance(expected[1], dict) else dict(zip("AB", expected[1], strict=True)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<video>\nDescribe the video.", "no options"),
        ("<video>\n<video>\nWhich?\nA. first\nB. second", "several videos"),
        ("<video>\nA. 1 m\nB. 2 m", "no question"),
        ("How far?\nA. 1 m", "two options"),
        ("How far?\nA. 1 m\nB.\nC. 2 m", "without a text"),
    ],
)
def test_other_prompts_are_refused(text, reason):
    with pytest.raises(BadRow, match=reason):
        read_prompt(text)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("B", ("B",)),
        ("(B)", ("B",)),
        ("B.", ("B",)),
        ("B. right", ("B",)),
        (" Right ", ("B",)),
        ("left", ("A", "C")),
        ("counter-clockwise", ("D",)),
    ],
)
def test_truths(answer, letters):
    assert read_truth(answer, WORDS) == letters


@pytest.mark.parametrize("answer", ["clockwise", "E", "", "B. left", None, True, ["B"]])
def test_truths_that_are_none(answer):
    with pytest.raises(BadRow):
        read_truth(answer, WORDS)
    with pytest.raises(BadRow, match="one option's letter and another's text"):
        read_truth("A", {"A": "B", "B": "A"})


def vlm4d(**changes):
    entry = {
        "id": "validation_4",
        "video": "/home/someone/VLM4D/videos_real/davis/baseball.mp4",
        "question_type": "multiple-choice",
        "question": " How many times? ",
        "choices": {"A": 1, "B": 3, "C": " 2", "D": 0},
        "answer": 0,
        "response": "A",
    }
    return entry | changes


def test_vlm4d_answers_are_numbers_too_and_zero_is_one():
    (row,) = read_vlm4d(vlm4d())
    assert row.options == {"A": "1", "B": "3", "C": "2", "D": "0"}
    assert (row.answers, row.question, row.id) == (("D",), "How many times?", "validation_4")


def test_vlm4d_options_that_share_the_right_text_are_all_right():
    (row,) = read_vlm4d(vlm4d(choices={"A": "left", "B": "left ", "C": "right"}, answer="left"))
    assert row.answers == ("A", "B")
    with pytest.raises(BadRow, match="several right options"):
        question_of(row, "a/000", 8, lambda wording: "object_relative_direction")


@pytest.mark.parametrize(
    "changes",
    [{"answer": 7}, {"answer": None}, {"choices": ["a", "b"]}, {"question_type": "open-ended"}, {"video": None}],
)
def test_vlm4d_rows_that_cannot_be_used(changes):
    with pytest.raises(BadRow):
        list(read_vlm4d(vlm4d(**changes)))


def test_a_conversation_of_several_turns_is_several_questions():
    text = "Which way?\nA. left\nB. right"
    turns = [("system", "Hello."), ("human", f"<video>\n{text}"), ("gpt", "A"), ("human", text), ("gpt", "B. right")]
    entry = {"video": "a.mp4", "conversations": [{"from": who, "value": value} for who, value in turns]}
    assert [row.answers for row in read_conversations(entry)] == [("A",), ("B",)]
    for broken in (turns[:2], turns[2:], [*turns, turns[1]]):
        entry = {"video": "a.mp4", "conversations": [{"from": who, "value": value} for who, value in broken]}
        with pytest.raises(BadRow, match="alternate"):
            list(read_conversations(entry))


@pytest.mark.parametrize(
    "center",
    [[[0, 0, 0]], [[0, 0, 0], [0, 0]], [["x", "y", "z"], None], [[0, 0, float("nan")], None], [[True, 0, 0], None], 3],
)
def test_r1_centres_are_two_points_of_finite_numbers(center):
    entry = FORMATS["r1"].write("a.mp4", question())
    entry["solution"][0]["object_center"] = center
    with pytest.raises(BadRow, match="centre"):
        list(read_r1(entry))
    entry["solution"][0]["object_center"] = []
    assert next(read_r1(entry)).solution["object_center"] is None


@pytest.mark.parametrize("reader", [read_conversations, read_r1, read_vlm4d])
@pytest.mark.parametrize("entry", [None, [], "text", 3, {}, {"video": "a.mp4", "conversations": [1]}])
def test_entries_of_any_other_kind_are_bad_rows(reader, entry):
    with pytest.raises(BadRow):
        list(reader(entry))


def test_every_wording_of_ours_says_its_task_and_no_other():
    known = [(task, wording) for task, wordings in prompts.WORDINGS.items() for wording in wordings]
    known += prompts.PAPER_WORDINGS.items()
    for task, wording in known:
        assert task_of(wording.format(i="0.25 s", j="1.5 s", name="red car (left)"), {}) == task, wording


def test_a_given_pattern_comes_first_and_two_tasks_are_none():
    patterns = {"camera_relative_direction": ["camera.*(go|moving)"], "object_relative_direction": ["moving towards"]}
    assert task_of("Which way did the CAMERA go?", patterns) == "camera_relative_direction"
    assert task_of("What direction is the bus moving towards?", patterns) == "object_relative_direction"
    assert task_of("What direction is the camera moving towards?", patterns) is None
    assert task_of("How many bears are there?", patterns) is None


def test_a_distance_in_other_units_stays_a_text():
    entry = vlm4d(choices={"A": "1 foot", "B": "2 feet"}, answer="2 feet")
    read = question_of(next(read_vlm4d(entry)), "a/000", 8, lambda wording: "camera_absolute_distance")
    assert (read.answer_value, read.unit) == ("2 feet", None)
