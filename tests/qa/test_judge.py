import pytest
import torch

from mllm4d.qa.judge import Margins, Relation, judge

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
