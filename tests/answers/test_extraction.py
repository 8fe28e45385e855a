"""How well answers are read, on answers in the styles of different models; README.md says how they were written."""

import time
from collections import Counter
from random import Random

import pytest

from mllm4d.answers import read_option
from mllm4d.bench.suites.numbers import read_number
from tools.benchmarks.answers import ALL, INVALID, agrees, load, measure

# Letters that are there, that were read, and that were read rightly, as measured.
MEASURED = {"first": (166, 165, 165), "second": (165, 163, 163), "third": (121, 119, 119), "fourth": (108, 95, 95)}

STYLES = {
    "boxes_and_json",
    "letter",
    "letter_and_text",
    "markdown",
    "numbers",
    "reasoned",
    "refusals_and_noise",
    "sentence",
    "tags",
    "words",
}
WORDS = {"A": "left", "B": "right", "C": "clockwise", "D": "counter-clockwise"}


@pytest.fixture(scope="module")
def answers():
    return load()


def test_at_least_300_different_answers_in_every_style_with_and_without_a_letter(answers):
    assert len({(row["text"], str(row["options"])) for row in answers}) >= 300
    for file in MEASURED:
        assert {row["style"] for row in answers if row["file"] == file} == STYLES
    truths = Counter(row["truth"] for row in answers)
    assert {*"ABCD", INVALID} <= set(truths)
    assert 0.15 < truths[INVALID] / len(answers) < 0.4
    assert all(row["truth"] in (*row["options"], INVALID) for row in answers)


def test_precision_and_recall_are_those_that_were_measured(answers):
    table = measure(answers, "file")
    found = {name: (row["valid"], row["read"], row["right"]) for name, row in table.items() if name != ALL}
    assert found == MEASURED
    assert table[ALL]["precision"] == 1
    assert table[ALL]["recall"] == pytest.approx(542 / 560)
    assert table["fourth"]["recall"] == pytest.approx(95 / 108)


def test_measuring_tells_a_reader_that_guesses_or_never_reads(answers):
    """The figures can fall: a reader that always says A, and one that says nothing."""
    guess = measure(answers, "file", lambda text, options: "A")[ALL]
    a = sum(agrees(row, "A") for row in answers)
    assert guess["precision"] == pytest.approx(a / len(answers))
    assert guess["recall"] == pytest.approx(a / guess["valid"])
    silent = measure(answers, "file", lambda text, options: None)[ALL]
    assert (silent["precision"], silent["recall"]) == (None, 0)


def test_precision_is_counted_by_hand():
    rows = [
        {"style": "x", "options": WORDS, "text": text, "truth": truth}
        for text, truth in [("B", "B"), ("B", "C"), ("C", INVALID), ("?", "A"), ("?", INVALID)]
    ]
    table = measure(rows, "style", lambda text, options: None if text == "?" else text)
    assert table["x"] == {"n": 5, "valid": 3, "read": 3, "right": 1, "precision": 1 / 3, "recall": 1 / 3}


# Whatever the options

OPTIONS = [
    WORDS,
    {"A": "A car", "B": "a bus", "C": "B", "D": "nobody"},
    {"A": "1 m", "B": "1.5 m", "C": "15 cm", "D": "0.15 km"},
    {"A": "0", "B": "1", "C": "2", "D": "3"},
    {"A": "yes", "B": "no"},
    {"A": "the answer is B", "B": "not A", "C": "?", "D": "..."},
]
FRAMES = [
    "{}",
    "{}.",
    "({})",
    " {}\n",
    "**{}**",
    "The answer is {}.",
    "Answer: {}",
    "<answer>{}</answer>",
    "\\boxed{{{}}}",
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options["A"])
@pytest.mark.parametrize("frame", FRAMES)
def test_a_letter_that_is_said_plainly_is_read_whatever_the_options_say(options, frame):
    assert [read_option(frame.format(letter), options) for letter in options] == list(options)


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=lambda options: options["A"])
def test_the_text_of_an_option_is_read_as_its_letter(options):
    for letter, text in options.items():
        if text not in options:  # "B" is a letter
            assert [read_option(said.format(text), options) for said in ("{}", "<answer>{}</answer>")] == [letter] * 2


def test_no_text_breaks_the_reader():
    draw = Random(0)
    pieces = [
        "answer",
        " is ",
        ":",
        ".",
        "A",
        "b",
        "(",
        ")",
        "left",
        "1.5 m",
        "<answer>",
        "</answer>",
        "</think>",
        "\n",
    ]
    pieces += ["not ", '"', "{", "}", "\\boxed{", "选", "–", "or ", "so ", "?", "\u200b", "\x00", "𝐀", "²"]
    for _ in range(2000):
        options = draw.choice(OPTIONS)
        assert read_option("".join(draw.choices(pieces, k=draw.randint(0, 9))), options) in (*options, None)


# Long and nasty texts

ATOMS = [
    "<answer>",
    "</answer>",
    "<answer>A</answer>",
    "<think>",
    "</think>",
    "\\boxed{",
    "\\text{A} ",
    "~~",
    "<|",
    "<",
    "the answer is ",
    "答案是",
    "choose A ",
    "A. ",
    "([{",
    '"answer": "',
    "** ",
    "\n",
    "not ",
    "1,111",
    "1 or ",
    "so ",
    "ASSISTANT:",
]


def seconds(read, text):
    """CPU time of the quickest of three, so that another process does not count."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        read(text)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("read", [lambda text: read_option(text, WORDS), read_number], ids=["option", "number"])
@pytest.mark.parametrize("atom", ATOMS)
def test_four_times_the_text_takes_no_more_than_some_four_times_as_long(atom, read):
    """Quadratic time would take 16 times as long; twice the fourfold, and a millisecond, are for noise."""
    short, long = (seconds(read, atom * n) for n in (1000, 4000))
    assert long < 8 * short + 0.001


def test_20000_tags_are_read_to_the_last():
    text = "<answer>B</answer>" * 20_000 + "<answer>C</answer>"
    assert read_option(text, WORDS) == "C"
    assert read_option("<answer>" * 20_000 + "C</answer>", WORDS) == "C"
    assert read_number("<answer>3</answer>" * 20_000 + "<answer>4</answer>") == 4
    assert read_option("I see a car. " * 20_000 + "The answer is D.", WORDS) == "D"
