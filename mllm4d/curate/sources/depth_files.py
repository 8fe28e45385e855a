"""Depth that lies beside the images: 16-bit PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm4d.curate.sources.rig import Rig
from mllm4d.curate.sources.views import FolderView, View, check_numbers, size_text
from mllm4d.schema import InputError


def open_depth(folder: Path, left: View) -> FolderView | None:
    """List a folder of depth images; None where there is no such folder.

    Args:
        folder: Holds a 16-bit PNG for every frame, with the numbers that the left images have in their names.
        left: The left view.

    Raises:
        InputError: There are more or fewer images than frames, or their numbers differ.
    """
    if not folder.is_dir():
        return None
    depth = FolderView(folder)
    if len(depth) != len(left):
        raise InputError(f"{folder}: holds {len(depth)} depth images for {len(left)} frames")
    if isinstance(left, FolderView):
        check_numbers(left, depth)
    return depth


def read_depth(
    images: FolderView, frames: Sequence[int], size: tuple[int, int], stored: tuple[int, int], rig: Rig
) -> tuple[Tensor, Tensor]:
    """Read a clip's stored depth.

    Args:
        images: From ``open_depth``.
        frames: Frame numbers.
        size: (height, width) of the source's images.
        stored: (height, width) of the stored frames; they get the depth of the nearest pixel, because a mean over an
            edge would lie in the air.
        rig: Says the unit and the relative standard deviation.

    Returns:
        Depth and its standard deviation, [T, *stored] float32, metres, 0 and infinite where unknown.

    Raises:
        InputError: An image is damaged, or no 16-bit grey image of the views' size.
    """
    rows = np.round((np.arange(stored[0]) + 0.5) * size[0] / stored[0] - 0.5).astype(int)
    columns = np.round((np.arange(stored[1]) + 0.5) * size[1] / stored[1] - 0.5).astype(int)
    maps = [_read(images.file(frame), size)[np.ix_(rows, columns)] for frame in frames]
    depth = torch.from_numpy(np.stack(maps).astype(np.float32)) / rig.depth_scale
    return depth, torch.where(depth > 0, rig.depth_sigma * depth, torch.inf)


def _read(file: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if image.mode not in ("I;16", "I;16B", "I"):
                raise InputError(f"{file}: expected a 16-bit grey image, found Pillow's mode {image.mode}")
            array = np.array(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{file}: the depth image is damaged or cut off ({error})") from error
    if array.shape != size:
        raise InputError(f"{file}: is {size_text(array.shape)}, the view {size_text(size)}")
    return array
