"""What a figure draws is where the scene says."""

import json

import numpy as np
import pytest

from mllm4d.geometry.pointcloud import load_open3d
from mllm4d.schema import InputError, Question
from mllm4d.viz import bars, blind_figure, read_ply, scene_figure, write_ply


def scene():
    poses = [np.eye(4), np.eye(4)]
    poses[1][:3, :3] = [[0, 0, -1], [0, 1, 0], [1, 0, 0]]
    poses[1][:3, 3] = [0, 0, -2]  # the centre is at (2, 0, 0)
    return {
        "camera": {
            "intrinsics": [[50, 0, 31.5], [0, 50, 31.5], [0, 0, 1]],
            "world_to_camera": [pose.tolist() for pose in poses],
        },
        "objects": [{"id": 1, "name": "red ball", "centers": [[0, 0, 5], None], "moving": None}],
    }


def question(task, target):
    solution = {"camera_center": [[0, 0, 0], [2, 0, 0]], "object_center": target}
    return Question("k/004", task, "?", {"A": "1 m", "B": "2 m"}, "A", 1.0, "m", (0, 1), None, solution, None)


def trace(figure, start):
    (found,) = [trace for trace in figure.data if trace.name.startswith(start)]
    return list(zip(found.x, found.y, found.z, strict=True)), found


def test_the_camera_path_goes_through_the_centres():
    points, _ = trace(scene_figure(scene()), "camera")
    assert np.allclose(points, [[0, 0, 0], [2, 0, 0]])


def test_a_view_opens_along_the_optical_axis():
    points, _ = trace(scene_figure(scene()), "last view")
    away = np.array(points)[[1, 2, 4, 5]].mean(0) - [2, 0, 0]
    # The rows of the rotation are the camera's axes in the world: z looks along +x.
    assert away[0] > 0
    assert abs(away[1:]).max() < 0.02 * away[0]


def test_objects_and_questions():
    target = [[0, 0, 5], [1, 0, 5]]
    questions = [question("object_camera_absolute_distance", target), question("object_absolute_distance", None)]
    figure = scene_figure(scene(), questions, {"points": [[0, 0, 1]], "colors": [[255, 0, 0]]})
    assert trace(figure, "red ball (moving unknown)")[0] == [(0, 0, 5), (None, None, None)]
    points, style = trace(figure, "004 object_camera_absolute_distance")
    assert points == [(0, 0, 0), (1, 0, 5)]
    assert style.visible == "legendonly"
    assert not [t for t in figure.data if t.name.startswith("004 object_absolute_distance")]
    assert trace(figure, "points")[1].marker.color == ("rgb(255,0,0)",)
    assert json.loads(figure.to_json())["layout"]["scene"]["camera"]["up"] == {"x": 0, "y": -1, "z": 0}


def test_bars_and_blind_solvers():
    assert bars({"left": 3, "right": 2}, "t").data[0].x == (3, 2)
    figure = blind_figure({"a": {"n": 4, "chance": 0.25, "prior": 0.5}, "b": {"n": 4, "chance": 1 / 3}})
    assert figure.data[0].y == (0.5, None)
    assert figure.data[1].y == pytest.approx((0.25, 1 / 3))


def test_a_ply_file_comes_back_and_any_viewer_reads_it(tmp_path):
    cloud = {"points": [[0.0, 1.5, -2.25], [3.0, 0.001, 4.0]], "colors": [[255, 0, 7], [1, 2, 3]]}
    path = write_ply(tmp_path / "clouds" / "a.ply", cloud)
    again = read_ply(path)
    assert again["points"].tolist() == cloud["points"]
    assert again["colors"].tolist() == cloud["colors"]
    assert [file.name for file in path.parent.iterdir()] == ["a.ply"]
    # An independent reader.
    other = load_open3d().io.read_point_cloud(str(path))
    assert np.allclose(np.asarray(other.points), cloud["points"])
    assert np.allclose(np.asarray(other.colors) * 255, cloud["colors"])


@pytest.mark.parametrize("damage", [("0.000 1.500", "zero 1.500"), ("vertex 1", "vertex 2"), ("float x", "double x")])
def test_a_broken_ply_file_is_named(tmp_path, damage):
    path = write_ply(tmp_path / "a.ply", {"points": [[0.0, 1.5, 2.0]], "colors": [[1, 2, 3]]})
    path.write_text(path.read_text().replace(*damage))
    with pytest.raises(InputError, match=r"a\.ply"):
        read_ply(path)
