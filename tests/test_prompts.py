import math
import re
from random import Random

import pytest

from mllm4d import prompts
from mllm4d.answers import read_option
from mllm4d.schema import TASKS, Question


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.05, 0.075, 0.1125, 0.16875), ("5 cm", "7.5 cm", "11 cm", "17 cm")),
        # The geometric middle decides: sqrt(0.735 x 1.1025) = 0.9 m.
        ((0.49, 0.735, 1.1025, 1.65375), ("49 cm", "74 cm", "110 cm", "170 cm")),
        ((0.57, 0.855, 1.2825, 1.92375), ("0.57 m", "0.85 m", "1.3 m", "1.9 m")),
        ((12.3, 18.45, 27.675, 41.5), ("12 m", "18 m", "28 m", "42 m")),
        ((99.6, 150.0, 225.0, 337.5), ("100 m", "150 m", "220 m", "340 m")),
        # More digits where two of them would not tell the options apart.
        ((1.01, 1.02, 4.0, 5.0), ("1.01 m", "1.02 m", "4 m", "5 m")),
    ],
)
def test_distances(values, texts):
    assert prompts.distances(values) == texts


def test_unit_and_texts_depend_on_the_set_alone():
    random = Random(0)
    for _ in range(500):
        low = math.exp(random.uniform(math.log(0.02), math.log(40)))
        values = [low * 1.5**k for k in range(4)]
        texts = dict(zip(values, prompts.distances(values), strict=True))
        shuffled = random.sample(values, 4)
        assert prompts.distances(shuffled) == tuple(texts[v] for v in shuffled)
        assert len(set(texts.values())) == 4
        assert len({text.split()[1] for text in texts.values()}) == 1
        assert ("cm" in texts[low]) == (low * 1.5**1.5 < 1)
        for value, text in texts.items():
            assert prompts.read_distance(text) == pytest.approx(value, rel=0.051)


def test_what_cannot_be_options():
    with pytest.raises(ValueError, match="cannot be options"):
        prompts.distances([1.0, 1.0])
    with pytest.raises(ValueError, match="cannot be options"):
        prompts.distances([0.0, 1.0])
    with pytest.raises(ValueError, match="is no distance"):
        prompts.read_distance("3 km")


def test_answers_are_read_in_either_unit():
    options = dict(zip("ABCD", prompts.distances([0.05, 0.5, 0.53, 3.0]), strict=True))
    assert options == {"A": "5 cm", "B": "50 cm", "C": "53 cm", "D": "300 cm"}
    for letter, text in options.items():
        assert read_option(f"It moved by {text}.", options) == letter
        assert read_option(f"<answer>{text}</answer>", options) == letter


def test_wordings():
    assert set(prompts.WORDINGS) == set(TASKS)
    for task, wordings in prompts.WORDINGS.items():
        assert len(wordings) == len(set(wordings)) >= 6
        for wording in wordings:
            fields = set(re.findall(r"{(\w+)}", wording))
            assert fields == {"i", "j", "name"} if task.startswith("object") else fields == {"i", "j"}
            # Options may be in centimetres, and a name may end in a time of its own.
            assert "metres" not in wording
            assert "{name} at {" not in wording
            assert wording.endswith(("?", "."))
    # Whose axes the words are in.
    for wording in prompts.WORDINGS["camera_relative_direction"] + prompts.WORDINGS["object_relative_direction"]:
        assert re.search(r"look|axes|view|Seen from", wording)
    for wording in prompts.WORDINGS["object_camera_relative_direction"]:
        assert re.search(r"[Ss]een|view|camera's axes|where it looks|camera sees", wording)


def test_some_questions_are_asked_openly_and_always_the_same_ones():
    options = {"A": "left", "B": "right"}
    rest = ("Which way?", options, "B", "right", None, (0, 1), None, {}, None)
    asked = [Question(f"clip-{k:04d}/1", "camera_relative_direction", *rest) for k in range(2000)]
    opened = [q for q in asked if prompts.open_or_choice(q) == prompts.open_answer(q)]
    # Of 2,000 with p = 0.4, four standard deviations are 88.
    assert abs(len(opened) - 800) < 88
    for q in asked:
        assert prompts.open_or_choice(q) == (prompts.open_answer(q) if q in opened else prompts.text_and_letter(q))
    assert prompts.open_answer(asked[0]) == ("Which way?", " right")
