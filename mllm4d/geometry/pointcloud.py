"""Point clouds: [M, 3] tensors in metres, cleaned and thinned by Open3D.

Open3D is imported when it is needed, so that training runs where it is not installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def load_open3d() -> ModuleType:
    """Import Open3D, with the USB library that its wheels want and slim machines lack.

    open3d 0.20 links against ``libusb-1.0.so.0``. Where the system has none, the copy of the package
    ``libusb-package`` is loaded first.

    Returns:
        The module ``open3d``.

    Raises:
        ImportError: Open3D, or a system library that it needs, is missing; the message says what to install.
    """
    try:
        import open3d
    except ImportError as error:
        if "libusb" not in str(error):
            raise ImportError(f'Open3D cannot be imported ({error}): pip install "mllm4d[curate]"') from error
        _preload_libusb(error)
        import open3d
    return open3d


@contextmanager
def one_thread() -> Iterator[ModuleType]:
    """Hold Open3D to one thread meanwhile, so that its sums come out in one order and results are the same every time.

    With more threads its odometry differs in the fifth digit from call to call, on the same input.

    Yields:
        The module ``open3d``.
    """
    open3d = load_open3d()
    threads = open3d.utility.get_max_threads()
    open3d.utility.set_max_threads(1)
    try:
        yield open3d
    finally:
        open3d.utility.set_max_threads(threads)


def _preload_libusb(reason: ImportError) -> None:
    try:
        import libusb_package
    except ImportError:
        raise ImportError(f'Open3D lacks libusb ({reason}): pip install "mllm4d[curate]"') from reason
    path = libusb_package.get_library_path()
    if path is None:
        raise ImportError(f"Open3D lacks libusb ({reason}), and libusb-package has none for this system") from reason
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def remove_outliers(points: Tensor, neighbours: int = 20, std_ratio: float = 2.0) -> Tensor:
    """Drop points that lie far from their neighbours (statistical outlier removal).

    A point goes when its mean distance to its nearest neighbours exceeds the cloud's mean of that figure by more than
    ``std_ratio`` standard deviations.

    Args:
        points: [M, 3], metres.
        neighbours: How many nearest points (itself included, as in Open3D) the mean distance is taken over.
        std_ratio: Smaller removes more.

    Returns:
        Mask [M] bool, True for the points to keep. A cloud of no more than ``neighbours`` points is kept whole: its
        statistics would say nothing.

    Raises:
        ValueError: ``points`` is not [M, 3].
    """
    _check(points)
    keep = torch.ones(len(points), dtype=torch.bool, device=points.device)
    if len(points) <= neighbours:
        return keep
    _, kept = _cloud(points).remove_statistical_outlier(nb_neighbors=neighbours, std_ratio=std_ratio)
    keep[:] = False
    keep[torch.as_tensor(kept, dtype=torch.long, device=points.device)] = True
    return keep


def voxel_downsample(points: Tensor, voxel: float) -> Tensor:
    """Replace the points of each cube of a grid by their mean.

    Args:
        points: [M, 3], metres.
        voxel: Edge of a cube, metres.

    Returns:
        [K, 3] with K <= M, same dtype and device, in lexicographic order (Open3D's order is that of a hash map).

    Raises:
        ValueError: ``points`` is not [M, 3], or ``voxel`` is not positive.
    """
    _check(points)
    if not voxel > 0:
        raise ValueError(f"voxel must be a positive edge length in metres, not {voxel}")
    if len(points) == 0:
        return points
    import numpy as np

    thinned = np.asarray(_cloud(points).voxel_down_sample(voxel).points)
    ordered = thinned[np.lexsort(thinned.T[::-1])]
    return torch.from_numpy(np.ascontiguousarray(ordered)).to(points)


def _check(points: Tensor) -> None:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be [M, 3], not {list(points.shape)}")


def _cloud(points: Tensor) -> Any:
    open3d = load_open3d()
    vectors = open3d.utility.Vector3dVector(points.detach().cpu().double().numpy())
    return open3d.geometry.PointCloud(vectors)
