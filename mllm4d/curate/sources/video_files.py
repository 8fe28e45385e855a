"""One side of a stereo video as a video file, or as half of one. Frames are found by their time stamps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from mllm4d.curate.sources.views import View, size_text
from mllm4d.schema import InputError


@dataclass(frozen=True)
class _Index:
    """What a container tells about its video without decoding it.

    Attributes:
        size: (height, width), pixels.
        base: Unit of all time stamps, seconds.
        stamps: When each frame is shown, ascending.
        keys: When each key frame is shown and when it has to be decoded, ascending.
    """

    size: tuple[int, int]
    base: Fraction
    stamps: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]


class FileView(View):
    """A video file that PyAV can open."""

    def __init__(self, path: Path) -> None:
        """Read the frames' times from the container's packets, without decoding.

        Raises:
            InputError: It is no video, holds no frame, or does not say when each of its frames is shown.
        """
        self.path = path
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be opened as a video ({error})") from error
        self._index = _read_index(path, state.st_mtime_ns, state.st_size)
        self._last: tuple[tuple[int, ...], Tensor] | None = None

    def __len__(self) -> int:
        return len(self._index.stamps)

    def times(self) -> Tensor:
        """From the container."""
        base = self._index.base
        return torch.tensor(self._index.stamps, dtype=torch.float64) * base.numerator / base.denominator

    def size(self, index: int) -> tuple[int, int]:
        """The stream's."""
        return self._index.size

    def name(self, index: int) -> str:
        """File and frame."""
        return f"{self.path}, frame {index}"

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode from the key frame before the first frame asked for to the last; the ones between are not kept.

        Raises:
            InputError: A frame is missing or damaged, or one that it was coded from is.
        """
        asked = tuple(indices)
        if self._last is None or self._last[0] != asked:  # the two halves of one film ask for the same frames
            self._last = asked, self._decode(asked)
        return self._last[1]

    def _decode(self, indices: Sequence[int]) -> Tensor:
        stamps = [self._index.stamps[index] for index in indices]
        keys = self._index.keys
        at = bisect_right(keys, min(stamps), key=lambda key: key[0]) - 1
        # Some containers seek by the time of showing, some by that of decoding; from the start it always works.
        starts = [*keys[at], None] if at > 0 else [None]
        found: dict[int, np.ndarray] = {}
        for start in starts:
            found = self._collect(set(stamps), start, keys[max(at, 0)][0] if keys else stamps[0])
            if len(found) == len(set(stamps)):
                break
        if missing := [index for index, stamp in zip(indices, stamps, strict=True) if stamp not in found]:
            raise InputError(f"{self.path}: the video breaks off or is damaged; frame {missing[0]} is not there")
        return torch.from_numpy(np.stack([found[stamp] for stamp in stamps]))

    def _collect(self, wanted: set[int], start: int | None, key: int) -> dict[int, np.ndarray]:
        """Decode from ``start`` (None is the beginning); nothing is found if that comes after the key frame."""
        found: dict[int, np.ndarray] = {}
        last, passed, before = max(wanted), start is None, None
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if start is not None:
                    container.seek(start, stream=stream, backward=True)
                for frame in container.decode(stream):
                    stamp = frame.pts
                    if stamp is None:
                        continue
                    passed = passed or stamp == key
                    if passed and stamp >= key:
                        self._check(frame, stamp, before)
                        before = stamp
                    if passed and stamp in wanted:
                        found[stamp] = frame.to_ndarray(format="rgb24")
                    if stamp >= last:
                        break
        except av.FFmpegError as error:
            if start is None:
                raise InputError(f"{self.path}: the video is damaged ({error})") from error
        return found

    def _check(self, frame: av.VideoFrame, stamp: int, before: int | None) -> None:
        where = f"{self.path}, {float(stamp * self._index.base):.3f} s"
        if frame.is_corrupt:
            raise InputError(f"{where}: the video is damaged")
        if (frame.height, frame.width) != self._index.size:
            found, expected = size_text((frame.height, frame.width)), size_text(self._index.size)
            raise InputError(f"{where}: is {found}, expected {expected} as the video's header says")
        if before is not None and stamp <= before:
            raise InputError(f"{where}: the frames' times do not increase; write the video anew, as MP4 or Matroska")


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
def _read_index(path: Path, modified: int, length: int) -> _Index:
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # Packets to be discarded lie outside what an edit list shows: films that were trimmed without coding anew.
            packets = [
                (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
                for packet in container.demux(stream)
                if packet.pts is not None
            ]
            size, base = (stream.height, stream.width), stream.time_base
            reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
    except (av.FFmpegError, IndexError) as error:
        raise InputError(f"{path}: cannot be opened as a video ({error})") from error
    coded = [pts for pts, _, _, discard in packets if not discard]
    stamps = sorted(set(coded))
    if not stamps or base is None:
        raise InputError(f"{path}: the video holds no frame with a time")
    if len(stamps) < len(coded):
        raise InputError(f"{path}: two frames have the same time; write the video anew, as MP4 or Matroska")
    if reordered and stamps == coded:
        raise InputError(
            f"{path}: AVI does not say when frames are shown that are stored in another order (B-frames); write the "
            "video anew, as MP4 or Matroska"
        )
    keys = sorted((pts, pts if dts is None else dts) for pts, dts, key, _ in packets if key)
    return _Index(size, base, tuple(stamps), tuple(keys))
