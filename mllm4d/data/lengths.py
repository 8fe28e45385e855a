"""How long a question will be, before it is read: estimated from what the index says of its clip and its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np

from mllm4d.data.access import ShardFolder
from mllm4d.data.encoding import Inputs, Style, encode_sample
from mllm4d.schema import InputError
from mllm4d.shards import Shard

PROBED = 8
"""Clips of one kind of set, and questions of one clip, that are encoded to measure lengths."""

Size = tuple[int, int, int]
"""Frames, height and width of a stored clip, pixels."""


@dataclass(frozen=True)
class Lengths:
    """A question's tokens: what its clip takes, and so many for each character.

    Attributes:
        clip: Size of a clip to what its questions have before their own text.
        text: Tokens for each character of question and options.
        reasoning: Tokens for each character of the reasoning.
        shared: Size of a clip to what its questions have in common, no more than that; empty where it is not known.
    """

    clip: Mapping[Size, float]
    text: float
    reasoning: float
    shared: Mapping[Size, int] = field(default_factory=dict)

    def tokens(self, shards: Sequence[Shard]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The estimate for each shard, clip and question.

        Args:
            shards: Entries of the index, with sizes and characters.
        """
        # A clip that cannot be opened will be left out or stop the run; until then any length will do.
        unknown = max(self.clip.values())
        return tuple(
            tuple(
                tuple(self._question(unknown if size is None else self.clip[size], *count) for count in counts)
                for size, counts in zip(shard.sizes or (), shard.characters or (), strict=True)
            )
            for shard in shards
        )

    def common(self, shards: Sequence[Shard]) -> tuple[tuple[int, ...], ...]:
        """For each shard and clip what its questions have in common; 0 where that is not known.

        Args:
            shards: Entries of the index, with sizes.
        """
        return tuple(
            tuple(0 if size is None else self.shared.get(size, 0) for size in shard.sizes or ()) for shard in shards
        )

    def _question(self, clip: float, text: int, reasoning: int) -> int:
        return max(1, ceil(clip + self.text * text + self.reasoning * reasoning))


def measure_lengths(places: Sequence[tuple[ShardFolder, Shard]], inputs: Inputs, style: Style) -> Lengths:
    """Encode a few questions and fit a line to their lengths (least squares), lifted so that none of them is above it.

    Where ``inputs`` has ``tokens_of(frames, height, width)``, which says how many tokens a clip takes, a few clips
    are encoded, and what a clip's questions have in common is known; else one of each size, and it is not.

    Args:
        places: The shards, each with its folder.
        inputs: The preprocessing.
        style: How questions are put and answered.

    Raises:
        InputError: An index does not say sizes and characters, or no clip of a size can be encoded.
    """
    for folder, shard in places:
        if shard.sizes is None or shard.characters is None:
            raise InputError(
                f"{folder.where('index.json')}: says no 'sizes' and 'characters' of {shard.path}, which 'batch_tokens' "
                "needs; write the shards anew, or give 'batch_size'"
            )
    groups: dict[Size, list[tuple[ShardFolder, Shard, int]]] = {}
    for folder, shard in places:
        for clip, size in enumerate(shard.sizes or ()):
            if size is not None and shard.questions[clip]:
                groups.setdefault(size, []).append((folder, shard, clip))
    if not groups:
        raise InputError(f"{places[0][0].url}: no clip's video can be opened")
    known: Callable[[int, int, int], int] | None = getattr(inputs, "tokens_of", None)
    chosen = list(groups)[:: -(-len(groups) // PROBED)] if known else list(groups)
    rows = [(size, *row) for size in chosen for row in _probe(groups[size], inputs, style)]
    # [N, 2 + groups]: characters of the text and of the reasoning, and which clips take the same.
    columns = {size: 2 + (0 if known else n) for n, size in enumerate(chosen)}
    matrix = np.zeros((len(rows), 3 if known else 2 + len(chosen)))
    for row, (size, text, reasoning, _) in zip(matrix, rows, strict=True):
        row[[0, 1, columns[size]]] = text, reasoning, 1
    lengths = np.array([tokens - (known(*size) if known else 0) for size, _, _, tokens in rows], dtype=float)
    line = np.linalg.lstsq(matrix, lengths, rcond=None)[0]
    above = float(np.max(lengths - matrix @ line, initial=0.0))
    bases = {size: float(line[columns.get(size, 2)]) + above + (known(*size) if known else 0) for size in groups}
    return Lengths(bases, float(line[0]), float(line[1]), {size: known(*size) for size in groups} if known else {})


def _probe(clips: Sequence[tuple[ShardFolder, Shard, int]], inputs: Inputs, style: Style) -> list[tuple[int, int, int]]:
    """Characters of text and reasoning, and tokens, of some questions of the first clip that can be encoded."""
    reason: Any = None
    for folder, shard, clip in clips[:PROBED]:
        wanted = range(min(PROBED, shard.questions[clip]))
        try:
            pairs, faults = encode_sample(folder.read(shard, clip), inputs, style, wanted)
        except InputError as error:
            reason = error
            continue
        if pairs:
            counts = (shard.characters or ())[clip]
            return [(*counts[index], len(record.tokens["input_ids"])) for index, _, record in pairs]
        reason = faults[0].reason
    raise InputError(f"'batch_tokens': no clip could be encoded to measure its length: {reason}")
