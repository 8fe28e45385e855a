"""The texture of the synthetic world: paved, grainy, and no finer than a pixel can show."""

from __future__ import annotations

import numpy as np

from mllm4d.curate.sources.world_rays import Floats

OCTAVES = ((1.2, 0.3), (0.3, 0.5), (0.14, 0.55), (0.07, 0.5), (0.03, 0.4))
"""Size of a grain of noise, metres, and how strong it is."""

TILE, TILE_STRENGTH = 0.8, 0.45
"""Edge of a paving tile, metres, and how much tiles differ in brightness."""


class Texture:
    """An endless plane of paving tiles and noise.

    Args:
        rng: Draws the tiles and the noise.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._noise = rng.uniform(-1, 1, size=(256, 256)).astype(np.float32)
        self._tiles = _tiles(rng)

    def at(self, u: Floats, v: Floats, pixel: Floats) -> Floats:
        """Brightness.

        Args:
            u: [N], metres.
            v: [N], metres.
            pixel: [N], size of a pixel on the surface, metres.

        Returns:
            [N], around 0, mostly within -1 to 1.
        """
        paving = _look_up(self._tiles, u * (8 / TILE), v * (8 / TILE))
        value = TILE_STRENGTH * paving / (1 + (pixel / TILE) ** 2)
        for k, (grain, strength) in enumerate(OCTAVES):
            # Grains smaller than two pixels would flicker; those of one are gone.
            visible = strength * np.clip(grain / pixel - 1, 0, 1)
            if visible.any():
                value += visible * _look_up(self._noise, u / grain + 37 * k, v / grain + 61 * k)
        return value


def _look_up(texture: Floats, u: Floats, v: Floats) -> Floats:
    """Values of an endlessly repeated image at texels (u, v), interpolated."""
    import cv2

    count = len(u)
    # OpenCV takes maps of at most 32767 rows.
    rows = -(-count // 1024)
    flat = np.zeros((2, rows * 1024), dtype=np.float32)
    flat[:, :count] = u, v
    across, down = flat.reshape(2, rows, 1024)
    found = cv2.remap(texture, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(found, dtype=np.float32).reshape(-1)[:count]


def _tiles(rng: np.random.Generator) -> Floats:
    """Paving of 64 x 64 tiles, 8 texels each, with dark joints and every second row shifted by half a tile."""
    bright = rng.uniform(-1, 1, size=(64, 64)).astype(np.float32).repeat(8, 0).repeat(8, 1)
    bright[::8] = -1
    bright[:, ::8] = -1
    rows = bright.reshape(64, 8, 512)
    rows[1::2] = np.roll(rows[1::2], 4, axis=-1)
    return rows.reshape(512, 512)
