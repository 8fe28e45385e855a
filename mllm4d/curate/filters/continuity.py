"""How smoothly a camera goes its way: steps, detours, bends, and what is a jump or jitter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Travel:
    """How a path goes from frame to frame, by place (metres) or by heading (radians); T frames.

    Attributes:
        steps: [T - 1], length of the step from frame t to frame t + 1.
        detours: [T - 2], how much longer the way over frame t + 1 is than the way that leaves it out. A wrong pose in
            the middle of a path makes a detour of about twice its error.
        bends: [T - 2], size of the difference of two neighbouring steps.
    """

    steps: Tensor
    detours: Tensor
    bends: Tensor


def travel_of_places(centers: Tensor) -> Travel:
    """How a point travels.

    Args:
        centers: [T, 3], metres.
    """
    steps = centers.diff(dim=0)
    lengths = steps.norm(dim=-1)
    across = (centers[2:] - centers[:-2]).norm(dim=-1)
    return Travel(lengths, lengths[:-1] + lengths[1:] - across, steps.diff(dim=0).norm(dim=-1))


def travel_of_headings(rotations: Tensor) -> Travel:
    """How a camera turns.

    Args:
        rotations: [T, 3, 3], world-to-camera.
    """
    steps = rotations[1:] @ rotations[:-1].mT
    lengths = angle(steps)
    across = angle(rotations[2:] @ rotations[:-2].mT)
    return Travel(lengths, lengths[:-1] + lengths[1:] - across, angle(steps[1:] @ steps[:-1].mT))


def angle(rotations: Tensor) -> Tensor:
    """Angle of rotations [..., 3, 3], radians; stable for small ones too."""
    # || R - 1 ||_F = 2 sqrt(2) sin(angle / 2)
    off = (rotations - torch.eye(3, dtype=rotations.dtype)).flatten(-2).norm(dim=-1)
    return 2 * torch.asin((off / 8**0.5).clamp(max=1.0))


def find_spikes(travel: Travel, floor: Tensor) -> list[int]:
    """Frames that lie off the path between their neighbours.

    Args:
        travel: Of T frames.
        floor: [T - 2] or [], the largest detour that is possible.

    Returns:
        Frames, from 1 to T - 2.
    """
    return (torch.nonzero(travel.detours > floor)[:, 0] + 1).tolist()


def find_jumps(travel: Travel, ratio: float, floor: Tensor) -> list[int]:
    """Steps that are much longer than the steps around them.

    A camera that starts or stops makes one step longer than one of its neighbours, a jump is longer than both.

    Args:
        travel: Of T frames; with fewer than three there is nothing to compare with.
        ratio: A step may be so many times as long as the longer of its neighbours,
        floor: [T - 1] or [], and so much longer.

    Returns:
        Every t with a jump between frames t and t + 1.
    """
    steps = travel.steps
    if len(steps) < 2:
        return []
    zero = steps.new_zeros(1)
    around = torch.maximum(torch.cat([zero, steps[:-1]]), torch.cat([steps[1:], zero]))
    return torch.nonzero(steps > ratio * around + floor)[:, 0].tolist()
