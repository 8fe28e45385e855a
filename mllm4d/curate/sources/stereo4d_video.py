"""Frames of a long video at given times, without decoding the rest of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from mllm4d.schema import InputError

SUFFIXES = (".mp4", ".mkv", ".webm")


def find_video(folder: Path, name: str) -> Path:
    """The one video file of a name.

    Raises:
        InputError: There is none, or more than one.
    """
    files = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    if len(files) != 1:
        found = " and ".join(file.name for file in files) or "none"
        raise InputError(f"{folder}: expected one video {name} ({', '.join(SUFFIXES)}), found {found} (key 'videos')")
    return files[0]


def read_frames(path: Path, times: Sequence[float], tolerance: float) -> Iterator[NDArray[np.uint8]]:
    """Decode the frames nearest to some times, from the key frame before the first.

    Stereo4D's times are cut to whole microseconds and Matroska's frame times to milliseconds, so that the frame shown
    at such a time may be the one before; the nearest is the one that was meant.

    Args:
        path: A video file.
        times: Increasing, seconds from the video's beginning.
        tolerance: How far the nearest frame may be, seconds.

    Yields:
        [H, W, 3] RGB for each time; none is kept here.

    Raises:
        InputError: The file is no video, is damaged, or has no frame near one of the times.
    """
    with closing(_shown_from(path, times[0])) as shown:
        before = after = next(shown, None)
        for wanted in times:
            while after is not None and after[0] < wanted:
                before, after = after, next(shown, None)
            near = [entry for entry in (before, after) if entry is not None and abs(entry[0] - wanted) <= tolerance]
            if not near:
                raise InputError(f"{path}: has no frame at {wanted:.3f} s; it is cut off, or another video")
            _, frame = min(near, key=lambda entry: abs(entry[0] - wanted))
            yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def _shown_from(path: Path, time: float) -> Generator[tuple[float, av.VideoFrame]]:
    """Frames with their times, seconds, in the order they are shown; the first is no later than ``time``."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise InputError(f"{path}: its video stream has no clock")
            start, tick = stream.start_time or 0, float(stream.time_base)
            container.seek(start + int(time / tick), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise InputError(f"{path}: a frame has no time stamp")
                yield (frame.pts - start) * tick, frame
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be decoded as a video ({error})") from error
