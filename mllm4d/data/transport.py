"""Records from a reading process to this one.

torch sends every tensor through a shared memory file of its own, which stays open as long as the tensor lives: a few
hundred waiting questions exceed the files that a process may have open, and what containers have of shared memory. So
small tensors travel as bytes, and large ones are copied out of shared memory as they arrive.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

SMALL = 2**16
"""Bytes up to which a tensor travels as bytes."""

Packed = tuple[bytes, list[Tensor]]


def pack(value: Any) -> Packed:
    """Take the large tensors out of a value; what several records share is sent once.

    Args:
        value: Anything that can be pickled.
    """
    buffer = io.BytesIO()
    packer = _Packer(buffer)
    packer.dump(value)
    return buffer.getvalue(), packer.large


def unpack(packed: Packed) -> Any:
    """The value that was packed, in memory of this process's own.

    Args:
        packed: What ``pack`` of our own reading process gave.
    """
    content, large = packed
    return _Unpacker(io.BytesIO(content), [tensor.clone() for tensor in large]).load()


class _Packer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=5)
        self.large: list[Tensor] = []
        self.known: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Tensor or value.nbytes <= SMALL:
            return None
        if id(value) not in self.known:
            self.known[id(value)] = len(self.large)
            self.large.append(value)
        return self.known[id(value)]

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.dtype != torch.bfloat16 and not value.requires_grad:
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, large: list[Tensor]) -> None:
        super().__init__(buffer)
        self.large = large

    def persistent_load(self, number: int) -> Tensor:
        return self.large[number]
