"""Labels from stereo against exact truth: the benchmark's own arithmetic, and two clips in earnest."""

import pytest
import torch

from mllm4d.qa.judge import Margins
from tests.qa.scenes import random_scene
from tools.benchmarks.world_agreement import Outcome, compare, run, summarise


def test_summary_by_hand():
    direction, distance = "camera_relative_direction", "camera_absolute_distance"
    outcomes = [
        Outcome(direction, "left", "left"),
        Outcome(direction, "left", "right"),
        Outcome(direction, "left", "forward"),
        Outcome(direction, None, "left"),
        Outcome(distance, 1.1, 1.0),
        Outcome(distance, 2.0, 2.0),
        Outcome(distance, 1.0, 1.25),
        Outcome(distance, 1.0, 0.0),
    ]
    assert summarise(outcomes) == {
        distance: {
            "n": 4,
            "asked": 4,
            # 1.0 for 1.25 is more than half a step off: sqrt(1.5) = 1.22. Motion of what stands still is never right.
            "agreement": pytest.approx(2 / 4),
            "median relative error": pytest.approx(0.15),
        },
        direction: {"n": 4, "asked": 3, "agreement": pytest.approx(1 / 3), "opposite": 1},
    }


def test_a_scene_agrees_with_itself():
    table = summarise(compare(random_scene(2), random_scene(2), [(0, 7), (2, 5)], Margins()))
    assert table
    for row in table.values():
        assert row.get("agreement", 1.0) == 1.0
        assert row.get("median relative error", 0.0) == 0.0


def test_no_label_from_stereo_names_the_opposite_direction():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = run(clips=2)
    finally:
        torch.set_num_threads(threads)
    table = result["relations"]
    assert sum(row["asked"] for row in table.values()) > 50
    assert all(row.get("opposite", 0) == 0 for row in table.values())
    assert max(result["path_rms_m"]) < 0.2
