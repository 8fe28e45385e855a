"""What stands in the plan and among the points is where the scene says."""

import numpy as np
import pytest

from mllm4d.train.scene_views import PREDICTED, paths_of, plan, scene_points
from mllm4d.viz import COLORS


def scene():
    """The camera looks along the world's +x, stands at (1, 0, 0), and goes 2 m ahead; a ball is seen at first only."""
    look = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # rows are the camera's axes in the world
    poses = []
    for x in (1.0, 3.0):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = look, -look @ [x, 0, 0]
        poses.append(pose.tolist())
    ball = {"id": 0, "name": "red ball", "centers": [[5.0, 0.0, -2.0], None], "moving": None}
    return {"camera": {"world_to_camera": poses}, "objects": [ball], "times": [0.0, 1.0]}


def pixels(image, color):
    """Rows and columns of a colour, [N, 2]."""
    rgb = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return np.argwhere((np.asarray(image) == rgb).all(-1))


def test_paths_are_in_the_axes_of_the_first_view():
    paths = paths_of(scene())
    assert np.allclose(paths.camera, [[0, 0, 0], [0, 0, 2]])
    assert np.allclose(paths.objects["red ball"][0], [2, 0, 4])
    assert np.isnan(paths.objects["red ball"][1]).all()
    assert np.allclose(paths.views, [[0, 0, 1], [0, 0, 1]])


def test_a_scene_without_a_camera_has_no_paths():
    assert paths_of({"camera": None}) is None
    assert paths_of({"units": "m"}) is None


def test_the_plan_has_ahead_on_top_and_right_on_the_right():
    image = plan(paths_of(scene()), side=200)
    ball, camera = pixels(image, COLORS[0]).mean(0), pixels(image, "#000000").mean(0)
    assert ball[0] < camera[0] - 20
    assert ball[1] > camera[1] + 20
    # 4 m from front to back fill 86 % of the side; the camera's middle is 1 m ahead of the first view.
    assert ball[0] == pytest.approx(100 - 0.43 * 200, abs=1.5)
    assert camera[0] == pytest.approx(100 + 0.43 * 200 / 2, abs=3)


def test_a_prediction_stands_where_it_was_said_and_what_is_no_point_is_not_drawn():
    paths = paths_of(scene())
    image = plan(paths, predicted=[(2.0, 0.0, 4.0), None, "x"], side=200)
    assert pixels(image, PREDICTED).mean(0) == pytest.approx(pixels(plan(paths, side=200), COLORS[0]).mean(0), abs=1.5)
    assert len(pixels(plan(paths, predicted=[None, "x"], side=200), PREDICTED)) == 0


def test_a_prediction_far_away_stands_at_the_edge():
    rows = pixels(plan(paths_of(scene()), predicted=[(0.0, 0.0, 1e9)], side=200), PREDICTED)
    assert len(rows)
    assert rows[:, 0].max() < 15


def test_the_plan_goes_along_with_the_clip():
    first, last = (pixels(plan(paths_of(scene()), frame=t, side=200), "#000000").mean(0) for t in (0, 1))
    assert last[0] < first[0] - 3


def test_points_are_the_path_the_objects_and_the_cloud():
    points, colors = scene_points(scene(), {"points": [[9.0, 9.0, 9.0]], "colors": [[1, 2, 3]]})
    assert points.shape == colors.shape
    assert colors.dtype == np.uint8
    assert points[-1].tolist() == [9, 9, 9]
    assert colors[-1].tolist() == [1, 2, 3]
    path = points[(colors == 0).all(1)]
    assert np.allclose(path[:, 1:], 0)
    assert path[0].tolist() == [1, 0, 0]
    assert path[-1].tolist() == [3, 0, 0]
    red = [int(COLORS[0][k : k + 2], 16) for k in (1, 3, 5)]
    assert points[(colors == red).all(1)].tolist() == [[5, 0, -2]]
