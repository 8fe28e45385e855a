"""Images of the synthetic world, by ray casting: exact depth and masks, textured surfaces, one thread."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.sources.world_layout import SUBSTEPS, Layout
from mllm4d.curate.sources.world_motion import Array
from mllm4d.curate.sources.world_rays import Floats, Hits, Rays, build_scene, cast
from mllm4d.curate.sources.world_shapes import Mesh, ground, placed, unit_mesh, walls
from mllm4d.curate.sources.world_texture import Texture


@dataclass(frozen=True)
class View:
    """One image.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        depth: [H, W] float32, z-depth at the pixels' centres, metres, 0 in the sky.
        bodies: [H, W], index of the named object at the pixels' centres, -1 elsewhere.
    """

    image: NDArray[np.uint8]
    depth: Floats
    bodies: NDArray[np.int32]


class Stage:
    """A layout with its surfaces painted, ready to be looked at.

    Args:
        layout: What stands where.
        rng: Paints the surfaces and sets the sun.
    """

    def __init__(self, layout: Layout, rng: np.random.Generator) -> None:
        self.layout = layout
        self.camera_to_stage = layout.rig.camera_to_stage()[::SUBSTEPS]
        self._texture = Texture(rng)
        azimuth = rng.uniform(0, 2 * np.pi)
        self._sun = np.array([0.6 * np.sin(azimuth), -0.8, 0.6 * np.cos(azimuth)])
        self._bodies = [*layout.solids, *layout.props]
        backdrop = [ground(layout.yard), *walls(layout.yard, rng)]
        meshes = [unit_mesh(solid.shape) for solid in self._bodies] + backdrop
        starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
        self._spans = list(pairwise(starts))
        self._vertices = np.concatenate(
            [placed(body, unit_mesh(body.shape).vertices, 0) for body in self._bodies]
            + [mesh.vertices for mesh in backdrop]
        )
        self._triangles = np.concatenate([m.triangles + s for m, s in zip(meshes, starts, strict=False)]).astype(
            np.uint32
        )
        self._body = np.repeat(np.arange(len(meshes)), [len(mesh.triangles) for mesh in meshes])
        self._ground = len(self._bodies)
        tints = rng.uniform(110, 200, size=(len(backdrop), 1)) * (1 + rng.uniform(-0.12, 0.12, size=(len(backdrop), 3)))
        self._colours = np.concatenate([[body.colour for body in self._bodies], tints]).astype(np.float32)
        named = len(layout.solids)
        self._grain = np.where(np.arange(len(meshes)) < named, 2.5, 1.0).astype(np.float32)
        self._contrast = np.where(np.arange(len(meshes)) < named, 0.4, 0.5).astype(np.float32)
        self._corners = np.concatenate([self._paint(mesh, k, rng) for k, mesh in enumerate(meshes)])

    def _paint(self, mesh: Mesh, body: int, rng: np.random.Generator) -> Floats:
        """Texture coordinates (metres times grain) and light at the corners of triangles, [F, 3 corners, 3]."""
        sizes = self._bodies[body].size if body < len(self._bodies) else 1.0
        corners = mesh.vertices[mesh.triangles] * sizes
        # A triangle is painted from the axis that it faces most.
        facing = np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])).argmax(-1)
        axes = np.array([[2, 1], [0, 2], [0, 1]])[facing]
        flat = np.take_along_axis(corners, axes[:, None].repeat(3, 1), axis=-1)
        # The ground keeps its coordinates: they tell where shadows fall.
        shift = 0.0 if body == self._ground else rng.uniform(0, 50, size=2)
        light = self._light(mesh.normals, 0.0 if body >= len(self._bodies) else self._bodies[body].yaw[0], sizes)
        return np.concatenate([flat * self._grain[body] + shift, light[..., None]], axis=-1).astype(np.float32)

    def _light(self, normals: Array, yaw: float, sizes: Array | float) -> Array:
        """Lambert's law with ambient light."""
        sine, cosine = np.sin(yaw), np.cos(yaw)
        sun = self._sun @ np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
        stretched = normals / sizes
        stretched = stretched / np.linalg.norm(stretched, axis=-1, keepdims=True)
        return 0.62 + 0.45 * np.maximum(stretched @ sun, 0)

    def look(self, frame: int, shift: float, rays: Rays, noise: Floats) -> View:
        """Take one image.

        Args:
            frame: Its index in time.
            shift: How far to the right of the camera the image is taken from, metres.
            rays: The image's rays.
            noise: [H, W, 3], added to the image, grey levels.
        """
        step = frame * SUBSTEPS
        vertices, corners = self._vertices.copy(), self._corners
        if any(solid.motion.length for solid in self.layout.solids):
            corners = corners.copy()
        for k, solid in enumerate(self.layout.solids):
            if solid.motion.length:
                mesh = unit_mesh(solid.shape)
                vertices[slice(*self._spans[k])] = placed(solid, mesh.vertices, step)
                corners[self._body == k, :, 2] = self._light(mesh.normals, solid.yaw[step], solid.size)
        pose = self.camera_to_stage[frame]
        seen = (vertices - pose[:3, 3]) @ pose[:3, :3] - [shift, 0, 0]
        scene = build_scene(seen, self._triangles)
        # Weights of the corners: 1 - u - v, u, v.
        table = np.stack([corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=1)
        hits = cast(scene, rays.centres)
        image = self._shade(hits, rays.centres, rays.focal, table, step).reshape(*rays.shape, 3)
        bodies = np.where(hits.missed, -1, self._body[hits.triangle]).reshape(rays.shape).astype(np.int32)
        edge = _edges(bodies)
        if edge.any():
            fine = rays.around(edge)
            shaded = self._shade(cast(scene, fine), fine, rays.focal, table, step)
            image[edge] = shaded.reshape(-1, len(rays.offsets), 3).mean(1)
        depth = np.where(hits.missed, np.float32(0), hits.depth).reshape(rays.shape)
        named = np.where(bodies < len(self.layout.solids), bodies, -1)
        return View(np.clip(np.rint(image + noise), 0, 255).astype(np.uint8), depth, named)

    def _shade(self, hits: Hits, rays: Floats, focal: float, table: Floats, step: int) -> Floats:
        """Colours [N, 3] of what rays have hit, 0-255."""
        chosen = np.take(table.reshape(-1, 9), hits.triangle, axis=0).reshape(-1, 3, 3)  # [N, weights, attributes]
        u, v, light = (chosen[:, 0] + hits.uv[:, :1] * chosen[:, 1] + hits.uv[:, 1:] * chosen[:, 2]).T
        body = self._body[hits.triangle]
        # Size of a pixel on the surface; slanted surfaces are met half-way between their two extents.
        way = rays[:, 3:]
        slant = np.abs(np.einsum("nc,nc->n", hits.normals, way)) / np.sqrt(np.einsum("nc,nc->n", way, way))
        pixel = hits.depth / np.float32(focal) / np.sqrt(np.maximum(slant, np.float32(0.02))) * self._grain[body]
        light = light * (1 + self._contrast[body] * self._texture.at(u, v, pixel))
        light *= self._shadow(u, v, body == self._ground, step)
        colours = self._colours[body] * light[:, None]
        up = np.clip(0.5 - rays[:, 4:5], 0, 1)
        sky = np.array([215, 225, 235], np.float32) - up * np.array([90, 60, 15], np.float32)
        return np.where(hits.missed[:, None], sky, colours)

    def _shadow(self, u: Floats, v: Floats, ground: NDArray[np.bool_], step: int) -> Floats:
        """A soft dark spot on the ground under every solid, as under an overcast sky."""
        shadow = np.ones_like(u)
        x, z = u[ground], v[ground]
        darkness = np.ones_like(x)
        for body in self._bodies:
            place = body.positions[step if len(body.positions) > 1 else 0].astype(np.float32)
            reach = np.float32(1.15 * body.radius)
            away = ((x - place[0]) ** 2 + (z - place[1]) ** 2) / reach**2
            darkness *= 1 - np.float32(0.6) * np.exp(-(away**2))
        shadow[ground] = darkness
        return shadow


def _edges(bodies: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels next to one of another body."""
    edge = np.zeros(bodies.shape, dtype=bool)
    across, down = bodies[:, 1:] != bodies[:, :-1], bodies[1:] != bodies[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge
