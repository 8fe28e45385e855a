"""Values worked by hand, and properties that hold for every scene."""

import math

import pytest
import torch
from kornia.geometry.conversions import axis_angle_to_rotation_matrix
from torch.testing import assert_close

from mllm4d.geometry import pose as poses
from mllm4d.geometry import relations


def look(center, yaw_degrees=0.0):
    """World-to-camera of a camera at ``center``, turned to its right by a yaw about its downward axis."""
    yaw = math.radians(yaw_degrees)
    camera_to_world = torch.eye(4, dtype=torch.float64)
    camera_to_world[:3, :3] = torch.tensor(
        [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]], dtype=torch.float64
    )
    camera_to_world[:3, 3] = torch.tensor(center, dtype=torch.float64)
    return poses.invert(camera_to_world)


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_rigid(generator, batch):
    rotation = axis_angle_to_rotation_matrix(torch.randn(batch, 3, generator=generator, dtype=torch.float64))
    rigid = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    rigid[:, :3, :3] = rotation
    rigid[:, :3, 3] = 5 * torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return rigid


def all_seven(pose_i, points_i, pose_j, points_j):
    return {
        "camera_absolute_distance": relations.camera_absolute_distance(pose_i, pose_j),
        "camera_relative_direction": relations.camera_relative_direction(pose_i, pose_j),
        "object_absolute_distance": relations.object_absolute_distance(points_i, points_j),
        "object_relative_direction": relations.object_relative_direction(pose_i, points_i, points_j),
        "object_camera_absolute_distance": relations.object_camera_absolute_distance(pose_i, points_j),
        "object_camera_relative_distance": relations.object_camera_relative_distance(
            pose_i, points_i, pose_j, points_j
        ),
        "object_camera_relative_direction": relations.object_camera_relative_direction(
            pose_i, points_i, pose_j, points_j
        ),
    }


def test_camera_distance_by_hand():
    distance = relations.camera_absolute_distance(look([1, 2, 3], 40), look([4, 2, 7], -70))
    assert_close(distance, torch.tensor(5.0, dtype=torch.float64))


def test_camera_direction_of_a_turned_camera_tells_the_right_formula_from_the_papers():
    # The camera looks along world +X (yawed 90 degrees to the right) and goes 3 m along +X: that is straight ahead.
    pose_i, pose_j = look([0, 0, 0], 90), look([3, 0, 0], 30)
    assert_close(relations.camera_relative_direction(pose_i, pose_j), torch.tensor([0.0, 0, 3], dtype=torch.float64))
    papers = pose_i[:3, :3].mT @ (pose_j[:3, 3] - pose_i[:3, 3])
    assert (papers - torch.tensor([0.0, 0, 3], dtype=torch.float64)).norm() > 1


def test_object_direction_is_in_the_first_cameras_axes():
    # The object goes along world +Z; a camera that looks along +X sees it go to the left.
    direction = relations.object_relative_direction(look([0, 0, 0], 90), points([5, 0, 0]), points([5, 0, 2]))
    assert_close(direction, torch.tensor([-2.0, 0, 0], dtype=torch.float64))


def test_object_distance_is_between_centroids():
    distance = relations.object_absolute_distance(points([0, 0, 0], [2, 0, 0]), points([1, 3, 4]))
    assert_close(distance, torch.tensor(5.0, dtype=torch.float64))


def test_object_camera_distance_takes_the_nearest_point():
    cloud = points([0, 0, 9], [0, 3, 4], [8, 0, 0])
    assert_close(
        relations.object_camera_absolute_distance(look([0, 0, 0], 12), cloud), torch.tensor(5.0, dtype=torch.float64)
    )


def test_object_camera_distance_percentile_ignores_one_stray_point():
    cloud = torch.cat([points([0, 0, 0.1]), torch.tensor([[0.0, 0, 4]], dtype=torch.float64).repeat(99, 1)])
    near = relations.object_camera_absolute_distance(look([0, 0, 0]), cloud, percentile=5)
    assert_close(near, torch.tensor(4.0, dtype=torch.float64))


def test_object_camera_change_is_negative_when_it_comes_closer():
    change = relations.object_camera_relative_distance(
        look([0, 0, 0]), points([0, 0, 10], [0, 0, 11]), look([0, 0, 4]), points([0, 0, 9])
    )
    assert_close(change, torch.tensor(-5.0, dtype=torch.float64))


def test_ego_view_direction_contains_the_cameras_rotation():
    # A still object straight ahead at 4 m; the camera turns 90 degrees to the right: it is now 4 m to the left.
    direction = relations.object_camera_relative_direction(
        look([0, 0, 0]), points([0, 0, 4]), look([0, 0, 0], 90), points([0, 0, 4])
    )
    assert_close(direction, torch.tensor([-4.0, 0, -4], dtype=torch.float64))


def test_a_rigid_change_of_the_world_changes_no_relation():
    generator = torch.Generator().manual_seed(0)
    batch = 50
    pose_i, pose_j = random_rigid(generator, batch), random_rigid(generator, batch)
    points_i = torch.randn(batch, 20, 3, generator=generator, dtype=torch.float64)
    points_j = torch.randn(batch, 20, 3, generator=generator, dtype=torch.float64)
    change = random_rigid(generator, batch)
    back = poses.invert(change)
    before = all_seven(pose_i, points_i, pose_j, points_j)
    after = all_seven(
        pose_i @ back, poses.transform(change, points_i), pose_j @ back, poses.transform(change, points_j)
    )
    for name in before:
        assert_close(after[name], before[name], msg=lambda text, name=name: f"{name}: {text}")


def test_without_rotation_ego_view_is_object_minus_camera():
    pose_i, pose_j = look([0, 0, 0], 25), look([1, -0.2, 2], 25)
    points_i, points_j = points([3, 0, 6]), points([4, 0.5, 5])
    expected = relations.object_relative_direction(pose_i, points_i, points_j) - relations.camera_relative_direction(
        pose_i, pose_j
    )
    assert_close(relations.object_camera_relative_direction(pose_i, points_i, pose_j, points_j), expected)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_dimensions(lead):
    pose = look([0, 0, 1], 10).expand(*lead, 4, 4)
    cloud = torch.ones(*lead, 5, 3, dtype=torch.float64)
    for name, value in all_seven(pose, cloud, pose, cloud).items():
        assert value.shape == (*lead, 3) if name.endswith("direction") else value.shape == lead
