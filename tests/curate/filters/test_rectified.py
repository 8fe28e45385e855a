import math

import numpy as np
import pytest
import torch

from mllm4d.curate.filters.rectified import PairMatches, match_pairs, rectification

HEIGHT, WIDTH = 180, 320


def matches(offset=0.0, degrees=0.0, disparity=8.0, outliers=0):
    """A grid of points; the right view is turned clockwise about the middle, then shifted down and to the left."""
    column, row = torch.meshgrid(torch.arange(10, 320, 20), torch.arange(10, 180, 20), indexing="ij")
    left = torch.stack([column.flatten(), row.flatten()], -1).double()
    middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    right = (left - middle) @ turn.T + middle + torch.tensor([-disparity, offset])
    right[:outliers] += 40.0
    return PairMatches(left, right, len(left))


def texture(height, width, seed=0):
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float32)
    grey = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))[None]


def test_a_rectified_pair_by_hand():
    fit = rectification(matches(), HEIGHT, WIDTH)
    assert fit.vertical == pytest.approx(0, abs=1e-9)
    assert fit.tilt == pytest.approx(0, abs=1e-9)
    assert fit.disparity == pytest.approx(8)
    assert fit.backwards == 0


def test_a_shift_and_a_tilt_are_told_apart():
    fit = rectification(matches(offset=3.0), HEIGHT, WIDTH)
    assert (fit.vertical, fit.offset, fit.tilt) == pytest.approx((3.0, 3.0, 0.0), abs=1e-6)
    fit = rectification(matches(degrees=0.5), HEIGHT, WIDTH)
    # Columns 10, 30, …, 310 are 9.5 to 150.5 px from the middle, 80 in the median; times sin 0.5 degrees.
    assert fit.vertical == pytest.approx(80 * math.sin(math.radians(0.5)), abs=0.1)
    assert (fit.offset, fit.tilt) == pytest.approx((0.0, 0.5), abs=1e-6)
    assert rectification(matches(degrees=-0.5), HEIGHT, WIDTH).tilt == pytest.approx(-0.5, abs=1e-6)


def test_outliers_do_not_tilt():
    fit = rectification(matches(offset=1.0, degrees=0.3, outliers=20), HEIGHT, WIDTH)  # 20 of 144
    assert (fit.offset, fit.tilt) == pytest.approx((1.0, 0.3), abs=5e-3)


def test_swapped_views_have_backward_disparities():
    there = matches()
    fit = rectification(PairMatches(there.right, there.left, there.corners), HEIGHT, WIDTH)
    assert fit.backwards == 1
    assert fit.disparity == pytest.approx(-8)


@pytest.mark.parametrize("scale", [1, 3])
def test_pixels_are_those_of_the_views(scale):
    # 320 or 960 pixels wide: the second is matched at 640.
    import cv2

    big = texture(HEIGHT + 20, WIDTH + 20)[0].numpy()
    big = cv2.resize(big, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    height, width = HEIGHT * scale, WIDTH * scale
    left = torch.from_numpy(big[:height, :width].copy())[None]
    right = torch.from_numpy(big[2 * scale : height + 2 * scale, 7 * scale : width + 7 * scale].copy())[None]
    found = match_pairs(torch.cat([left, left]), torch.cat([right, right]))
    assert found.corners > 300
    assert len(found.left) > 0.8 * found.corners
    shift = (found.right - found.left).median(dim=0).values
    torch.testing.assert_close(shift, -scale * torch.tensor([7.0, 2.0], dtype=torch.float64), atol=0.1, rtol=0)


def test_two_scenes_have_no_matches():
    found = match_pairs(texture(HEIGHT, WIDTH), texture(HEIGHT, WIDTH, seed=1))
    assert found.corners > 150
    assert len(found.left) < 0.05 * found.corners


def test_no_corners_no_matches():
    blank = torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    found = match_pairs(blank, blank)
    assert found.corners == 0
    assert found.left.shape == found.right.shape == (0, 2)
