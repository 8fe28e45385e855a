"""A checkpoint to an ordinary Hugging Face folder: merged weights, processor, preprocessing, and a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mllm4d.card import Card, find_logs, write_card
from mllm4d.models.base import trained_table
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError


class Trained(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: The model as it was trained, a PeftModel where it has adapters; in evaluation mode.
        inputs: Its preprocessing.
        step: Optimiser steps that it was trained for, or None without a checkpoint.
        epoch: Epochs, likewise.
    """

    model: Any
    inputs: VideoInputs
    step: int | None
    epoch: int | None


@dataclass
class Export:
    """A trained checkpoint as a Hugging Face folder that plain transformers loads.

    Takes the configuration of the training run with the overrides that it was started with, or the one that the run
    saved (``config.yaml`` in the folder of its logs), which has them in it.

    Attributes:
        model: The LightningModule; after ``prepare_data()`` and ``configure_model()`` it has the model in ``model``
            and its preprocessing in ``inputs``, as ``mllm4d.train.sft.SFT``.
        out: The folder to write; must not be there. It appears when it is whole.
        ckpt_path: The checkpoint.
        adapter_only: Write the adapters alone, in PEFT's format, without the base model.
        dtype: Type of the saved weights, such as "bfloat16"; None leaves them as they were loaded.
        logs: Folder where the run logged its configuration (``config.yaml``) and its scores (TensorBoard's files), for
            the model card; None looks near the checkpoint for the run that wrote it.
        data: Of the configuration; where no logs are found, the model card says what its ``shards`` hold.
        trainer: Of the configuration; not used, like all that follow.
        seed_everything: Of the configuration.
        optimizer: Of the configuration.
        lr_scheduler: Of the configuration.
        weights_only: Of the configuration.
    """

    model: nn.Module
    out: str
    ckpt_path: str | None = None
    adapter_only: bool = False
    dtype: str | None = None
    logs: str | None = None
    data: dict | None = None
    trainer: dict | None = None
    seed_everything: bool | int | None = None
    optimizer: dict | None = None
    lr_scheduler: dict | None = None
    weights_only: bool | None = None

    def run(self) -> Path:
        """Write the folder.

        Returns:
            It.

        Raises:
            InputError: The folder is there already, the checkpoint is not that of this configuration, or cannot be
                exported in the way that is asked for. Nothing is left behind then.
        """
        out = Path(self.out)
        if out.exists():
            raise InputError(f"{out}: is there already; expected a new folder under 'out'")
        if self.ckpt_path is None:
            raise InputError("ckpt_path: name the checkpoint to export (--ckpt_path FILE)")
        dtype = None if self.dtype is None else getattr(torch, self.dtype, None)
        if self.dtype is not None and not isinstance(dtype, torch.dtype):
            raise InputError(f"dtype: {self.dtype!r} is not a type of torch, such as 'float32' or 'bfloat16'")
        logs = find_logs(Path(self.ckpt_path), self.logs)
        trained = load_trained(self.model, self.ckpt_path)
        card = Card(
            name=out.name,
            base=str(getattr(getattr(self.model, "base", None), "path", "")),
            adapter_only=self.adapter_only,
            module=self.model,
            data=self.data or {},
            step=trained.step,
            epoch=trained.epoch,
            table=tuple(trained_table(trained.model)),
            logs=logs,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            save = save_adapter if self.adapter_only else save_merged
            save(trained.model, beside, dtype)
            trained.inputs.save(beside)
            write_card(card, beside)
            beside.chmod(0o755)
            os.replace(beside, out)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        print(f"{out}: {'adapters' if self.adapter_only else 'merged model'}, processor and model card")
        return out


def load_trained(module: Any, ckpt_path: str | None) -> Trained:
    """Load the base model of a LightningModule, and a checkpoint into it.

    Args:
        module: The module, not yet configured.
        ckpt_path: The checkpoint; None leaves the base model as it is.

    Returns:
        What there is then.

    Raises:
        InputError: There is no such checkpoint, it is not one, or it is not that of this module.
    """
    checkpoint = {} if ckpt_path is None else read_checkpoint(Path(ckpt_path))
    for name in ("prepare_data", "configure_model"):
        getattr(module, name, lambda: None)()
    model, inputs = getattr(module, "model", None), getattr(module, "inputs", None)
    if not isinstance(model, nn.Module) or not isinstance(inputs, VideoInputs):
        raise InputError(
            f"model: {type(module).__name__} must have its model in 'model' and a VideoInputs in 'inputs' after "
            "configure_model()"
        )
    if ckpt_path is not None:
        module.on_load_checkpoint(checkpoint)
        unknown = module.load_state_dict(checkpoint["state_dict"], strict=False).unexpected_keys
        if unknown or not checkpoint["state_dict"]:
            raise InputError(
                f"{ckpt_path}: holds {f'{unknown[0]!r}' if unknown else 'no weight'}, which is not that of this "
                "configuration; expected the same base, 'lora' and 'train' as in training"
            )
    model.eval()
    return Trained(model, inputs, checkpoint.get("global_step"), checkpoint.get("epoch"))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of Lightning's checkpoints, weights mapped from the disk; nothing in it is run.

    Raises:
        InputError: There is none, or it is something else.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder, as several GPUs write it together; make one file of it first (FSDP: python -m "
            "lightning.pytorch.utilities.consolidate_checkpoint, DeepSpeed: "
            "convert_zero_checkpoint_to_fp32_state_dict in lightning.pytorch.utilities.deepspeed)"
        )
    if not path.is_file():
        raise InputError(f"{path}: not found; expected a checkpoint of `python -m mllm4d fit`")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # torch raises whatever its readers of zip files and pickles do.
        raise InputError(f"{path}: is no checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise InputError(f"{path}: is no checkpoint of Lightning's (it has no 'state_dict')")
    return dict(checkpoint)


def save_merged(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Save a model with its adapters merged into its weights.

    Args:
        model: The model, a PeftModel where it has adapters; it is changed.
        folder: An existing folder.
        dtype: Type of the saved weights, or None.

    Raises:
        InputError: The base is quantised, or a merged weight is not finite.
    """
    if hasattr(model, "merge_and_unload"):
        if getattr(model.get_base_model(), "is_quantized", False):
            raise InputError(
                "model.base: is loaded in 4 bits, into which adapters cannot be merged without loss; export with "
                "--model.base.quantization null, or with --adapter_only true"
            )
        try:
            model = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise InputError(f"the adapters cannot be merged: {error}") from error
    if dtype is not None:
        model = model.to(dtype)
    # Gradient checkpointing turns it off; without it generation is slow.
    model.config.use_cache = True
    model.save_pretrained(folder)


def save_adapter(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Save the adapters of a model in PEFT's format.

    Args:
        model: A PeftModel.
        folder: An existing folder.
        dtype: Type of the saved weights, or None.

    Raises:
        InputError: It has no adapters, or parts of it trained in full, which would be lost.
    """
    if not hasattr(model, "merge_and_unload"):
        raise InputError("adapter_only: the model has no adapters ('base.lora'); export it whole")
    full = [row.part for row in trained_table(model) if row.part != "lora" and row.trained]
    if full:
        raise InputError(f"adapter_only: {full[0]!r} trained in full and would be lost; export the model whole")
    if dtype is not None:
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
