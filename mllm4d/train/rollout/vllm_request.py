"""What vLLM is asked: our own tokens and pixels, so that it prepares nothing by itself."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy
from mllm4d.models.families import Qwen3VL
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.engine import stream_seed

BAN = -100.0
"""Added to the logits of banned tokens: the least that vLLM takes."""

MODALITY = "image"
"""What each step of a clip is to vLLM."""

SERIALIZERS = ("vllm.entrypoints.scale_out.token_in_token_out.mm_serde", "vllm.entrypoints.serve.disagg.mm_serde")
"""Where vLLM keeps what writes tensors into requests, the newest place first."""


class Visuals(NamedTuple):
    """A prompt's clip as vLLM's processed inputs.

    Attributes:
        tensors: Keyword arguments of vLLM's model; a row of the grid for each item, its patches one after the other.
        patches: Patches of each item.
        ranges: Where each item's features go: offset and length in the tokens.
        hashes: Of each item's content.
    """

    tensors: Mapping[str, Tensor]
    patches: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    hashes: tuple[str, ...]


def visuals_of(inputs: VideoInputs, prompt: Encoded) -> Visuals:
    """The clip of a prompt.

    A video of Qwen3-VL has times between its steps, and vLLM's requests cannot say that a range has text in it. But to
    Qwen3-VL's vision tower and positions a step of a video is the same as an image: so each step goes as one.

    Qwen2.5-VL is not among the families: after a video, vLLM 0.33 counts positions on from the last step's time and
    transformers 5.23 from the frame's size, so that what is drawn would be another policy's.

    Args:
        inputs: The preprocessing.
        prompt: The prompt.

    Raises:
        InputError: The family is none that this is known for, or tokens and clip do not fit each other.
    """
    # Not ``isinstance``: a family that is derived from it need not be treated like it in vLLM.
    if type(inputs.family) is not Qwen3VL:
        raise InputError(
            f"vLLM rollouts are for Qwen3VL, not {type(inputs.family).__name__}: requests and positions are known to "
            "agree there alone; name mllm4d.train.rollout.SharedRollout"
        )
    inputs.check_features(prompt)
    grid, pixels = (prompt.vision[name].cpu() for name in ("video_grid_thw", "pixel_values_videos"))
    rows = grid.repeat_interleave(grid[:, 0], dim=0)
    rows[:, 0] = 1
    tensors = {"pixel_values": pixels, "image_grid_thw": rows}
    patches = tuple(rows.prod(-1).tolist())
    ranges = runs(prompt.tokens["input_ids"], inputs.family.placeholder(inputs.processor))
    if len(ranges) != len(rows):
        raise InputError(
            f"question {prompt.id!r}: {len(ranges)} runs of placeholders for {len(rows)} pieces of its clip"
        )
    hashes = [
        hashlib.sha256(piece.contiguous().view(torch.uint8).numpy().tobytes() + str(row.tolist()).encode()).hexdigest()
        for piece, row in zip(pixels.split(patches), rows, strict=True)
    ]
    return Visuals(tensors, patches, ranges, tuple(hashes))


def runs(tokens: Tensor, token: int | None) -> tuple[tuple[int, int], ...]:
    """Offset and length of each run of one token in [L] tokens."""
    edges = torch.nn.functional.pad(torch.eq(tokens, -1 if token is None else token).int(), (1, 1)).diff()  # [L + 1]
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return tuple((start, end - start) for start, end in zip(starts, ends, strict=True))


def sampling(policy: Policy, settings: Any, group: int, seed: int, id: str, first: int) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams``; what they leave out is full support and no penalty.

    Args:
        policy: Temperature, banned and end tokens.
        settings: With ``max_new_tokens``, ``top_p`` and ``top_k``.
        group: Completions.
        seed: Of the drawing.
        id: The prompt's.
        first: Number of the first completion.
    """
    return {
        "n": group,
        "temperature": policy.temperature,
        "top_p": 1.0 if settings.top_p is None else settings.top_p,
        "top_k": 0 if settings.top_k is None else settings.top_k,
        "seed": stream_seed(seed, id, first) % 2**31,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": list(policy.ends),
        "logit_bias": {token: BAN for token in policy.banned},
        "logprobs": 0,  # of what was drawn, and of no other
        "detokenize": False,
    }


def processed_items(visuals: Visuals) -> Any:
    """A clip as vLLM's ``MultiModalKwargsItems``.

    Raises:
        InputError: The package vllm is missing.
    """
    inputs = module_of("vllm.multimodal.inputs")
    fields = inputs.MultiModalFieldConfig
    patches = torch.tensor(visuals.patches)
    configs = {
        name: fields.flat_from_sizes(MODALITY, patches)
        if name.startswith("pixel_values")
        else fields.batched(MODALITY, keep_on_cpu=True)
        for name in visuals.tensors
    }
    return inputs.MultiModalKwargsItems.from_hf_inputs(dict(visuals.tensors), configs)


def encoded_items(visuals: Visuals) -> list[str]:
    """The items of a clip as texts, as vLLM's server reads them.

    Raises:
        InputError: The package vllm is missing, or keeps what writes them elsewhere.
    """
    items = processed_items(visuals)[MODALITY]
    for name in SERIALIZERS:
        try:
            serializer = importlib.import_module(name)
        except ImportError:
            continue
        return [serializer.encode_mm_kwargs_item(item) for item in items]
    raise InputError(f"this version of vllm has none of {', '.join(SERIALIZERS)}, which requests with videos need")


def generate_request(
    prompt: Encoded, visuals: Visuals, items: Sequence[str], adapter: str, params: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of a request to ``/inference/v1/generate``.

    Args:
        prompt: The prompt.
        visuals: Its clip.
        items: What ``encoded_items`` gives for it.
        adapter: Name of the adapter that answers.
        params: What ``sampling`` gives.
    """
    ranges = [{"offset": offset, "length": length} for offset, length in visuals.ranges]
    return {
        "model": adapter,
        "token_ids": prompt.tokens["input_ids"].tolist(),
        "features": {
            "mm_hashes": {MODALITY: list(visuals.hashes)},
            "mm_placeholders": {MODALITY: ranges},
            "kwargs_data": {MODALITY: list(items)},
        },
        "sampling_params": dict(params),
        "stream": False,
    }


def module_of(name: str) -> Any:
    """A module of vLLM's.

    Raises:
        InputError: It cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"rollout engine: needs the package vllm, on Linux with a GPU (pip install vllm): {error}"
        ) from error
