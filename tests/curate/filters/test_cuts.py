import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.filters.clip import ClipChecks
from mllm4d.curate.filters.cuts import colour_changes, contrast, find_cuts, repeated
from mllm4d.curate.sources.world import World

CHECKS = ClipChecks()
THRESHOLDS = CHECKS.min_change, CHECKS.min_tracked, CHECKS.min_matched


def flat(*levels):
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3).contiguous()


@pytest.fixture(scope="module")
def street(real_data):
    paths = sorted((real_data / "kitti_stereo" / "image_l").glob("*.png"))
    return torch.from_numpy(np.stack([np.array(Image.open(path).convert("RGB")) for path in paths]))


def test_contrast_by_hand():
    halves = flat(0, 0)
    halves[1, :, 4:] = 100  # half 0, half 100: mean 50, every pixel 50 off
    assert contrast(halves).tolist() == [0.0, 50.0]


def test_repeated_frames():
    frames = flat(1, 1, 2, 2, 2)
    frames[4, 0, 0, 0] = 3
    assert repeated(frames).tolist() == [True, False, True, False]


def test_colour_changes_by_hand():
    frames = flat(0, 255, 255, 255)
    frames[2, ..., 0] = 0  # one channel of three
    frames[3, :, :4, 0] = 0  # and back in half of the pixels
    torch.testing.assert_close(colour_changes(frames), torch.tensor([1.0, 1 / 3, 1 / 6], dtype=torch.float64))
    assert colour_changes(frames[:1]).shape == (0,)


def test_a_pixel_may_go_anywhere_without_a_change_of_colours():
    frames = torch.randint(0, 256, (1, 40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert colour_changes(torch.cat([frames, frames.flip(1), frames.flip(2)])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("stride", [1, 3])
def test_a_street_is_one_shot(street, stride):
    # every third frame: 3.6 m ahead in one step
    assert find_cuts(street[::stride], *THRESHOLDS) == []


@pytest.mark.parametrize("length", [5, 8])
def test_a_jump_along_a_street_is_a_cut(street, length):
    frames = torch.cat([street[:length], street[40:44]])
    assert find_cuts(frames, *THRESHOLDS) == [length - 1]


def test_an_inserted_frame_is_two_cuts(street):
    assert find_cuts(torch.cat([street[:3], street[40:41], street[3:6]]), *THRESHOLDS) == [2, 3]


def test_a_change_of_light_is_no_cut(street):
    darker = torch.cat([street[:2], (street[2:4].float() * 0.5).to(torch.uint8)])
    assert float(colour_changes(darker)[1]) > 2 * CHECKS.min_change
    assert find_cuts(darker, *THRESHOLDS) == []


def test_nothing_is_said_without_corners():
    assert find_cuts(flat(0, 200), *THRESHOLDS) == []


# The fastest turns among the first 60 clips.
FAST = (0, 24, 48)


@pytest.fixture(scope="module")
def worlds():
    world = World()
    return [world.load(world.keys(60)[index]) for index in FAST]


def test_fast_turns_are_no_cuts(worlds):
    for clip in worlds:
        assert abs(clip.provenance["camera"]["yaw"]) > 20
        assert find_cuts(clip.frames, *THRESHOLDS) == []
        assert find_cuts(clip.frames[::2], *THRESHOLDS) == []  # up to 9 degrees a step


def test_two_worlds_make_a_cut(worlds):
    for first, second in zip(worlds, worlds[1:] + worlds[:1], strict=True):
        assert find_cuts(torch.cat([first.frames[:7], second.frames[7:]]), *THRESHOLDS) == [6]


@pytest.mark.slow
def test_thirty_worlds_are_one_shot_each():
    world = World(seed=1)
    last = None
    for key in world.keys(30):
        frames = world.load(key).frames
        assert find_cuts(frames, *THRESHOLDS) == [], key
        if last is not None:
            assert find_cuts(torch.cat([last[:4], frames[4:8]]), *THRESHOLDS) == [3], key
        last = frames
