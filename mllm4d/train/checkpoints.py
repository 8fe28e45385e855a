"""Checkpoints that a kill cannot spoil, and that hold nothing which could run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: there is the old one or the new one, never half of one.

    Reading runs nothing that a file may hold (``weights_only``), unless it is told otherwise.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local file; Lightning's own way for URLs."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{place.name}.part")
        # Not in memory first, as Lightning does: a checkpoint of a full model is as large as the machine's.
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint."""
        return super().load_checkpoint(path, map_location, True if weights_only is None else weights_only)


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` every so many steps, whose last one is that of the end of an epoch all the same.

    Lightning's own saves either by steps or by epochs, so that the last steps of a run would be lost.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last one where the last step did not."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
