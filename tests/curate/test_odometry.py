import dataclasses
import math

import numpy as np
import pytest
import torch

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.world import World
from mllm4d.geometry.pose import center, path_rms, rebase
from mllm4d.schema import Clip, InputError, Mask

HEIGHT, WIDTH, FX = 160, 240, 180.0
INTRINSICS = torch.tensor([[FX, 0, 119.5], [0, FX, 79.5], [0, 0, 1]], dtype=torch.float64)


def camera_at(x, z, yaw=0.0):
    """World-to-camera of a camera at (x, 0, z), turned to the right by yaw (radians)."""
    pose = torch.eye(4, dtype=torch.float64)
    cos, sin = math.cos(yaw), math.sin(yaw)
    pose[:3, :3] = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    pose[:3, 3] = -pose[:3, :3] @ torch.tensor([x, 0, z], dtype=torch.float64)
    return pose


def corner_clip(poses, seed=0):
    """Two textured walls, at world z = 8 (left half) and z = 5 (x > 0), rendered by intersecting every pixel's ray."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (512, 512)).astype(np.float32)
    import cv2

    texture = cv2.GaussianBlur(texture, (0, 0), 1.2)
    texture = np.uint8(255 * (texture - texture.min()) / np.ptp(texture))
    column, row = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(INTRINSICS.numpy()).T
    frames, depths = [], []
    for pose in poses:
        to_world = np.linalg.inv(pose.numpy())
        origin, directions = to_world[:3, 3], rays @ to_world[:3, :3].T
        near = (5 - origin[2]) / directions[..., 2]
        far = (8 - origin[2]) / directions[..., 2]
        depth = np.where((origin + near[..., None] * directions)[..., 0] > 0, near, far)
        hit = origin + depth[..., None] * directions
        # 12 texels a metre, at these distances two or three pixels a texel
        u, v = ((hit[..., i] * 12 + 256).astype(np.float32) for i in (0, 1))
        v += np.where(depth == near, 128, 0).astype(np.float32)
        grey = cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        frames.append(np.repeat(grey[..., None], 3, axis=2))
        depths.append(depth)
    frames, depth = torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(depths)).float()
    times = torch.arange(len(poses), dtype=torch.float64) / 10
    clip = Clip("corner-0000", "corner", frames, times, 10.0, INTRINSICS)
    return clip, Depth(depth, torch.zeros_like(depth))


@pytest.fixture(scope="module")
def truth():
    return torch.stack([camera_at(0.1 * t, 0.15 * t, 0.02 * t) for t in range(5)])


@pytest.mark.parametrize(("refine", "tolerance"), [(False, 0.01), (True, 0.01)])
def test_a_known_path(truth, refine, tolerance):
    path = StereoOdometry(refine=refine)(*corner_clip(truth))
    assert path.world_to_camera.dtype == torch.float64
    assert torch.equal(path.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    assert path_rms(path.world_to_camera, truth) < tolerance
    torch.testing.assert_close(path.world_to_camera[:, :3, :3], truth[:, :3, :3], atol=2e-3, rtol=0)
    assert path.quality["refined_share"] == (1.0 if refine else 0.0)
    assert path.quality["inliers_min"] >= 20


def test_the_world_is_the_first_camera(truth):
    moved = torch.stack([pose @ camera_at(0.5, 0.2, 0.1) for pose in truth])
    path = StereoOdometry(refine=False)(*corner_clip(moved))
    assert path_rms(path.world_to_camera, rebase(moved)) < 0.01


def test_sigma_is_the_drift_times_the_path_so_far(truth):
    path = StereoOdometry(refine=False, drift=0.1, turn_drift=0.2)(*corner_clip(truth))
    step = math.hypot(0.1, 0.15)
    expected = 0.1 * step * torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(path.center_sigma, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(path.rotation_sigma, 2 * expected, atol=2e-3, rtol=0)
    assert path.quality["path_length"] == pytest.approx(4 * step, abs=0.02)


def test_a_camera_that_stands_does_not_drift():
    generator = torch.Generator().manual_seed(0)
    clip, depth = corner_clip(torch.stack([camera_at(0, 0)] * 12))
    noise = 2 * torch.randn(clip.frames.shape[:3], generator=generator)[..., None]
    frames = (clip.frames + noise).clamp(0, 255).to(torch.uint8)
    path = StereoOdometry()(dataclasses.replace(clip, frames=frames), depth)
    assert path.quality["key_frames"] == 1
    assert float(center(path.world_to_camera).norm(dim=-1).max()) < 1e-3
    assert float(path.center_sigma[1]) > 1e-5
    assert float(path.center_sigma[-1]) < 5e-3
    # 1 cm is what a still camera's shake is measured against.
    assert path.quality["shake"] < 0.2


def test_errors_are_as_large_as_sigma_says():
    """Four clips of the world, seen by a stereo camera: depth and path are estimated."""
    stereo, oracle = (World(seed=5, truth=truth) for truth in (False, True))
    centers, turns = [], []
    for key in stereo.keys(4):
        clip, exact = stereo.load(key), oracle.load(key).world_to_camera
        path = StereoOdometry()(clip, SGBM()(clip))
        error = path.world_to_camera[:, :3, :3] @ exact[:, :3, :3].mT
        turn = torch.stack([error[:, 2, 1], error[:, 0, 2], error[:, 1, 0]], dim=-1)  # sines of small angles
        centers.append(((center(path.world_to_camera) - center(exact)) / path.center_sigma[:, None])[1:])
        turns.append((turn / path.rotation_sigma[:, None])[1:])
        assert path_rms(path.world_to_camera, exact) < 0.05
    for error in (torch.cat(centers), torch.cat(turns)):
        print(f"error over sigma: {float(error.square().mean().sqrt()):.2f} RMS, worst {float(error.abs().max()):.2f}")
        assert 0.2 < float(error.square().mean().sqrt()) < 1.5
        assert float((error.abs() > 3).double().mean()) <= 0.05


def test_the_figures_of_a_path(truth):
    path = StereoOdometry()(*corner_clip(truth))
    step = math.hypot(0.1, 0.15)
    assert path.quality["step_max"] == pytest.approx(step, abs=0.01)
    assert path.quality["shake"] < 0.1
    assert path.quality["matched_steps"] == 0
    # There and back: the second difference is two steps long.
    back = StereoOdometry()(*corner_clip(truth[[0, 1, 0, 1]]))
    assert back.quality["shake"] == pytest.approx(2.0, abs=0.05)
    assert back.quality["step_max"] == pytest.approx(step, abs=0.01)


def test_a_step_too_wide_for_flow_gets_a_second_try():
    wide = torch.stack([camera_at(0, 0), camera_at(0.8, 1.8, 0.1), camera_at(0.85, 1.85, 0.1)])
    path = StereoOdometry()(*corner_clip(wide))
    assert path.quality["matched_steps"] == 1
    assert path_rms(path.world_to_camera, wide) < 0.01
    # Flow alone finds the step too, but badly.
    alone = StereoOdometry(doubt=0.0)(*corner_clip(wide))
    assert alone.quality["matched_steps"] == 0
    assert path_rms(alone.world_to_camera, wide) > 0.015


def test_a_cut_is_named(truth):
    clip, depth = corner_clip(truth)
    other = corner_clip(torch.stack([camera_at(0, 0)] * 5), seed=1)[0]
    frames = torch.cat([clip.frames[:2], other.frames[2:]])
    with pytest.raises(InputError, match=r"corner-0000.*between frames 1 and 2"):
        StereoOdometry()(dataclasses.replace(clip, frames=frames), depth)


def test_the_same_input_gives_the_same_path(truth):
    clip, depth = corner_clip(truth)
    paths = [StereoOdometry(refine=True)(clip, depth) for _ in range(6)]
    assert len({path.world_to_camera.numpy().tobytes() for path in paths}) == 1
    assert paths[0].quality == paths[1].quality


def test_sigma_grows_with_the_matches_errors(truth):
    clip, depth = corner_clip(truth)
    sigmas = [StereoOdometry(refine=False, drift=0.0, reprojection=r)(clip, depth).center_sigma for r in (1.0, 3.0)]
    assert bool((sigmas[0][1:] > 0).all())
    assert bool((sigmas[0].diff() > 0).all())
    noisy = depth.depth * (1 + 0.01 * torch.randn(depth.depth.shape, generator=torch.Generator().manual_seed(0)))
    rougher = StereoOdometry(refine=False, drift=0.0, reprojection=3.0)(clip, dataclasses.replace(depth, depth=noisy))
    assert rougher.center_sigma[-1] > sigmas[1][-1]


def test_named_objects_do_not_carry_the_camera_along(truth):
    # A still camera, and on most of its image walls that come as if the camera went there.
    still, depth = corner_clip(torch.stack([camera_at(0, 0)] * 5))
    moving, moved = corner_clip(truth)
    pixels = torch.zeros(depth.depth.shape, dtype=torch.bool)
    pixels[..., 70:] = True
    frames = torch.where(pixels[..., None], moving.frames, still.frames)
    both = Depth(torch.where(pixels, moved.depth, depth.depth), depth.sigma)
    masks = (Mask(1, "wall", pixels),)
    path = StereoOdometry(refine=False)(dataclasses.replace(still, frames=frames, masks=masks), both)
    # Carried along it would end 0.72 m away. Features that straddle the mask's edge still pull a little.
    assert path_rms(path.world_to_camera, torch.stack([camera_at(0, 0)] * 5)) < 0.03
    unmasked = StereoOdometry(refine=False)(dataclasses.replace(still, frames=frames), both)
    assert path_rms(unmasked.world_to_camera, torch.stack([camera_at(0, 0)] * 5)) > 0.3


def test_refinement_is_refused_where_it_leaves_pnp(truth):
    clip, depth = corner_clip(truth)
    strict = StereoOdometry(refine=True, agree=0.0)(clip, depth)
    assert strict.quality["refined_share"] == 0.0
    assert torch.equal(strict.world_to_camera, StereoOdometry(refine=False)(clip, depth).world_to_camera)


def test_depths_with_a_large_sigma_are_not_used(truth):
    clip, depth = corner_clip(truth[:2])
    # The far wall's depth is wrong by half, and its sigma says so.
    far = depth.depth > 6.5
    poor = Depth(torch.where(far, depth.depth * 1.5, depth.depth), torch.where(far, depth.depth * 0.5, 0.0))
    path = StereoOdometry(refine=False)(clip, poor)
    assert path_rms(path.world_to_camera, truth[:2]) < 0.01


def test_one_frame_is_a_path(truth):
    path = StereoOdometry()(*corner_clip(truth[:1]))
    assert path.world_to_camera.shape == (1, 4, 4)
    assert path.center_sigma.tolist() == [0.0]


def test_a_lost_frame_is_named(truth):
    clip, depth = corner_clip(truth)
    frames = clip.frames.clone()
    frames[3] = 128
    with pytest.raises(InputError, match=r"corner-0000.*between frames 2 and 3"):
        StereoOdometry()(dataclasses.replace(clip, frames=frames), depth)


def test_depth_of_another_shape_is_named(truth):
    clip, depth = corner_clip(truth)
    with pytest.raises(InputError, match="corner-0000"):
        StereoOdometry()(clip, Depth(depth.depth[:3], depth.sigma[:3]))


def test_kitti(real_data):
    source = StereoFolder(str(real_data / "kitti_stereo"), fps=10, clip_frames=13)
    clip = source.load(source.keys()[1])
    path = StereoOdometry()(clip, SGBM()(clip))
    error = path_rms(path.world_to_camera, clip.world_to_camera)
    print(f"kitti frames 13-25: {error:.3f} m RMS over {path.quality}")
    assert error < 0.12
    assert path.quality["path_length"] == pytest.approx(
        float(center(clip.world_to_camera).diff(dim=0).norm(dim=-1).sum()), rel=0.015
    )


@pytest.mark.slow
def test_kitti_whole(real_data):
    source = StereoFolder(str(real_data / "kitti_stereo"), fps=10, clip_frames=51)
    clip = source.load(source.keys()[0])
    path = StereoOdometry()(clip, SGBM()(clip))
    error = path_rms(path.world_to_camera, clip.world_to_camera)
    end = float((center(path.world_to_camera) - center(clip.world_to_camera))[-1].norm())
    print(f"kitti: {error:.3f} m RMS, {end:.3f} m at the end, {path.quality}")
    assert error <= 0.28
    assert end <= 0.0075 * 59.86
