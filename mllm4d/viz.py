"""Figures for people: a clip's path, points and questions in 3-D, counts, and what blind solvers score (Plotly).

Coloured points are kept as PLY files, which any viewer opens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm4d.schema import InputError, Question

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PLY_HEADER = """\
ply
format ascii 1.0
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""

COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#bcbd22")


def scene_figure(
    scene: Mapping[str, Any], questions: Sequence[Question] = (), cloud: Mapping[str, Any] | None = None
) -> Figure:
    """A clip in 3-D: camera path with its first and last view, object paths, points, and what questions are about.

    Args:
        scene: The content of ``scene.json``.
        questions: Each is drawn from its solution when its name in the legend is clicked.
        cloud: ``points`` [N][3], world, metres, and ``colors`` [N][3], 0-255.

    Returns:
        The figure, in the world's axes (+Y down) with up on top.

    Raises:
        InputError: The scene has no camera.
    """
    import plotly.graph_objects as go

    if scene["camera"] is None:
        raise InputError("scene.json: key 'camera' is null, so that there is no path to draw")
    poses = np.array(scene["camera"]["world_to_camera"])
    figure = go.Figure()
    if cloud:
        colors = [f"rgb({r},{g},{b})" for r, g, b in cloud["colors"]]
        figure.add_trace(_trace(go, cloud["points"], "points", mode="markers", marker={"size": 2, "color": colors}))
    centers = -np.einsum("tji,tj->ti", poses[:, :3, :3], poses[:, :3, 3])
    line = {"color": "black", "width": 5}
    figure.add_trace(_trace(go, centers, "camera", mode="lines+markers", line=line, marker={"size": 3}))
    for t, name in ((0, "first view"), (len(poses) - 1, "last view")):
        frustum = _frustum(poses[t], np.array(scene["camera"]["intrinsics"]), 0.1 * _extent(scene, centers))
        figure.add_trace(_trace(go, frustum, name, mode="lines", line={"color": "gray", "width": 2}))
    for k, track in enumerate(scene["objects"]):
        path = [point or [None] * 3 for point in track["centers"]]
        moving = {True: "moves", False: "stands still", None: "moving unknown"}[track["moving"]]
        color = COLORS[k % len(COLORS)]
        figure.add_trace(
            _trace(
                go,
                path,
                f"{track['name']} ({moving})",
                mode="lines+markers",
                line={"color": color, "width": 4},
                marker={"size": 4, "color": color},
            )
        )
    for question in questions:
        if drawn := _drawn(question):
            name = f"{question.id.rsplit('/', 1)[-1]} {question.task}"
            style = {"mode": "lines", "visible": "legendonly", "line": {"color": "magenta", "width": 8}}
            figure.add_trace(_trace(go, drawn, name, **style))
    up = {"up": {"x": 0, "y": -1, "z": 0}, "eye": {"x": -0.8, "y": -1.2, "z": -2.0}}
    axes = {f"{axis}axis": {"title": f"{axis} (m)"} for axis in "xyz"}
    figure.update_layout(
        scene={"aspectmode": "data", "camera": up, **axes},
        height=520,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=True,
    )
    return figure


def bars(counts: Mapping[str, float], title: str, unit: str = "questions") -> Figure:
    """Horizontal bars, the first on top.

    Args:
        counts: Name to length.
        title: Above the bars.
        unit: Of the length.
    """
    import plotly.graph_objects as go

    names = list(counts)
    figure = go.Figure(go.Bar(x=[counts[name] for name in names], y=names, orientation="h"))
    figure.update_layout(
        title=title,
        xaxis_title=unit,
        yaxis={"autorange": "reversed", "type": "category"},
        height=120 + 24 * len(names),
        margin={"l": 10, "r": 10, "t": 40, "b": 40},
    )
    figure.update_yaxes(automargin=True)
    return figure


def blind_figure(blind: Mapping[str, Mapping[str, float]]) -> Figure:
    """What solvers score that never see the video, per task, beside chance.

    Args:
        blind: Task to ``{"n": …, "chance": …, solver: accuracy, …}``, as in ``index.json``.
    """
    import plotly.graph_objects as go

    solvers = dict.fromkeys(name for row in blind.values() for name in row if name not in ("n", "chance"))
    figure = go.Figure()
    for solver in solvers:
        figure.add_trace(go.Bar(name=solver, x=list(blind), y=[row.get(solver) for row in blind.values()]))
    chance = [row["chance"] for row in blind.values()]
    line = {"mode": "markers", "marker": {"symbol": "line-ew-open", "size": 60, "color": "black", "line_width": 3}}
    figure.add_trace(go.Scatter(name="chance", x=list(blind), y=chance, **line))
    figure.update_layout(
        barmode="group", yaxis={"title": "accuracy", "range": [0, 1]}, height=420, margin={"t": 20, "b": 40}
    )
    return figure


def write_ply(path: Path, cloud: Mapping[str, Any]) -> Path:
    """Write coloured points as a PLY file; the same points give the same bytes.

    Args:
        path: The file; its folder is made where there is none.
        cloud: ``points`` [N][3], metres, kept to the millimetre, and ``colors`` [N][3], 0-255.

    Returns:
        The file.
    """
    rows = zip(cloud["points"], cloud["colors"], strict=True)
    lines = ["{:.3f} {:.3f} {:.3f} {:d} {:d} {:d}\n".format(*point, *color) for point, color in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(PLY_HEADER.format(count=len(lines)) + "".join(lines))
    os.replace(beside, path)
    return path


def read_ply(path: Path) -> dict[str, Any]:
    """Read what ``write_ply`` has written.

    Args:
        path: The file.

    Returns:
        ``points`` [N, 3] float64, metres, and ``colors`` [N, 3] uint8.

    Raises:
        InputError: It has another header, or its lines are not as many as it says, of three numbers and three colours.
    """
    text = path.read_text()
    head, mark, body = text.partition("end_header\n")
    try:
        rows = np.array([line.split() for line in body.splitlines()], dtype=np.float64).reshape(-1, 6)
    except ValueError as error:
        raise InputError(f"{path}: expected lines of x y z red green blue ({error})") from error
    if head + mark != PLY_HEADER.format(count=len(rows)):
        raise InputError(f"{path}: expected an ASCII PLY file of coloured points, as many as its header says")
    return {"points": rows[:, :3], "colors": rows[:, 3:].astype(np.uint8)}


def _trace(go: Any, points: Any, name: str, **style: Any) -> Any:
    x, y, z = zip(*points, strict=True) if len(points) else ((), (), ())
    return go.Scatter3d(x=x, y=y, z=z, name=name, **style)


def _extent(scene: Mapping[str, Any], centers: np.ndarray) -> float:
    """How far the drawn things reach, metres."""
    seen = [point for track in scene["objects"] for point in track["centers"] if point]
    everything = np.concatenate([centers, np.array(seen).reshape(-1, 3)])
    return max(1.0, float(np.linalg.norm(np.ptp(everything, axis=0))))


def _frustum(pose: np.ndarray, intrinsics: np.ndarray, depth: float) -> np.ndarray:
    """Corners of a camera's view at a depth and its centre, as one line [M, 3], world."""
    width, height = 2 * intrinsics[0, 2] + 1, 2 * intrinsics[1, 2] + 1
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(intrinsics).T
    points = np.concatenate([[[0, 0, 0]], corners * depth])
    world = (points - pose[:3, 3]) @ pose[:3, :3]
    return world[[0, 1, 2, 0, 3, 4, 0, 2, 3, 0, 4, 1]]


def _drawn(question: Question) -> list[list[float]] | None:
    """The points that a question is about, as one line."""
    camera, target = question.solution["camera_center"], question.solution["object_center"]
    if question.task.startswith("camera"):
        return camera
    if target is None:
        return None
    if question.task.startswith("object_camera"):
        first = camera[0]
        return (
            [first, target[1]]
            if question.task.endswith("absolute_distance")
            else [first, target[0], target[1], camera[1]]
        )
    return target
