"""Tiny models with random weights, of the real classes, with their real processors, read from a folder."""

import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mllm4d.curate.describe import describe
from mllm4d.curate.learned.monocular import MonocularDepth
from mllm4d.schema import InputError
from tests.curate.learned.tiny_vision import DEPTH, blots_clip, save_depth

HEIGHT, WIDTH, FX = 48, 66, 60.0
METRIC = ("depth_anything", "zoedepth", "glpn", "depth_pro")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders by kind."""
    root = tmp_path_factory.mktemp("models")
    for kind in DEPTH:
        save_depth(root / kind, kind)
    return {kind: str(root / kind) for kind in DEPTH}


def clip_of(count):
    return blots_clip(count, HEIGHT, WIDTH, FX)


@pytest.mark.parametrize("kind", METRIC)
def test_metric_models_give_depth_at_the_frames_resolution(folders, kind):
    clip = clip_of(3)
    result = MonocularDepth(folders[kind], relative_sigma=0.2, batch_size=2, device="cpu")(clip)
    assert result.depth.shape == result.sigma.shape == (3, HEIGHT, WIDTH)
    assert result.depth.dtype == result.sigma.dtype == torch.float32
    known = result.depth > 0
    assert float(known.float().mean()) > 0.5
    assert float(result.depth[known].std()) > 1e-4  # not the same everywhere
    torch.testing.assert_close(result.sigma[known], 0.2 * result.depth[known])
    assert bool(result.sigma[~known].isinf().all())
    again = MonocularDepth(folders[kind], batch_size=2, device="cpu")(clip)
    assert torch.equal(result.depth, again.depth)
    one_by_one = MonocularDepth(folders[kind], batch_size=1, device="cpu")(clip)
    torch.testing.assert_close(one_by_one.depth, result.depth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["depth_anything", "zoedepth", "glpn"])
def test_the_depth_is_that_of_transformers_own_pipeline(folders, kind):
    from transformers import pipeline

    clip = clip_of(2)
    depth = MonocularDepth(folders[kind], device="cpu")(clip).depth
    oracle = pipeline("depth-estimation", model=folders[kind], device="cpu")
    expected = torch.stack([oracle(Image.fromarray(frame.numpy()))["predicted_depth"] for frame in clip.frames])
    torch.testing.assert_close(depth, expected, rtol=1e-4, atol=1e-5)


def test_depth_pro_takes_the_known_focal_length(folders):
    from transformers import AutoImageProcessor, DepthProForDepthEstimation

    clip = clip_of(1)
    model = DepthProForDepthEstimation.from_pretrained(folders["depth_pro"]).eval()
    processor = AutoImageProcessor.from_pretrained(folders["depth_pro"])
    with torch.inference_mode():
        canonical = model(**processor(images=[clip.frames[0].permute(2, 0, 1)], return_tensors="pt")).predicted_depth
    canonical = torch.nn.functional.interpolate(canonical[None], (HEIGHT, WIDTH), mode="bilinear")[0]
    depth = MonocularDepth(folders["depth_pro"], max_depth=1e6, device="cpu")(clip).depth
    usable = canonical > 0.01
    assert float(usable.float().mean()) > 0.9
    # Equation 2 of arXiv 2410.02073: D = f / (w C)
    torch.testing.assert_close(depth[usable], FX / (WIDTH * canonical[usable]), rtol=1e-4, atol=1e-5)


def test_farther_depths_are_unknown(folders):
    clip = clip_of(1)
    depth = MonocularDepth(folders["zoedepth"], device="cpu")(clip).depth
    middle = float(depth.median())
    near = MonocularDepth(folders["zoedepth"], max_depth=middle, device="cpu")(clip)
    assert torch.equal(near.depth, torch.where(depth <= middle, depth, 0.0))
    assert bool(near.sigma[depth > middle].isinf().all())


def test_flipping_averages_and_adds_half_the_difference(folders):
    clip = clip_of(2)
    mirrored = replace(clip, frames=clip.frames.flip(2))
    settings = {"model": folders["depth_anything"], "relative_sigma": 0.1, "device": "cpu"}
    straight, back = MonocularDepth(**settings)(clip).depth, MonocularDepth(**settings)(mirrored).depth.flip(2)
    both = MonocularDepth(**settings, flip=True)(clip)
    torch.testing.assert_close(both.depth, (straight + back) / 2)
    assert float((straight - back).abs().max()) > 1e-3
    torch.testing.assert_close(both.sigma.square(), (0.1 * both.depth).square() + ((straight - back) / 2).square())


def test_a_relative_model_gives_no_metres(folders):
    with pytest.raises(InputError, match="is relative"):
        MonocularDepth(folders["relative"], device="cpu")(clip_of(1))
    with pytest.raises(InputError, match="is relative"):
        MonocularDepth(folders["dpt"], metric=False, device="cpu")(clip_of(1))


def test_a_config_that_does_not_tell_asks_for_metric(folders):
    with pytest.raises(InputError, match="by 'metric'"):
        MonocularDepth(folders["dpt"], device="cpu")(clip_of(1))
    assert MonocularDepth(folders["dpt"], metric=True).is_metric()
    assert MonocularDepth(folders["glpn"], metric=True).is_metric()
    assert not MonocularDepth(folders["relative"], metric=False).is_metric()
    with pytest.raises(InputError, match=r"metric: is True, but .* says False"):
        MonocularDepth(folders["relative"], metric=True).is_metric()


def test_what_is_no_depth_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^model: .*nothing/config.json not found"):
        MonocularDepth(str(tmp_path / "nothing"))
    from transformers import BertConfig

    BertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"^model: .*bert' cannot be read as"):
        MonocularDepth(str(tmp_path / "bert"), metric=True, device="cpu")(clip_of(1))


@pytest.mark.parametrize(
    "settings", [{"relative_sigma": 0.0}, {"batch_size": 0}, {"max_depth": -1.0}, {"dtype": "int8"}, {"dtype": "no"}]
)
def test_settings_are_checked(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        MonocularDepth("owner/name", **settings)


def test_it_travels_to_workers_and_into_the_index():
    estimator = MonocularDepth("owner/name")
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    assert describe(estimator)["init_args"]["model"] == "owner/name"
