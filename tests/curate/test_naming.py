"""Objects placed by hand: a camera at the origin that looks along z, 100 px focal length, 200x100 px images."""

import math

import pytest
import torch

from mllm4d.curate.naming import NOT_UNIQUE, plain_name, tell_apart
from mllm4d.prompts import WORDINGS
from mllm4d.schema import Camera, Track

SIZE = (100, 200)
TIMES = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
K = torch.tensor([[100.0, 0, 99.5], [0, 100, 49.5], [0, 0, 1]], dtype=torch.float64)
CAMERA = Camera(K, torch.eye(4, dtype=torch.float64).repeat(3, 1, 1), torch.zeros(3), torch.zeros(3))
UNSEEN = None


def track(number, name, *places, sigma=0.0):
    """``places``: one (column - 99.5 in pixels, z in metres) for all frames, or one for each, None where unseen."""
    places = places * 3 if len(places) == 1 else places
    rows = [[math.nan] * 3 if p is UNSEEN else [p[0] / 100 * p[1], 0.0, p[1]] for p in places]
    sigmas = torch.full((3,), sigma, dtype=torch.float64)
    empty = (torch.empty(0, 3, dtype=torch.float64),) * 3
    return Track(number, name, torch.tensor(rows, dtype=torch.float64), sigmas, sigmas, sigmas, empty, None)


def names(*tracks, times=TIMES):
    kept, dropped = tell_apart(tracks, CAMERA, SIZE, times)
    assert dropped.get(NOT_UNIQUE, 0) == len(tracks) - len(kept)
    return {t.id: t.name for t in kept}


@pytest.mark.parametrize(
    ("given", "plain"), [("The  Red Car", "red car"), ("a van", "van"), ("an Apple", "apple"), ("theatre", "theatre")]
)
def test_plain_names(given, plain):
    assert plain_name(given) == plain


def test_different_names_stay_and_lose_their_article():
    assert names(track(1, "A red cube", (0, 5)), track(2, "blue ball", (2, 5))) == {1: "red cube", 2: "blue ball"}


def test_two_side_by_side_for_the_whole_clip_need_no_time():
    assert names(track(1, "car", (30, 5)), track(2, "Car", (-30, 5))) == {1: "car on the right", 2: "car on the left"}


def test_order_that_changes_says_when_it_held():
    left_then_right = track(1, "car", (-30, 5), (0, 5), (30, 5))
    assert names(left_then_right, track(2, "car", (10, 5))) == {
        1: "car that is on the left at 0 s",
        2: "car that is on the right at 0 s",
    }


def test_without_times_what_would_need_one_is_dropped():
    assert names(track(1, "car", (-30, 5), (0, 5), (30, 5)), track(2, "car", (10, 5)), times=None) == {}


def test_the_first_frame_with_all_of_them_counts():
    late = track(2, "car", UNSEEN, (30, 5), (-60, 5))
    assert names(track(1, "car", (0, 5)), late) == {
        1: "car that is on the left at 0.25 s",
        2: "car that is on the right at 0.25 s",
    }


def test_three_and_four_in_a_row():
    three = [track(k, "car", (30 * k, 5)) for k in (-1, 0, 1)]
    assert names(*three) == {-1: "car on the left", 0: "car in the middle", 1: "car on the right"}
    four = [*three, track(2, "car", (60, 5))]
    assert names(*four)[0] == "second car from the left"
    assert names(*four)[2] == "fourth car from the left"


def test_one_behind_the_other_is_told_by_distance():
    assert names(track(1, "car", (0, 5)), track(2, "car", (5, 8))) == {1: "nearest car", 2: "farthest car"}


def test_margins_a_tenth_of_the_width_and_a_quarter_of_the_distance():
    # 20 px is the margin: 21 clears it, 19 does not, and then 6 m are too close to 5 m (1.25 x 5 m = 6.25 m).
    assert len(names(track(1, "car", (0, 5)), track(2, "car", (21, 5)))) == 2
    assert names(track(1, "car", (0, 5)), track(2, "car", (19, 6))) == {}
    assert len(names(track(1, "car", (0, 5)), track(2, "car", (19, 6.4)))) == 2


def test_sigma_blurs_the_order():
    # 0.3 m at 5 m are 6 px each, 8.5 px for both, 25 px at three sigma.
    assert len(names(track(1, "car", (0, 5), sigma=0.3), track(2, "car", (26, 5), sigma=0.3))) == 2
    assert names(track(1, "car", (0, 5), sigma=0.3), track(2, "car", (24, 5), sigma=0.3)) == {}


def test_only_those_that_are_clear_are_kept():
    # The two in the middle stand before each other at like distances; the outer ones are clear of both.
    row = [track(1, "car", (-60, 5)), track(2, "car", (0, 5)), track(3, "car", (5, 5.2)), track(4, "car", (60, 5))]
    assert names(*row) == {1: "first car from the left", 4: "fourth car from the left"}


def test_never_together_the_time_of_the_first_sighting_tells():
    assert names(track(1, "car", (0, 5), UNSEEN, UNSEEN), track(2, "car", UNSEEN, UNSEEN, (0, 5))) == {
        1: "car in view at 0 s",
        2: "car in view at 0.5 s",
    }


def test_half_out_of_the_image_is_no_place_to_judge_the_order():
    # 120 px right of the middle is 20 px beyond the edge of a 200 px image: its body may still be seen there.
    leaving = track(2, "car", (120, 5), (60, 5), (60, 5))
    assert names(track(1, "car", (0, 5)), leaving)[1] == "car that is on the left at 0.25 s"
    gone = track(2, "car", (400, 5), (60, 5), (60, 5))
    assert names(track(1, "car", (0, 5)), gone)[1] == "car that is on the left at 0.25 s"


def test_behind_the_camera_is_not_seen():
    assert names(track(1, "car", (0, 5)), track(2, "car", (30, -5), (30, 5), (30, 5)))[2].endswith("at 0.25 s")


def test_a_name_within_a_longer_name_is_no_name_of_its_own():
    assert names(track(1, "car", (-30, 5)), track(2, "red car", (30, 5))) == {1: "car on the left", 2: "red car"}
    assert names(track(1, "car", (0, 5)), track(2, "carpet", (1, 5))) == {1: "car", 2: "carpet"}


def test_names_are_unique_and_go_into_every_wording():
    clip = [track(k, "car", (40 * k - 60, 5), (0, 5 + 2 * k), (0, 5)) for k in range(4)]
    described = list(names(*clip).values())
    assert len(set(described)) == len(described) == 4
    for wordings in WORDINGS.values():
        for wording in wordings:
            assert "{name} at {" not in wording
            assert "{name}" not in wording or "the {name}" in wording
