"""A ball whose depth is known in closed form, seen by a still and by a moving camera."""

import pytest
import torch

from mllm4d.curate.depth import Depth
from mllm4d.curate.objects import MINIMUM_POINTS, moves, track_from_mask
from mllm4d.geometry.pose import transform
from mllm4d.schema import Camera, Mask

INTRINSICS = torch.tensor([[200.0, 0, 79.5], [0, 200, 59.5], [0, 0, 1]], dtype=torch.float64)


def ball_depth(center, radius, height=120, width=160):
    """z-depth of a ball (camera axes) by the quadratic formula; 0 where the ray misses."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([xs, ys, torch.ones_like(xs)], -1).double() @ torch.linalg.inv(INTRINSICS).mT
    center = torch.as_tensor(center, dtype=torch.float64)
    a, b, c = (rays * rays).sum(-1), rays @ center, center @ center - radius**2
    root = b.square() - a * c
    return torch.where(root > 0, (b - root.clamp(min=0).sqrt()) / a, torch.zeros(()).double())


def scene(centers, poses, radius=0.5, sigma=0.02):
    depth = torch.stack(
        [ball_depth(transform(pose, center[None])[0], radius) for center, pose in zip(centers, poses, strict=True)]
    )
    mask = Mask(7, "red ball", depth > 0)
    return track_from_mask(mask, Depth(depth.float(), torch.full_like(depth, sigma).float()), exact_camera(poses))


def exact_camera(poses):
    zeros = torch.zeros(len(poses), dtype=torch.float64)
    return Camera(INTRINSICS, poses, zeros, zeros)


def still_poses(count):
    return torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)


def test_the_centre_of_a_ball_is_found_within_two_sigma():
    truth = torch.tensor([[0.0, 0, 6], [1.0, 0.3, 5]], dtype=torch.float64)
    track = scene(truth, still_poses(2))
    errors = (track.centers - truth).norm(dim=-1)
    assert bool((errors < 2 * track.center_sigma).all()), (errors, track.center_sigma)
    # The visible surface alone would be wrong by two thirds of the radius.
    assert bool((errors < 0.15).all())
    assert bool((track.points[0].norm(dim=-1) > 5.4).all())


def test_a_ball_that_goes_two_metres_moves_and_a_still_one_under_a_moving_camera_does_not():
    path = torch.tensor([[0.0, 0, 6], [1, 0, 6], [2, 0, 6]], dtype=torch.float64)
    assert scene(path, still_poses(3)).moving is True
    poses = still_poses(3)
    poses[:, 0, 3] = torch.tensor([0.0, -0.5, -1.0])
    track = scene(path[:1].expand(3, 3) / 2, poses, radius=0.1, sigma=0.005)
    assert track.moving is False


def test_frames_with_too_few_pixels_are_not_seen():
    track = scene(torch.tensor([[0.0, 0, 6], [0, 0, 200]], dtype=torch.float64), still_poses(2))
    assert bool(track.centers[0].isfinite().all())
    assert bool(track.centers[1].isnan().all())
    assert len(track.points[1]) == 0
    assert len(track.points[0]) >= MINIMUM_POINTS


@pytest.mark.parametrize(
    ("step", "sigma", "expected"), [(1.0, 0.05, True), (0.01, 0.05, False), (0.3, 0.1, None), (1.0, 0.5, None)]
)
def test_moves_by_hand(step, sigma, expected):
    centers = torch.tensor([[0.0, 0, 5], [step, 0, 5]], dtype=torch.float64)
    assert moves(centers, torch.full((2,), sigma, dtype=torch.float64), exact_camera(still_poses(2))) is expected


def test_one_sighting_tells_nothing():
    assert moves(torch.zeros(1, 3), torch.zeros(1), exact_camera(still_poses(1))) is None
