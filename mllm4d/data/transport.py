"""Records from a reading process to this one.

torch sends every tensor through a shared memory file of its own, which stays open as long as the tensor lives: a few
hundred waiting questions exceed the files that a process may have open, and what containers have of shared memory. So
small tensors travel as bytes, and large ones are copied out of shared memory as they arrive. That memory is made once
and used again and again where the processes are forked: new pages cost several times what copying into them does.
"""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SMALL = 2**16
"""Bytes up to which a tensor travels as bytes."""

SLOT = 2**25
"""Bytes of tensors that a slot of ``Slots`` can hold; it takes memory for those that it did hold."""

AHEAD = 4
"""Clips that a reading process may be ahead, so that the others go on while one is held up."""

PER_READER = AHEAD + 2
"""Slots of a reading process: for what it is ahead, what it writes, and what is being read."""

ALIGNMENT = 64
"""Tensors in a slot begin at a multiple of so many bytes."""


class Parcel(NamedTuple):
    """Tensors in a slot.

    Attributes:
        slot: Its number.
        shapes: Of each tensor.
        types: Of each tensor.
    """

    slot: int
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[torch.dtype, ...]


Packed = tuple[bytes, Parcel | list[Tensor]]


class Slots:
    """Memory that this process and the reading processes forked from it share.

    In a process that was not forked but started anew there is none, and nothing fits.

    Args:
        readers: How many processes read.
    """

    def __init__(self, readers: int) -> None:
        self.count = readers * PER_READER
        # Anonymous: not of the shared memory files, of which containers have little.
        self._memory: mmap.mmap | None = mmap.mmap(-1, self.count * (SLOT + 1)) if self.count else None

    def __reduce__(self) -> tuple[type[Slots], tuple[int]]:
        return Slots, (0,)

    def put(self, reader: int, tensors: Sequence[Tensor]) -> Parcel | None:
        """Copy tensors into a free slot; None where there is none, or they do not fit.

        Args:
            reader: Number of the process, which alone writes into its slots.
            tensors: On the CPU.
        """
        if self._memory is None or not tensors or sum(map(_room, tensors)) > SLOT:
            return None
        own = range(reader * PER_READER, (reader + 1) * PER_READER)
        slot = next((slot for slot in own if not self._memory[slot]), None)
        if slot is None:
            return None
        place = self.count + slot * SLOT
        for tensor in tensors:
            content = tensor.contiguous().view(torch.uint8).numpy()
            np.frombuffer(self._memory, np.uint8, content.size, place)[:] = content.reshape(-1)
            place += _room(tensor)
        self._memory[slot] = 1
        return Parcel(slot, tuple(tuple(t.shape) for t in tensors), tuple(t.dtype for t in tensors))

    def take(self, parcel: Parcel) -> list[Tensor]:
        """The tensors, in memory of this process's own; the slot is free again."""
        assert self._memory is not None
        place, tensors = self.count + parcel.slot * SLOT, []
        for shape, kind in zip(parcel.shapes, parcel.types, strict=True):
            content = np.frombuffer(self._memory, np.uint8, prod(shape) * kind.itemsize, place)
            tensors.append(torch.from_numpy(content.copy()).view(kind).reshape(shape))
            place += _room(tensors[-1])
        self._memory[parcel.slot] = 0
        return tensors


def pack(value: Any, slots: Slots | None = None, reader: int = 0) -> Packed:
    """Take the large tensors out of a value; what several records share is sent once.

    Args:
        value: Anything that can be pickled.
        slots: Where large tensors go, if they fit.
        reader: Number of this process among those that read.
    """
    buffer = io.BytesIO()
    packer = _Packer(buffer)
    packer.dump(value)
    parcel = slots.put(reader, packer.large) if slots else None
    return buffer.getvalue(), packer.large if parcel is None else parcel


def unpack(packed: Packed, slots: Slots | None = None) -> Any:
    """The value that was packed, in memory of this process's own.

    Args:
        packed: What ``pack`` of our own reading process gave.
        slots: The same as there.
    """
    content, large = packed
    if isinstance(large, Parcel):
        assert slots is not None
        tensors = slots.take(large)
    else:
        tensors = [tensor.clone() for tensor in large]
    return _Unpacker(io.BytesIO(content), tensors).load()


def _room(tensor: Tensor) -> int:
    """Bytes that a tensor takes in a slot."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


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
