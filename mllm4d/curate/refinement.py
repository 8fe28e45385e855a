"""Dense refinement of camera steps by Open3D's RGB-D odometry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm4d.curate.pnp import Fit, reprojection_error
from mllm4d.geometry.pointcloud import one_thread

PYRAMID = (10, 5, 3)
"""Iterations of Open3D's odometry per level, coarse to fine; Open3D's own default."""

View = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""A grey image [H, W] and its depth [H, W], metres, 0 unknown."""


def refine_step(
    first: View, second: View, step: Fit, intrinsics: NDArray[np.float64], outlier: float, agree: float
) -> NDArray[np.float64] | None:
    """Refine a step by Open3D's intensity odometry (Steinbruecker et al. 2011), started from it.

    Started far off it fails without showing it, and on small images with few edges it wanders by centimetres a step
    where PnP errs by millimetres. Hence it is believed only where it explains PnP's inliers nearly as well.

    Args:
        first: What the first camera sees.
        second: What the second camera sees.
        step: PnP's account of the step.
        intrinsics: [3, 3], pixels.
        outlier: Pixels whose depth disagrees by more are left out, metres.
        agree: The result is taken where the inliers' reprojection error is at most so many times PnP's.

    Returns:
        The step [4, 4], or None where it is not to be believed.
    """
    with one_thread() as open3d:
        odometry = open3d.t.pipelines.odometry
        try:
            result = odometry.rgbd_odometry_multi_scale(
                _rgbd(open3d, first),
                _rgbd(open3d, second),
                open3d.core.Tensor(intrinsics),
                open3d.core.Tensor(step.transform),
                depth_scale=1.0,
                depth_max=float(max(first[1].max(), second[1].max())) + 1.0,
                criteria_list=[odometry.OdometryConvergenceCriteria(iterations) for iterations in PYRAMID],
                method=odometry.Method.Intensity,
                params=odometry.OdometryLossParams(depth_outlier_trunc=outlier),
            ).transformation.numpy()
        except RuntimeError:  # its linear system is singular, which is one more way not to agree with PnP
            return None
    before, after = (reprojection_error(one, step.inliers, intrinsics) for one in (step.transform, result))
    # NaN never compares as smaller.
    return result if after <= agree * before else None


def _rgbd(open3d: Any, view: View) -> Any:
    image, depth = view
    tensor = open3d.core.Tensor
    return open3d.t.geometry.RGBDImage(
        open3d.t.geometry.Image(tensor(np.repeat(image[..., None], 3, axis=2))),
        open3d.t.geometry.Image(tensor(depth)),
    )
