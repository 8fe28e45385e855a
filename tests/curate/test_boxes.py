"""Boxes to tracks, by hand and against the exact distance to a box."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mllm4d.curate.boxes import MAX_POINTS, surface, track_from_boxes
from mllm4d.schema import Boxes, Camera

CAR = torch.tensor([4.0, 1.5, 1.8], dtype=torch.float64)
NAN = float("nan")


def camera(camera_to_world, center_sigma=None, rotation_sigma=None):
    count = len(camera_to_world)
    zero = torch.zeros(count, dtype=torch.float64)
    poses = torch.from_numpy(np.linalg.inv(np.asarray(camera_to_world, dtype=np.float64)))
    return Camera(
        torch.eye(3, dtype=torch.float64),
        poses,
        zero if center_sigma is None else torch.tensor(center_sigma).double(),
        zero if rotation_sigma is None else torch.tensor(rotation_sigma).double(),
    )


def pose(rotation=None, place=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) if rotation is None else rotation
    matrix[:3, 3] = place
    return matrix


def boxes(centers, yaw=0.0, size=CAR, sigma=0.05):
    count = len(centers)
    turned = torch.from_numpy(Rotation.from_rotvec([0, yaw, 0]).as_matrix())
    return Boxes(
        7,
        "car",
        torch.tensor(centers, dtype=torch.float64),
        turned.repeat(count, 1, 1),
        size.repeat(count, 1),
        torch.full((count,), sigma, dtype=torch.float64),
    )


def exact_distance(point, center, rotation, size):
    local = np.abs((point - center) @ rotation) - size / 2
    return np.linalg.norm(local.clip(0))


def test_a_box_by_hand():
    # Turned by a quarter, the 4 m edge lies along the viewing direction: the box reaches from z = 8 to 12.
    track = track_from_boxes(boxes([[0.0, 0.5, 10.0]], yaw=math.pi / 2), camera([pose()]))
    points = track.points[0]
    torch.testing.assert_close(points.amin(0), torch.tensor([-0.9, -0.25, 8.0], dtype=torch.float64))
    torch.testing.assert_close(points.amax(0), torch.tensor([0.9, 1.25, 12.0], dtype=torch.float64))
    assert (track.id, track.name) == (7, "car")
    for sigma in (track.center_sigma, track.motion_sigma, track.surface_sigma):
        assert sigma.tolist() == [0.05]
    assert track.moving is None  # one sighting


def test_a_box_turns_from_its_own_axes_to_the_cameras():
    # Ry(0.5) takes the corner at (2, 0.75, 0.9) to (2 cos + 0.9 sin, 0.75, -2 sin + 0.9 cos).
    points = track_from_boxes(boxes([[0.0, 0.0, 10.0]], yaw=0.5), camera([pose()])).points[0]
    cos, sin = math.cos(0.5), math.sin(0.5)
    corner = torch.tensor([2 * cos + 0.9 * sin, 0.75, 10 - 2 * sin + 0.9 * cos]).double()
    assert float((points - corner).norm(dim=-1).min()) < 1e-6


def test_places_go_to_the_world_through_each_frames_own_pose():
    # At 1 the camera stands at (1, 0, 2) and looks along the world's +x: its right is the world's -z.
    right = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    track = track_from_boxes(boxes([[3.0, 0.0, 5.0], [3.0, 0.0, 5.0]]), camera([pose(), pose(right, (1, 0, 2))]))
    torch.testing.assert_close(track.centers, torch.tensor([[3.0, 0, 5], [6.0, 0, -1]], dtype=torch.float64))
    # The box's 4 m edge lies along the camera's x axis, now the world's z.
    extent = track.points[1].amax(0) - track.points[1].amin(0)
    torch.testing.assert_close(extent, torch.tensor([1.8, 1.5, 4.0], dtype=torch.float64))


def test_a_frame_without_the_object_has_nothing():
    track = track_from_boxes(boxes([[0.0, 0, 9], [NAN, NAN, NAN], [0, 0, 9]]), camera([pose()] * 3))
    assert track.centers.isnan().all(-1).tolist() == [False, True, False]
    assert track.motion_sigma.isnan().tolist() == [False, True, False]
    assert [len(points) > 0 for points in track.points] == [True, False, True]
    assert track.moving is False


@pytest.mark.parametrize(
    ("size", "least"),
    [([4.0, 1.5, 1.8], 250), ([0.6, 1.75, 0.5], 250), ([14.0, 3.5, 2.6], 250), ([0.02, 0.02, 0.02], 8)],
)
def test_points_lie_on_the_faces_and_hold_the_corners(size, least):
    half = torch.tensor(size, dtype=torch.float64) / 2
    points = surface(torch.tensor(size))
    assert least <= len(points) <= MAX_POINTS
    assert bool((points.abs() <= half * (1 + 1e-6)).all())
    assert bool(torch.isclose(points.abs(), half, rtol=1e-6).any(-1).all())
    assert int(torch.isclose(points.abs(), half, rtol=1e-6).all(-1).sum()) == 8
    assert len(points.unique(dim=0)) == len(points)


def test_the_nearest_point_is_that_of_the_box():
    generator = np.random.default_rng(0)
    for _ in range(50):
        center, size = generator.uniform(-3, 3, 3), generator.uniform(0.4, 4.5, 3)
        turned = Rotation.random(random_state=generator).as_matrix()
        points = surface(torch.from_numpy(size)).numpy() @ turned.T + center
        eye = center + generator.normal(size=3) * [20, 3, 20]
        exact = exact_distance(eye, center, turned, size)
        if exact > 5:
            assert -1e-9 < np.linalg.norm(points - eye, axis=1).min() - exact < 0.01


@pytest.mark.parametrize(
    ("step", "drift", "moving"),
    [
        (1.0, 0.0, True),
        (0.0, 0.0, False),
        # 0.3 m in all with a camera that is known to 0.3 m: it may stand or not
        (0.1, 0.1, None),
        # the same with an exact camera: five sigmas of two boxes are 0.35 m
        (0.1, 0.0, None),
        (0.2, 0.0, True),
        (0.2, 0.1, None),
    ],
)
def test_what_the_poses_explain_is_no_motion(step, drift, moving):
    places = [[step * t, 0.0, 10.0] for t in range(4)]
    seen_by = camera([pose()] * 4, center_sigma=[drift * t for t in range(4)])
    assert track_from_boxes(boxes(places), seen_by).moving is moving
