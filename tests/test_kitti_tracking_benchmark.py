"""The benchmark of KITTI tracking: its own arithmetic by hand, and one sequence in earnest."""

import shutil

import numpy as np
import pytest

from tools.benchmarks.kitti_tracking import RawSequence, RawTrack, box_distance, is_parked, run

NEAREST = ("object_camera_absolute_distance", "object_camera_relative_distance")


def raw(places, camera, kind="Car"):
    """A camera that goes along ``camera`` [F, 3] without turning, and an object at ``places`` [F, 3] in the world."""
    count = len(camera)
    local = np.asarray(places, dtype=float) - camera
    rows = np.column_stack([np.tile([1.5, 1.6, 4.0], (count, 1)), local + np.array([0, 0.75, 0]), np.zeros(count)])
    track = RawTrack(kind, np.arange(count), rows)
    return RawSequence(np.tile(np.eye(3), (count, 1, 1)), np.asarray(camera, dtype=float), {0: track}), track


def test_distance_to_a_box_by_hand():
    # Length 4 along z after a quarter turn, bottom at y = 1: it reaches from z = 8 to 12, x = -1 to 1, y = -1 to 1.
    row = np.array([2.0, 2.0, 4.0, 0.0, 1.0, 10.0, np.pi / 2])
    assert box_distance(np.zeros(3), row) == pytest.approx(8)
    assert box_distance(np.array([4.0, 0, 8 - 4]), row) == pytest.approx(5)
    assert box_distance(np.array([0.7, 0, 10]), row) == pytest.approx(0.3)


def test_parked_by_hand():
    camera = np.outer(np.arange(20.0), [0, 0, 1])
    there = np.tile([3.0, 0, 25], (20, 1))
    assert is_parked(*raw(there, camera))
    # Poses that are 5 % too long: the car seems to follow.
    assert is_parked(*raw(there + 0.05 * camera, camera))
    # A car that goes across at 0.1 m a frame, one that goes ahead at a third of the camera's speed.
    assert not is_parked(*raw(there + np.outer(np.arange(20), [0.1, 0, 0]), camera))
    assert not is_parked(*raw(there + camera / 3, camera))
    assert not is_parked(*raw(there, camera, "Cyclist"))
    # Four frames and 4 m say too little.
    assert not is_parked(*raw(there[:4], camera[:4]))


def test_a_sequence_in_earnest(real_data, tmp_path):
    for kind in ("label", "poses"):
        shutil.copy(real_data / "kitti_tracking" / f"0000.{kind}.txt", tmp_path)
    result = run(tmp_path, pairs=6)
    assert len(result["relations"]) == 7
    for task, row in result["relations"].items():
        assert row["n"] >= 50
        # Points on a box's faces against the exact distance; all else to the rounding of the file.
        assert row["largest_m"] < (0.01 if task in NEAREST else 1e-4)
    assert result["parked_tracks"] == {"0000": [3, 5, 6, 7, 8, 9, 10, 11, 13, 14]}
    assert result["wrong"] == []
    assert result["verdicts"]["parked"].get("moving", 0) == 0
    assert result["verdicts"]["clearly moving"]["moving"] >= 5
    assert 0.02 < result["calibration"]["follows_per_metre"]["0000"]["median"] < 0.04
