"""One side of a stereo video: a folder of images, or (``video_files``) a video file. Frames are read by index."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm4d.schema import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class View(ABC):
    """The left or the right half of a stereo video.

    Attributes:
        path: The folder or file.
    """

    path: Path

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames."""

    @abstractmethod
    def times(self) -> Tensor | None:
        """[N] float64, seconds, where the view itself knows them."""

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame, pixels, found without decoding it."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error calls a frame."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode frames: [len(indices), H, W, 3] uint8 RGB; indices increase."""


class FolderView(View):
    """Images in a folder, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        """List the images of the folder.

        Raises:
            InputError: There is none.
        """
        self.path = path
        self._names, self.numbers = _in_order(tuple(os.listdir(path)))
        if not self._names:
            raise InputError(f"{path}: the folder holds no images ({', '.join(IMAGES)})")

    @property
    def files(self) -> list[Path]:
        """All images, in order."""
        return [self.path / name for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def times(self) -> None:
        """Images carry no times."""
        return None

    def size(self, index: int) -> tuple[int, int]:
        """From the image's header."""
        file = self.file(index)
        try:
            with Image.open(file) as image:
                if image.mode not in ("L", "RGB", "RGBA", "P"):
                    raise InputError(f"{file}: expected 8-bit grey or colour, found Pillow's mode {image.mode}")
                return image.height, image.width
        except (OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: cannot be read as an image ({error})") from error

    def file(self, index: int) -> Path:
        """The image of a frame."""
        return self.path / self._names[index]

    def name(self, index: int) -> str:
        """The file."""
        return str(self.file(index))

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode with Pillow, which notices files that are cut off (OpenCV fills the rest with grey)."""
        frames = []
        for index in indices:
            self.size(index)
            try:
                with Image.open(self.file(index)) as image:
                    frames.append(np.array(image.convert("RGB")))
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{self.file(index)}: the image is damaged or cut off ({error})") from error
        return torch.from_numpy(np.stack(frames))


@lru_cache(maxsize=4)  # every clip of a long video asks for the same
def _in_order(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """The images among the names of files, in order, and the last number in each name, None where there is none."""
    images = (name for name in names if name.lower().endswith(IMAGES) and not name.startswith("."))
    found = tuple(sorted(images, key=_by_number))
    numbers = (re.findall(r"\d+", Path(name).stem) for name in found)
    return found, tuple(int(each[-1]) if each else None for each in numbers)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def check_numbers(one: FolderView, other: FolderView) -> None:
    """Check that two folders of as many images show the same frames: one lost on either side must not shift the rest.

    Raises:
        InputError: The numbers in two names differ; the message names both.
    """
    if one.numbers != other.numbers:
        index = [a == b for a, b in zip(one.numbers, other.numbers, strict=True)].index(False)
        raise InputError(
            f"{one.file(index)} would be paired with {other.file(index).name}; the last numbers in their names must be "
            "the same"
        )


def common_size(left: View, right: View | None, frames: Sequence[int]) -> tuple[int, int]:
    """(height, width), pixels, of these frames on both sides.

    Raises:
        InputError: A frame has another size than the first of these on the left; the message names it.
    """
    # The first frame of the clip, not of the video: what is wrong elsewhere is another clip's trouble.
    size = left.size(frames[0])
    for index in frames:
        for view in (left, right):
            if view is not None and view.size(index) != size:
                raise InputError(
                    f"{view.name(index)}: is {size_text(view.size(index))}, expected {size_text(size)} as "
                    f"{left.name(frames[0])} is"
                )
    return size


def size_text(size: tuple[int, int]) -> str:
    """What an error calls a size of (height, width) pixels."""
    return f"{size[1]}x{size[0]} pixels"


def stored_size(size: tuple[int, int], max_width: int | None) -> tuple[int, int]:
    """(height, width) of frames that are no wider than ``max_width`` pixels, where one is given."""
    height, width = size
    if max_width is None or width <= max_width:
        return height, width
    # Even sides, because video codecs halve the colour's resolution.
    new_width = max_width // 2 * 2
    return max(2, round(height * new_width / width / 2) * 2), new_width


def shrink(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale [T, H, W, 3] frames down to (height, width), each pixel the mean of the area it covers."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    import cv2

    area = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(area))
