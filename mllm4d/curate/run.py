"""Curation as a whole: a source's clips become scenes, their relations questions, and all of it shards."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mllm4d.curate.depth import DepthEstimator
from mllm4d.curate.describe import describe
from mllm4d.curate.executors import Executor, InThisProcess, LocalProcesses, RayTasks
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.merge import Merge
from mllm4d.curate.odometry import Odometry
from mllm4d.curate.quality import Quality
from mllm4d.curate.report import sample_keys, write_report
from mllm4d.curate.sources.base import Source
from mllm4d.curate.splits import assign_splits
from mllm4d.curate.summary import print_summary
from mllm4d.curate.worker import ClipJob, read_cloud
from mllm4d.qa.balance import LeakFree
from mllm4d.qa.judge import Margins
from mllm4d.qa.options import OptionMaker
from mllm4d.qa.twins import Kind
from mllm4d.schema import InputError, UnfinishedError
from mllm4d.shards import read_index, write_index

PACKAGES = ("mllm4d", "torch", "kornia", "open3d", "opencv-python-headless", "av", "webdataset")

PRODUCTS = {"sft": ("train", "val"), "r1": ("r1",), "bench": ("test",)}
"""What the splits are for: fine-tuning, reinforcement learning on other videos, and a benchmark on yet others."""


@dataclass
class Curation:
    """Stereo video in, shards of questions out. The same settings and seed give the same bytes.

    Attributes:
        source: Where the clips come from.
        out: Folder that the shards and ``index.json`` are put into; it must be new, empty, or hold the result of these
            very settings. Until all is finished the work waits in ``OUT.partial``, where an interrupted run goes on.
        clips: Take only so many clips; None takes all.
        depth: Estimates depth where the source has none.
        odometry: Estimates the camera's path where the source has none.
        finder: Finds objects where the source has none.
        quality: Filters pixels, tracks and clips that cannot be trusted; None trusts all.
        margins: When an answer is clear enough to be asked for.
        options: Makes questions of what was measured: options that give nothing away, or the paper's
            (``mllm4d.qa.paper.PaperOptions``).
        twins: Split to the symmetric twins ("mirror", "reverse") that its clips get, with rightly changed answers.
        pairs: Pairs of time anchors looked at in a clip: first and last frame, then random ones.
        per_clip: At most so many questions of one task about one clip.
        splits: Share of the clips in each split, by whole source videos; every split gets at least one video where
            there are enough. "train" and "val" are for fine-tuning, "r1" for reinforcement learning, "test" is the
            benchmark.
        clips_per_shard: Clips in a shard.
        video_quality: H.264's constant rate factor of the stored video.
        executor: Who works on the clips: "local" is ``workers`` processes of this machine, "ray" a Ray cluster, a class
            is anything else.
        workers: Local processes; 0 works in this one.
        max_failed: Share of the clips that may be unusable; each is named in ``index.json``. Past it, or when none is
            left, the run stops.
        seed: Decides anchors, splits, options and wordings.
    """

    source: Source
    out: str
    clips: int | None = None
    depth: DepthEstimator | None = None
    odometry: Odometry | None = None
    finder: ObjectFinder | None = None
    quality: Quality | None = field(default_factory=Quality)
    margins: Margins = field(default_factory=Margins)
    options: OptionMaker = field(default_factory=LeakFree)
    twins: Mapping[str, Sequence[Kind]] = field(default_factory=dict)
    pairs: int = 12
    per_clip: int = 4
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "r1": 0.1, "val": 0.1, "test": 0.1})
    clips_per_shard: int = 64
    video_quality: int = 16
    executor: Executor | Literal["local", "ray"] = "local"
    workers: int = 2
    max_failed: float = 1.0
    seed: int = 0

    def run(self) -> Path:
        """Do what is not done yet.

        Returns:
            The folder with the shards.

        Raises:
            InputError: The source is unusable, too many clips are, or ``out`` holds something else. Nothing is left
                behind then.
            UnfinishedError: The disk is full, or cannot be written to for another reason. What is finished stays.
        """
        out, config = Path(self.out), self._config()
        if out.is_file():
            raise InputError(f"{out}: is a file; 'out' must name a folder")
        if out.is_dir() and any(out.iterdir()):
            return self._accept(out, config)
        keys = list(self.source.keys(self.clips))
        staging = out.with_name(out.name + ".partial")
        _open_staging(staging, config)
        job = ClipJob(
            self.source,
            self.depth,
            self.odometry,
            self.finder,
            self.quality,
            self.margins,
            self.pairs,
            tuple(dict.fromkeys(kind for kinds in self.twins.values() for kind in kinds)),
            self.video_quality,
            self.seed,
            staging.absolute(),
        )
        try:
            failed = self._work(job, keys)
            self._finish([key for key in keys if key not in failed], failed, staging, config)
        except UnfinishedError as error:
            done = sum(job.finished(key) for key in keys)
            raise UnfinishedError(
                f"{error}; {done} of {len(keys)} clips are finished; the same command goes on in {staging}"
            ) from error
        except InputError:
            shutil.rmtree(staging)
            raise
        os.replace(staging / "shards", out)
        shutil.rmtree(staging)
        print_summary(out, read_index(out))
        return out

    def _config(self) -> dict[str, Any]:
        """The settings that the result depends on."""
        names = [name for name in self.__dataclass_fields__ if name not in ("out", "executor", "workers")]
        return {name: describe(getattr(self, name)) for name in names}

    def _accept(self, out: Path, config: dict[str, Any]) -> Path:
        known = read_index(out).notes.get("config", {})
        for name, value in config.items():
            if known.get(name) != value:
                raise InputError(
                    f"{out}: holds shards of another configuration (key {name!r} was {json.dumps(known.get(name))}, "
                    f"is {json.dumps(value)}); name another folder under 'out' or remove this one"
                )
        return out

    def _executor(self) -> Executor:
        if isinstance(self.executor, Executor):
            return self.executor
        if self.executor == "ray":
            return RayTasks()
        return LocalProcesses(self.workers) if self.workers else InThisProcess()

    def _work(self, job: ClipJob, keys: Sequence[str]) -> dict[str, str]:
        """Process all clips that are not finished; returns why clips failed."""
        todo = [key for key in keys if not job.finished(key)]
        failed: dict[str, str] = {}
        results = self._executor().map(job, todo)
        for key, reason in tqdm(results, "curating", len(keys), initial=len(keys) - len(todo), unit="clip"):
            if reason is not None:
                failed[key] = reason
                if len(failed) > self.max_failed * len(keys) or len(failed) == len(keys):
                    raise InputError(
                        f"{reason} ({len(failed)} of {len(keys)} clips unusable, 'max_failed' allows "
                        f"{self.max_failed:.0%} and one must be left)"
                    )
        return failed

    def _finish(self, keys: Sequence[str], failed: Mapping[str, str], staging: Path, config: dict[str, Any]) -> None:
        """Write shards and index."""
        folder = staging / "shards"
        shutil.rmtree(folder, ignore_errors=True)
        splits = assign_splits({key: self.source.video(key) for key in keys}, self.splits, self.seed)
        try:
            folder.mkdir()
            merge = Merge(
                staging,
                self.options,
                self.twins,
                self.per_clip,
                self.margins.ladder,
                self.seed,
                self.clips_per_shard,
            )
            merged = merge(splits.members, folder)
            if not merged.shards:
                raise InputError(
                    f"{self.out}: no question is left of {len(keys)} clips; dropped: {dict(merged.filters)}"
                )
            notes = {
                "source": config["source"],
                "config": config,
                "versions": _versions(),
                "clips": {"usable": len(keys), "failed": dict(sorted(failed.items()))},
                "split_by": splits.by,
                "products": {
                    name: [split for split in parts if split in merged.counts] for name, parts in PRODUCTS.items()
                },
                "counts": merged.counts,
                "answers": merged.answers,
                "filters": merged.filters,
                "blind": merged.blind,
            }
            write_index(folder, merged.shards, notes)
            index = read_index(folder)
            write_report(folder, index, {key: read_cloud(staging, key) for key in sample_keys(index)})
        except OSError as error:
            raise UnfinishedError(f"{folder}: the shards cannot be written ({error.strerror})") from error


def _open_staging(staging: Path, config: dict[str, Any]) -> None:
    """Go on in a staging folder of the same settings, else start an empty one."""
    note = staging / "config"
    if note.is_file() and json.loads(note.read_text()) == config:
        return
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        note.write_text(json.dumps(config))
    except OSError as error:
        raise InputError(f"{staging}: cannot be made anew ({error.strerror})") from error


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
