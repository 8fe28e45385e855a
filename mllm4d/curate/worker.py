"""The work on one clip, done in a process of its own: load, build the scene, find candidates, encode, put aside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm4d.curate.depth import DepthEstimator
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.odometry import Odometry
from mllm4d.curate.quality import Quality
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.base import Source
from mllm4d.qa.generate import Candidate, candidates
from mllm4d.qa.judge import Margins
from mllm4d.qa.twins import Kind, twin_candidates, twin_frames, twin_key, twin_scene
from mllm4d.schema import Cloud, InputError, Question, Sample, Scene, UnfinishedError
from mllm4d.video import encode

_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ClipJob:
    """What a worker needs to know; it does the same for a clip whichever worker it is.

    Attributes:
        source: Where clips come from.
        depth: Depth estimator, or None.
        odometry: Odometry, or None.
        finder: Object finder, or None.
        quality: Quality filters, or None.
        margins: When an answer is clear enough.
        pairs: Pairs of anchors to look at in a clip.
        twins: Symmetric twins that are made of a clip as well.
        video_quality: As in ``mllm4d.video.encode``.
        seed: Of the whole run; each clip draws from it and its key.
        staging: Folder where finished clips wait.
    """

    source: Source
    depth: DepthEstimator | None
    odometry: Odometry | None
    finder: ObjectFinder | None
    quality: Quality | None
    margins: Margins
    pairs: int
    twins: tuple[Kind, ...]
    video_quality: int
    seed: int
    staging: Path

    def finished(self, key: str) -> bool:
        """Whether the clip has been put aside already; its JSON is written last."""
        return (self.staging / f"{key}.json").is_file()

    def __call__(self, key: str) -> tuple[str, str | None]:
        """Work on one clip, if it is not finished.

        Returns:
            The key, and the reason why the clip cannot be used, or None.

        Raises:
            UnfinishedError: The result cannot be written.
        """
        try:
            if not self.finished(key):
                self._process(key)
        except UnfinishedError:
            raise
        except InputError as error:
            return key, str(error)
        except Exception as error:
            # One clip out of a million must not end the run; what it was is told in full.
            last = traceback.extract_tb(error.__traceback__)[-1]
            return key, f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
        return key, None

    def _process(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise InputError(f"clip key {key!r} must consist of letters, digits, '-' and '_'")
        clip = self.source.load(key)
        scene = build_scene(clip, self.depth, self.odometry, self.finder, self.quality)
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        found, dropped = candidates(key, scene, self.margins, self.pairs, generator)
        for kind in self.twins:
            twins, left_out = twin_candidates(kind, key, scene, found, self.margins, clip.frames.shape[2])
            twin = twin_scene(kind, scene, clip.frames.shape[2])
            twin = replace(twin, provenance={**scene.provenance, "twin": {"of": key, "kind": kind}})
            self._put(twin_key(kind, key), twin_frames(kind, clip.frames), twin, twins, left_out)
        dropped.update(scene.quality.get("dropped", {}))
        # Last, because it says that the clip is finished.
        self._put(key, clip.frames, scene, found, dropped)

    def _put(self, key: str, frames: Tensor, scene: Scene, found: Sequence[Candidate], dropped: Counter[str]) -> None:
        """Put a clip aside."""
        content = {
            "scene": scene.to_dict(),
            "candidates": [asdict(c) for c in found],
            "dropped": dict(dropped),
            "cloud": _cloud(scene.cloud),
        }
        _write(self.staging / f"{key}.mp4", encode(frames, scene.times, self.video_quality))
        _write(self.staging / f"{key}.json", json.dumps(content).encode())


@dataclass(frozen=True)
class StagedClip:
    """What questions are made from, of a finished clip; its scene and its video stay on disk."""

    key: str
    candidates: tuple[Candidate, ...]
    dropped: Mapping[str, int]


def read_staged(staging: Path, key: str) -> StagedClip:
    """Read a finished clip's candidates."""
    content = _read(staging, key)
    found = tuple(map(Candidate.from_dict, content["candidates"]))
    return StagedClip(key, found, content["dropped"])


def read_sample(staging: Path, key: str, questions: tuple[Question, ...]) -> Sample:
    """Read a finished clip's scene and video."""
    return Sample(key, (staging / f"{key}.mp4").read_bytes(), _read(staging, key)["scene"], questions)


def read_cloud(staging: Path, key: str) -> Mapping[str, Any] | None:
    """Read a finished clip's coloured points, where it has any: ``points`` [N][3] metres, ``colors`` [N][3] 0-255."""
    return _read(staging, key)["cloud"]


def _read(staging: Path, key: str) -> dict[str, Any]:
    return json.loads((staging / f"{key}.json").read_text())


def _cloud(cloud: Cloud | None) -> dict[str, Any] | None:
    if cloud is None:
        return None
    points = [[round(value, 3) for value in row] for row in cloud.points.tolist()]
    return {"points": points, "colors": cloud.colors.tolist()}


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UnfinishedError(f"{path}: cannot be written ({error.strerror})") from error
