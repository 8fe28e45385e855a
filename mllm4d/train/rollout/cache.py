"""A cache of keys and values with room at its end, so that a step writes its own and copies nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 128
"""Tokens that a full buffer grows by."""


class RoomyLayer(DynamicLayer):
    """A layer's keys and values as the front of a larger buffer; transformers' own joins anew at every token.

    Args:
        layer: A layer after the prompts have run.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None
        assert layer.values is not None
        # transformers reads the type here before 5.24, and from the keys since.
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.hold(layer.keys, layer.values)

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Take over keys and values [B, H, L, D], and make room after them."""
        length = keys.shape[2]
        room = keys.new_empty(2, *keys.shape[:2], length + ROOM, keys.shape[3])
        room[0, :, :, :length], room[1, :, :, :length] = keys, values
        self._room = room
        self.keys, self.values = room[0, :, :, :length], room[1, :, :, :length]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, H, S, D] after the others; returns all."""
        length, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._room.shape[3]:
            self.hold(torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2))
        else:
            self._room[0, :, :, length:end], self._room[1, :, :, length:end] = key_states, value_states
            self.keys, self.values = self._room[0, :, :, :end], self._room[1, :, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; one may come several times."""
        self.hold(self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx))


def make_room(cache: Any) -> Any:
    """A cache whose layers of full attention have room; others (windows, states) stay as they are.

    Args:
        cache: Of transformers, after the prompts have run.
    """
    # Not ``isinstance``: a layer that keeps something else as well is derived from it too.
    cache.layers = [RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
