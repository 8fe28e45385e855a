import math

import pytest
import torch

from mllm4d.qa.judge import Margins, Relation, judge
from mllm4d.schema import InputError, Track

MARGINS = Margins()


def vector(task, x, y, z, sigma=0.0):
    return Relation(task, torch.tensor([x, y, z], dtype=torch.float64), sigma, None)


def scalar(task, value, sigma=0.0):
    return Relation(task, torch.tensor(value, dtype=torch.float64), sigma, None)


@pytest.mark.parametrize(
    ("x", "y", "z", "label"),
    [(-1, 0, 0.2, "left"), (1, 0, 0.2, "right"), (0.3, 0.1, 2, "forward"), (0.3, 0.1, -2, "backward")],
)
@pytest.mark.parametrize("task", ["camera_relative_direction", "object_relative_direction"])
def test_direction_words(task, x, y, z, label):
    assert judge(vector(task, x, y, z), MARGINS) == (None, label)


@pytest.mark.parametrize(("z", "label"), [(-1, "closer"), (1, "farther")])
def test_ego_view_depth_words(z, label):
    assert judge(vector("object_camera_relative_direction", 0.1, 0, z), MARGINS) == (None, label)


@pytest.mark.parametrize(
    ("x", "y", "z", "sigma", "reason"),
    [
        (0.1, 0, 0.1, 0, "no clear motion"),
        (1, 0, 0.9, 0, "no dominant axis"),
        (0, 5, 1, 0, "no dominant axis"),
        (1, 0, 0, 0.3, "no clear motion"),
        (2, 0, 1, 0.12, "no dominant axis"),
    ],
)
def test_directions_that_are_not_asked(x, y, z, sigma, reason):
    assert judge(vector("camera_relative_direction", x, y, z, sigma), MARGINS) == reason


@pytest.mark.parametrize(
    ("change", "sigma", "expected"),
    [
        (-0.5, 0, (None, "closer")),
        (0.5, 0, (None, "farther")),
        (0.05, 0, (None, "unchanged")),
        (0.2, 0, "between moving and still"),
        (0.5, 0.05, "between moving and still"),
        (0.05, 0.05, "between moving and still"),
    ],
)
def test_change_of_distance_has_a_dead_band(change, sigma, expected):
    assert judge(scalar("object_camera_relative_distance", change, sigma), MARGINS) == expected


def test_a_distance_is_asked_only_when_half_a_step_is_several_sigma():
    # Half way to the next option down the ladder of 1.5: 3 m * (1 - 1/1.5) / 2 = 0.5 m.
    assert judge(scalar("camera_absolute_distance", 3.0, 0.16), MARGINS) == (3.0, None)
    assert judge(scalar("camera_absolute_distance", 3.0, 0.17), MARGINS) == "within sigma of the next option"
    assert judge(scalar("camera_absolute_distance", 0.1), MARGINS) == "distance out of range"


def test_dominance_is_clear_of_both_lengths_errors():
    # 2 - 1.5 x 1 = 0.5 m must be three times sqrt(1 + 1.5^2) = 1.803 sigma: up to 0.0925 m.
    assert judge(vector("camera_relative_direction", 2, 0, 1, 0.092), MARGINS) == (None, "right")
    assert judge(vector("camera_relative_direction", 2, 0, 1, 0.093), MARGINS) == "no dominant axis"


def test_a_label_that_is_asked_is_wrong_no_more_often_than_three_sigma_allow():
    # The truth is drawn around the measurement: 3 sigma on one side are 0.13 %.
    g = torch.Generator().manual_seed(0)
    for x, z, sigma in [(1.0, 0.3, 0.1), (0.6, 0.2, 0.04), (-2.0, 0.9, 0.1)]:
        label = judge(vector("camera_relative_direction", x, 0, z, sigma), MARGINS)[1]
        truths = torch.tensor([x, 0, z], dtype=torch.float64) + sigma * torch.randn(
            20000, 3, generator=g, dtype=torch.float64
        )
        right = (truths[:, 0].abs() > truths[:, 2].abs()) & ((truths[:, 0] > 0) == (label == "right"))
        assert right.double().mean() > 0.998


def test_an_object_that_stands_still_is_not_asked_how_it_moved():
    nothing = torch.zeros(0)
    for moving, asked in ((False, False), (None, True), (True, True)):
        track = Track(1, "car", nothing, nothing, nothing, nothing, (), moving)
        for task in ("object_absolute_distance", "object_relative_direction"):
            value = torch.tensor([1.0, 0, 0] if "direction" in task else 1.0)
            answer = judge(Relation(task, value, 0.01, track), MARGINS)
            assert (answer != "object stands still") == asked
        change = judge(Relation("object_camera_relative_distance", torch.tensor(1.0), 0.01, track), MARGINS)
        assert change == (None, "farther")


@pytest.mark.parametrize("task", ["camera_relative_direction", "camera_absolute_distance"])
def test_what_is_not_a_number_is_not_asked(task):
    value = [math.nan] * 3 if "direction" in task else math.nan
    assert judge(Relation(task, torch.tensor(value), 0.0, None), MARGINS) == "not measured"
    value = [1.0, 0, 0] if "direction" in task else 1.0
    assert judge(Relation(task, torch.tensor(value), math.inf, None), MARGINS) == "no sigma"


@pytest.mark.parametrize(
    ("key", "value"),
    [("ladder", 1.0), ("distance", (2.0, 1.0)), ("still", 0.5), ("percentile", 101), ("sigmas", -1), ("dominance", -1)],
)
def test_margins_are_checked(key, value):
    with pytest.raises(InputError, match=f"Margins: {key} must be"):
        Margins(**{key: value})
