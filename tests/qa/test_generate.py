import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from mllm4d.geometry.pose import center
from mllm4d.prompts import LABELS
from mllm4d.qa.generate import Candidate, anchor_pairs, candidates, measure
from mllm4d.qa.judge import Margins
from mllm4d.schema import TASKS
from tests.qa.scenes import random_scene

MARGINS = Margins()


def test_anchor_pairs_start_with_the_whole_clip_and_are_distinct():
    pairs = anchor_pairs(8, 12, torch.Generator().manual_seed(0))
    assert pairs[0] == (0, 7)
    assert len(set(pairs)) == 12
    assert all(0 <= i < j < 8 for i, j in pairs)
    assert anchor_pairs(2, 12, torch.Generator().manual_seed(0)) == [(0, 1)]


def test_measure_against_independent_numpy():
    scene = random_scene(3)
    poses, track = scene.camera.world_to_camera.numpy(), scene.objects[0]
    by_task = {r.task: r.value for r in measure(scene, 1, 6) if r.track in (None, track)}
    c = [-(p[:3, :3].T @ p[:3, 3]) for p in poses]
    p = [t.numpy() for t in track.centers]
    cam = [poses[k][:3, :3] @ p[k] + poses[k][:3, 3] for k in range(8)]
    near = [min(math.dist(q, c[k]) for q in track.points[k].numpy()) for k in range(8)]
    expected = {
        "camera_absolute_distance": math.dist(c[6], c[1]),
        "camera_relative_direction": poses[1][:3, :3] @ (c[6] - c[1]),
        "object_absolute_distance": math.dist(p[6], p[1]),
        "object_relative_direction": poses[1][:3, :3] @ (p[6] - p[1]),
        "object_camera_absolute_distance": min(math.dist(q, c[1]) for q in track.points[6].numpy()),
        "object_camera_relative_distance": near[6] - near[1],
        "object_camera_relative_direction": cam[6] - cam[1],
    }
    assert set(by_task) == set(TASKS)
    for task, value in expected.items():
        assert by_task[task].tolist() == pytest.approx(value.tolist() if hasattr(value, "tolist") else value), task


def test_an_object_that_is_not_seen_at_an_anchor_is_not_asked_about():
    scene = random_scene(3, objects=1)
    track = scene.objects[0]
    hidden = track.centers.clone()
    hidden[7] = float("nan")
    points = (*track.points[:7], torch.empty(0, 3, dtype=torch.float64))
    unseen = replace(scene, objects=(replace(track, centers=hidden, points=points),))
    assert {r.task for r in measure(unseen, 0, 7)} == set(TASKS[:2])


def test_a_large_sigma_leaves_no_object_question():
    found, dropped = candidates("k", random_scene(3, sigma=50.0), MARGINS, 12, torch.Generator().manual_seed(0))
    assert all(candidate.object is None for candidate in found)
    assert sum(dropped.values()) > 0


def test_labels_and_solutions_fit_the_scene():
    scene = random_scene(5)
    found, _ = candidates("k", scene, MARGINS, 12, torch.Generator().manual_seed(0))
    assert found
    for candidate in found:
        assert (candidate.label is None) != (candidate.value is None)
        assert candidate.label is None or candidate.label in LABELS[candidate.task]
        i, j = candidate.anchors
        c = center(scene.camera.world_to_camera)
        assert candidate.solution["camera_center"][1] == pytest.approx(c[j].tolist(), abs=1e-3)
        if candidate.object is not None:
            track = scene.objects[candidate.object - 1]
            assert candidate.solution["object_center"][0] == pytest.approx(track.centers[i].tolist(), abs=1e-3)


def test_the_measured_relation_is_kept():
    scene = random_scene(5)
    found, _ = candidates("k", scene, MARGINS, 12, torch.Generator().manual_seed(0))
    for candidate in found:
        relation = next(
            r
            for r in measure(scene, *candidate.anchors)
            if (r.task, r.track.id if r.track else None) == (candidate.task, candidate.object)
        )
        assert candidate.measured == pytest.approx(relation.value.reshape(-1).tolist(), abs=1e-4)


def test_candidates_survive_json():
    found, _ = candidates("k", random_scene(5), MARGINS, 6, torch.Generator().manual_seed(0))
    found.append(replace(found[0], original=(1, 2)))
    assert [Candidate.from_dict(json.loads(json.dumps(asdict(c)))) for c in found] == found
