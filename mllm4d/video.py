"""MP4 in and out, with the time of every frame. Times come from the container; no frame rate is ever assumed."""

from __future__ import annotations

import io
from collections.abc import Collection
from fractions import Fraction
from os import PathLike

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mllm4d.schema import InputError

TIME_BASE = Fraction(1, 90_000)
"""Ticks in which written frame times are stored, seconds; MPEG's own 90 kHz clock."""


KEY_FRAME_EVERY = 32
"""Frames from one key frame to the next in written videos: a seek decodes so many frames at most."""


def decode(
    source: str | PathLike[str] | bytes, name: str | None = None, only: Collection[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Decode a video.

    Args:
        source: A path, or the bytes of a video file.
        name: What an error calls the source; the path where there is one.
        only: Numbers of the frames that are wanted, in any order; None is all. The others cost no conversion to RGB.

    Returns:
        The wanted frames [K, H, W, 3] uint8 RGB in the order of the video, and the times [T] of all its frames, float64
        in seconds, the container's own. K is T without ``only``.

    Raises:
        InputError: It is no video, it is cut off, it holds no frame, a frame has no time, or frames differ in size.
    """
    label = name or (str(source) if not isinstance(source, bytes) else "video")
    wanted = None if only is None else frozenset(only)
    # One for all frames: each would make the tables of its conversion anew.
    converter = VideoReformatter()
    frames: list[np.ndarray] = []
    times: list[float] = []
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            if not container.streams.video:
                raise InputError(f"{label}: holds no video stream")
            # Readers work side by side, a process each.
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if frame.pts is None or frame.time_base is None:
                    raise InputError(f"{label}: frame {number} has no time stamp")
                times.append(float(frame.pts * frame.time_base))
                if wanted is None or number in wanted:
                    frames.append(_pixels(converter.reformat(frame, format="rgb24")))
    except av.FFmpegError as error:
        raise InputError(f"{label}: cannot be decoded as a video ({error})") from error
    if not times:
        raise InputError(f"{label}: holds no frame")
    if len(shapes := {frame.shape for frame in frames}) > 1:
        (height, width, _), (other_height, other_width, _) = sorted(shapes)[:2]
        raise InputError(f"{label}: has frames of {width}x{height} and of {other_width}x{other_height} pixels")
    pixels = torch.from_numpy(np.stack(frames)) if frames else torch.empty(0, 0, 0, 3, dtype=torch.uint8)
    return pixels, torch.tensor(times, dtype=torch.float64)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8, a view of the memory of an RGB frame, whose rows may be longer than its pixels."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def encode(frames: Tensor, times: Tensor, quality: int = 16) -> bytes:
    """Encode frames as MP4 (H.264), each at its own time; the same input gives the same bytes.

    Args:
        frames: [T, H, W, 3] uint8 RGB.
        times: [T] float64, seconds, increasing.
        quality: H.264's constant rate factor; lower is better, 16 is hard to tell from the original.

    Returns:
        The bytes of the MP4 file.

    Raises:
        InputError: Shapes do not fit, or the times do not increase.
    """
    count, height, width = frames.shape[:3]
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(times) != count or not count:
        raise InputError(f"frames must be [T, H, W, 3] uint8 with T times, got {tuple(frames.shape)} and {len(times)}")
    if bool((times.diff() <= 0).any()):
        raise InputError(f"frame times must increase, got {times.tolist()}")
    # Chroma at half resolution needs even sides.
    pixel_format = "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # At this quality "veryfast" writes 5 % more bytes than x264's default, in a third of the time.
        stream = container.add_stream("libx264", rate=None, options={"crf": str(quality), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        # One thread and no B-frames: bytes that do not depend on the machine's cores, and times in coding order.
        stream.thread_count = 1
        stream.codec_context.max_b_frames = 0
        stream.codec_context.gop_size = KEY_FRAME_EVERY
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        for array, time in zip(frames.numpy(), times.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
