"""The ST-CoT text says what was measured: its numbers are read back and worked out again."""

import math
import re
from random import Random

import pytest
import torch

from mllm4d import prompts
from mllm4d.qa.balance import balance
from mllm4d.qa.generate import Candidate, candidates
from mllm4d.qa.judge import Margins
from mllm4d.qa.reasoning import reason
from mllm4d.schema import TASKS
from tests.qa.scenes import random_scene

LINE = re.compile(r"^- (Camera|Object) Center: (?:\[(.+)\]|null)$", re.MULTILINE)
ROUNDING = 0.005 * math.sqrt(3) * 2 + 0.005
"""Two centres, each rounded to the centimetre in three coordinates, and what is said of them rounded again."""


@pytest.fixture(scope="module")
def questions():
    found = []
    for seed in range(60):
        found += candidates(f"c{seed:02d}", random_scene(seed), Margins(), 8, torch.Generator().manual_seed(seed))[0]
    made = balance(found, 6, 1.5, 0).questions
    assert {q.task for q in made} == set(TASKS)
    return made


def states(text):
    """Camera and object centres in order of appearance, None where null."""
    rows = {"Camera": [], "Object": []}
    for kind, numbers in LINE.findall(text):
        rows[kind].append([float(n) for n in numbers.split(", ")] if numbers else None)
    return rows


def conclusion(text):
    return text.split("\n</thinking>")[0].rsplit("\n", 1)[1]


def test_five_steps_in_order(questions):
    for q in questions:
        blocks = re.fullmatch(r"<thinking>\n(.+)\n</thinking>\n<answer>([A-D])</answer>", q.reasoning, re.DOTALL)
        assert blocks[2] == q.answer
        lines = blocks[1].split("\n")
        assert len(lines) == 9
        assert q.question in lines[0]
        kinds = [None if (match := LINE.match(line)) is None else match[1] for line in lines]
        assert kinds == [None, None, "Camera", "Object", None, None, "Camera", "Object", None]
        assert q.options[q.answer] in lines[8]


def test_states_are_the_solution(questions):
    for q in questions:
        rows = states(q.reasoning)
        for kind in ("Camera", "Object"):
            truth = q.solution[f"{kind.lower()}_center"] or [None, None]
            for written, known in zip(rows[kind], truth, strict=True):
                assert (written is None) == (known is None)
                assert known is None or written == pytest.approx(known, abs=0.0051)


def test_the_conclusion_follows_from_the_states_as_written(questions):
    checked = set()
    for q in questions:
        rows, last = states(q.reasoning), conclusion(q.reasoning)
        if q.task in ("camera_absolute_distance", "object_absolute_distance"):
            first, second = rows["Camera" if q.object is None else "Object"]
            distance = re.search(r"(\d+\.\d\d) m (?:apart|away from)", last)
            assert distance[1] == f"{math.dist(first, second):.2f}"
            # Of the options it is the right one that this distance is nearest to.
            options = {k: prompts.read_distance(text) for k, text in q.options.items()}
            nearest = min(options, key=lambda k: abs(math.log(options[k] / float(distance[1]))))
            assert nearest == q.answer
        elif q.task == "object_camera_absolute_distance":
            distance = re.search(r"begins (\d+\.\d\d) m away", last)
            assert float(distance[1]) == pytest.approx(q.answer_value, abs=0.006)
            # The surface of a body of 0.4 m begins before its centre, by no more than its radius.
            if rows["Object"][1] is not None:
                reach = math.dist(rows["Camera"][0], rows["Object"][1])
                assert -ROUNDING <= reach - float(distance[1]) <= 0.4 + ROUNDING
        elif q.task == "object_camera_relative_distance":
            change = float(re.search(r"by ([+-]\d+\.\d\d) m", last)[1])
            word = "unchanged" if abs(change) <= 0.1 else "closer" if change < 0 else "farther"
            assert word == q.answer_value
        else:
            vector = [float(n) for n in re.search(r"by \[(.+?)\]", last)[1].split(", ")]
            axis = max((0, 2), key=lambda k: abs(vector[k]))
            ahead = ("closer", "farther") if q.task.startswith("object_camera") else ("backward", "forward")
            assert (("left", "right") if axis == 0 else ahead)[vector[axis] > 0] == q.answer_value
            if not q.task.startswith("object_camera"):
                first, second = rows["Camera" if q.object is None else "Object"]
                assert math.hypot(*vector) == pytest.approx(math.dist(first, second), abs=2 * ROUNDING)
                if q.anchors[0] == 0:
                    change = [b - a for a, b in zip(first, second, strict=True)]
                    assert vector == pytest.approx(change, abs=0.016)
        checked.add(q.task)
    assert checked == set(TASKS)


def test_the_motion_is_the_difference_of_the_states(questions):
    for q in questions:
        rows = states(q.reasoning)
        (a, b), motion = rows["Camera"], q.reasoning.split("\n")[5]
        moves = re.search(r"the camera (?:moves by \[(.+?)\]|stays where it is)", motion)
        change = [y - x for x, y in zip(a, b, strict=True)]
        if moves[1]:
            assert [float(n) for n in moves[1].split(", ")] == pytest.approx(change, abs=1e-6)
        else:
            assert max(map(abs, change)) < 0.05
        if away := re.search(r"from (\S+) m to (\S+) m away, it (.+) in the view", motion):
            before, after = (math.dist(rows["Camera"][k], rows["Object"][k]) for k in (0, 1))
            assert (away[1], away[2]) == (f"{before:.2f}", f"{after:.2f}")
            assert {"grows": after < before, "shrinks": after > before}.get(away[3], abs(after / before - 1) < 0.11)


def test_every_wording_of_every_step_occurs(questions):
    for variants in prompts.REASONING_STEPS.values():
        assert len(variants) == 3
        for variant in variants:
            pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(variant))
            count = sum(bool(re.search(f"^{pattern}$", q.reasoning, re.MULTILINE)) for q in questions)
            assert count > 0.2 * len(questions), variant


def test_an_object_that_is_not_seen_at_both_anchors_is_null():
    candidate = Candidate(
        clip="c",
        task="object_camera_absolute_distance",
        value=3.2,
        label=None,
        sigma=0.0,
        anchors=(0, 4),
        times=(0.0, 1.0),
        object=1,
        name="red cube",
        solution={"camera_center": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]], "object_center": None},
        measured=(3.2,),
    )
    text = reason(candidate, "How far?", "3.2 m", "B", Random(0))
    assert text.count("- Object Center: null") == 2
    assert "the camera moves by [0.00, 0.00, 0.50]; the red cube is not seen at both anchors" in text
    assert "begins 3.20 m away" in text
    assert text.endswith("<answer>B</answer>")
