"""Shards to batches, as Lightning wants them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from lightning import LightningDataModule

from mllm4d import prompts
from mllm4d.curate.run import Curation
from mllm4d.data.plan import Plan, plan_epoch
from mllm4d.data.stream import ClipLoader, Inputs, Style
from mllm4d.schema import InputError
from mllm4d.shards import Index, read_index


class ClipDataModule(LightningDataModule):
    """Streams the splits "train", "val" and "test" of a folder of shards.

    Args:
        shards: Folder with ``index.json`` and the shards.
        curation: Makes the shards where there are none; its ``out`` must be the same folder.
        batch_size: Questions in a training step on one device.
        eval_batch_size: Questions in a validation or test step on one device.
        workers: Processes that decode and encode. The order of batches does not depend on it.
        window: Questions that are mixed with each other in training; they wait in memory, encoded.
        style: How questions are put and answered, one of ``mllm4d.prompts`` or your own function.
        seed: Decides the order of training.
        inputs: The preprocessing; None takes that of the model being trained, which is what keeps training and
            evaluation the same.
    """

    def __init__(
        self,
        shards: str,
        curation: Curation | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        workers: int = 2,
        window: int = 512,
        style: Style = prompts.letter,
        seed: int = 0,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        if curation is not None and Path(curation.out) != Path(shards):
            raise InputError(f"data: 'curation.out' is {curation.out!r}, but 'shards' is {shards!r}")
        self.folder, self.curation, self.workers, self.window = Path(shards), curation, workers, window
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.style, self.seed, self.inputs = style, seed, inputs
        self.index: Index | None = None

    def prepare_data(self) -> None:
        """Make the shards where there are none (on one process of the machine)."""
        if self.curation is not None:
            self.curation.run()

    def setup(self, stage: str | None = None) -> None:
        """Read the index.

        Raises:
            InputError: There are no shards, or they are not whole.
        """
        self.index = read_index(self.folder)

    def train_dataloader(self) -> ClipLoader:
        """Seeded, mixed batches of the split "train"."""
        return self._loader("train", self.batch_size, self.window)

    def val_dataloader(self) -> ClipLoader | list[ClipLoader]:
        """Batches of the split "val" in order; none where the shards have no such split."""
        return self._loader("val", self.eval_batch_size) if self._has("val") else []

    def test_dataloader(self) -> ClipLoader:
        """Batches of the split "test" in order."""
        return self._loader("test", self.eval_batch_size)

    def _has(self, split: str) -> bool:
        return bool((self.index or read_index(self.folder)).split(split))

    def _loader(self, split: str, batch_size: int, window: int = 0) -> ClipLoader:
        index = self.index or read_index(self.folder)
        if not index.split(split):
            raise InputError(f"{self.folder / 'index.json'}: lists no shard of split {split!r}")
        trainer = self.trainer
        inputs = self.inputs or getattr(trainer and trainer.lightning_module, "inputs", None)
        if inputs is None:
            raise InputError("data: give 'inputs' when there is no trainer whose model has them")
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

        @lru_cache(maxsize=2)  # Lightning asks for the length again and again
        def plan(epoch: int) -> Plan:
            return plan_epoch(
                index.split(split),
                batch_size,
                seed=self.seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                window=window,
            )

        return ClipLoader(self.folder, plan, inputs, self.style, self.workers, generation=split != "train")
