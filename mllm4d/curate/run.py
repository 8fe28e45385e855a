"""Curation as a whole: a source's clips become scenes, their relations questions, and all of it shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mllm4d.curate.depth import DepthEstimator
from mllm4d.curate.describe import describe
from mllm4d.curate.odometry import Odometry
from mllm4d.curate.sources.base import Source
from mllm4d.curate.splits import assign_splits
from mllm4d.curate.summary import print_summary
from mllm4d.curate.worker import ClipJob, read_staged, single_threaded
from mllm4d.qa.balance import balance
from mllm4d.qa.blind import score_blind
from mllm4d.qa.judge import Margins
from mllm4d.schema import InputError, Question, Sample
from mllm4d.shards import read_index, write_index, write_shards

PACKAGES = ("mllm4d", "torch", "kornia", "open3d", "opencv-python-headless", "av", "webdataset")


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
        margins: When an answer is clear enough to be asked for.
        pairs: Pairs of time anchors looked at in a clip: first and last frame, then random ones.
        per_clip: At most so many questions of one task about one clip.
        splits: Share of the clips in each split; every split gets at least one clip where there are enough.
        clips_per_shard: Clips in a shard.
        video_quality: H.264's constant rate factor of the stored video.
        workers: Processes; 0 works in this one.
        max_failed: Share of the clips that may be unusable; each is named in ``index.json``. Past it the run stops.
        seed: Decides anchors, splits, options and wordings.
    """

    source: Source
    out: str
    clips: int | None = None
    depth: DepthEstimator | None = None
    odometry: Odometry | None = None
    margins: Margins = field(default_factory=Margins)
    pairs: int = 12
    per_clip: int = 4
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    clips_per_shard: int = 64
    video_quality: int = 16
    workers: int = 2
    max_failed: float = 0.0
    seed: int = 0

    def run(self) -> Path:
        """Do what is not done yet.

        Returns:
            The folder with the shards.

        Raises:
            InputError: The source is unusable, too many clips are, or ``out`` holds something else. Nothing is left
                behind then.
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
            self.margins,
            self.pairs,
            self.video_quality,
            self.seed,
            staging.absolute(),
        )
        try:
            failed = self._work(job, keys)
            self._merge([key for key in keys if key not in failed], failed, staging, config)
        except InputError:
            shutil.rmtree(staging)
            raise
        os.replace(staging / "shards", out)
        shutil.rmtree(staging)
        print_summary(out, read_index(out))
        return out

    def _config(self) -> dict[str, Any]:
        """The settings that the result depends on."""
        names = [name for name in self.__dataclass_fields__ if name not in ("out", "workers")]
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

    def _work(self, job: ClipJob, keys: Sequence[str]) -> dict[str, str]:
        """Process all clips that are not finished; returns why clips failed."""
        todo = [key for key in keys if not job.finished(key)]
        failed: dict[str, str] = {}
        results = _map(job, todo, self.workers)
        for key, reason in tqdm(results, "curating", len(keys), initial=len(keys) - len(todo), unit="clip"):
            if reason is not None:
                failed[key] = reason
                if len(failed) > self.max_failed * len(keys):
                    raise InputError(
                        f"{reason} ({len(failed)} of {len(keys)} clips unusable, 'max_failed' allows "
                        f"{self.max_failed:.0%})"
                    )
        return failed

    def _merge(self, keys: Sequence[str], failed: Mapping[str, str], staging: Path, config: dict[str, Any]) -> None:
        """Balance over all clips of a split, and write shards and index."""
        folder = staging / "shards"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shards, by_split, filters = [], {}, Counter[str]()
        asked: list[Question] = []
        folds: list[int] = []
        for split, members in assign_splits(keys, self.splits, self.seed).items():
            staged = [read_staged(staging, key) for key in members]
            found = [candidate for clip in staged for candidate in clip.candidates]
            balanced = balance(found, self.per_clip, self.margins.ladder, self.seed)
            filters.update(balanced.dropped)
            for clip in staged:
                filters.update(clip.dropped)
            by_clip: dict[str, list[Question]] = defaultdict(list)
            for question in balanced.questions:
                by_clip[question.id.rsplit("/", 1)[0]].append(question)
            filters["clip without a question"] += len(staged) - len(by_clip)
            by_split[split] = dict(Counter(question.task for question in balanced.questions))
            asked += balanced.questions
            folds += balanced.folds
            samples = (
                Sample(clip.key, (staging / f"{clip.key}.mp4").read_bytes(), clip.scene, tuple(by_clip[clip.key]))
                for clip in staged
                if clip.key in by_clip
            )
            shards += write_shards(samples, folder, split, self.clips_per_shard)
        if not asked:
            raise InputError(f"{self.out}: no question is left of {len(keys)} clips; dropped: {dict(filters)}")
        notes = {
            "source": config["source"],
            "config": config,
            "versions": _versions(),
            "clips": {"usable": len(keys), "failed": dict(sorted(failed.items()))},
            "counts": by_split,
            "filters": dict(sorted(filters.items())),
            "blind": score_blind(asked, folds),
        }
        write_index(folder, shards, notes)


def _open_staging(staging: Path, config: dict[str, Any]) -> None:
    """Go on in a staging folder of the same settings, else start an empty one."""
    note = staging / "config"
    if note.is_file() and json.loads(note.read_text()) == config:
        return
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    note.write_text(json.dumps(config))


def _map(job: ClipJob, keys: Sequence[str], workers: int) -> Iterator[tuple[str, str | None]]:
    if workers == 0 or not keys:
        yield from map(job, keys)
        return
    # Fresh interpreters: a fork would inherit the threads of torch and Open3D half-way.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(keys)), initializer=single_threaded) as pool:
        yield from pool.imap_unordered(job, keys)


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
