"""One side of a stereo video, as a folder of images or a video file. Frames are read by index, a few at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mllm4d.schema import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
PAIRS = (("image_2", "image_3"), ("image_0", "image_1"), ("image_l", "image_r"), ("left", "right"))
"""Names of the left and the right folder, colour before grey."""


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


def open_views(folder: Path) -> tuple[View, View] | None:
    """Find the left and the right view in a folder.

    Args:
        folder: Holds one of ``PAIRS`` as folders of images, or two video files ``left.*`` and ``right.*``.

    Returns:
        The two views, or None where the folder has no left view.

    Raises:
        InputError: The right view is missing, a view is empty, or the two do not go together frame by frame.
    """
    for left, right in PAIRS:
        if (folder / left).is_dir():
            if not (folder / right).is_dir():
                raise InputError(f"{folder / right}: the right view's folder is missing beside {left}")
            views = FolderView(folder / left), FolderView(folder / right)
            _check_pairing(*views)
            _check_names(*views)
            return views
    files = [_video_file(folder, side) for side in ("left", "right")]
    if files[0] is None:
        return None
    if files[1] is None:
        raise InputError(f"{folder}: there is {files[0].name} but no video file right.*")
    videos = FileView(files[0]), FileView(files[1])
    _check_pairing(*videos)
    _check_times(*videos)
    return videos


class FolderView(View):
    """Images in a folder, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        """List the images of the folder.

        Raises:
            InputError: There is none.
        """
        self.path = path
        found = [file for file in path.iterdir() if file.suffix.lower() in IMAGES and not file.name.startswith(".")]
        if not found:
            raise InputError(f"{path}: the folder holds no images ({', '.join(IMAGES)})")
        self.files = sorted(found, key=_number_order)

    def __len__(self) -> int:
        return len(self.files)

    def times(self) -> None:
        """Images carry no times."""
        return None

    def size(self, index: int) -> tuple[int, int]:
        """From the image's header."""
        file = self.files[index]
        try:
            with Image.open(file) as image:
                if image.mode not in ("L", "RGB", "RGBA", "P"):
                    raise InputError(f"{file}: expected 8-bit grey or colour, found Pillow's mode {image.mode}")
                return image.height, image.width
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{file}: cannot be read as an image ({error})") from error

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode with Pillow, which notices files that are cut off (OpenCV fills the rest with grey)."""
        frames = []
        for index in indices:
            self.size(index)
            try:
                with Image.open(self.files[index]) as image:
                    frames.append(np.array(image.convert("RGB")))
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{self.files[index]}: the image is damaged or cut off ({error})") from error
        return torch.from_numpy(np.stack(frames))


class FileView(View):
    """A video file that PyAV can open."""

    def __init__(self, path: Path) -> None:
        """Read the frames' times from the container's packets, without decoding.

        Raises:
            InputError: It is no video, or holds no frame.
        """
        self.path = path
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self._size = stream.height, stream.width
                stamps = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None]
        except (av.FFmpegError, IndexError) as error:
            raise InputError(f"{path}: cannot be opened as a video ({error})") from error
        if not stamps:
            raise InputError(f"{path}: the video holds no frame with a time")
        self._times = torch.tensor([float(stamp) for stamp in sorted(stamps)], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._times)

    def times(self) -> Tensor:
        """From the container."""
        return self._times

    def size(self, index: int) -> tuple[int, int]:
        """The stream's."""
        return self._size

    def name(self, index: int) -> str:
        """File and frame."""
        return f"{self.path}, frame {index}"

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode up to the last frame asked for; the ones between are not kept."""
        wanted, frames = set(indices), []
        try:
            with av.open(str(self.path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        frames.append(frame.to_ndarray(format="rgb24"))
                    if number >= max(wanted):
                        break
        except av.FFmpegError as error:
            raise InputError(f"{self.path}: the video is damaged ({error})") from error
        if len(frames) != len(wanted):
            raise InputError(f"{self.path}: the video breaks off; frame {sorted(wanted)[len(frames)]} is not there")
        return torch.from_numpy(np.stack(frames))


def _video_file(folder: Path, side: str) -> Path | None:
    """The one file called ``side`` that is not a list or a picture."""
    others = (*IMAGES, ".txt", ".json", ".yaml", ".md")
    found = [file for file in folder.glob(f"{side}.*") if file.is_file() and file.suffix.lower() not in others]
    if len(found) > 1:
        raise InputError(
            f"{folder}: expected one video file {side}.*, found {', '.join(sorted(f.name for f in found))}"
        )
    return found[0] if found else None


def _check_pairing(left: View, right: View) -> None:
    if len(left) != len(right):
        raise InputError(f"{left.path} holds {len(left)} frames and {right.path} {len(right)}; expected as many")


def _check_names(left: FolderView, right: FolderView) -> None:
    """A frame lost on either side must not shift the pairs."""
    for one, other in zip(left.files, right.files, strict=True):
        if _number(one) != _number(other):
            raise InputError(
                f"{one} would be paired with {other.name}; the last numbers in their names must be the same"
            )


def _check_times(left: FileView, right: FileView) -> None:
    apart = (left.times() - left.times()[0] - right.times() + right.times()[0]).abs()
    if len(left) > 1 and float(apart.max()) > 0.5 * float(left.times().diff().min()):
        index = int(apart.argmax())
        raise InputError(
            f"{left.path} and {right.path.name} drift apart: frame {index} differs by {float(apart[index]):.3g} s"
        )


def _number(file: Path) -> int | None:
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else None


def _number_order(file: Path) -> list[tuple[int, str]]:
    """Sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]
