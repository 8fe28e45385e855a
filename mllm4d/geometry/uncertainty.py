"""Standard deviations of the relations, to first order, from those of the centres.

A centre's error is taken as isotropic and independent of the other's. For a length ``|| b - a ||`` first-order
propagation then gives ``sqrt(sigma_a^2 + sigma_b^2)`` whatever the direction, and the same for each component of the
vector ``b - a``, because a unit vector's squared components sum to one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def difference_sigma(*sigmas: Tensor | float) -> Tensor:
    """Standard deviation of a sum or difference of independent quantities.

    Args:
        sigmas: Standard deviations, metres, broadcastable.

    Returns:
        Metres.
    """
    return torch.stack(torch.broadcast_tensors(*[torch.as_tensor(s, dtype=torch.float64) for s in sigmas])).norm(dim=0)


def drift_sigma(sigma: Tensor, i: int, j: int) -> Tensor:
    """Standard deviation of what a path's error adds between two frames.

    A path's error grows along the path, so that what lies between two frames is the difference of their variances.

    Args:
        sigma: [T], relative to the first frame.
        i: A frame.
        j: Another.

    Returns:
        [], in the unit of ``sigma``.
    """
    return (sigma[j].square() - sigma[i].square()).abs().sqrt()
