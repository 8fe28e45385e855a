"""The work on one clip, done in a process of its own: load, build the scene, find candidates, encode, put aside."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mllm4d.curate.depth import DepthEstimator
from mllm4d.curate.odometry import Odometry
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.base import Source
from mllm4d.qa.generate import Candidate, candidates
from mllm4d.qa.judge import Margins
from mllm4d.schema import InputError
from mllm4d.video import encode

_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ClipJob:
    """What a worker needs to know; it does the same for a clip whichever worker it is.

    Attributes:
        source: Where clips come from.
        depth: Depth estimator, or None.
        odometry: Odometry, or None.
        margins: When an answer is clear enough.
        pairs: Pairs of anchors to look at in a clip.
        video_quality: As in ``mllm4d.video.encode``.
        seed: Of the whole run; each clip draws from it and its key.
        staging: Folder where finished clips wait.
    """

    source: Source
    depth: DepthEstimator | None
    odometry: Odometry | None
    margins: Margins
    pairs: int
    video_quality: int
    seed: int
    staging: Path

    def finished(self, key: str) -> bool:
        """Whether the clip has been put aside already; its JSON is written last."""
        return (self.staging / f"{key}.json").is_file()

    def __call__(self, key: str) -> tuple[str, str | None]:
        """Work on one clip.

        Returns:
            The key, and the reason why the clip cannot be used, or None.
        """
        try:
            self._process(key)
        except InputError as error:
            return key, str(error)
        return key, None

    def _process(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise InputError(f"clip key {key!r} must consist of letters, digits, '-' and '_'")
        clip = self.source.load(key)
        scene = build_scene(clip, self.depth, self.odometry)
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        found, dropped = candidates(key, scene, self.margins, self.pairs, generator)
        content = {"scene": scene.to_dict(), "candidates": [asdict(c) for c in found], "dropped": dict(dropped)}
        _write(self.staging / f"{key}.mp4", encode(clip.frames, clip.times, self.video_quality))
        _write(self.staging / f"{key}.json", json.dumps(content).encode())


@dataclass(frozen=True)
class StagedClip:
    """A finished clip, read back."""

    key: str
    scene: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    dropped: Mapping[str, int]


def read_staged(staging: Path, key: str) -> StagedClip:
    """Read a finished clip, all but its video."""
    content = json.loads((staging / f"{key}.json").read_text())
    found = tuple(
        Candidate(**{**entry, "anchors": tuple(entry["anchors"]), "times": tuple(entry["times"])})
        for entry in content["candidates"]
    )
    return StagedClip(key, content["scene"], found, content["dropped"])


def single_threaded() -> None:
    """Use one thread in this process: several processes share the cores, and sums come out in one order."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)
