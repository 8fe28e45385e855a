"""What holds for every scene, and what no one can know without the video.

The balance is exact by construction where groups are of the finest kind: among the questions that share task, options
and time between the anchors each option is right equally often, so that any function of these three, whatever it was
fitted on, is right exactly once in as many questions as there are options. That is tested exactly. Solvers that look at
more (the words of the question) are tested within three standard deviations of a guess, or two points.
"""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from mllm4d.qa.balance import balance
from mllm4d.qa.blind import SOLVERS, score_blind
from mllm4d.qa.generate import candidates, measure
from mllm4d.qa.judge import Margins
from mllm4d.schema import TASKS
from tests.qa.scenes import random_scene

EXACT = ("median_option", "smallest_plausible", "most_frequent_letter", "option_prior", "time_gap")


def moved(scene, seed):
    """The same scene in a world that is rotated and shifted at random: ``X' = Q X + s``."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    q = q * torch.det(q)
    shift = 10 * torch.randn(3, generator=g, dtype=torch.float64)
    poses = scene.camera.world_to_camera.clone()
    # R X + t = R Q^T (X' - s) + t.
    poses[:, :3, :3] = scene.camera.world_to_camera[:, :3, :3] @ q.T
    poses[:, :3, 3] -= poses[:, :3, :3] @ shift
    tracks = tuple(
        replace(t, centers=t.centers @ q.T + shift, points=tuple(p @ q.T + shift for p in t.points))
        for t in scene.objects
    )
    return replace(scene, camera=replace(scene.camera, world_to_camera=poses), objects=tracks)


@pytest.mark.parametrize("seed", range(20))
def test_no_relation_depends_on_the_world(seed):
    scene = random_scene(seed, sigma=0.02)
    sigma = torch.linspace(0, 0.02, 8, dtype=torch.float64)
    scene = replace(scene, camera=replace(scene.camera, center_sigma=sigma, rotation_sigma=sigma))
    other = moved(scene, seed)
    for i, j in ((0, 7), (3, 4)):
        pairs = list(zip(measure(scene, i, j, 5.0), measure(other, i, j, 5.0), strict=True))
        assert {a.task for a, _ in pairs} == set(TASKS)
        for a, b in pairs:
            assert a.task == b.task
            torch.testing.assert_close(a.value, b.value, atol=1e-9, rtol=0)
            assert a.sigma == pytest.approx(b.sigma, abs=1e-9)


@pytest.fixture(scope="module")
def balanced():
    found = []
    for seed in range(800):
        scene = random_scene(seed, objects=2)
        found += candidates(f"clip-{seed:04d}", scene, Margins(), 6, torch.Generator().manual_seed(seed))[0]
    return balance(found, per_clip=4, ratio=1.5, seed=0)


def test_there_are_five_thousand_questions_and_hundreds_of_every_task(balanced):
    counts = Counter(q.task for q in balanced.questions)
    assert sum(counts.values()) >= 5000
    assert set(counts) == set(TASKS)
    assert min(counts.values()) >= 300


def test_no_function_of_options_and_time_gap_can_beat_chance(balanced):
    tables = defaultdict(Counter)
    for q, fold in zip(balanced.questions, balanced.folds, strict=True):
        gap = q.anchors[1] - q.anchors[0]
        tables[q.task, fold, gap, frozenset(q.options.values())][q.options[q.answer]] += 1
    for (task, _, gap, options), counts in tables.items():
        assert set(counts) == options, (task, gap)
        assert len(set(counts.values())) == 1, (task, gap)


def test_no_letter_is_likelier(balanced):
    for task in TASKS:
        for fold in (0, 1):
            letters = Counter(
                q.answer
                for q, f in zip(balanced.questions, balanced.folds, strict=True)
                if q.task == task and f == fold
            )
            assert max(letters.values()) - min(letters.values()) <= 1


def test_blind_solvers_are_within_two_points_of_chance(balanced):
    table = score_blind(balanced.questions, balanced.folds)
    assert set(table) == set(TASKS)
    solvers = set()
    for task, row in table.items():
        for solver in set(row) - {"n", "chance"}:
            solvers.add(solver)
            luck = 0 if solver in EXACT else 3 * math.sqrt(row["chance"] * (1 - row["chance"]) / row["n"])
            assert abs(row[solver] - row["chance"]) <= max(0.02, luck), (task, solver, row)
    assert solvers == {solver.__name__ for solver in SOLVERS}
