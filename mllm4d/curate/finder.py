"""What an object finder is: it says where the objects of a clip are in the image."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.schema import Clip, Mask


class ObjectFinder(ABC):
    """Anything that finds the objects of a clip. Subclass it and name the class in YAML by ``class_path``."""

    @abstractmethod
    def __call__(self, clip: Clip, depth: Depth, world_to_camera: Tensor) -> tuple[Mask, ...]:
        """Find objects; the same input gives the same masks.

        Args:
            clip: The clip.
            depth: Its depth with a sigma per pixel.
            world_to_camera: [T, 4, 4], the camera's path, metres.

        Returns:
            A mask per object, with ids 0, 1, …; names say what it is and may repeat.

        Raises:
            InputError: The finder lacks what it needs; the message names the clip, file or key and what was expected.
        """
