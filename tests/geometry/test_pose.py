import torch
from torch.testing import assert_close

from mllm4d.geometry import pose

TURNED = torch.tensor([[0.0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, -3], [0, 0, 0, 1]])
"""World-to-camera of a camera at world (3, 0, 0) that looks along world +X."""


def test_center_by_hand():
    assert_close(pose.center(TURNED), torch.tensor([3.0, 0, 0]))


def test_transform_by_hand():
    # 2 m ahead of the camera, and 1 m to its right (world -Z).
    assert_close(pose.transform(TURNED, torch.tensor([[5.0, 0, -1]])), torch.tensor([[1.0, 0, 2]]))


def test_invert_is_the_matrix_inverse():
    assert_close(pose.invert(TURNED), torch.linalg.inv(TURNED))


def test_rebase_keeps_relative_poses():
    path = torch.stack([TURNED, torch.eye(4), TURNED @ TURNED])
    based = pose.rebase(path)
    assert torch.equal(based[0], torch.eye(4))
    assert_close(based[2] @ torch.linalg.inv(based[1]), path[2] @ torch.linalg.inv(path[1]))


def test_path_rms_by_hand():
    moved = torch.eye(4).repeat(2, 1, 1)
    moved[1, :3, 3] = torch.tensor([3.0, 0, 4])
    assert abs(pose.path_rms(moved, torch.eye(4).repeat(2, 1, 1)) - (25 / 2) ** 0.5) < 1e-6
