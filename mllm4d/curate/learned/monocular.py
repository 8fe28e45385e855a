"""Depth from single frames by any Hugging Face depth model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm4d.curate.depth import Depth, DepthEstimator
from mllm4d.curate.learned.pretrained import check_model, choose_device, choose_dtype, read_pretrained
from mllm4d.schema import Clip, InputError

METRIC = ("depth_pro", "glpn", "zoedepth")
"""Model types that predict metres whatever they were trained on."""


class _Loaded(NamedTuple):
    """A model on its device with its image processor."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class MonocularDepth(DepthEstimator):
    """A depth model for single images, frame by frame, at the resolution of the frames.

    A metric model gives z-depth in metres. A relative one gives inverse depth up to a scale and a shift per image, and
    so no metres: give it to ``mllm4d.curate.learned.scaled.ScaledToStereo``. Which of the two a model is, its config
    says for Depth Anything; ZoeDepth, GLPN and Depth Pro are metric always. DPT's does not say (MiDaS is relative,
    DINOv2's NYU and KITTI heads are metric), nor do others': there ``metric`` must be given. Depth Pro's
    estimate of the focal length is replaced by the known one.

    The sigma is an assumption, not a measurement. ZoeDepth reports a mean absolute relative error of 0.077 on NYU, on
    which it was trained, and of 0.12 (SUN RGB-D), 0.19 (iBims-1), 0.33 (DIODE indoor) and 0.42 (HyperSim) on images of
    kinds that it had not seen (arXiv 2302.12288, table 3). For a normal error sigma is 1.25 times that, so that 0.25
    stands for an error of 0.2. Most of it is a scale that a whole clip shares: it does not average out over pixels or
    frames.

    Attributes:
        model: Local folder or hub name.
        metric: Whether the model predicts metres; None takes it from the model's config.
        relative_sigma: Standard deviation of a depth over the depth.
        flip: Whether to predict from the mirrored frames too (twice the time): the depth is then the mean of the two,
            and half their difference, the standard error of that mean, is added to the sigma.
        batch_size: Frames in a forward pass.
        max_depth: Farther depths are dropped as unknown, metres.
        device: "auto" is the GPU where there is one.
        dtype: Of the model.
    """

    model: str
    metric: bool | None = None
    relative_sigma: float = 0.25
    flip: bool = False
    batch_size: int = 4
    max_depth: float = 80.0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_model("model", self.model)
        choose_dtype("dtype", self.dtype)
        if not self.relative_sigma > 0:
            raise InputError(f"relative_sigma must be positive, got {self.relative_sigma}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.max_depth > 0:
            raise InputError(f"max_depth must be positive, got {self.max_depth} m")

    def __call__(self, clip: Clip) -> Depth:
        """Predict metric depth.

        Raises:
            InputError: The model is not there, is relative, or does not say which it is.
        """
        if not self.is_metric():
            raise InputError(
                f"model: {self.model!r} is relative: its inverse depth has neither scale nor shift, so that it gives "
                "no metres; take a metric model, or ScaledToStereo where the clip has a right view"
            )
        depth, spread = self._predict(clip)
        known = depth.isfinite() & (depth > 0) & (depth <= self.max_depth)
        depth = torch.where(known, depth, 0.0)
        sigma = torch.hypot(self.relative_sigma * depth, spread)
        return Depth(depth, torch.where(known, sigma, torch.inf))

    def is_metric(self) -> bool:
        """Whether the model predicts metres.

        Raises:
            InputError: The model is not there, its config does not say, or says something else than ``metric``.
        """
        from transformers import AutoConfig

        told = metric_by_config(read_pretrained(AutoConfig, "model", self.model))
        if told is None and self.metric is None:
            raise InputError(
                f"model: the config of {self.model!r} does not say whether it predicts metres; say so by 'metric', "
                "true or false"
            )
        if None not in (told, self.metric) and told != self.metric:
            raise InputError(f"metric: is {self.metric}, but the config of {self.model!r} says {told}")
        return bool(self.metric if told is None else told)

    def inverse_depth(self, clip: Clip) -> Tensor:
        """Inverse depth, of a relative model up to a positive scale and a shift per frame.

        Returns:
            [T, H, W] float32, 1/m for a metric model, NaN where unknown.

        Raises:
            InputError: The model is not there, or does not say which it is.
        """
        metric = self.is_metric()
        value, _ = self._predict(clip)
        value = torch.where(value > 0, 1 / value, torch.nan) if metric else value
        return torch.where(value.isfinite(), value, torch.nan)

    def _predict(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """What the model says and the standard error by flipping (else 0), both [T, H, W] float32."""
        device = choose_device("device", self.device)
        loaded = _load(self.model, str(device), self.dtype)
        fx = float(clip.intrinsics[0, 0])
        straight = predict(loaded.model, loaded.processor, clip.frames, fx, self.batch_size)
        if not self.flip:
            return straight, torch.zeros_like(straight)
        mirrored = predict(loaded.model, loaded.processor, clip.frames.flip(2), fx, self.batch_size).flip(-1)
        return (straight + mirrored) / 2, (straight - mirrored).abs() / 2


def metric_by_config(config: Any) -> bool | None:
    """Whether a depth model predicts metres, by its Hugging Face config; None where the config does not say."""
    kind = getattr(config, "depth_estimation_type", None)
    if kind is not None:
        return kind == "metric"
    return True if config.model_type in METRIC else None


@torch.inference_mode()
def predict(model: Any, processor: Any, frames: Tensor, fx: float, batch_size: int) -> Tensor:
    """Run a depth model.

    Args:
        model: A model of ``AutoModelForDepthEstimation``.
        processor: Its image processor.
        frames: [T, H, W, 3] uint8 RGB.
        fx: Focal length, pixels.
        batch_size: Frames in a forward pass.

    Returns:
        [T, H, W] float32: metres, or what a relative model says.
    """
    size = tuple(frames.shape[1:3])
    found = []
    for part in frames.permute(0, 3, 1, 2).split(batch_size):
        sizes: dict[str, Any] = {"target_sizes": [size] * len(part)}
        # ZoeDepth needs the size before its padding too.
        if "source_sizes" in inspect.signature(processor.post_process_depth_estimation).parameters:
            sizes["source_sizes"] = sizes["target_sizes"]
        inputs = processor(images=list(part), return_tensors="pt").to(model.device, model.dtype)
        outputs = model(**inputs)
        outputs.predicted_depth = outputs.predicted_depth.float()
        for result in processor.post_process_depth_estimation(outputs, **sizes):
            depth = result["predicted_depth"]
            if "focal_length" in result:
                # Depth Pro: f / (W C) with the canonical inverse depth C; its own f, or W where it estimates none.
                depth = depth * (fx / (size[1] if result["focal_length"] is None else result["focal_length"].float()))
            found.append(depth.float().cpu())
    return torch.stack(found)


@lru_cache(maxsize=1)
def _load(name: str, device: str, dtype: str) -> _Loaded:
    """One model per process, read at the first clip."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    processor = read_pretrained(AutoImageProcessor, "model", name)
    model = read_pretrained(AutoModelForDepthEstimation, "model", name, dtype=choose_dtype("dtype", dtype))
    return _Loaded(model.to(device).eval(), processor)
