"""What decides how a processor turns frames and words into inputs, as plain values that can be kept and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mllm4d.schema import InputError

SIZES = (
    "size",
    "max_image_size",
    "patch_size",
    "merge_size",
    "temporal_patch_size",
    "cap_pixels_per_frame",
    "do_resize",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_pad",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
"""What of a video or image processor decides the pixels."""

COUNTS = ("image_seq_length", "image_seq_len", "num_image_tokens", "vision_feature_select_strategy")
"""What of a processor decides how many tokens a frame has."""


def describe_processor(processor: Any, as_images: bool) -> dict[str, Any]:
    """A processor's class, sizes and words; tokens and chat template stand as SHA-256 sums.

    Args:
        processor: A Hugging Face processor.
        as_images: Whether frames go through its image processor rather than its video processor.
    """
    pixels = getattr(processor, "image_processor" if as_images else "video_processor", None)
    sizes = {name: getattr(pixels, name) for name in SIZES if getattr(pixels, name, None) is not None}
    counts = {name: getattr(processor, name) for name in COUNTS if getattr(processor, name, None) is not None}
    described = {
        "class": type(processor).__name__,
        **counts,
        "pixels": {"class": type(pixels).__name__, **sizes},
        "vocabulary": _sha256(sorted(processor.tokenizer.get_vocab().items())),
        "chat_template": _sha256(processor.chat_template),
    }
    return json.loads(json.dumps(described, default=_plain))


def check_same(saved: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    """See that two descriptions are one.

    Args:
        saved: The one that was kept.
        present: The one here.
        where: Whose the saved one is, for the message, such as a checkpoint's file.

    Raises:
        InputError: They differ; the message names the first key that does.
    """
    then, now = dict(_flat(saved)), dict(_flat(present))
    for key in [*now, *(key for key in then if key not in now)]:
        if then.get(key) != now.get(key):
            raise InputError(
                f"{where}: was made with {key} {then.get(key)!r}, but here it is {now.get(key)!r}; expected the same "
                "preprocessing"
            )


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    """Sizes are mappings of a kind that JSON does not know."""
    return {name: side for name, side in dict(value).items() if side is not None}


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in entries.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
