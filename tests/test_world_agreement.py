"""Labels from stereo against exact truth: the benchmark's own arithmetic, and two clips in earnest."""

import dataclasses

import pytest
import torch

from mllm4d.qa.agreement import LENIENT, Outcome, compare, displacements, quantile, summarise
from mllm4d.qa.judge import Margins
from mllm4d.schema import Mask
from tests.qa.scenes import random_scene
from tools.benchmarks.world_agreement import finder_figures, match_masks, run

PAIRS = [(0, 7), (2, 5)]


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
            # Of 0, 0.1, 0.2 and infinity: half of them are not above 0.1.
            "median relative error": pytest.approx(0.1),
        },
        direction: {"n": 4, "asked": 3, "agreement": pytest.approx(1 / 3), "opposite": 1},
    }


def test_questions_about_nothing_disagree():
    task = "object_relative_direction"
    assert summarise([Outcome(task, "left", None), Outcome(task, "left", "left")])[task]["agreement"] == 0.5
    scene = random_scene(2)
    ghosts = dataclasses.replace(scene, objects=tuple(dataclasses.replace(t, id=-1 - t.id) for t in scene.objects))
    outcomes = [o for o in compare(ghosts, scene, PAIRS, LENIENT) if o.task.startswith("object")]
    assert outcomes
    assert all(outcome.truth is None for outcome in outcomes)


def test_a_still_object_that_is_said_to_move_disagrees():
    scene = random_scene(2)
    still = tuple(
        dataclasses.replace(t, moving=False, centers=t.centers[:1].expand_as(t.centers)) for t in scene.objects
    )
    outcomes = compare(scene, dataclasses.replace(scene, objects=still), PAIRS, LENIENT)
    table = summarise(outcomes)
    assert table["object_absolute_distance"]["asked"] > 0
    assert table["object_absolute_distance"]["agreement"] == 0.0
    assert table["object_relative_direction"]["agreement"] == 0.0


@pytest.mark.parametrize("margins", [Margins(), LENIENT])
def test_a_scene_agrees_with_itself(margins):
    table = summarise(compare(random_scene(2), random_scene(2), PAIRS, margins))
    assert table
    for row in table.values():
        assert row.get("agreement", 1.0) == 1.0
        assert row.get("median relative error", 0.0) == 0.0


def test_displacement_errors_by_hand():
    scene = random_scene(2)
    moved = []
    for track in scene.objects:
        centers = track.centers.clone()
        centers[7] += torch.tensor([0.3, 0.0, 0.0])
        moved.append(dataclasses.replace(track, centers=centers))
    rows = displacements(dataclasses.replace(scene, objects=tuple(moved)), scene, [(0, 7)], LENIENT)
    lengths = [float((t.centers[7] - t.centers[0]).norm()) for t in scene.objects if t.moving]
    assert [row.length for row in rows] == pytest.approx([length for length in lengths if length > 0.1])
    assert [row.error for row in rows] == pytest.approx([0.3] * len(rows))


def test_quantiles_by_hand():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [quantile(values, share) for share in (0.2, 0.5, 0.9, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_finder_figures_by_hand():
    scene = random_scene(2)
    movers = [t for t in scene.objects if t.moving]
    pixels = torch.zeros(len(scene.times), 10, 10, dtype=torch.bool)
    given = []
    for k, track in enumerate(scene.objects):
        pixels = torch.zeros(len(scene.times), 10, 10, dtype=torch.bool)
        pixels[:, 2 * k, :8] = True
        given.append(Mask(track.id, track.name, pixels))
    half = given[scene.objects.index(movers[0])].pixels.clone()
    half[:, :, :4] = False
    rows, found = match_masks([Mask(0, "moving object", half)], given, scene)
    assert rows == [(1.0, True)]
    assert found[0] == pytest.approx(0.5)
    assert all(overlap is None for overlap in found[1:])
    figures = finder_figures([(1.0, True), (0.4, True), (0.9, False)], [0.5, None])
    assert figures["recall"] == 0.5
    assert figures["precision"] == pytest.approx(1 / 3)
    assert figures["mean IoU"] == 0.5


def test_kept_labels_from_stereo_agree():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = run(clips=2)
    finally:
        torch.set_num_threads(threads)
    for name in ("given masks", "found by motion"):
        kept, every = result[name]["kept"]["relations"], result[name]["unfiltered"]["relations"]
        assert sum(row["asked"] for row in kept.values()) > 50
        assert all(row.get("opposite", 0) == 0 for row in kept.values())
        assert all(row.get("agreement", 1.0) >= 0.98 for row in kept.values())
        assert all(row.get("median relative error", 0.0) <= 0.05 for row in kept.values())
        assert all(kept[task]["asked"] <= every[task]["asked"] for task in kept)
        assert result[name]["kept"]["path rms, m"]["worst"] < 0.1
        assert result[name]["kept"]["displacement, asked"]["relative median"] < 0.05
    assert result["finder"]["precision"] == 1.0
