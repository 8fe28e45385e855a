"""A clip's patches as bytes: a quarter of the floats they become, from a reading process to the model's device.

Qwen-VL's vision towers take a video as rows, one for each patch: [N, 3 * step * patch * patch], channel first, then
frame, row and column; the patches that are merged into one token stand next to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

PIXELS = "pixel_values_videos"
"""Name of the rows among the model's inputs."""


@dataclass(frozen=True, eq=False)
class Patches(Mapping[str, Tensor]):
    """The vision inputs of some clips. Read as a mapping, it is what the model takes: its rows are floats then.

    A clip that comes several times is there once. Rows become floats anew each time they are asked for, on the device
    where they are; float by float as the Hugging Face processor computes them.

    Attributes:
        clips: Different clips, each [N, 3 * step * patch * patch] uint8.
        order: Which of them come, one after the other.
        rest: The other inputs, such as ``video_grid_thw`` [len(order), 3].
        mean: [3] float32, subtracted from a byte.
        std: [3] float32, divided by after that.
    """

    clips: tuple[Tensor, ...]
    order: tuple[int, ...]
    rest: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor

    def __getitem__(self, name: str) -> Tensor:
        return self._floats() if name == PIXELS else self.rest[name]

    def __iter__(self) -> Iterator[str]:
        yield PIXELS
        yield from self.rest

    def __len__(self) -> int:
        return 1 + len(self.rest)

    def __contains__(self, name: object) -> bool:
        return name == PIXELS or name in self.rest

    # Not as mappings are compared: that would compare tensors.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def to(self, device: torch.device | str) -> Patches:
        """The same on a device; bytes travel, not floats."""
        return replace(
            self,
            clips=tuple(clip.to(device) for clip in self.clips),
            rest={name: tensor.to(device) for name, tensor in self.rest.items()},
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def _floats(self) -> Tensor:
        """[N, 3 * step * patch * patch] float32 of all that come."""
        lengths = [len(self.clips[number]) for number in self.order]
        width = self.clips[0].shape[1]
        rows = torch.empty(sum(lengths), width, device=self.clips[0].device)
        done: dict[int, Tensor] = {}
        for number, place in zip(self.order, rows.split(lengths), strict=True):
            if number in done:
                place.copy_(done[number])
                continue
            done[number] = place.copy_(self.clips[number])
            place.view(len(place), len(self.mean), -1).sub_(self.mean[:, None]).div_(self.std[:, None])
        return rows


def join(visions: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The vision inputs of several clips as those of one batch, in their order.

    Args:
        visions: Of each clip; a clip may come several times.
    """
    packed = [vision for vision in visions if isinstance(vision, Patches)]
    if len(packed) < len(visions):
        return {name: torch.cat([vision[name] for vision in visions]) for name in visions[0]}
    rest = {name: torch.cat([vision.rest[name] for vision in packed]) for name in packed[0].rest}
    coming = [vision.clips[number] for vision in packed for number in vision.order]
    clips = {id(clip): clip for clip in coming}
    places = {known: place for place, known in enumerate(clips)}
    order = tuple(places[id(clip)] for clip in coming)
    return replace(packed[0], clips=tuple(clips.values()), order=order, rest=rest)


def moved(vision: Mapping[str, Tensor], device: torch.device | str) -> Mapping[str, Tensor]:
    """Vision inputs on a device.

    Args:
        vision: Of a clip or a batch.
        device: Where to.
    """
    if isinstance(vision, Patches):
        return vision.to(device)
    return {name: tensor.to(device) for name, tensor in vision.items()}


def identity(vision: Mapping[str, Tensor]) -> tuple[int, ...]:
    """What is equal for the very same clip, and for no other that is alive.

    Args:
        vision: Of one clip.
    """
    return tuple(map(id, vision.clips if isinstance(vision, Patches) else vision.values()))


def patchify(frames: Tensor, patch: int, merge: int, step: int) -> Tensor:
    """Cut frames into the rows that Qwen-VL's vision towers take.

    Args:
        frames: [T, H, W, 3] uint8; the last comes again until T is a multiple of ``step``.
        patch: Side of a patch, pixels.
        merge: Patches on each side of what becomes one token; H and W are multiples of ``patch * merge``.
        step: Frames that a patch takes together.

    Returns:
        [T / step * H / patch * W / patch, 3 * step * patch * patch] uint8.
    """
    pixels = frames.numpy()
    count, height, width, channels = pixels.shape
    steps, rows, columns = -(-count // step), height // (patch * merge), width // (patch * merge)
    # A row of a patch is moved as one item, several times faster than byte by byte.
    item = np.dtype(f"V{patch}")
    patches = np.empty((steps, rows, columns, merge, merge, channels, step, patch), item)
    # Step by step, in memory that stays in the processor's cache.
    planes = np.empty((channels, step, height, width), np.uint8)
    cut = planes.view(item).reshape(channels, step, rows, merge, patch, columns, merge)
    for number in range(steps):
        for place in range(step):
            frame = pixels[min(number * step + place, count - 1)]
            for channel in range(channels):
                planes[channel, place] = frame[..., channel]
        patches[number] = cut.transpose(2, 5, 3, 6, 0, 1, 4)
    return torch.from_numpy(patches.view(np.uint8).reshape(-1, channels * step * patch * patch))
