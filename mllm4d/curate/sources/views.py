"""One side of a stereo video: a folder of images, a video file or half of one. Frames are read by index."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
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


def open_views(folder: Path, right: bool = True, stacked: bool = False) -> tuple[View, View | None] | None:
    """Find the left and the right view in a folder.

    Args:
        folder: Holds one of ``PAIRS`` as folders of images, two video files ``left.*`` and ``right.*``, or one video
            file ``stereo.*`` that shows both.
        right: Whether there has to be a right view.
        stacked: ``stereo.*`` shows the left view above the right one, not beside it.

    Returns:
        The two views (the second None where there is none and need not be), or None where the folder has no left view.

    Raises:
        InputError: The right view is missing, a view is empty, or the two do not go together frame by frame.
    """
    for one, other in PAIRS:
        if (folder / one).is_dir():
            if not (folder / other).is_dir():
                if right:
                    raise InputError(f"{folder / other}: the right view's folder is missing beside {one}")
                return FolderView(folder / one), None
            views = FolderView(folder / one), FolderView(folder / other)
            _check_pairing(*views)
            _check_names(*views)
            return views
    if both := _video_file(folder, "stereo"):
        film = FileView(both)
        return HalfView(film, 0, stacked), HalfView(film, 1, stacked)
    files = [_video_file(folder, side) for side in ("left", "right")]
    if files[0] is None:
        return None
    if files[1] is None:
        if right:
            raise InputError(f"{folder}: there is {files[0].name} but no video file right.*")
        return FileView(files[0]), None
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
            stamp = path.stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"{path}: cannot be opened as a video ({error})") from error
        self._size, self._base, self._stamps = _packets(path, stamp)
        self._last: tuple[tuple[int, ...], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._stamps)

    def times(self) -> Tensor:
        """From the container."""
        return torch.tensor([float(stamp * self._base) for stamp in self._stamps], dtype=torch.float64)

    def size(self, index: int) -> tuple[int, int]:
        """The stream's."""
        return self._size

    def name(self, index: int) -> str:
        """File and frame."""
        return f"{self.path}, frame {index}"

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode from the key frame before the first frame asked for to the last; the ones between are not kept."""
        asked = tuple(indices)
        if self._last is None or self._last[0] != asked:  # the two halves of one film ask for the same frames
            self._last = asked, self._decode([self._stamps[index] for index in asked], asked)
        return self._last[1]

    def _decode(self, stamps: Sequence[int], indices: Sequence[int]) -> Tensor:
        found: dict[int, np.ndarray] = {}
        # A seek lands on a key frame; where the container's index is wrong and it lands late, all is decoded.
        for start in (min(stamps), None):
            found = self._collect(set(stamps), max(stamps), start)
            if len(found) == len(set(stamps)):
                break
        if missing := [index for index, stamp in zip(indices, stamps, strict=True) if stamp not in found]:
            raise InputError(f"{self.path}: the video breaks off or is damaged; frame {missing[0]} is not there")
        return torch.from_numpy(np.stack([found[stamp] for stamp in stamps]))

    def _collect(self, wanted: set[int], last: int, start: int | None) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for frame in container.decode(stream):
                    if frame.pts in wanted:
                        found[frame.pts] = frame.to_ndarray(format="rgb24")
                    if frame.pts is not None and frame.pts >= last:
                        break
        except av.FFmpegError as error:
            if start is None:
                raise InputError(f"{self.path}: the video is damaged ({error})") from error
        return found


class HalfView(View):
    """One half of the frames of a video that shows both views."""

    def __init__(self, film: FileView, side: int, stacked: bool) -> None:
        """Take a half.

        Args:
            film: Shows both views at the same scale.
            side: 0 is the left view (the left or upper half), 1 the right one.
            stacked: The views stand one above the other, not side by side.

        Raises:
            InputError: The film's width (or height) is odd.
        """
        self.film, self.side, self.stacked, self.path = film, side, stacked, film.path
        whole = film.size(0)[0 if stacked else 1]
        if whole % 2:
            raise InputError(f"{film.path}: two views need an even {'height' if stacked else 'width'}, not {whole}")

    def __len__(self) -> int:
        return len(self.film)

    def times(self) -> Tensor:
        """The film's."""
        return self.film.times()

    def size(self, index: int) -> tuple[int, int]:
        """Half of the film's."""
        height, width = self.film.size(index)
        return (height // 2, width) if self.stacked else (height, width // 2)

    def name(self, index: int) -> str:
        """The film's."""
        return self.film.name(index)

    def read(self, indices: Sequence[int]) -> Tensor:
        """The half of the film's frames."""
        return self.film.read(indices).chunk(2, dim=1 if self.stacked else 2)[self.side].contiguous()


@lru_cache(maxsize=8)  # every clip of a long video asks for the same
def _packets(path: Path, modified: int) -> tuple[tuple[int, int], Fraction, tuple[int, ...]]:
    """(height, width), the unit of time in seconds, and the frames' times in that unit, ascending."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            size, base = (stream.height, stream.width), stream.time_base
    except (av.FFmpegError, IndexError) as error:
        raise InputError(f"{path}: cannot be opened as a video ({error})") from error
    if not stamps or base is None:
        raise InputError(f"{path}: the video holds no frame with a time")
    return size, base, tuple(stamps)


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
