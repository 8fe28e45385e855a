import json
import pickle

import pytest
import torch
from jsonargparse import ArgumentParser

from mllm4d.curate.depth import SGBM
from mllm4d.curate.describe import describe
from mllm4d.curate.quality import Quality
from mllm4d.curate.sources.world import World
from mllm4d.schema import Camera


@pytest.fixture(scope="module")
def clip():
    return World(frames=4, truth=False).load("world-00003")


@pytest.fixture(scope="module")
def truth():
    return World(frames=4).load("world-00003")


def parse(text, tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--quality", type=Quality | None, default=Quality())
    (tmp_path / "config.yaml").write_text(text)
    return parser.instantiate(parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])).quality


def test_yaml_sets_one_threshold_and_leaves_the_others(tmp_path):
    quality = parse("quality:\n  pixels:\n    max_depth: 20.0\n  path:\n    max_speed: 5.0\n", tmp_path)
    assert quality.pixels.max_depth == 20.0
    assert quality.pixels.boundary == Quality().pixels.boundary
    assert quality.path.max_speed == 5.0
    assert quality.clip == Quality().clip
    assert parse("quality: null\n", tmp_path) is None
    assert parse("{}\n", tmp_path) == Quality()


def test_it_travels_to_workers_and_into_the_index():
    quality = Quality()
    assert pickle.loads(pickle.dumps(quality)) == quality
    noted = json.loads(json.dumps(describe(quality)))
    assert noted["init_args"]["pixels"]["init_args"]["max_depth"] == 80.0


def test_a_clip_of_the_world_passes_it_all(clip, truth):
    quality = Quality()
    figures = quality.check_clip(clip)
    depth = SGBM()(clip)
    cleaned, dropped = quality.clean(clip, depth, clip.masks)
    still = torch.zeros(4, dtype=torch.float64)
    camera = Camera(clip.intrinsics, truth.world_to_camera, still, still)
    figures |= quality.check_path(clip, camera)
    tracks, lost = quality.clean_tracks(truth.tracks, camera, clip.times)
    json.dumps({**figures, **dropped, **lost})
    assert sum(dropped.values()) + int((cleaned.depth > 0).sum()) == depth.depth.numel()
    assert dropped["mask_boundary"] > 0
    assert quality.clean(clip, depth)[1]["mask_boundary"] == 0
    assert tracks == truth.tracks
    assert not sum(lost.values())


def test_the_same_input_gives_the_same_result(clip):
    depth = SGBM()(clip)
    first, second = (Quality().clean(clip, depth, clip.masks) for _ in range(2))
    assert torch.equal(first[0].depth, second[0].depth)
    assert first[1] == second[1]
    assert Quality().check_clip(clip) == Quality().check_clip(clip)


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="PixelFilters: max_depth must be a positive number"):
        parse("quality:\n  pixels:\n    max_depth: -1.0\n", tmp_path)
    with pytest.raises(SystemExit):
        parse("quality:\n  pixels:\n    maximum_depth: 20.0\n", tmp_path)
