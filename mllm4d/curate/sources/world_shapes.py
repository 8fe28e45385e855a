"""The surfaces of the synthetic world: triangle meshes of its solids, its ground and its walls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.sources.world_layout import Solid
from mllm4d.curate.sources.world_motion import Array
from mllm4d.geometry.pointcloud import load_open3d


@dataclass(frozen=True)
class Mesh:
    """A solid of extent 1, standing upright with its vertical axis through the origin and its centre at y = 0.

    Attributes:
        vertices: [V, 3].
        triangles: [F, 3], indices.
        normals: [F, 3, 3], outward unit normal at each triangle's corners; smooth over round parts.
    """

    vertices: Array
    triangles: NDArray[np.int64]
    normals: Array


@lru_cache
def unit_mesh(shape: str) -> Mesh:
    """The mesh of a shape, one of ``world_layout.SHAPES``; its y axis points down, as everywhere."""
    make = load_open3d().geometry.TriangleMesh
    if shape == "cube":
        made = make.create_box()
    elif shape == "ball":
        made = make.create_sphere(0.5, resolution=14)
    elif shape == "cylinder":
        made = make.create_cylinder(0.5, 1.0, resolution=28, split=1)
    else:
        made = make.create_cone(0.5, 1.0, resolution=28, split=1)
    raw, triangles = np.asarray(made.vertices), np.asarray(made.triangles).astype(np.int64)
    # Open3D builds along z; here up is -y.
    vertices = np.stack([raw[:, 0], -raw[:, 2], raw[:, 1]], axis=-1)
    vertices -= (vertices.max(0) + vertices.min(0)) / 2
    corners = vertices[triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outward = np.sign((faces * corners.mean(1)).sum(-1, keepdims=True))
    faces = outward * faces / np.linalg.norm(faces, axis=-1, keepdims=True)
    # A corner's normal is the mean over the faces around it that bend away by less than 45 degrees.
    touching = (triangles[:, :, None, None] == triangles).any(-1)  # [F, 3, F]
    near = touching & (faces @ faces.T > 0.7)[:, None]
    normals = near.astype(float) @ faces
    return Mesh(vertices, triangles, normals / np.linalg.norm(normals, axis=-1, keepdims=True))


def centroid_height(solid: Solid) -> float:
    """Height of a solid's centre of mass over the ground, metres: a quarter up a cone, half-way up the others."""
    return float(solid.size[1]) * (0.25 if solid.shape == "cone" else 0.5)


def placed(solid: Solid, points: Array, step: int) -> Array:
    """Carry points of a solid's unit mesh to the stage.

    Args:
        solid: The solid.
        points: [..., 3], in the axes of ``unit_mesh``.
        step: Which of the solid's positions.
    """
    x, y, z = np.moveaxis(points * solid.size, -1, 0)
    sine, cosine = np.sin(solid.yaw[step]), np.cos(solid.yaw[step])
    along_x, along_z = solid.positions[step]
    height = solid.size[1] / 2
    return np.stack([x * cosine + z * sine + along_x, y - height, z * cosine - x * sine + along_z], axis=-1)


def surface_points(solid: Solid, count: int) -> Array:
    """Points spread evenly over a solid's surface, the same in every run.

    Args:
        solid: The solid.
        count: How many.

    Returns:
        [count, 3], in the axes of ``unit_mesh``.
    """
    mesh = unit_mesh(solid.shape)
    corners = mesh.vertices[mesh.triangles]
    edges = (corners * solid.size)[:, 1:] - (corners * solid.size)[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1).cumsum()
    index = np.arange(count) + 0.5
    chosen = np.searchsorted(area, index / count * area[-1])
    # Roberts' R2 sequence, folded from the unit square into the triangle.
    a, b = index * 0.7548776662466927 % 1, index * 0.5698402909980532 % 1
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    weights = np.stack([1 - a - b, a, b], axis=-1)
    return (weights[..., None] * corners[chosen]).sum(1)


def _quad(origin: Array, across: Array, down: Array, normal: Array) -> Mesh:
    """A flat patch, cut into 6 x 6 so that barycentric coordinates stay exact."""
    share = np.linspace(0, 1, 7)
    grid = origin + share[:, None, None] * down + share[None, :, None] * across
    corner = (np.arange(6)[:, None] * 7 + np.arange(6)).reshape(-1)
    triangles = np.concatenate([corner[:, None] + [0, 1, 7], corner[:, None] + [1, 8, 7]])
    normals = np.broadcast_to(np.asarray(normal, dtype=float), (len(triangles), 3, 3))
    return Mesh(grid.reshape(-1, 3), triangles, normals)


def ground(yard: Array) -> Mesh:
    """The ground, y = 0, between the walls of a yard [2, 2] as in ``world_layout.Layout``; in stage axes."""
    (left, near), (right, far) = yard
    across, down = np.array([right - left, 0, 0]), np.array([0, 0, far - near])
    return _quad(np.array([left, 0, near]), across, down, np.array([0, -1, 0]))


def walls(yard: Array, rng: np.random.Generator) -> list[Mesh]:
    """The four walls around a yard, 5.5-8.5 m high; in stage axes."""
    (left, near), (right, far) = yard
    sides = [
        ((left, far), (right - left, 0), (0, -1)),
        ((left, near), (right - left, 0), (0, 1)),
        ((left, near), (0, far - near), (1, 0)),
        ((right, near), (0, far - near), (-1, 0)),
    ]
    walls = []
    for (x, z), (along_x, along_z), (normal_x, normal_z) in sides:
        height = rng.uniform(5.5, 8.5)
        across, normal = np.array([along_x, 0, along_z]), np.array([normal_x, 0, normal_z])
        walls.append(_quad(np.array([x, -height, z]), across, np.array([0, height, 0]), normal))
    return walls
