"""A ball that moves before a wall or stands still, under moving and still cameras; and a street where nothing moves."""

import dataclasses

import numpy as np
import pytest
import torch

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.motion import MotionFinder
from mllm4d.curate.objects import track_from_mask
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.outline import color_name, outline
from mllm4d.curate.residual import Scenery, lift, static_residual
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.world import World
from mllm4d.schema import Camera, InputError
from tests.curate.balls import film, sideways

COUNT = 10


def straight(way, start=(-0.6, 0.1, 5.0)):
    return torch.tensor(start) + torch.linspace(0, 1, COUNT)[:, None].double() * torch.tensor(way).double()


def find(balls, poses=None, right=True, **settings):
    clip, depth, camera, mask = film(balls, poses, right=right)
    return MotionFinder(**settings)(clip, depth, camera.world_to_camera), mask


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("poses", [None, sideways(COUNT, 0.04)], ids=["still camera", "moving camera"])
def test_what_moves_is_found_and_nothing_else(right, poses):
    found, mask = find(straight((1.2, 0.0, 0.6)), poses, right)
    assert [(m.id, m.name) for m in found] == [(0, "red moving object")]
    assert found[0].pixels.shape == mask.pixels.shape
    assert bool(found[0].pixels.flatten(1).any(1).all())
    both, either = (found[0].pixels & mask.pixels).sum(), (found[0].pixels | mask.pixels).sum()
    assert float(both / either) > 0.65
    assert float(both / found[0].pixels.sum()) > 0.85


@pytest.mark.parametrize("right", [True, False])
def test_what_stands_still_is_not_found_whatever_the_camera_does(right):
    balls = straight((0.0, 0.0, 0.0))
    for poses in (None, sideways(COUNT, 0.1)):
        assert find(balls, poses, right)[0] == ()


def test_a_motion_below_the_least_displacement_is_not_found():
    balls = straight((0.5, 0.0, 0.0))
    assert len(find(balls)[0]) == 1
    assert find(balls, displacement=0.6)[0] == ()


def test_a_wrong_camera_path_is_not_taken_for_motion():
    clip, depth, _, mask = film(straight((1.2, 0.0, 0.6)), sideways(COUNT, 0.04))
    wrong = torch.from_numpy(sideways(COUNT, -0.04))
    for m in MotionFinder()(clip, depth, wrong):
        assert float((m.pixels & mask.pixels).sum() / m.pixels.sum()) > 0.5
    still = film(straight((0.0, 0.0, 0.0)), sideways(COUNT, 0.04))
    assert MotionFinder()(still[0], still[1], wrong) == ()


def test_the_same_input_gives_the_same_masks():
    clip, depth, camera, _ = film(straight((1.2, 0.0, 0.6)))
    finder: ObjectFinder = MotionFinder()
    one, other = (finder(clip, depth, camera.world_to_camera) for _ in range(2))
    assert [m.pixels.numpy().tobytes() for m in one] == [m.pixels.numpy().tobytes() for m in other]


def test_solids_of_the_world_are_found_from_stereo_alone():
    """Depth, path and objects are all estimated; which solids move is known exactly."""
    source, oracle = World(seed=5, truth=False), World(seed=5, truth=True)
    movers, hits, on = 0, 0, []
    for key in source.keys(3):
        clip, truth = source.load(key), build_scene(oracle.load(key), None, None)
        bare = dataclasses.replace(clip, masks=())
        depth = SGBM()(bare)
        found = MotionFinder()(bare, depth, StereoOdometry()(bare, depth).world_to_camera)
        tracks = {track.id: track for track in truth.objects}
        for mask in found:
            shares = {m.id: float((m.pixels & mask.pixels).sum() / mask.pixels.sum()) for m in clip.masks}
            best = max(shares, key=lambda k: shares[k])
            on.append((shares[best], tracks[best].moving, best, key))
        for track in truth.objects:
            seen = track.centers[track.centers.isfinite().all(-1)]
            if float((seen - seen[0]).norm(dim=-1).max()) > 0.5:
                movers += 1
                hits += any(share > 0.5 and which == track.id and where == key for share, _, which, where in on)
    print(f"{hits} of {movers} movers found by {len(on)} masks")
    assert movers >= 3
    assert hits >= 0.8 * movers
    assert all(share > 0.5 and moving for share, moving, _, _ in on)


def test_nothing_moves_in_the_street(real_data):
    source = StereoFolder(str(real_data / "kitti_stereo"), fps=10, clip_frames=10)
    clip = source.load(source.keys()[1])
    depth = SGBM()(clip)
    path = StereoOdometry()(clip, depth)
    found = MotionFinder()(clip, depth, path.world_to_camera)
    camera = Camera(clip.intrinsics.double(), path.world_to_camera, path.center_sigma, path.rotation_sigma)
    assert not any(track_from_mask(mask, clip, depth, camera).moving for mask in found)
    assert found == ()


def test_a_still_point_has_no_residual_and_a_moved_one_the_expected():
    clip, depth, camera, _ = film(straight((0.0, 0.0, 0.0), start=(0.0, 0.0, 5.0)), sideways(COUNT, 0.1), right=False)
    depth = Depth(depth.depth, torch.full_like(depth.sigma, 0.01))
    scenery = Scenery.of(clip, depth, camera.world_to_camera, drift=1e-9, turn=1e-9)
    points = np.array([[20.0, 20.0], [60.0, 30.0], [150.0, 130.0]])
    first = lift(scenery, points, 0)
    expected = scenery.project(first, 0, 3)
    # The wall is 9 m away and the camera 0.3 m farther to the right.
    np.testing.assert_allclose(expected, points - [0.3 * 220 / 9, 0], atol=1e-4)
    assert static_residual(scenery, first, lift(scenery, expected, 3), 0, 3).max() < 0.1
    # 3 px up, where a pixel's sigma is 0.3 and depth plays no part.
    moved = lift(scenery, expected - [0, 3.0], 3)
    np.testing.assert_allclose(static_residual(scenery, first, moved, 0, 3), 10, rtol=0.01)
    assert np.isnan(static_residual(scenery, first, lift(scenery, expected * np.nan, 3), 0, 3)).all()


def test_the_outline_keeps_to_the_objects_depth():
    depth = np.full((60, 80), 10.0, np.float32)
    depth[20:40, 30:50] = 5.0
    points = np.array([[30.0, 20], [49, 20], [30, 39], [49, 39], [40, 30], [70, 50]])
    depths = np.array([5.0, 5, 5, 5, 5, 10])
    region = outline(points, depths, depth, np.full_like(depth, 0.05))
    expected = depth == 5
    assert (region & expected).sum() >= 0.97 * expected.sum()
    assert not (region & ~expected).any()


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((205, 32, 32), "red"), ((30, 150, 55), "green"), ((35, 75, 215), "blue"), ((120, 125, 118), None)],
)
def test_colours_by_hand(rgb, name):
    assert color_name(np.array([rgb] * 5, np.uint8)) == name


def test_bad_input_is_named():
    with pytest.raises(InputError, match="stride"):
        MotionFinder(stride=0)
    clip, depth, camera, _ = film(straight((0.0, 0.0, 0.0)))
    with pytest.raises(InputError, match="ball-0000"):
        MotionFinder()(clip, Depth(depth.depth[:3], depth.sigma[:3]), camera.world_to_camera)
    with pytest.raises(InputError, match="ball-0000"):
        MotionFinder()(clip, depth, camera.world_to_camera[:3])
