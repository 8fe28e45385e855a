"""Objects that come as boxes: from boxes in camera axes to tracks in the world."""

from __future__ import annotations

import torch
from torch import Tensor

from mllm4d.curate.objects import moves
from mllm4d.geometry.pose import invert, transform
from mllm4d.schema import Boxes, Camera, Track

MAX_POINTS = 400
"""Points on a box at most; a car then has one every 0.3 m, so that the nearest of them is less than 5 mm farther away
than the nearest point of the box from 5 m on."""

FINEST = 0.05
"""Points on a small box need not be closer, metres."""


def track_from_boxes(boxes: Boxes, camera: Camera) -> Track:
    """Take a box's places to the world.

    Args:
        boxes: The object, in each frame's camera axes.
        camera: The camera that saw it.

    Returns:
        The track. Its points lie on the box's six faces, corners included; frames where it is not seen have none. All
        three sigmas are the box's.
    """
    camera_to_world = invert(camera.world_to_camera.double())
    seen = boxes.centers.isfinite().all(-1)
    centers = transform(camera_to_world, boxes.centers.double()[:, None])[:, 0]
    sigma = torch.where(seen, boxes.sigma.double(), torch.nan)
    points: list[Tensor] = []
    for t, here in enumerate(seen.tolist()):
        if not here:
            points.append(torch.empty(0, 3, dtype=torch.float64))
            continue
        local = surface(boxes.sizes[t].double()) @ boxes.rotations[t].double().mT + boxes.centers[t].double()
        points.append(transform(camera_to_world[t], local))
    return Track(
        id=boxes.id,
        name=boxes.name,
        centers=torch.where(seen[:, None], centers, torch.nan),
        center_sigma=sigma,
        motion_sigma=sigma.clone(),
        surface_sigma=sigma.clone(),
        points=tuple(points),
        moving=moves(centers, sigma, camera),
    )


def surface(size: Tensor) -> Tensor:
    """Points on the faces of a box about the origin, on a grid that holds the corners.

    Args:
        size: [3], lengths of the edges, metres.

    Returns:
        [M, 3] float64, box axes, metres; at most ``MAX_POINTS``, ``FINEST`` apart or more.
    """
    spacing, lengths = FINEST, size.double()
    counts = _counts(lengths, spacing)
    while _on_surface(counts) > MAX_POINTS:
        spacing *= 1.05
        counts = _counts(lengths, spacing)
    grid = torch.cartesian_prod(*(torch.linspace(-0.5, 0.5, count, dtype=torch.float64) for count in counts))
    return grid[(grid.abs() == 0.5).any(-1)] * lengths


def _counts(lengths: Tensor, spacing: float) -> list[int]:
    return [max(2, int(length / spacing) + 1) for length in lengths.tolist()]


def _on_surface(counts: list[int]) -> int:
    a, b, c = counts
    return a * b * c - (a - 2) * (b - 2) * (c - 2)
