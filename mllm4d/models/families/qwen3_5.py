"""Qwen3.5: Qwen3-VL's way of seeing on a language model with linear attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm4d.models.families.qwen3_vl import Qwen3VL


class Qwen3_5(Qwen3VL):
    """Three of four layers have linear attention, whose linear layers are in_proj_qkv, in_proj_z and out_proj.

    The template opens a block of thoughts of its own unless told not to; our targets bring their own form.
    """

    model_types = ("qwen3_5", "qwen3_5_moe")
    # AutoProcessor gives it Qwen3VLProcessor, which Qwen3VL claims.
    processors: tuple[str, ...] = ()
    template_options: Mapping[str, Any] = {"enable_thinking": False}
