import pytest
import torch
from kornia.geometry.camera.stereo import StereoCamera

from mllm4d.geometry.stereo import depth_sigma, disparity_to_depth, left_right_consistent


def test_depth_worked_by_hand():
    # f B = 100 px * 0.5 m = 50 px m: 10 px is 5 m, 2 px is 25 m
    disparity = torch.tensor([[10.0, 2.0, 0.0], [-1.0, float("nan"), float("inf")]])
    depth = disparity_to_depth(disparity, 100.0, 0.5)
    torch.testing.assert_close(depth, torch.tensor([[5.0, 25.0, 0.0], [0.0, 0.0, 0.0]]))


def test_depth_agrees_with_kornias_stereo_camera():
    left = torch.tensor([[[120.0, 0, 9.5, 0], [0, 120.0, 5.5, 0], [0, 0, 1, 0]]])
    right = left.clone()
    right[:, 0, 3] = -120.0 * 0.3
    disparity = torch.rand(1, 12, 20, generator=torch.Generator().manual_seed(0)) * 8 + 1
    points = StereoCamera(left, right).reproject_disparity_to_3D(disparity[..., None])
    torch.testing.assert_close(disparity_to_depth(disparity, 120.0, 0.3), points[..., 2])


def test_sigma_is_the_spread_of_noisy_disparities():
    disparity = 20 + 0.1 * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = disparity_to_depth(disparity, 100.0, 0.5).std()
    predicted = depth_sigma(torch.full((1, 1), 2.5, dtype=torch.float64), 100.0, 0.5, 0.1)
    assert float(predicted) == pytest.approx(2.5**2 / 50 * 0.1)
    assert float(spread) == pytest.approx(float(predicted), rel=0.01)


def test_sigma_of_an_unknown_depth_is_infinite():
    assert depth_sigma(torch.zeros(1, 1), 100.0, 0.5, 0.5).item() == float("inf")


def test_left_right_check_worked_by_hand():
    #                      x = 0    1    2    3    4    5
    left = torch.tensor([[2.0, 0.0, 2.0, 2.0, 1.4, 4.0]])  # matches at -2, -, 0, 1, 3, 1
    right = torch.tensor([[2.9, 3.1, 2.0, 0.0, 2.0, 4.0]])
    expected = [[False, False, True, False, False, True]]  # outside, unknown, 0.9 off, 1.1 off, unknown, 0.9 off
    assert left_right_consistent(left, right, 1.0).tolist() == expected
    assert left_right_consistent(left, right, 1.2).tolist() == [[False, False, True, True, False, True]]


def test_left_right_check_rejects_what_is_occluded():
    # A strip at disparity 6 before a wall at disparity 2: the 4 wall pixels left of the strip are hidden on the right.
    width, near, far = 40, 6.0, 2.0
    left = torch.full((1, width), far)
    left[:, 20:30] = near
    right = torch.full((1, width), far)
    right[:, 14:24] = near
    kept = left_right_consistent(left.expand(3, width), right.expand(3, width))
    assert torch.equal(kept[0], kept[2])
    assert (~kept[0]).nonzero().flatten().tolist() == [0, 1, 16, 17, 18, 19]


@pytest.mark.parametrize(("fx", "baseline"), [(0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5)])
def test_focal_length_must_be_positive(fx, baseline):
    with pytest.raises(ValueError, match="fx must be a positive"):
        disparity_to_depth(torch.ones(1, 1), fx, baseline)


@pytest.mark.parametrize("baseline", [0.0, -0.1])
def test_baseline_must_be_positive(baseline):
    with pytest.raises(ValueError, match="baseline must be a positive"):
        disparity_to_depth(torch.ones(1, 1), 100.0, baseline)
    with pytest.raises(ValueError, match="baseline must be a positive"):
        depth_sigma(torch.ones(1, 1), 100.0, baseline, 0.5)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="disparity_sigma"):
        depth_sigma(torch.ones(1, 1), 100.0, 0.5, -0.1)
    with pytest.raises(ValueError, match="one shape"):
        left_right_consistent(torch.ones(2, 3), torch.ones(2, 4))
