import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mllm4d.curate.filters.path import PathChecks
from mllm4d.curate.sources.rig import read_poses
from mllm4d.curate.sources.world_motion import Lengths, draw_rig
from mllm4d.geometry.pose import invert, rebase
from mllm4d.schema import Camera, Clip, InputError

TRACKING = ("0000", "0002", "0004", "0006", "0008", "0018")


def poses_at(centers, degrees=0.0):
    """World-to-camera [T, 4, 4] of cameras at [T, 3], turned by degrees (a number or T of them)."""
    to_world = torch.eye(4, dtype=torch.float64).repeat(len(centers), 1, 1)
    yaw = np.broadcast_to(degrees, len(centers))[:, None]
    to_world[:, :3, :3] = torch.from_numpy(Rotation.from_euler("y", yaw, degrees=True).as_matrix())
    to_world[:, :3, 3] = torch.as_tensor(centers, dtype=torch.float64)
    return invert(to_world)


def ahead(*along):
    return poses_at([[0.0, 0.0, z] for z in along])


def check(poses, fps=10.0, sigma=0.0, turn_sigma=0.0, **settings):
    count = len(poses)
    times = torch.arange(count, dtype=torch.float64) / fps
    frames = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    clip = Clip("path-0000", "path", frames, times, fps, torch.eye(3), world_to_camera=poses)
    walk = torch.arange(count, dtype=torch.float64).sqrt()  # errors of steps add up
    camera = Camera(torch.eye(3), poses, sigma * walk, turn_sigma * walk)
    return PathChecks(**settings)(clip, camera)


@pytest.fixture(scope="module")
def paths(real_data):
    files = [real_data / "kitti_stereo" / "poses.txt"]
    files += [real_data / "kitti_tracking" / f"{name}.poses.txt" for name in TRACKING]
    return [read_poses(path, range(len(path.read_text().splitlines()))) for path in files]


def test_figures_by_hand():
    # 1, 1 and 3 m in steps of 0.1 s; bends 0 and 2 m (torch takes the lower middle)
    figures = check(ahead(0, 1, 2, 5))
    assert figures == {"speed_max": 30.0, "jitter": 0.0, "shake": 0.0}
    assert check(poses_at(np.zeros((3, 3)), [0, 1, 4]))["shake"] == pytest.approx(2.0)
    assert check(ahead(3)) == {"speed_max": 0.0, "jitter": 0.0, "shake": 0.0}


@pytest.mark.parametrize("stride", [1, 3])
def test_real_paths_pass(paths, stride):
    for path in paths:
        check(path[::stride], fps=10 / stride)
        for start in range(0, len(path) - 16 * stride, 16):
            check(rebase(path[start : start + 16 * stride : stride]), fps=10 / stride)


def test_paths_of_the_world_pass():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        rig = draw_rig(rng, 16, Lengths())
        kinds.add((rig.motion.kind, rig.motion.speed if rig.motion.length else None))
        check(rebase(invert(torch.from_numpy(rig.camera_to_stage()))), fps=8.0)
    assert len(kinds) > 12  # still, panning, and the others at each kind of speed


def test_swapped_poses_are_found(paths):
    street = paths[0]
    for i, j in ((5, 10), (0, 15), (14, 15), (7, 8)):
        order = list(range(16))
        order[i], order[j] = j, i
        with pytest.raises(InputError, match=r"path-0000.*path jumps"):
            check(street[order])


def test_mixed_conventions_are_found(paths):
    for path in (paths[0], paths[3]):
        for k in (4, 8, 15):
            mixed = path[:16].clone()
            mixed[k:] = invert(mixed[k:])
            with pytest.raises(InputError, match="path jumps"):
                check(mixed)
            mixed = path[:16].clone()
            mixed[k] = invert(mixed[k])
            with pytest.raises(InputError, match="path jumps"):
                check(mixed)


def test_a_far_pose_is_named():
    with pytest.raises(
        InputError, match=r"back and forth around frames 2 and 3 \(a detour of 14\.00 m by way of frame 2"
    ):
        check(ahead(0, 1, 9, 2, 3))


def test_a_jump_is_named_with_its_length():
    with pytest.raises(InputError, match=r"jumps by 5\.00 m between frames 2 and 3"):
        check(ahead(0, 0.1, 0.2, 5.2, 5.3, 5.4))


def test_a_heading_that_jumps_is_named():
    with pytest.raises(InputError, match=r"heading jumps back and forth around frame 2 .*60\.00 degrees"):
        check(poses_at(np.zeros((5, 3)), [0, 0, 30, 0, 0]))
    with pytest.raises(InputError, match=r"heading jumps by 30\.00 degrees between frames 1 and 2"):
        check(poses_at(np.zeros((5, 3)), [0, 1, 31, 32, 33]))
    check(poses_at(np.zeros((5, 3)), [0, 20, 40, 60, 80]))


def test_starting_and_stopping_is_no_jump():
    check(ahead(0, 0, 0, 1, 2, 3, 3, 3))


def test_a_racing_camera_is_named():
    with pytest.raises(InputError, match=r"100 m/s between frames \d and \d, at most 60 is possible"):
        check(ahead(0, 10, 20, 30))
    check(ahead(0, 10, 20, 30), max_speed=120.0)


def test_jitter_is_found(paths):
    generator = torch.Generator().manual_seed(0)
    shaken = paths[0][:16].clone()
    shaken[:, :3, 3] += 0.08 * torch.randn(16, 3, generator=generator, dtype=torch.float64)
    with pytest.raises(InputError, match="path jitters"):
        check(shaken)
    trembling = poses_at(np.zeros((16, 3)), np.random.default_rng(0).normal(0, 2.0, 16))
    with pytest.raises(InputError, match="path jitters"):
        check(trembling)


def test_what_the_paths_own_sigma_explains_is_forgiven():
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(16, 3, generator=generator, dtype=torch.float64)
    with pytest.raises(InputError, match="path j"):
        check(poses_at(noise))
    check(poses_at(noise), sigma=0.05)
    far = ahead(0, 1, 3.5, 2, 3, 4)
    with pytest.raises(InputError, match="back and forth"):
        check(far)
    check(far, sigma=1.0)
    turned = poses_at(np.zeros((5, 3)), [0, 0, 15, 0, 0])
    with pytest.raises(InputError, match="heading"):
        check(turned)
    check(turned, turn_sigma=math.radians(5))


def test_poses_that_are_none_are_named():
    poses = ahead(*range(6))
    poses[3, 0, 3] = float("nan")
    # Rebased on a bad first pose every other one is bad, too: the given ones tell which.
    with pytest.raises(InputError, match=r"path-0000.*the pose of frame 3 holds numbers that are not finite"):
        check(poses)
    poses = ahead(*range(6))
    poses[1:3, :3, :3] *= 1.1
    with pytest.raises(InputError, match="the pose of frames 1 and 2 is no rigid transform"):
        check(poses)
    mirrored = ahead(*range(6))
    mirrored[4, 0, 0] = -1
    with pytest.raises(InputError, match="the pose of frame 4 is no rigid transform"):
        check(mirrored)


def test_given_poses_are_looked_at_before_the_camera():
    poses = ahead(*range(4))
    broken = poses.clone()
    broken[0, 1, 3] = float("inf")
    clip = Clip("a", "a", torch.zeros(4, 1, 1, 3), torch.arange(4.0), 1.0, torch.eye(3), world_to_camera=broken)
    camera = Camera(torch.eye(3), rebase(broken), torch.zeros(4), torch.zeros(4))
    with pytest.raises(InputError, match="the pose of frame 0 holds"):
        PathChecks()(clip, camera)
    with pytest.raises(InputError, match="the pose of frames 1, 2 and 3 holds"):
        PathChecks()(replace(clip, world_to_camera=None), camera)


@pytest.mark.parametrize("name", ["max_speed", "max_acceleration", "floor", "turn_floor", "max_jitter", "max_shake"])
def test_bad_settings_are_named(name):
    with pytest.raises(InputError, match=f"PathChecks: {name} must be a positive number, not -1"):
        PathChecks(**{name: -1})
