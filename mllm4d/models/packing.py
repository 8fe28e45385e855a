"""Packing: questions one after the other in one row, without padding, each as if it were alone.

A row is [1, L]. Positions are those of each sample by itself, one after the other; the clips' tensors stand in the
order of the row; attention stays within a sample (``mllm4d.models.attention``). Questions about one clip may share its
prefix: what stands before they differ, the video above all, is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mllm4d.models.attention import Group, Layout, attention_inputs, attention_of, use_block_attention
from mllm4d.models.batch import Encoded, PackedBatch
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.patches import identity
from mllm4d.schema import InputError


class PackedInputs(VideoInputs):
    """The one preprocessing, with packed rows where others are padded on the right; left ones, for generation, stay.

    Args:
        inputs: The preprocessing.
        model: The model, with or without adapters; its language model's attention is set to ``use_block_attention``,
            unless it is a flash attention, which keeps samples apart by their positions.
        share_prefix: Compute what questions about one clip have in common once.

    Raises:
        InputError: Samples of this model cannot be kept apart in a row.
    """

    def __init__(self, inputs: VideoInputs, model: Any, share_prefix: bool = True) -> None:
        super().__init__(inputs.processor, inputs.settings, inputs.family)
        check_packing(model)
        if not attention_of(model).startswith("flash_attention"):
            use_block_attention(model)
        # Not the model itself: this object travels to the processes that read.
        self.skeleton, self.share_prefix = skeleton(model), share_prefix

    def collate(self, encoded: Sequence[Encoded], side: str = "right") -> Any:
        """Records to one row, or to a padded batch with ``side="left"``."""
        if side == "left":
            return super().collate(encoded, side)
        return collate_packed(encoded, self, self.skeleton, self.share_prefix)


def collate_packed(
    records: Sequence[Encoded], inputs: VideoInputs, model: Any, share_prefix: bool = False
) -> PackedBatch:
    """Put records into one row.

    Args:
        records: The questions. Those of one clip come together when they share its prefix; else the order stays.
        inputs: The preprocessing they come from.
        model: The model, or its ``skeleton``.
        share_prefix: Compute what questions about one clip (by identity of its tensors) have in common once. Loss and
            gradients are the same; the prefix gets them from all its questions.

    Raises:
        InputError: Samples of this model cannot be kept apart in a row, its attention cannot share a prefix, the
            family cannot take these clips together, or a row's video placeholders are not as many as its features.
    """
    check_packing(model)
    for record in records:
        if "token_type_ids" in record.tokens:
            raise InputError(
                f"question {record.id!r}: the model's images attend in both directions, which cannot be packed; "
                "use padded batches"
            )
        # Of each by itself: the model's own check of the sums would not see one short and another over.
        inputs.check_features(record)
    positions = {id(record): inputs.family.positions(model, record) for record in records}
    clips = _by_clip(records) if share_prefix else [[record] for record in records]
    groups, pieces, visions = [], [], []
    for clip in clips:
        prefix = _shared(clip, inputs, [positions[id(record)] for record in clip]) if len(clip) > 1 else 0
        parts = [clip] if prefix else [[record] for record in clip]
        for part in parts:
            groups.append(Group(prefix, tuple(len(record.tokens["input_ids"]) - prefix for record in part)))
            pieces += [(record, prefix if number else 0) for number, record in enumerate(part)]
            visions.append(part[0].vision)
    tokens = {
        name: torch.cat([record.tokens[name][start:] for record, start in pieces])[None] for name in records[0].tokens
    }
    # [L] or [4, L] of every sample to [1, L] or [4, 1, L]
    whole = torch.cat([positions[id(record)][..., start:] for record, start in pieces], dim=-1).unsqueeze(-2)
    layout = Layout(tuple(groups))
    return PackedBatch(
        ids=tuple(record.id for record, _ in pieces),
        tokens={**tokens, "position_ids": whole},
        labels=torch.cat([_labels(record)[start:] for record, start in pieces])[None],
        vision=inputs.family.collate(visions),
        layout=layout,
        attention=attention_inputs(layout, attention_of(model)),
    )


def check_packing(model: Any) -> None:
    """See that a model's samples can be kept apart in a row: all its layers attend, causally and without a window.

    Args:
        model: The model, or its ``skeleton``.

    Raises:
        InputError: They cannot.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    if not kinds and getattr(text, "sliding_window", None):
        kinds = {"sliding_attention"}
    others = sorted(kinds - {"full_attention"})
    if others or getattr(model, "_is_stateful", False):
        reason = others[0] if others else "a state"
        raise InputError(
            f"a {model.config.model_type} model cannot be packed: its layers have {reason}, "
            "and only full attention keeps the samples of a row apart here; use padded batches"
        )


def skeleton(model: Any) -> nn.Module:
    """A model's configuration and its way of counting positions, without its weights.

    Args:
        model: The model, with or without adapters.
    """
    inner = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    shell: Any = nn.Module()
    if inner is not None:
        kind: Any = type(inner)
        shell = kind.__new__(kind)
        nn.Module.__init__(shell)
    shell.config = model.config
    return shell


def pack_rows(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Put questions into rows by first-fit decreasing: at most 11/9 of the fewest and one more (Dósa 2007).

    Args:
        lengths: Tokens of each question (or of each clip's questions together).
        budget: Most tokens of a row.
        multiple: The number of rows is a multiple of it, so that as many ranks have equally many: rows are halved for
            that, the fullest first, and nothing is left out or added.

    Returns:
        For each row the indices of its questions, ascending; the same for the same lengths, every question once, rows
        in the order of their first questions.

    Raises:
        InputError: A question alone is over the budget, or every row has one question and they are no ``multiple``.
    """
    rows: list[list[int]] = []
    loads: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        if lengths[item] > budget:
            raise InputError(f"question {item} has {lengths[item]} tokens, but a row may have {budget}")
        place = next((n for n, load in enumerate(loads) if load + lengths[item] <= budget), len(rows))
        if place == len(rows):
            rows.append([])
            loads.append(0)
        rows[place].append(item)
        loads[place] += lengths[item]
    while len(rows) % multiple:
        fullest = max((n for n, row in enumerate(rows) if len(row) > 1), key=lambda n: loads[n], default=None)
        if fullest is None:
            raise InputError(f"{len(lengths)} questions, each in a row of its own, are no multiple of {multiple} rows")
        halves: tuple[list[int], list[int]] = ([], [])
        for item in rows[fullest]:  # still from the longest to the shortest
            min(halves, key=lambda half: sum(lengths[k] for k in half)).append(item)
        rows[fullest : fullest + 1] = halves
        loads[fullest : fullest + 1] = [sum(lengths[k] for k in half) for half in halves]
    return sorted(sorted(row) for row in rows)


def _by_clip(records: Sequence[Encoded]) -> list[list[Encoded]]:
    """Records whose clip is the very same, in the order in which clips first come."""
    clips: dict[tuple[int, ...], list[Encoded]] = {}
    for record in records:
        clips.setdefault(identity(record.vision), []).append(record)
    return list(clips.values())


def _shared(clip: Sequence[Encoded], inputs: VideoInputs, positions: Sequence[Tensor]) -> int:
    """Tokens that all questions of a clip begin with; 0 where the clip's features are not all among them.

    The last token of a prompt says the first of the answer, so that it belongs to the question's own part.
    """
    limit = min(record.prompt_length for record in clip) - 1
    rows = torch.stack([record.tokens["input_ids"][:limit] for record in clip])  # [N, limit]
    places = torch.stack([position[..., :limit].reshape(-1, limit) for position in positions])  # [N, 1 or 4, limit]
    same = (rows == rows[0]).all(0) & (places == places[0]).all(0).all(0)  # [limit]
    prefix = int(same.long().cumprod(0).sum())
    placeholder = inputs.family.placeholder(inputs.processor)
    after = torch.cat([record.tokens["input_ids"][prefix:] for record in clip])
    return 0 if placeholder is None or (after == placeholder).any() else prefix


def _labels(record: Encoded) -> Tensor:
    labels = record.tokens["input_ids"].clone()
    # The first token is nobody's to say, whatever stands before it in the row.
    labels[: max(1, record.prompt_length)] = -100
    return labels
