import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.depth import SGBM
from mllm4d.curate.sources.world import World
from mllm4d.schema import Clip, InputError

FX, BASELINE = 200.0, 0.25  # f B = 50 px m


def textured(height, width):
    """Random grey blots, smooth enough to be matched."""
    noise = torch.rand(1, 1, height // 2, width // 2, generator=torch.Generator().manual_seed(0))
    grey = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0, 0]
    return (grey.clamp(0, 1) * 255).to(torch.uint8)[..., None].repeat(1, 1, 3)


def clip_at(*disparities):
    """A wall square to the camera, at one disparity in each frame."""
    wall = textured(96, 224)
    left = torch.stack([wall[:, 32:192]] * len(disparities))
    right = torch.stack([wall[:, 32 + d : 192 + d] for d in disparities])
    intrinsics = torch.tensor([[FX, 0, 79.5], [0, FX, 47.5], [0, 0, 1]], dtype=torch.float64)
    times = torch.arange(len(disparities), dtype=torch.float64)
    return Clip("wall-0000", "wall", left, times, 1.0, intrinsics, right, BASELINE)


def test_a_wall_at_a_known_depth():
    result = SGBM(num_disparities=32)(clip_at(5, 20))
    assert result.depth.shape == result.sigma.shape == (2, 96, 160)
    assert result.depth.dtype == result.sigma.dtype == torch.float32
    for frame, disparity in ((0, 5), (1, 20)):
        depth = result.depth[frame]
        known = depth > 0
        assert float(known.float().mean()) > 0.8
        assert float(depth[known].median()) == pytest.approx(50 / disparity, rel=0.01)
        # sigma_Z = Z^2 / (f B) * 0.3 px
        torch.testing.assert_close(result.sigma[frame][known], depth[known] ** 2 / 50 * 0.3)
        assert bool(result.sigma[frame][~known].isinf().all())


def test_a_clip_is_its_pairs():
    both, alone = SGBM(num_disparities=32)(clip_at(5, 20)), SGBM(num_disparities=32)(clip_at(20))
    assert torch.equal(both.depth[1], alone.depth[0])
    assert torch.equal(both.sigma[1], alone.sigma[0])


def test_sigma_is_that_of_the_errors_on_the_worlds_surfaces():
    stereo, oracle = (World(seed=3, frames=2, noise=2.0, truth=truth) for truth in (False, True))
    key = stereo.keys(1)[0]
    found, truth = SGBM()(stereo.load(key)), oracle.load(key).depth
    smooth = (truth > 0) & (spread(truth.reciprocal()) < 2 / truth_scale(stereo.load(key)))
    seen = smooth & (found.depth > 0)
    error = ((found.depth - truth).abs() / found.sigma)[seen]
    beyond = float((error > 3).float().mean())
    print(f"{len(error)} pixels: 68 % within {float(error.quantile(0.68)):.2f} sigma, {beyond:.2%} beyond 3")
    assert 0.3 < float(error.quantile(0.68)) < 1.0
    assert beyond < 0.01


def test_what_only_the_left_view_sees_is_unknown():
    # The leftmost 20 columns have no counterpart in the right view; the margin allows for the matched block.
    depth = SGBM(num_disparities=32)(clip_at(20)).depth[0]
    assert float((depth[:, :17] > 0).float().mean()) < 0.05
    assert float((depth[:, 24:] > 0).float().mean()) > 0.95


def test_far_depths_are_unknown():
    result = SGBM(num_disparities=32, max_depth=5.0)(clip_at(5, 20))
    assert float((result.depth[0] > 0).float().mean()) < 0.01
    assert float((result.depth[1] > 0).float().mean()) > 0.8
    assert float(result.depth.max()) <= 5.0


def test_range_follows_the_width():
    # 160 pixels: a sixth, rounded up to a multiple of 16, is 32
    assert torch.equal(SGBM()(clip_at(20)).depth, SGBM(num_disparities=32)(clip_at(20)).depth)


def truth_scale(clip):
    """f B, px m."""
    return float(clip.intrinsics[0, 0]) * clip.baseline


def spread(values):
    """Largest difference within 7x7 pixels of [T, H, W]."""
    largest = torch.nn.functional.max_pool2d
    return (largest(values[:, None], 7, 1, 3) + largest(-values[:, None], 7, 1, 3))[:, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": None}, "wall-0000.*right view"),
        ({"baseline": None}, "wall-0000.*positive baseline"),
        ({"baseline": 0.0}, "wall-0000.*positive baseline"),
        ({"baseline": -0.1}, "wall-0000.*positive baseline"),
        ({"right": torch.zeros(1, 96, 100, 3, dtype=torch.uint8)}, "wall-0000.*one shape"),
    ],
)
def test_a_clip_that_is_not_stereo_is_named(change, message):
    with pytest.raises(InputError, match=message):
        SGBM()(dataclasses.replace(clip_at(20), **change))


@pytest.mark.parametrize(
    "arguments", [{"num_disparities": 40}, {"block_size": 4}, {"max_depth": 0.0}, {"disparity_sigma": 0.0}]
)
def test_bad_settings_are_named(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        SGBM(**arguments)


def test_middlebury_aloe(real_data):
    def read(name, mode):
        return torch.from_numpy(np.array(Image.open(real_data / "aloe" / name).convert(mode)))

    truth = read("aloeGT.png", "L").float()
    found = SGBM().disparity(read("aloeL.jpg", "RGB"), read("aloeR.jpg", "RGB"))
    known = truth > 0
    both = known & (found > 0)
    density = float(both.sum() / known.sum())
    bad = float(((found - truth)[both].abs() > 1).float().mean())
    print(f"aloe: {bad:.2%} off by more than 1 px at density {density:.1%}")
    assert density >= 0.80
    assert bad <= 0.055
