"""Exact figures for the fit; end to end with a tiny relative model."""

import math
import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from mllm4d.curate.depth import SGBM, Depth, DepthEstimator
from mllm4d.curate.describe import describe
from mllm4d.curate.learned.monocular import MonocularDepth
from mllm4d.curate.learned.scaled import ScaledToStereo, fit_line, scale_to_stereo
from mllm4d.schema import InputError
from tests.curate.learned.tiny_vision import blots_clip, save_depth

HEIGHT, WIDTH, FX = 48, 66, 60.0


@pytest.fixture(scope="module")
def relative(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "relative"
    save_depth(folder, "relative")
    return str(folder)


def clip_of(count):
    return blots_clip(count, HEIGHT, WIDTH, FX)


def test_it_travels_to_workers_and_into_the_index():
    estimator = ScaledToStereo(MonocularDepth("owner/name"), SGBM())
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    assert describe(estimator)["init_args"]["mono"]["init_args"]["model"] == "owner/name"


@pytest.mark.parametrize("settings", [{"min_points": 2}, {"max_depth": 0.0}])
def test_settings_are_checked(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        ScaledToStereo(MonocularDepth("owner/name"), SGBM(), **settings)


def test_the_line_is_found_exactly_under_a_third_of_outliers():
    x = torch.linspace(0, 1, 300, dtype=torch.float64)
    y = 0.7 * x + 0.02
    y[::4] += 5.0  # every fourth, all on one side
    scale, shift, spread = fit_line(x, y)
    assert scale == pytest.approx(0.7, abs=1e-9)
    assert shift == pytest.approx(0.02, abs=1e-9)
    assert spread < 1e-9


def test_the_line_under_noise_is_as_good_as_least_squares_and_says_the_noise():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20000, generator=generator, dtype=torch.float64)
    y = 2 * x - 0.5 + 0.1 * torch.randn(20000, generator=generator, dtype=torch.float64)
    scale, shift, spread = fit_line(x, y)
    # The standard error of the slope is 0.1 / (sqrt(N) * 0.289) = 0.0024
    assert scale == pytest.approx(2.0, abs=0.01)
    assert shift == pytest.approx(-0.5, abs=0.005)
    assert spread == pytest.approx(0.1, rel=0.05)


def test_a_line_without_extent_has_no_scale():
    assert math.isnan(fit_line(torch.ones(10), torch.arange(10.0))[0])


def test_affine_distorted_truth_comes_back():
    generator = torch.Generator().manual_seed(0)
    truth = 2 + 10 * torch.rand(3, 40, 50, generator=generator)
    scale, shift = torch.tensor([3.0, 0.5, -2.0])[:, None, None], torch.tensor([0.4, -0.1, 1.0])[:, None, None]
    inverse = (1 / truth - shift) / scale
    measured = truth.clone()
    measured[:, ::3] = 0.0  # not measured
    measured[:, 1::7] *= 0.3  # wrong
    result = scale_to_stereo(inverse, Depth(measured, torch.ones_like(measured)), 500, 80.0)
    torch.testing.assert_close(result.depth[:2], truth[:2], rtol=1e-4, atol=1e-5)
    assert float((result.sigma / result.depth)[:2].max()) < 1e-4
    assert float(result.depth[2].max()) == 0.0  # near and far exchanged: no inverse depth
    assert bool(result.sigma[2].isinf().all())


def test_the_sigma_of_scaled_depth_is_its_error():
    generator = torch.Generator().manual_seed(0)
    truth = 2 + 3 * torch.rand(1, 100, 100, generator=generator, dtype=torch.float64)
    inverse = 5 / truth + 1 + 0.02 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    result = scale_to_stereo(inverse, Depth(truth, torch.zeros_like(truth)), 500, 80.0)
    error = (result.depth - truth) / result.sigma
    assert float(error.square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)


def test_frames_that_stereo_hardly_measured_and_far_pixels_are_unknown():
    truth = torch.linspace(2, 12, 2000).reshape(1, 40, 50).repeat(2, 1, 1)
    measured = truth.clone()
    measured[1].view(-1)[100:] = 0.0
    result = scale_to_stereo(1 / truth, Depth(measured, torch.ones_like(truth)), 500, 10.0)
    assert float(result.depth[1].max()) == 0.0
    assert torch.equal(result.depth[0] > 0, truth[0] <= 10.0)


@dataclass(frozen=True)
class Distorted(DepthEstimator):
    """Measures what another model says, after an affine change of the inverse depth."""

    mono: MonocularDepth
    scale: float
    shift: float

    def __call__(self, clip):
        depth = 1 / (self.scale * self.mono.inverse_depth(clip) + self.shift)
        return Depth(depth, torch.zeros_like(depth))


def test_a_relative_model_is_scaled_to_what_was_measured(relative):
    clip = clip_of(2)
    mono = MonocularDepth(relative, device="cpu")
    inverse = mono.inverse_depth(clip)
    assert float(inverse.std()) > 1e-3
    measured = Distorted(mono, 0.2 / float(inverse.std()), 0.5)
    result = ScaledToStereo(mono, measured, max_depth=1e3)(clip)
    torch.testing.assert_close(result.depth, measured(clip).depth, rtol=1e-3, atol=1e-4)


def test_scaling_to_sgbm(relative):
    """The right view is made so that the disparity is what the random model says, scaled to 3 to 8 pixels."""
    texture = torch.rand(1, 1, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(2))
    texture = torch.nn.functional.interpolate(texture, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)[0, 0]
    frames = (texture * 255).to(torch.uint8)[None, ..., None].repeat(1, 1, 1, 3)
    clip = replace(clip_of(1), frames=frames)
    mono = MonocularDepth(relative, device="cpu")
    inverse = mono.inverse_depth(clip)[0]
    disparity = 3 + 5 * (inverse - inverse.min()) / (inverse.max() - inverse.min())
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    # The disparity changes slowly, so that the left pixel's is good enough for the right one's.
    grid = torch.stack([(columns + disparity + 0.5) / WIDTH, (rows + 0.5) / HEIGHT], -1)[None] * 2 - 1
    right = torch.nn.functional.grid_sample(texture[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    pair = replace(clip, right=(right * 255).to(torch.uint8)[None, ..., None].repeat(1, 1, 1, 3), baseline=0.1)
    estimator = ScaledToStereo(mono, SGBM(num_disparities=16), 100)
    result = estimator(pair)
    assert float((result.depth > 0).float().mean()) > 0.9
    ratio = result.depth[0] * disparity / (FX * 0.1)
    assert float((ratio - 1).abs().median()) < 0.1
    assert not bool(result.sigma.isnan().any())
    assert torch.equal(result.sigma.isinf(), result.depth == 0)
    with pytest.raises(InputError, match="right view"):
        estimator(clip)
