"""Ray casting for the synthetic world: rays of an image, and what they hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.sources.world_motion import Array
from mllm4d.geometry.pointcloud import load_open3d

Floats = NDArray[np.float32]

MISSED = 0xFFFFFFFF
"""Open3D's id of what no ray has hit."""


@dataclass(frozen=True)
class Rays:
    """The rays of an image.

    Attributes:
        shape: (H, W).
        focal: Pixels.
        centres: [H * W, 6] through the pixels' centres, of z extent 1, so that a ray's parameter is the z-depth.
        offsets: [N, 2], where in a pixel finer rays go, pixels.
    """

    shape: tuple[int, int]
    focal: float
    centres: Floats
    offsets: Array

    @classmethod
    def of(cls, intrinsics: Array, height: int, width: int) -> Rays:
        """The rays of a pinhole camera with intrinsics [3, 3] (pixels, square)."""
        focal, middle = intrinsics[0, 0], intrinsics[:2, 2]
        y, x = np.mgrid[:height, :width]
        centres = _rays((np.stack([x, y], axis=-1).reshape(-1, 2) - middle) / focal)
        offsets = np.array([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]])
        return cls((height, width), float(focal), centres, offsets)

    def around(self, chosen: NDArray[np.bool_]) -> Floats:
        """Finer rays [M * N, 6] of chosen pixels [H, W]."""
        slopes = self.centres[chosen.reshape(-1), None, 3:5] + self.offsets / self.focal
        return _rays(slopes.reshape(-1, 2))


@dataclass(frozen=True)
class Hits:
    """What N rays have hit.

    Attributes:
        missed: [N], nothing was hit; triangle 0 and depth 1 stand in.
        triangle: [N], index.
        uv: [N, 2], weights of the triangle's second and third corner.
        depth: [N], the ray's parameter: z-depth for rays of z extent 1, metres.
        normals: [N, 3], unit normals of the triangles.
    """

    missed: NDArray[np.bool_]
    triangle: NDArray[np.int64]
    uv: Floats
    depth: Floats
    normals: Floats


def _rays(slopes: Array) -> Floats:
    rays = np.zeros((len(slopes), 6), dtype=np.float32)
    rays[:, 3:5], rays[:, 5] = slopes, 1
    return rays


def build_scene(vertices: Array, triangles: NDArray[np.uint32]) -> Any:
    """Open3D's scene of triangles [F, 3] with vertices [V, 3] in camera axes, metres."""
    open3d = load_open3d()
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(open3d.core.Tensor(vertices.astype(np.float32)), open3d.core.Tensor(triangles))
    return scene


def cast(scene: Any, rays: Floats) -> Hits:
    """What rays [N, 6] hit first in a scene of ``build_scene``; in one thread."""
    found = {
        name: value.numpy() for name, value in scene.cast_rays(load_open3d().core.Tensor(rays), nthreads=1).items()
    }
    missed = found["geometry_ids"] == MISSED
    return Hits(
        missed,
        np.where(missed, 0, found["primitive_ids"]).astype(np.int64),
        found["primitive_uvs"],
        np.where(missed, np.float32(1), found["t_hit"]),
        found["primitive_normals"],
    )
