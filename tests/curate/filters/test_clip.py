import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mllm4d.curate.filters.clip import ClipChecks, frames_text
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.world import World
from mllm4d.schema import InputError


@pytest.fixture(scope="module")
def street(real_data):
    source = StereoFolder(str(real_data / "kitti_stereo"), fps=10.0, clip_frames=8)
    return [source.load(key) for key in source.keys(limit=7)]


@pytest.fixture(scope="module")
def world():
    return World(frames=4, truth=False).load("world-00005")


def warped(frames, matrix):
    import cv2

    size = (frames.shape[2], frames.shape[1])
    moved = [cv2.warpAffine(f, matrix, size, borderMode=cv2.BORDER_REPLICATE) for f in frames.numpy()]
    return torch.from_numpy(np.stack(moved))


def turned(frames, degrees):
    import cv2

    middle = ((frames.shape[2] - 1) / 2, (frames.shape[1] - 1) / 2)
    return warped(frames, cv2.getRotationMatrix2D(middle, degrees, 1.0))


def lowered(frames, pixels):
    return warped(frames, np.array([[1, 0, 0], [0, 1, pixels]], np.float64))


def test_a_real_street_passes(street):
    for clip in street:
        figures = ClipChecks()(clip)
        print(clip.key, figures)
        assert figures["vertical_disparity"] < 0.6
        assert abs(figures["vertical_tilt"]) < 0.1
        assert figures["pair_matches"] > 400
        assert figures["repeated_frames"] == 0


def test_the_world_is_rectified(world):
    figures = ClipChecks()(world)
    assert figures["vertical_disparity"] < 0.1
    assert abs(figures["vertical_tilt"]) < 0.02


def test_without_a_right_view_only_the_left_is_looked_at(world):
    assert set(ClipChecks()(replace(world, right=None))) == {"contrast_min", "repeated_frames"}


def test_repeated_frames_are_counted(world):
    clip = replace(world, frames=world.frames[[0, 0, 0, 1]], right=None)
    assert ClipChecks()(clip)["repeated_frames"] == 2


@pytest.mark.parametrize("degrees", [0.5, -0.5])
def test_a_turned_right_view_is_found(street, world, degrees):
    for clip in (street[1], world):
        own = ClipChecks()(clip)["vertical_tilt"]  # the street's right camera is turned by -0.06 degrees
        with pytest.raises(InputError, match=rf"{clip.key}.*not rectified") as error:
            ClipChecks()(replace(clip, right=turned(clip.right, degrees)))
        found = float(re.search(r"turned by (\S+) degrees", str(error.value))[1])
        assert found == pytest.approx(own - degrees, abs=0.03)  # OpenCV turns the other way round


def test_a_lowered_right_view_is_found(street, world):
    for clip in (street[1], world):
        with pytest.raises(InputError, match=rf"{clip.key}.*not rectified.*(2\.9|3\.0)\d px lower"):
            ClipChecks()(replace(clip, right=lowered(clip.right, 3)))


def test_a_little_is_allowed(world):
    assert ClipChecks()(replace(world, right=turned(world.right, 0.1)))["vertical_tilt"] == pytest.approx(
        -0.1, abs=0.02
    )
    figures = ClipChecks()(replace(world, right=lowered(world.right, 0.5)))
    assert figures["vertical_disparity"] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(InputError, match=r"at most 0\.3 is allowed"):
        ClipChecks(max_vertical=0.3)(replace(world, right=lowered(world.right, 0.5)))


def test_swapped_views_are_found(street, world):
    for clip in (street[1], world):
        with pytest.raises(InputError, match=rf"{clip.key}.*swapped.*-\d+\.\d px"):
            ClipChecks()(replace(clip, frames=clip.right, right=clip.frames))


def test_views_of_two_scenes_are_found(street):
    with pytest.raises(InputError, match=r"do not show one scene: \d+ of 600 corners"):
        ClipChecks()(replace(street[0], right=street[5].right[:1].expand(8, -1, -1, -1)))


def test_views_of_two_sizes_are_found(world):
    with pytest.raises(InputError, match="one shape"):
        ClipChecks()(replace(world, right=world.right[:, :-2]))


def test_a_cut_is_named_with_its_time(street):
    frames = torch.cat([street[0].frames, street[5].frames])
    clip = replace(street[0], frames=frames, right=None, times=torch.arange(len(frames)) / 10)
    with pytest.raises(InputError, match=r"kitti_stereo-0000.*a cut between frames 7 and 8 \(0\.70 s\)"):
        ClipChecks()(clip)


def test_blank_frames_are_named(world):
    frames = world.frames.clone()
    frames[2:] = 7
    with pytest.raises(InputError, match=r"world-00005.*nothing to see in frames 2 and 3"):
        ClipChecks()(replace(world, frames=frames))


@pytest.mark.parametrize("settings", [{"max_vertical": 0.0}, {"max_tilt": -1.0}, {"min_change": float("nan")}])
def test_bad_settings_are_named(settings):
    with pytest.raises(InputError, match=f"ClipChecks: {next(iter(settings))} must be a positive number"):
        ClipChecks(**settings)


def test_frames_in_words():
    assert frames_text([3]) == "frame 3"
    assert frames_text([0, 7]) == "frames 0 and 7"
    assert frames_text(range(5)) == "frames 0, 1, 2, 3 and 4"
    assert frames_text(range(9)) == "frames 0, 1, 2, 3 and 5 more"
