"""What a source of clips has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mllm4d.schema import Clip


class Source(ABC):
    """A place that clips come from. Subclass it in any file and name the class in YAML by ``class_path``.

    A source is created in the main process, pickled to the workers and asked there for one clip at a time, so that it
    holds settings and no data.
    """

    @abstractmethod
    def keys(self, limit: int | None = None) -> Sequence[str]:
        """The keys of all clips (the first ``limit``), without decoding any of them.

        Raises:
            InputError: The source as a whole is unusable; the message names file, key and what was expected.
        """

    @abstractmethod
    def load(self, key: str) -> Clip:
        """Read or make one clip; the same key gives the same clip in any process.

        Raises:
            InputError: This clip is unusable; the message names the file and what was expected.
        """

    def video(self, key: str) -> str:
        """The source video that a clip is cut from, found without decoding; clips of one video share a split.

        Here every clip is a video of its own; sources that cut videos into clips say which.
        """
        return key
