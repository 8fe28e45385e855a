from collections import Counter
from dataclasses import fields
from random import Random
from statistics import fmean

import pytest
import torch

from mllm4d.prompts import PAPER_WORDINGS
from mllm4d.qa.blind import numeric_options, smallest_plausible
from mllm4d.qa.generate import Candidate, candidates
from mllm4d.qa.judge import Margins
from mllm4d.qa.options import OptionMaker
from mllm4d.qa.paper import PaperOptions
from tests.qa.scenes import random_scene


def distances(count):
    """Candidates about distances of 0.5-10 m."""
    random = Random(0)
    common = {"label": None, "sigma": 0.0, "anchors": (0, 7), "times": (0.0, 1.0), "object": None, "name": None}
    solution = {"camera_center": [[0, 0, 0], [0, 0, 1]], "object_center": None}
    return [
        Candidate(f"clip-{k:05d}", "camera_absolute_distance", v, **common, solution=solution, measured=(v,))
        for k in range(count)
        for v in [random.uniform(0.5, 10)]
    ]


@pytest.fixture(scope="module")
def leaky():
    return PaperOptions()(distances(6000), per_clip=4, ratio=1.5, seed=0)


def test_it_leaks_as_published(leaky):
    # Chance is 25 %. The figures of 63.9 % and 50.0 % are those of reference/geometry.md; two sigma of 6,000 is 1.3 %.
    smallest, nearest = smallest_plausible([]), 0
    for q in leaky.questions:
        values = numeric_options(q)
        mean = fmean(values.values())
        nearest += min(values, key=lambda k: abs(values[k] - mean)) == q.answer
    assert fmean(smallest(q) == q.answer for q in leaky.questions) == pytest.approx(0.639, abs=0.015)
    assert nearest / len(leaky.questions) == pytest.approx(0.5, abs=0.015)


def test_distractors_lie_within_the_papers_range_in_metres_with_two_decimals(leaky):
    for q in leaky.questions:
        for letter, text in q.options.items():
            number, unit = text.split()
            assert unit == "m"
            assert len(number.split(".")[1]) == 2
            if letter == q.answer:
                assert number == f"{q.answer_value:.2f}"
            else:
                assert 0.25 * q.answer_value - 0.005 <= float(number) <= 1.75 * q.answer_value + 0.005
        assert len(set(q.options.values())) == 4
    letters = Counter(q.answer for q in leaky.questions)
    assert max(letters.values()) - min(letters.values()) <= 1


def test_the_six_tasks_capped_per_clip_and_not_balanced():
    found = []
    for seed in range(30):
        found += candidates(f"c{seed}", random_scene(seed), Margins(), 6, torch.Generator().manual_seed(seed))[0]
    made = PaperOptions()(found, per_clip=3, ratio=1.5, seed=0)
    assert {q.task for q in made.questions} == set(PAPER_WORDINGS)
    assert len(PAPER_WORDINGS) == 6
    counts = Counter((q.id.split("/")[0], q.task) for q in made.questions)
    expected = Counter((c.clip, c.task) for c in found if c.task in PAPER_WORDINGS)
    assert counts == Counter({key: min(3, n) for key, n in expected.items()})
    assert sum(made.dropped.values()) + len(made.questions) == len(found)
    texts = {text for q in made.questions if q.task.endswith("relative_distance") for text in q.options.values()}
    assert texts == {"closer", "farther", "not moving"}
    assert all(q.options[q.answer] == q.answer_value for q in made.questions if q.unit is None)
    assert PaperOptions()(list(reversed(found)), 3, 1.5, 0) == made
    assert PaperOptions()(found, 3, 1.5, 1) != made


def test_it_is_named_in_yaml_by_its_class():
    assert issubclass(PaperOptions, OptionMaker)
    assert not fields(PaperOptions)
