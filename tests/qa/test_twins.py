"""Twins of random scenes, against formulas written out here."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mllm4d.geometry.camera import project
from mllm4d.geometry.pose import invert, rebase, transform
from mllm4d.geometry.uncertainty import drift_sigma
from mllm4d.qa.balance import balance
from mllm4d.qa.generate import candidates, measure
from mllm4d.qa.judge import Margins
from mllm4d.qa.paper import PaperOptions
from mllm4d.qa.twins import KINDS, balance_twins, mirror, reverse, twin_candidates, twin_frames
from mllm4d.schema import Cloud
from tests.qa.scenes import random_scene

WIDTH = 64
SWAP = {"left": "right", "right": "left"}
BACK = {"closer": "farther", "farther": "closer", "unchanged": "unchanged"} | SWAP


def drifting(seed):
    """A random scene whose path is known less and less well, with a cloud and names that have sides and times."""
    scene = random_scene(seed)
    sigma = torch.linspace(0, 0.01, 8, dtype=torch.float64)
    names = ("cube on the left", "ball that is on the right at 0.5 s", "leftmost cone")
    return replace(
        scene,
        camera=replace(scene.camera, center_sigma=sigma, rotation_sigma=sigma / 10),
        objects=tuple(replace(track, name=name) for track, name in zip(scene.objects, names, strict=True)),
        cloud=Cloud(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.uint8)),
    )


def by_task(scene, i, j):
    return {(r.task, r.track.id if r.track else None): r for r in measure(scene, i, j)}


def same(one, other):
    torch.testing.assert_close(one.times, other.times)
    torch.testing.assert_close(one.camera.intrinsics, other.camera.intrinsics)
    torch.testing.assert_close(one.camera.world_to_camera, other.camera.world_to_camera, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.camera.center_sigma, other.camera.center_sigma)
    torch.testing.assert_close(one.camera.rotation_sigma, other.camera.rotation_sigma)
    torch.testing.assert_close(one.cloud.points, other.cloud.points)
    for a, b in zip(one.objects, other.objects, strict=True):
        assert (a.id, a.name, a.moving) == (b.id, b.name, b.moving)
        for field in ("centers", "center_sigma", "motion_sigma", "surface_sigma"):
            torch.testing.assert_close(getattr(a, field), getattr(b, field))
        torch.testing.assert_close(torch.stack(a.points), torch.stack(b.points))


@pytest.mark.parametrize("seed", range(5))
def test_twice_is_the_original(seed):
    scene = drifting(seed)
    same(mirror(mirror(scene, WIDTH), WIDTH), scene)
    same(reverse(reverse(scene)), scene)
    same(mirror(reverse(scene), WIDTH), reverse(mirror(scene, WIDTH)))


@pytest.mark.parametrize("seed", range(10))
def test_the_mirror_swaps_left_and_right_and_nothing_else(seed):
    scene = random_scene(seed)
    twin = mirror(scene, WIDTH)
    for i, j in ((0, 7), (2, 5)):
        before, after = by_task(scene, i, j), by_task(twin, i, j)
        assert set(before) == set(after)
        for key, relation in before.items():
            flip = [-1.0, 1.0, 1.0] if key[0].endswith("direction") else 1.0
            expected = relation.value * torch.tensor(flip, dtype=torch.float64)
            torch.testing.assert_close(after[key].value, expected, atol=1e-9, rtol=0)
            assert after[key].sigma == pytest.approx(relation.sigma)


@pytest.mark.parametrize("seed", range(10))
def test_reversal_against_the_formulas(seed):
    scene = random_scene(seed)
    twin, i, j = reverse(scene), 2, 6
    before, after = by_task(scene, i, j), by_task(twin, 7 - j, 7 - i)
    assert set(before) == set(after)
    poses = scene.camera.world_to_camera.numpy()
    rotation, c = poses[:, :3, :3], [-(p[:3, :3].T @ p[:3, 3]) for p in poses]
    for (task, number), relation in before.items():
        if number is not None:
            p = scene.objects[number - 1].centers.numpy()
            surface = scene.objects[number - 1].points[i].numpy()
        if task in ("camera_absolute_distance", "object_absolute_distance"):
            expected = relation.value.numpy()
        elif task in ("object_camera_relative_distance", "object_camera_relative_direction"):
            expected = -relation.value.numpy()
        elif task == "camera_relative_direction":
            expected = rotation[j] @ (c[i] - c[j])
        elif task == "object_relative_direction":
            expected = rotation[j] @ (p[i] - p[j])
        else:
            # The camera at j and the object at i, where it was the camera at i and the object at j.
            expected = np.linalg.norm(surface - c[j], axis=1).min()
        np.testing.assert_allclose(after[task, number].value.numpy(), expected, atol=1e-9)


def test_the_reversed_world_is_the_camera_of_its_first_frame():
    scene = drifting(4)
    twin = reverse(scene)
    torch.testing.assert_close(twin.camera.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    assert twin.times.tolist() == pytest.approx([k / 4 for k in range(8)])
    local = transform(scene.camera.world_to_camera, scene.objects[0].centers[:, None])
    again = transform(twin.camera.world_to_camera, twin.objects[0].centers[:, None])
    torch.testing.assert_close(again, local.flip(0))


def test_the_sigma_between_two_frames_survives_reversal():
    scene = drifting(1)
    sigma, twin = scene.camera.center_sigma, reverse(scene).camera.center_sigma
    assert float(twin[0]) == 0
    for i, j in ((0, 7), (2, 5), (6, 7)):
        assert float(drift_sigma(twin, 7 - j, 7 - i)) == pytest.approx(float(drift_sigma(sigma, i, j)))


def test_the_mirrored_scene_fits_the_mirrored_frames():
    scene = random_scene(3)
    twin = mirror(scene, WIDTH)
    for t in (0, 5):
        pixels = [
            project(transform(s.camera.world_to_camera[t], s.objects[0].points[t]), s.camera.intrinsics)
            for s in (scene, twin)
        ]
        torch.testing.assert_close(pixels[1][:, 0], WIDTH - 1 - pixels[0][:, 0])
        torch.testing.assert_close(pixels[1][:, 1], pixels[0][:, 1])


def test_a_skewed_camera_mirrors_too():
    scene = random_scene(3)
    intrinsics = scene.camera.intrinsics.clone()
    intrinsics[0, 1], intrinsics[0, 2] = 3.0, 20.0
    twin = mirror(replace(scene, camera=replace(scene.camera, intrinsics=intrinsics)), WIDTH)
    points = torch.tensor([[1.0, 2, 5]], dtype=torch.float64)
    mirrored = project(points * torch.tensor([-1.0, 1, 1]), twin.camera.intrinsics)
    torch.testing.assert_close(mirrored[0, 0], WIDTH - 1 - project(points, intrinsics)[0, 0])


def test_names_follow():
    scene = drifting(0)
    assert [t.name for t in mirror(scene, WIDTH).objects] == [
        "cube on the right",
        "ball that is on the left at 0.5 s",
        "rightmost cone",
    ]
    # The clip ends at 1.75 s.
    assert reverse(scene).objects[1].name == "ball that is on the right at 1.25 s"


def test_frames_follow():
    frames = torch.arange(2 * 1 * 3 * 3).reshape(2, 1, 3, 3)
    assert torch.equal(twin_frames("mirror", frames)[0, 0], frames[0, 0].flip(0))
    assert torch.equal(twin_frames("reverse", frames)[0], frames[1])


@pytest.fixture(scope="module")
def clips():
    """Clips with their candidates and those of both twins."""
    result = []
    for seed in range(120):
        key, scene = f"clip-{seed:03d}", random_scene(seed)
        found, _ = candidates(key, scene, Margins(), 6, torch.Generator().manual_seed(seed))
        twins = {kind: twin_candidates(kind, key, scene, found, Margins(), WIDTH)[0] for kind in KINDS}
        result.append((key, scene, found, twins))
    return result


def test_twin_candidates_answer_as_they_must(clips):
    seen = Counter()
    for key, scene, found, twins in clips:
        originals = {(c.anchors, c.task, c.object): c for c in found}
        assert len(twins["mirror"]) == len(found)
        for c in twins["mirror"]:
            original = originals[c.original, c.task, c.object]
            assert c.clip == f"{key}-mirror"
            assert (c.anchors, c.times, c.value) == (original.anchors, original.times, original.value)
            assert c.label == (original.label and SWAP.get(original.label, original.label))
        for c in twins["reverse"]:
            original = originals[c.original, c.task, c.object]
            assert c.clip == f"{key}-reverse"
            assert c.anchors == (7 - original.anchors[1], 7 - original.anchors[0])
            assert c.times == pytest.approx([1.75 - t for t in reversed(original.times)])
            if c.task in ("camera_absolute_distance", "object_absolute_distance"):
                assert c.value == pytest.approx(original.value, abs=1e-4)
            elif c.task.startswith("object_camera_relative"):
                assert c.label == BACK[original.label]
                seen[c.label] += 1
            centers = c.solution["camera_center"]
            local = rebase(scene.camera.world_to_camera.flip(0))
            assert centers[0] == pytest.approx(invert(local[c.anchors[0]])[:3, 3].tolist(), abs=1e-3)
    assert set(seen) == {"closer", "farther", "unchanged", "left", "right"}


def test_balanced_twins_belong_to_chosen_questions(clips):
    chosen = balance([c for _, _, found, _ in clips for c in found], 6, 1.5, 0).questions
    originals = {question.id: question for question in chosen}
    for kind in KINDS:
        twins = balance_twins(chosen, [c for *_, made in clips for c in made[kind]], 6, 1.5, 0)
        assert len({q.id for q in twins.questions}) == len(twins.questions) == len(twins.folds)
        assert len(twins.questions) > 0.5 * len(chosen)
        for twin in twins.questions:
            original = originals[twin.id.replace(f"-{kind}/", "/")]
            assert (twin.task, twin.object) == (original.task, original.object)
            if kind == "mirror":
                value = original.answer_value
                assert twin.answer_value == SWAP.get(value, value)
        labels = Counter(q.answer_value for q in twins.questions if q.task == "object_camera_relative_direction")
        assert len(labels) == 4
        assert len(set(labels.values())) == 1


def test_twins_in_the_papers_way(clips):
    chosen = PaperOptions()([c for _, _, found, _ in clips for c in found], 2, 1.5, 0).questions
    found = [c for *_, made in clips for c in made["mirror"]]
    twins = balance_twins(chosen, found, 2, 1.5, 0, PaperOptions())
    assert {q.id.replace("-mirror/", "/") for q in twins.questions} == {q.id for q in chosen}
