"""Shards to batches, as Lightning wants them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from mllm4d import prompts
from mllm4d.curate.run import Curation
from mllm4d.data.access import ShardFolder
from mllm4d.data.lengths import Lengths, measure_lengths
from mllm4d.data.mixing import Part, ShardSet
from mllm4d.data.plan import Plan, plan_epoch
from mllm4d.data.progress import check_order, forget_unfinished_step, position
from mllm4d.data.stream import ClipLoader, Inputs, Source, Style
from mllm4d.schema import InputError, Sample
from mllm4d.shards import Index


class ClipDataModule(LightningDataModule):
    """Streams splits of one or more folders of shards.

    Args:
        shards: Folder with ``index.json`` and the shards, local or any URL that fsspec opens; or several, each with a
            weight.
        curation: Makes the shards where there are none; its ``out`` must be the same folder.
        batch_size: Questions in a training step on one device.
        eval_batch_size: Questions in a validation or test step on one device.
        workers: Processes that decode and encode. The order of batches does not depend on it.
        window: Questions that are mixed with each other in training; they wait in memory, encoded.
        style: How questions are put and answered, one of ``mllm4d.prompts`` or your own function.
        seed: Decides the order of training.
        inputs: The preprocessing; None takes that of the model being trained, which is what keeps training and
            evaluation the same.
        train_split: The split to train on, or several.
        batch_tokens: Tokens in a training step on one device, padding included, in place of ``batch_size``: as many
            questions of similar length as fit, by an estimate.
        cache: Local folder in which shards from elsewhere are kept; None keeps none.
        retries: How often a failed or broken transfer is tried again.
        storage: Options of fsspec's file system, such as ``{"anon": true}``.
        max_skipped: Share of an epoch's questions that may be left out because they or their shards cannot be used;
            each is named. 0 stops at the first.
        collate: From encoded records to a training batch; None takes that of the preprocessing.
        first_styles: How questions are put in the first epochs of training, one style an epoch; then, and in
            evaluation, ``style`` holds.
        together: A clip's questions come in one training step where they fit. It is for packed rows that share what
            stands before the questions: ``batch_tokens`` counts that once then, and no padding.
    """

    def __init__(
        self,
        shards: str | Sequence[ShardSet],
        curation: Curation | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        workers: int = 2,
        window: int = 512,
        style: Style = prompts.letter,
        seed: int = 0,
        inputs: Inputs | None = None,
        train_split: str | Sequence[str] = "train",
        batch_tokens: int | None = None,
        cache: str | None = None,
        retries: int = 3,
        storage: Mapping[str, Any] | None = None,
        max_skipped: float = 0.0,
        collate: Callable[[Sequence[Any]], Any] | None = None,
        together: bool = False,
        first_styles: Sequence[Style] = (),
    ) -> None:
        super().__init__()
        self.sets = (ShardSet(shards),) if isinstance(shards, str) else tuple(shards)
        if not self.sets:
            raise InputError("data.shards: names no folder")
        if curation is not None and [Path(curation.out)] != [Path(known.path) for known in self.sets]:
            raise InputError(f"data: 'curation.out' is {curation.out!r}, but 'shards' is {shards!r}")
        if not 0 <= max_skipped < 1:
            raise InputError(f"data.max_skipped: {max_skipped} is no share; expected at least 0 and less than 1")
        self.folder, self.curation, self.workers, self.window = Path(self.sets[0].path), curation, workers, window
        self.batch_size, self.eval_batch_size, self.batch_tokens = batch_size, eval_batch_size, batch_tokens
        if first_styles and batch_tokens is not None:
            raise InputError("data.first_styles: goes with 'batch_size'; 'batch_tokens' measures one style")
        self.styles = (*first_styles, style)
        self.seed, self.inputs, self.collate = seed, inputs, collate
        self.together = together
        self.splits = (train_split,) if isinstance(train_split, str) else tuple(train_split)
        self.cache, self.retries, self.storage, self.max_skipped = cache, retries, storage, max_skipped
        self.index: Index | None = None
        self.sources: tuple[Source, ...] = ()
        self._lengths: Lengths | None = None
        self._saved: dict[str, Any] = {}
        self._loaders: dict[str, ClipLoader] = {}

    def prepare_data(self) -> None:
        """Make the shards where there are none (on one process of the machine)."""
        if self.curation is not None:
            self.curation.run()

    def setup(self, stage: str | None = None) -> None:
        """Read the indices.

        Raises:
            InputError: There are no shards, or they are not whole.
        """
        folders = [ShardFolder(known.path, self.cache, self.retries, options=self.storage) for known in self.sets]
        indices = [folder.index() for folder in folders]
        self.sources = tuple(Source(f, index.shards) for f, index in zip(folders, indices, strict=True))
        if len(indices) == 1:
            self.index = indices[0]
        else:
            # What makers noted of one set does not hold for all of them.
            shards = [replace(s, path=source.folder.where(s.path)) for source in self.sources for s in source.shards]
            self.index = Index(tuple(shards), {})

    def train_dataloader(self) -> ClipLoader:
        """Seeded, mixed batches of the splits to train on."""
        if self.trainer is not None:
            forget_unfinished_step(self.trainer)
        return self._loader("train", self.splits)

    def val_dataloader(self) -> ClipLoader | list[ClipLoader]:
        """Batches of the split "val" in order; none where the shards have no such split."""
        return self._loader("val", ("val",)) if any(source.shards for source in self._sources(("val",))) else []

    def test_dataloader(self) -> ClipLoader:
        """Batches of the split "test" in order."""
        return self._loader("test", ("test",))

    def read(self, key: str) -> Sample:
        """Read one clip, wherever its shard lies.

        Args:
            key: The clip's key.

        Raises:
            InputError: No shard has it, or it cannot be read.
        """
        for source in self._sources(None):
            for shard in source.shards:
                if key in shard.keys:
                    return source.folder.read(shard, shard.keys.index(key))
        raise InputError(f"{self.sets[0].path}/index.json: lists no clip {key!r}")

    @property
    def skipped(self) -> dict[str, int]:
        """Questions that this process left out so far, for each kind of loader ("train", "val", "test")."""
        return {name: sum(len(fault.indices) for fault in loader.faults) for name, loader in self._loaders.items()}

    def state_dict(self) -> dict[str, Any]:
        """What decides the order of training; how far it came is in Lightning's own progress."""
        state: dict[str, Any] = {"order": self._order()}
        if self._lengths is not None:
            clips = [[*size, tokens] for size, tokens in self._lengths.clip.items()]
            shared = [[*size, tokens] for size, tokens in self._lengths.shared.items()]
            line = {"text": self._lengths.text, "reasoning": self._lengths.reasoning}
            state["lengths"] = {"clip": clips, "shared": shared, **line}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint says, to be compared where training goes on in the middle of an epoch."""
        self._saved = dict(state_dict)

    def _sources(self, splits: Sequence[str] | None) -> tuple[Source, ...]:
        if not self.sources:
            self.setup()
        if splits is None:
            return self.sources
        return tuple(replace(s, shards=tuple(x for x in s.shards if x.split in splits)) for s in self.sources)

    def _order(self) -> dict[str, Any]:
        sets = []
        for known, source in zip(self.sets, self._sources(self.splits), strict=True):
            digest = hashlib.sha256("".join(shard.sha256 for shard in source.shards).encode()).hexdigest()
            sets.append([known.weight, sum(sum(shard.questions) for shard in source.shards), digest])
        trainer = self.trainer
        return {
            "shards": sets,
            "train_split": list(self.splits),
            "seed": self.seed,
            "window": self.window,
            "batch_size": self.batch_size if self.batch_tokens is None else None,
            "batch_tokens": self.batch_tokens,
            "together": self.together,
            "world_size": trainer.world_size if trainer else 1,
        }

    def _loader(self, name: str, splits: Sequence[str]) -> ClipLoader:
        sources, training = self._sources(splits), name == "train"
        for split in splits:
            if not any(shard.split == split for source in sources for shard in source.shards):
                raise InputError(f"{self.sets[0].path}/index.json: lists no shard of split {split!r}")
        trainer = self.trainer
        inputs = self.inputs or getattr(trainer and trainer.lightning_module, "inputs", None)
        if inputs is None:
            raise InputError("data: give 'inputs' when there is no trainer whose model has them")
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if training and trainer:
            # Ranks that draw completions of the same prompts are one to the plan.
            shared = getattr(trainer.lightning_module, "ranks_per_group", 1)
            rank, world_size = rank // shared, world_size // shared
        parts = self._parts(sources, inputs) if training else [Part(source.shards) for source in sources]

        @lru_cache(maxsize=2)  # Lightning asks for the length again and again
        def plan(epoch: int) -> Plan:
            return plan_epoch(
                parts,
                self.batch_size if training else self.eval_batch_size,
                seed=self.seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                window=self.window if training else 0,
                batch_tokens=self.batch_tokens if training else None,
                together=self.together and training,
            )

        self._loaders[name] = ClipLoader(
            sources,
            plan,
            inputs,
            self.styles if training else self.styles[-1:],
            self.workers,
            generation=not training,
            epoch=trainer.current_epoch if training and trainer else 0,
            position=self._position if training else None,
            max_skipped=self.max_skipped,
            collate=self.collate if training else None,
        )
        return self._loaders[name]

    def _parts(self, sources: Sequence[Source], inputs: Inputs) -> list[Part]:
        """The sets with their weights, and the lengths of their questions where batches are filled by tokens."""
        parts = [Part(source.shards, known.weight) for source, known in zip(sources, self.sets, strict=True)]
        if self.batch_tokens is None:
            return parts
        if saved := self._saved.get("lengths"):
            clip, shared = ({tuple(size): tokens for *size, tokens in saved[name]} for name in ("clip", "shared"))
            self._lengths = Lengths(clip, saved["text"], saved["reasoning"], shared)
        places = [(source.folder, shard) for source in sources for shard in source.shards]
        known = set() if self._lengths is None else set(self._lengths.clip)
        if self._lengths is None or any(size and size not in known for _, s in places for size in s.sizes or ()):
            # Measured once: the last digit of a sum may differ from machine to machine, and the plans with it.
            lengths = measure_lengths(places, inputs, self.styles[-1]) if not self._rank() else None
            self._lengths = self.trainer.strategy.broadcast(lengths) if self.trainer else lengths
        assert self._lengths is not None
        lengths = self._lengths
        return [replace(p, tokens=lengths.tokens(p.shards), shared=lengths.common(p.shards)) for p in parts]

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _position(self) -> tuple[int, int] | None:
        here = position(self.trainer) if self.trainer else None
        if here is not None and here[1] and self._saved:
            check_order(self._saved.get("order", {}), self._order())
        return here
