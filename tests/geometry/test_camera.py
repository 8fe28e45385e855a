import torch
from torch.testing import assert_close

from mllm4d.geometry.camera import project, resize_intrinsics, unproject

INTRINSICS = torch.tensor([[100.0, 0, 31.5], [0, 120, 23.5], [0, 0, 1]])


def test_unproject_by_hand():
    points = unproject(torch.full((48, 64), 2.0), INTRINSICS)
    # Pixel (x 41, y 11): ((41 - 31.5) / 100 * 2, (11 - 23.5) / 120 * 2, 2)
    assert_close(points[11, 41], torch.tensor([0.19, -0.2083333, 2.0]))


def test_project_undoes_unproject_with_a_batch():
    depth = torch.rand(2, 3, 48, 64) + 1
    pixels = project(unproject(depth, INTRINSICS).flatten(-3, -2), INTRINSICS)
    ys, xs = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    assert_close(pixels, torch.stack([xs, ys], -1).flatten(0, 1).expand(2, 3, -1, -1), atol=1e-3, rtol=0)


def test_resized_intrinsics_see_the_same_corner():
    # The image's outer corner (-0.5, -0.5) is the same ray before and after.
    resized = resize_intrinsics(INTRINSICS, (48, 64), (24, 128))
    corner = torch.tensor([-0.5, -0.5, 1.0])
    assert_close(torch.linalg.inv(INTRINSICS) @ corner, torch.linalg.inv(resized) @ corner)
    assert_close(resized[0, 0], torch.tensor(200.0))
