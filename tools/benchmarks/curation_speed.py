"""How fast stereo video is curated, where the time goes, and how much memory it takes.

Makes a stereo video at 640x360 from the synthetic world (two MP4 files and calib.json), and curates it with the real
runner: depth by SGBM, the camera's path by odometry, quality filters, questions, shards. Each clip of the video is the
same number of frames, so that clips are alike. Printed:

- clips per second with one and with two workers, alternately and several times; of the whole command, and of the
  workers alone (from the first clip's start to the last one's end, without starting Python and importing packages);
- the share of the worker's time that is inside OpenCV's matcher, with one worker: what nothing but another matcher
  could make faster; and the shares of the other parts ("depth" holds the matcher; what is left over is questions and
  the stored video);
- the worker's peak memory for a video of 50 frames and of 500.

Wall-clock times mean little where other programs share the cores; the two workers' ratio needs two free cores.

    python tools/benchmarks/curation_speed.py --out curation_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor
from tqdm import tqdm

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.odometry import Odometry, StereoOdometry
from mllm4d.curate.odometry import Path as CameraPath
from mllm4d.curate.quality import Quality
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.world import World
from mllm4d.qa.paper import PaperOptions
from mllm4d.schema import Clip, Mask

GOALS = {"matcher_share": (0.6, 1.0), "worker_rate_two_over_one": (1.8, 9.0), "memory_ratio": (0.0, 1.1)}
"""Least and greatest value that will do."""


@dataclass(frozen=True)
class TimedSource(Source):
    """Hands out another source's clips and notes when, and how much memory the process took so far.

    Attributes:
        source: The other source.
        log: Folder for notes; a file for each note, so that processes do not meet.
    """

    source: Source
    log: str

    def keys(self, limit: int | None = None) -> Sequence[str]:
        """The other source's."""
        return self.source.keys(limit)

    def load(self, key: str) -> Clip:
        """The other source's clip."""
        with _Timed(self.log, "load"):
            return self.source.load(key)

    def video(self, key: str) -> str:
        """The other source's."""
        return self.source.video(key)


@dataclass(frozen=True)
class TimedSGBM(SGBM):
    """The depth estimator as it is, with the time inside the matcher noted.

    Attributes:
        log: As in ``TimedSource``.
    """

    log: str = ""

    def __call__(self, clip: Clip) -> Depth:
        """Depth of a clip."""
        with _Timed(self.log, "depth"):
            return super().__call__(clip)

    def _match(self, left: np.ndarray, right: np.ndarray) -> Tensor:
        with _Timed(self.log, "matcher"):
            return super()._match(left, right)


@dataclass(frozen=True)
class TimedOdometry(Odometry):
    """Another odometry, with its time noted.

    Attributes:
        odometry: The other.
        log: As in ``TimedSource``.
    """

    odometry: Odometry
    log: str

    def __call__(self, clip: Clip, depth: Depth) -> CameraPath:
        """The path of a clip."""
        with _Timed(self.log, "odometry"):
            return self.odometry(clip, depth)


@dataclass(frozen=True)
class TimedQuality(Quality):
    """The filters as they are, with their time noted.

    Attributes:
        log: As in ``TimedSource``.
    """

    log: str = ""

    def check_clip(self, clip: Clip) -> dict[str, float]:
        """Look at a clip."""
        with _Timed(self.log, "filters"):
            return super().check_clip(clip)

    def clean(self, clip: Clip, depth: Depth, masks: Sequence[Mask] = ()) -> tuple[Depth, Counter[str]]:
        """Drop pixels."""
        with _Timed(self.log, "filters"):
            return super().clean(clip, depth, masks)


class _Timed:
    """Notes when something began and ended, its processor time and the process's peak memory since it began."""

    def __init__(self, log: str, name: str) -> None:
        self.log, self.name = Path(log), name

    def __enter__(self) -> None:
        self.began, self.at = time.time(), time.process_time()

    def __exit__(self, *_: object) -> None:
        note = {
            "name": self.name,
            "process": os.getpid(),
            "began": self.began,
            "ended": time.time(),
            "worked": time.process_time() - self.at,
            "at": self.at,
            "peak": _peak(),
        }
        (self.log / f"{uuid.uuid4().hex}.json").write_text(json.dumps(note))


def _peak() -> int:
    """This process's peak memory, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux lets ``ru_maxrss`` begin with the parent's: a program that made a long video would be counted here.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_video(folder: Path, frames: int, width: int, height: int, clip_frames: int, worlds: int = 4) -> Path:
    """A stereo video of the world: clips of a few worlds, over and over.

    Args:
        folder: New folder to put it into.
        frames: How many at least.
        width: Pixels.
        height: Pixels.
        clip_frames: Frames of a world; clips are cut at the same places.
        worlds: How many are rendered.

    Returns:
        The folder, as ``StereoFolder`` wants it.
    """
    folder.mkdir(parents=True)
    world = World(width=width, height=height, frames=clip_frames, truth=False)
    count = max(2, -(-frames // clip_frames))
    clips = [world.load(key) for key in tqdm(world.keys(min(worlds, count)), "rendering", unit="clip")]
    played = [clips[n % len(clips)] for n in range(count)]
    _write_video(folder / "left.mp4", [clip.frames for clip in played], world.fps)
    _write_video(folder / "right.mp4", [clip.right for clip in played if clip.right is not None], world.fps)
    places = {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}
    rig = {name: float(clips[0].intrinsics[place]) for name, place in places.items()}
    (folder / "calib.json").write_text(json.dumps({**rig, "baseline": world.baseline, "fps": world.fps}))
    return folder


def _write_video(path: Path, views: Sequence[Tensor], fps: float) -> None:
    """H.264 with a key frame every two seconds, as videos on the web have; clip by clip, to hold no copy of it all."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = views[0].shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast", "g": str(round(2 * fps))}
        stream.thread_count = 1
        for array in (array for view in views for array in view.numpy()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def curate(video: Path, work: Path, clip_frames: int, workers: int) -> dict[str, Any]:
    """Run the curation once.

    Args:
        video: From ``make_video``.
        work: Folder for shards and notes.
        clip_frames: Frames of a clip.
        workers: As in ``Curation``.

    Returns:
        ``clips``; clips per second of the whole command (``command_rate``) and of the workers alone (``worker_rate``);
        ``share`` of the workers' processor time of each part; ``peak`` memory of a worker, bytes.
    """
    log = work / uuid.uuid4().hex
    log.mkdir(parents=True)
    source = TimedSource(StereoFolder(str(video), poses="estimate", clip_frames=clip_frames), str(log))
    odometry = TimedOdometry(StereoOdometry(), str(log))
    curation = Curation(
        source,
        str(log / "shards"),
        depth=TimedSGBM(log=str(log)),
        odometry=odometry,
        quality=TimedQuality(log=str(log)),
        options=PaperOptions(),  # they need no balance, which a few clips cannot give
        workers=workers,
    )
    began = time.perf_counter()
    curation.run()
    seconds = time.perf_counter() - began
    notes = [json.loads(path.read_text()) for path in log.glob("*.json")]
    clips = len(source.keys())
    return {"clips": clips, "command_rate": clips / seconds, **account(notes)}


def account(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the notes of one run add up to.

    A worker is timed from the start of its first clip to the start of its last one: those are whole clips, with
    everything that belongs to them, and neither imports nor the end of the run are in it.
    """
    rate, worked, parts = 0.0, 0.0, dict.fromkeys(("load", "depth", "matcher", "filters", "odometry"), 0.0)
    for process in {note["process"] for note in notes}:
        mine = [note for note in notes if note["process"] == process]
        loads = sorted((note for note in mine if note["name"] == "load"), key=lambda note: note["began"])
        first, last = loads[0], loads[-1]
        if first is last:
            continue
        rate += (len(loads) - 1) / (last["began"] - first["began"])
        worked += last["at"] - first["at"]
        for note in mine:
            if note["began"] < last["began"]:
                parts[note["name"]] += note["worked"]
    peak = max(note["peak"] for note in notes)
    if not worked:
        raise SystemExit("no worker had two clips; take a longer video")
    return {"worker_rate": rate, "share": {name: part / worked for name, part in parts.items()}, "peak": peak}


def run(
    work: Path, frames: int, repeats: int, memory_frames: tuple[int, int], size: tuple[int, int], clip_frames: int
) -> dict[str, Any]:
    """All figures.

    Args:
        work: Empty folder.
        frames: Of the video for speed.
        repeats: How often each number of workers is timed.
        memory_frames: Lengths of the videos for memory, short and long.
        size: (width, height), pixels.
        clip_frames: Frames of a clip.
    """
    video = make_video(work / "speed", frames, *size, clip_frames)
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, done in runs.items():
            done.append(curate(video, work, clip_frames, workers))
    result: dict[str, Any] = {"size": list(size), "clip_frames": clip_frames, "clips": runs[1][0]["clips"]}
    for kind in ("command_rate", "worker_rate"):
        for workers, done in runs.items():
            result[f"{kind}_{workers}_workers"] = statistics.median(one[kind] for one in done)
        # Neighbours in time were disturbed alike.
        ratios = [two[kind] / one[kind] for one, two in zip(*runs.values(), strict=True)]
        result[f"{kind}_two_over_one"] = statistics.median(ratios)
        result[f"{kind}_two_over_one_each"] = ratios
    for part in runs[1][0]["share"]:
        result[f"{part}_share"] = statistics.median(one["share"][part] for one in runs[1])
    peaks = []
    for length in memory_frames:
        long = make_video(work / f"memory_{length}", length, *size, clip_frames)
        peaks.append(curate(long, work, clip_frames, 1)["peak"])
    result |= {"memory_frames": list(memory_frames), "peak_mib": [peak / 2**20 for peak in peaks]}
    return result | {"memory_ratio": peaks[1] / peaks[0]}


def main() -> None:
    """Print the table and write it as JSON; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=256, help="of the video for speed")
    parser.add_argument("--repeats", type=int, default=3, help="of each number of workers, alternately")
    parser.add_argument("--memory", type=int, nargs=2, default=(50, 500), help="frames of the videos for memory")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 360), help="width and height, pixels")
    parser.add_argument("--clip-frames", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = run(
            Path(work),
            arguments.frames,
            arguments.repeats,
            tuple(arguments.memory),
            tuple(arguments.size),
            arguments.clip_frames,
        )
    missed = []
    for name, value in result.items():
        text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        line = f"{name:<34}{text:>12}"
        if name in GOALS:
            least, greatest = GOALS[name]
            good = least <= value <= greatest
            line += f"   goal {least:g} to {greatest:g}: {'met' if good else 'MISSED'}"
            missed += [] if good else [name]
        print(line)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
