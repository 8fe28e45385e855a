"""Checksums of what decides the answers of a run: questions, prompts, weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.schema import InputError

VALUES = 4096
"""Values of each tensor that a checksum of weights looks at."""


def describe_suite(suite: Suite, questions: Sequence[BenchQuestion], prompts: Sequence[str]) -> dict[str, Any]:
    """A suite by what it asks: names of files and folders do not count.

    Args:
        suite: The suite.
        questions: Those that are asked.
        prompts: What the user says, one a question.

    Returns:
        Plain JSON values; ``questions``, ``prompts`` and ``videos`` (names and sizes) are SHA-256 sums.
    """
    asked = [
        {**vars(q), "entry": None, "right": sorted(q.right), "options": list(q.options.items())} for q in questions
    ]
    return {
        "class": f"{type(suite).__module__}.{type(suite).__qualname__}",
        "count": len(questions),
        "questions": sha256(asked),
        "prompts": sha256([[q.id, prompt] for q, prompt in zip(questions, prompts, strict=True)]),
        "videos": sha256(_videos(suite, questions)),
    }


def sha256(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def weights_sum(model: nn.Module) -> str:
    """SHA-256 of a model's weights: names, shapes, types, and evenly spaced values of each tensor.

    Training moves next to all values of a tensor, so that some of them tell; all would take a minute for 8 billion.

    Args:
        model: On any device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // VALUES)].contiguous().cpu()
        digest.update(values.view(torch.uint8).numpy().tobytes() if len(values) else b"")
    return digest.hexdigest()


def check_checkpoint(module: nn.Module, checkpoint: Mapping[str, Any], where: str) -> None:
    """See that a checkpoint's weights are those of a model.

    Args:
        module: Holds the model.
        checkpoint: As Lightning loads it.
        where: The checkpoint's file, for messages.

    Raises:
        InputError: It has other weights, weights of other shapes, or lacks adapters that the model has.
    """
    hint = "expected the same 'base' (path, lora) as in training"
    saved, present = checkpoint.get("state_dict") or {}, module.state_dict()
    if not saved:
        raise InputError(f"{where}: holds no weights; expected a checkpoint of `python -m mllm4d fit`")
    if unknown := sorted(set(saved) - set(present)):
        raise InputError(f"{where}: holds {unknown[0]!r}, which this model has not; {hint}")
    if missing := sorted(name for name in present if ".lora_" in name and name not in saved):
        raise InputError(f"{where}: has nothing for {missing[0]!r}; {hint}")
    for name, tensor in saved.items():
        if tensor.shape != present[name].shape:
            raise InputError(
                f"{where}: {name!r} is {tuple(tensor.shape)}, in this model {tuple(present[name].shape)}; {hint}"
            )


def _videos(suite: Suite, questions: Sequence[BenchQuestion]) -> list[Any]:
    """Names and sizes of the videos; of shards the checksums that their index keeps."""
    shards = getattr(suite, "shards", None)
    if shards is not None:
        from mllm4d.shards import read_index

        return [shard.sha256 for shard in read_index(Path(shards)).split(str(getattr(suite, "split", "test")))]
    found = {}
    for question in questions:
        media = suite.media(question)
        files = media.images or ((media.video,) if isinstance(media.video, Path) else ())
        names = question.images or (suite.path(question),)
        found.update({name: file.stat().st_size for name, file in zip(names, files, strict=False)})
    return sorted(found.items())
