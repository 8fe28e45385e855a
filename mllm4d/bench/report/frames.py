"""Small pictures of what a question was asked about, from the suite's own media."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mllm4d.schema import InputError

if TYPE_CHECKING:
    from mllm4d.bench.clips import Clip
    from mllm4d.bench.suites.base import Suite

SHOWN = 4
"""Frames of a clip."""

WIDTH = 208
"""Of a picture, pixels; smaller frames stay as they are."""

QUALITY = 72
"""Of the JPEG files, 1-95."""

MAX_BYTES = 2_000_000
"""Of all pictures on a page, as text (base64)."""


class Picture(NamedTuple):
    """A frame.

    Attributes:
        source: A ``data:`` URL.
        label: Its time in the video, or its place in a list of images, which have no times.
    """

    source: str
    label: str


@dataclass
class Album:
    """Pictures of a suite's questions, as long as there is room for them.

    Attributes:
        suite: Knows the media; None where none was named.
        left: Bytes that there is room for.
    """

    suite: Suite | None
    left: int = MAX_BYTES
    _clips: dict[str, tuple[int, Clip]] | None = field(default=None, repr=False)

    def pictures(self, id: str, question: str) -> tuple[Picture, ...]:
        """Evenly spaced frames of what a question is about, the first and the last among them.

        Args:
            id: The question's.
            question: Its wording.

        Raises:
            InputError: There are none: the videos are not there, or there is no room left.
        """
        if self.suite is None:
            raise InputError("Nothing says where the videos are; name the configuration of a run (-c CONFIG).")
        if self.left <= 0:
            raise InputError(f"left out: a page holds at most {MAX_BYTES / 1e6:g} MB of pictures")
        from mllm4d.bench.clips import read_frames

        clip, questions = self._find(self.suite, id, question), self.suite.questions()
        frames = read_frames(self.suite, questions, clip, evenly, seconds_per_image=1.0)
        times = frames.times.tolist()
        # Of a list the times are the places, from 0.
        listed = bool(questions[clip.questions[0]].images)
        labels = [f"image {round(time) + 1}" if listed else f"{time:.2f} s" for time in times]
        found = tuple(Picture(jpeg(pixels), label) for pixels, label in zip(frames.pixels, labels, strict=True))
        self.left -= sum(len(picture.source) for picture in found)
        return found

    def _find(self, suite: Suite, id: str, question: str) -> Clip:
        from mllm4d.bench.clips import clips_of

        questions = suite.questions()
        if self._clips is None:
            self._clips = {questions[n].id: (n, clip) for clip in clips_of(suite, questions) for n in clip.questions}
        number, clip = self._clips.get(id, (-1, None))
        if clip is None or questions[number].question != question:
            raise InputError(f"{suite.title} as it is now has no such question {id!r}")
        return clip


def evenly(count: int) -> Sequence[int]:
    """Up to ``SHOWN`` of so many frames, the first and the last among them."""
    if count <= SHOWN:
        return range(count)
    return [round(k * (count - 1) / (SHOWN - 1)) for k in range(SHOWN)]


def jpeg(pixels: object) -> str:
    """A frame as a ``data:`` URL.

    Args:
        pixels: [H, W, 3] uint8 RGB, a tensor or an array.
    """
    import numpy as np
    from PIL import Image

    image = Image.fromarray(np.asarray(pixels))
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
