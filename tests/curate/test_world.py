"""The synthetic world: its truth is checked against geometry that knows nothing of how it is rendered."""

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

from mllm4d.curate.depth import SGBM
from mllm4d.curate.sources.world import World, _seen
from mllm4d.curate.sources.world_layout import SHAPES, Layout, Lens, draw_layout
from mllm4d.curate.sources.world_motion import CAMERA_MOTIONS, Lengths, progress
from mllm4d.curate.sources.world_shapes import surface_points, unit_mesh
from mllm4d.geometry.camera import project, unproject
from mllm4d.geometry.pose import center, invert, transform
from mllm4d.schema import Clip, InputError


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Everything about four short clips, without noise."""
    world = World(frames=5, noise=0, seed=3)
    return [world.render(key) for key in world.keys(4)]


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    lens = Lens(0.577, 0.346, 277.0)
    return [draw_layout(np.random.default_rng([7, k]), 16, (2, 4), lens) for k in range(200)]


def test_keys_and_what_they_load():
    world = World()
    assert world.keys(2) == ["world-00000", "world-00001"]
    for limit in (None, 0):
        with pytest.raises(InputError, match="'clips' must say how many"):
            world.keys(limit)
    for key in ("world-1", "other"):
        with pytest.raises(InputError, match=f"no clip '{key}'"):
            world.load(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames", 1),
        ("fps", 0.0),
        ("width", 8),
        ("height", 8),
        ("baseline", 0.0),
        ("field_of_view", 5.0),
        ("objects", (3, 2)),
        ("objects", (1, 9)),
        ("object_length", (2.0, 1.0)),
        ("camera_length", (0.0, 1.0)),
        ("camera_length", (1.0, 9.0)),
        ("still_camera", 1.5),
        ("farthest", 4.0),
        ("noise", -1.0),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(key, value):
    with pytest.raises(InputError, match=f"World: {key} must be"):
        World(**{key: value})


def test_truth_and_field_are_parts_of_the_whole():
    settings = {"width": 64, "height": 48, "frames": 3, "seed": 5}
    whole, key = World(**settings).render("world-00001"), "world-00001"
    truth, field = World(**settings).load(key), World(**settings, truth=False).load(key)
    assert truth.right is None
    assert truth.baseline is None
    assert field.depth is None
    assert field.world_to_camera is None
    assert field.tracks is None
    assert field.baseline == 0.25
    assert whole.frames.shape == (3, 48, 64, 3)
    assert whole.frames.dtype == torch.uint8
    assert torch.equal(truth.frames, whole.frames)
    assert torch.equal(field.frames, whole.frames)
    assert torch.equal(field.right, whole.right)
    assert torch.equal(truth.depth, whole.depth)
    assert truth.times.tolist() == [0.0, 0.125, 0.25]
    assert [m.name for m in field.masks] == [t.name for t in whole.tracks]
    assert len({m.name for m in whole.masks}) == len(whole.masks)


DIGEST = """
import hashlib, sys
from mllm4d.curate.sources.world import World
def digest(clip):
    parts = [clip.frames, clip.right, clip.depth, clip.world_to_camera]
    parts += [mask.pixels for mask in clip.masks] + [p for track in clip.tracks for p in (track.centers, *track.points)]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
world = World(width=64, height=64, frames=4, seed=11)
found = {key: digest(world.render(key)) for key in sys.argv[1:]}
print(*[found[key] for key in sorted(found)])
"""


def test_same_clips_in_any_process_order_and_number_of_threads():
    keys = World().keys(3)
    printed = []
    for order, threads in ((keys, "1"), (keys[::-1], "2")):
        run = [sys.executable, "-c", DIGEST, *order]
        done = subprocess.run(
            run, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": threads}
        )
        printed.append(done.stdout.split())
    assert printed[0] == printed[1]
    assert len(set(printed[0])) == 3


def test_seed_changes_the_clip():
    one, other = (World(width=32, height=32, frames=2, seed=s).load("world-00000") for s in (0, 1))
    assert hashlib.sha256(one.frames.numpy()).digest() != hashlib.sha256(other.frames.numpy()).digest()


def test_the_world_is_the_first_cameras_axes(clips):
    for clip in clips:
        poses = clip.world_to_camera
        assert torch.equal(poses[0], torch.eye(4, dtype=torch.float64))
        rotation = poses[:, :3, :3]
        assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), atol=1e-12)
        assert torch.allclose(torch.linalg.det(rotation), torch.ones(len(poses), dtype=torch.float64))


def test_camera_goes_where_the_provenance_says():
    world = World(width=32, height=32, frames=3, seed=2)
    straight = 0
    for key in world.keys(40):
        clip = world.load(key)
        story = clip.provenance["camera"]
        end, pitch = center(clip.world_to_camera)[-1], np.radians(story["pitch"])
        if story["motion"] in ("still", "pans"):
            assert float(end.norm()) < 1e-9
        if story["motion"] == "straight":
            # On the ground by length and direction; seen in axes that look down by the pitch.
            angle = np.radians(story["direction"])
            ahead = np.cos(angle)
            expected = np.array([np.sin(angle), -ahead * np.sin(pitch), ahead * np.cos(pitch)]) * story["length"]
            np.testing.assert_allclose(end, expected, atol=0.02)
            straight += 1
    assert straight > 5


def test_depth_of_the_ground_plane(clips):
    for clip in clips:
        camera = clip.provenance["camera"]
        pitch, rows = np.radians(camera["pitch"]), np.arange(192)
        # A ray (., y, 1) falls by y cos(pitch) + sin(pitch) a metre of depth; the ground is camera height below.
        fall = (rows - 95.5) / float(clip.intrinsics[1, 1]) * np.cos(pitch) + np.sin(pitch)
        expected = np.where(fall > 0, camera["height"] / np.maximum(fall, 1e-9), np.inf)[:, None]
        depth = clip.depth.numpy()
        assert (depth <= expected * 1.001).all()
        on_ground = np.abs(depth / expected - 1) < 2e-4
        assert on_ground.mean() > 0.2
        assert on_ground[:, 150:].mean() > 0.5


def test_masks_depth_poses_and_tracks_tell_one_story(clips):
    checked = 0
    for clip in clips:
        camera_to_world = invert(clip.world_to_camera)
        lifted = unproject(clip.depth.double(), clip.intrinsics)
        for mask, track in zip(clip.masks, clip.tracks, strict=True):
            for t in range(len(clip.times)):
                if not len(track.points[t]):
                    continue
                # Every pixel of the mask lies on the surface, which the points sample.
                surface = transform(camera_to_world[t], lifted[t][mask.pixels[t]])
                nearest = torch.cdist(surface, track.points[t]).amin(1)
                assert float(nearest.max()) < 0.2
                # Points that nothing hides project into the mask, or next to it where they sit on the outline.
                near = max_pool2d(mask.pixels[t].float()[None], 3, stride=1, padding=1)[0]
                local = transform(clip.world_to_camera[t], track.points[t])
                x, y = project(local, clip.intrinsics).round().long().unbind(-1)
                inside = (x >= 0) & (x < 320) & (y >= 0) & (y < 192)
                x, y, z = x[inside], y[inside], local[inside, 2]
                front = z < clip.depth[t, y, x] + 0.01
                assert float(near[y, x][front].mean()) > 0.99
                assert int(front.sum()) > 20
                checked += 1
    assert checked > 30


def test_center_of_a_ball_is_a_radius_away_from_all_that_is_seen_of_it():
    world = World(frames=2, seed=1)
    balls = 0
    for key in world.keys(8):
        clip = world.load(key)
        lifted = unproject(clip.depth.double(), clip.intrinsics)
        for mask, track in zip(clip.masks, clip.tracks, strict=True):
            if track.name.endswith("ball"):
                for t in range(2):
                    local = transform(clip.world_to_camera[t], track.centers[t][None])
                    away = (lifted[t][mask.pixels[t]] - local).norm(dim=-1)
                    radius = float((track.points[t] - track.centers[t]).norm(dim=-1).mean())
                    if len(away):
                        assert 0.4 < radius < 0.75
                        assert float((away / radius - 1).abs().max()) < 0.02  # facets
                        balls += 1
    assert balls >= 4


def test_right_view_is_the_left_one_moved_by_the_disparity(clips):
    for clip in clips:
        left, right = clip.frames.double(), clip.right.double()
        disparity = float(clip.intrinsics[0, 0]) * clip.baseline / clip.depth.double().clamp(min=0.1)

        def error(extra: float, left=left, right=right, disparity=disparity, clip=clip) -> float:
            x = torch.arange(320) - disparity - extra
            low = x.floor().long().clamp(0, 318)
            part = (x - low)[..., None]
            index = low[..., None].expand(-1, -1, -1, 3)
            warped = right.gather(2, index) * (1 - part) + right.gather(2, index + 1) * part
            good = (x > 0) & (clip.depth > 0) & (disparity > 2)
            return float((warped - left).abs().mean(-1)[good].median())

        assert error(0) < 3
        assert error(0) < 0.5 * min(error(0.5), error(-0.5))


def test_stereo_matching_works_on_it(clips):
    clip = clips[0]
    depth = SGBM()(clip).depth
    known = (depth > 0) & (clip.depth > 0)
    assert float(known.float().mean()) > 0.8
    assert float(((depth - clip.depth).abs() / clip.depth)[known].median()) < 0.025


def test_still_and_moving_objects():
    world = World(width=64, height=64, frames=6, seed=4)
    kinds = Counter()
    for key in world.keys(25):
        clip = world.load(key)
        for track, story in zip(clip.tracks, clip.provenance["objects"], strict=True):
            assert track.name == story["name"]
            assert track.moving == ("length" in story)
            seen = track.centers.isfinite().all(-1)
            assert torch.equal(seen, track.center_sigma == 0)
            assert [len(points) for points in track.points] == [400 if s else 0 for s in seen.tolist()]
            path = track.centers[seen]
            kinds[story["motion"]] += 1
            if not track.moving:
                assert bool((path == path[0]).all())
            elif story["motion"] == "straight" and bool(seen[[0, -1]].all()):
                assert float((path[-1] - path[0]).norm()) == pytest.approx(story["length"], abs=1e-3)
            elif story["motion"] == "stops" and bool(seen[[-2, -1]].all()):
                assert bool((path[-1] == path[-2]).all())
            elif story["motion"] == "starts" and bool(seen[[0, 1]].all()):
                assert bool((path[0] == path[1]).all())
    assert set(kinds) == {"still", "straight", "stops", "starts", "turns"}


def test_seen_takes_two_fifths_of_the_silhouette():
    # Pixel = 10 x / z + 50: the square spans 10 x 10 pixels.
    square = np.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [0.5, 0.5, 1]])
    intrinsics = np.array([[10.0, 0, 50], [0, 10, 50], [0, 0, 1]])
    assert _seen(40, square, intrinsics)
    assert not _seen(39, square, intrinsics)
    assert not _seen(11, square * [0.1, 0.1, 1], intrinsics)
    assert not _seen(40, square - [0, 0, 1], intrinsics)


def test_progress():
    time = np.linspace(0, 1, 101)
    for speed in ("constant", "accelerates", "slows", "stops", "starts"):
        covered = progress(speed, time, np.random.default_rng(0))
        steps = np.diff(covered)
        assert covered[0] == 0
        assert covered[-1] == pytest.approx(1)
        assert (steps >= 0).all()
        if speed in ("accelerates", "slows"):
            slow, fast = sorted((steps[0], steps[-1]))
            assert 1.9 < fast / slow < 4.1
            assert (fast == steps[-1]) == (speed == "accelerates")
        assert (steps[-30:] == 0).all() == (speed == "stops")
        assert (steps[:30] == 0).all() == (speed == "starts")


def test_all_motions_and_words_occur_about_equally_often(layouts):
    kinds, words = Counter(), {"object": Counter(), "camera": Counter()}
    for layout in layouts:
        kinds.update(solid.motion.kind for solid in layout.solids)
        kinds["camera " + layout.rig.motion.kind] += 1
        motions = [("object", solid.motion) for solid in layout.solids] + [("camera", layout.rig.motion)]
        for who, motion in motions:
            x, z = motion.offsets[-1]
            if np.hypot(x, z) > 0.25:
                word = ("left", "right")[int(x > 0)] if abs(x) > abs(z) else ("backward", "forward")[int(z > 0)]
                words[who][word] += 1
    assert len(kinds) == 10
    assert min(kinds.values()) >= 5
    for counts in words.values():
        assert len(counts) == 4
        assert min(counts.values()) > 0.17 * counts.total()


def test_lengths_of_paths_and_still_cameras_are_those_asked_for():
    world = World(
        width=64, height=64, frames=3, objects=(2, 2), object_length=(2, 3), camera_length=(1, 1.5), still_camera=0.5
    )
    told = [world.load(key).provenance for key in world.keys(60)]
    went = [entry for story in told for entry in story["objects"] if "length" in entry]
    assert len(went) > 60
    assert all(2 <= entry["length"] <= 3 for entry in went)
    assert all(1 <= story["camera"]["length"] <= 1.5 for story in told if "length" in story["camera"])
    # Of 60 with p = 0.5, four standard deviations are 15.5.
    assert 15 <= sum(story["camera"]["motion"] == "still" for story in told) <= 45


def test_shares_of_camera_motions_by_hand():
    assert Lengths().camera_motions() == pytest.approx(CAMERA_MOTIONS)
    shares = Lengths(still=0.58).camera_motions()
    assert shares == pytest.approx({"still": 0.58, "pans": 0.03, "straight": 0.18, "orbits": 0.11, "turns": 0.1})


def test_names_say_nothing_about_motion(layouts):
    solids = [solid for layout in layouts for solid in layout.solids]
    moving = np.array([solid.motion.length > 0 for solid in solids])
    for part in range(2):
        names = np.array([solid.name.split()[part] for solid in solids])
        for name in np.unique(names):
            share = moving[names == name].mean()
            spread = np.sqrt(0.25 * 0.75 / (names == name).sum())
            assert abs(share - moving.mean()) < 3.5 * spread


def test_nothing_runs_through_anything(layouts):
    for layout in layouts:
        things = [*layout.solids, *layout.props]
        for k, solid in enumerate(layout.solids):
            assert (np.linalg.norm(solid.positions - layout.rig.motion.offsets, axis=-1) > 1.5 + solid.radius).all()
            for other in things[k + 1 :]:
                gap = np.linalg.norm(solid.positions - other.positions, axis=-1)
                assert (gap > solid.radius + other.radius).all()


def test_shapes_are_closed_and_convex_with_normals_outward():
    for shape in SHAPES:
        mesh = unit_mesh(shape)
        np.testing.assert_allclose(mesh.vertices.max(0) - mesh.vertices.min(0), 1, atol=0.02)
        corners = mesh.vertices[mesh.triangles]
        # No vertex lies beyond the plane of any face.
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal *= np.sign((normal * corners.mean(1)).sum(-1, keepdims=True))
        beyond = np.einsum("fc,fvc->fv", normal, mesh.vertices[None] - corners[:, :1])
        assert beyond.max() < 1e-6
        edges = Counter(frozenset(pair) for t in mesh.triangles.tolist() for pair in zip(t, t[1:] + t[:1], strict=True))
        assert set(edges.values()) == {2}
    # A cone narrows upwards, and up is -y.
    cone = unit_mesh("cone").vertices
    assert np.ptp(cone[cone[:, 1] > 0.49][:, 0]) > 0.9
    assert len(cone[cone[:, 1] < -0.49]) == 1


def test_surface_points_are_even(layouts):
    cubes = [solid for layout in layouts for solid in layout.solids if solid.shape == "cube"]
    points = surface_points(cubes[0], 600)
    assert points.shape == (600, 3)
    on_face = np.isclose(np.abs(points), 0.5, atol=1e-9)
    assert on_face.any(1).all()
    per_face = [np.isclose(points[:, axis], side).sum() for axis in range(3) for side in (-0.5, 0.5)]
    assert min(per_face) > 90
    assert max(per_face) < 110
