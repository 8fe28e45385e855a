"""What a suite shows, clip by clip: the questions about it, its frames and their times."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import UNSCORED, BenchQuestion
from mllm4d.data.clips import frame_rate
from mllm4d.schema import InputError
from mllm4d.video import decode

Choose = Callable[[int], Sequence[int]]
"""From a number of frames to the numbers of those that are used, ascending."""


class Clip(NamedTuple):
    """Questions that are shown the same frames.

    Attributes:
        questions: Their numbers in the suite, ascending.
        shown: Numbers of the questions whose media are shown: one, or with image lists the turns up to this one.
    """

    questions: tuple[int, ...]
    shown: tuple[int, ...]


class Frames(NamedTuple):
    """Frames that are used.

    Attributes:
        pixels: [T, H, W, 3] uint8 RGB.
        times: [T] float64, seconds.
        fps: Mean frame rate, 1/s.
    """

    pixels: Tensor
    times: Tensor
    fps: float


def clips_of(suite: Suite, questions: Sequence[BenchQuestion]) -> list[Clip]:
    """The clips in the order of their first question; questions that are not scored are not asked.

    A turn of a dialogue is shown all images up to its own. Its questions are asked one by one: what was said in the
    turns before is not repeated, so that turns that only prepare others need no answer.

    Args:
        suite: Names the videos.
        questions: All of its questions.
    """
    turns: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        if question.dialogue is not None:
            turns[question.dialogue].append(number)
    found: dict[Any, tuple[tuple[int, ...], list[int]]] = {}
    for number, question in enumerate(questions):
        if question.scoring == UNSCORED:
            continue
        so_far = [k for k in turns.get(question.dialogue or "", [number]) if questions[k].turn <= question.turn]
        shown = tuple(k for k in sorted(so_far, key=lambda k: questions[k].turn) if questions[k].images) or (number,)
        key = shown if questions[shown[0]].images else (suite.path(question), question.span)
        found.setdefault(key, (shown, []))[1].append(number)
    return [Clip(tuple(numbers), shown) for shown, numbers in found.values()]


def read_frames(
    suite: Suite,
    questions: Sequence[BenchQuestion],
    clip: Clip,
    choose: Choose,
    seconds_per_image: float,
    fewest: int = 1,
) -> Frames:
    """Read the frames of a clip that are used.

    Args:
        suite: Knows the media.
        questions: All of its questions.
        clip: The clip.
        choose: Which frames are used.
        seconds_per_image: Time between the images of an image list, which have none of their own.
        fewest: Frames that the model needs; the last image of a shorter image list is repeated.

    Raises:
        InputError: A file is not there or cannot be decoded, or no frame lies in the stretch that is asked about.
    """
    media = [suite.media(questions[number]) for number in clip.shown]
    name = questions[clip.questions[0]].video
    if media[0].video is None:
        images = [path for one in media for path in one.images]
        places = list(choose(len(images)))
        return _images([images[place] for place in places], places, seconds_per_image, fewest)
    source = media[0].video
    return _video(source, media[0].span, choose, str(source) if isinstance(source, Path) else name)


def _video(source: Path | bytes, span: tuple[float, float] | None, choose: Choose, name: str) -> Frames:
    guessed = packet_times(source)
    used = _used(guessed, span, choose)
    frames, times = decode(source, name, only=used)
    if not torch.equal(times, guessed):
        # A container that lists other times than its decoder gives: the decoder's are the true ones.
        again = _used(times, span, choose)
        if again != used:
            used, (frames, times) = again, decode(source, name, only=again)
    if not used:
        raise InputError(f"{name}: no frame between {span[0]:g} s and {span[1]:g} s" if span else f"{name}: no frame")
    return Frames(frames, times[used], frame_rate(times, name))


def _used(times: Tensor, span: tuple[float, float] | None, choose: Choose) -> list[int]:
    within = torch.ones_like(times, dtype=torch.bool)
    if span is not None:
        # Rounded times may miss the ends of a stretch by a little.
        within = (times >= span[0] - 1e-6) & (times <= span[1] + 1e-6)
    numbers = within.nonzero()[:, 0].tolist()
    return [numbers[k] for k in choose(len(numbers))] if numbers else []


def packet_times(source: Path | bytes) -> Tensor:
    """The times that a container lists, without decoding: [T] float64, seconds, ascending; none if it cannot be read.

    Args:
        source: A video file, or the bytes of one.
    """
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            stream = container.streams.video[0]
            listed = [p.pts * p.time_base for p in container.demux(stream) if p.pts is not None and p.time_base]
    except (av.FFmpegError, IndexError):
        listed = []  # ``decode`` says what is wrong
    return torch.tensor(sorted(map(float, listed)), dtype=torch.float64)


def _images(paths: Sequence[Path], places: list[int], gap: float, fewest: int) -> Frames:
    """Images as a film of one image every ``gap`` seconds, all in the size of the first."""
    from PIL import Image, UnidentifiedImageError

    frames: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    for path in paths:
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path}: cannot be read as an image ({error})") from error
        size = size or picture.size
        frames.append(np.array(picture if picture.size == size else picture.resize(size)))
    while len(frames) < fewest:
        frames.append(frames[-1])
        places.append(places[-1] + 1)
    times = torch.tensor(places, dtype=torch.float64) * gap
    return Frames(torch.from_numpy(np.stack(frames)), times, 1 / gap)
