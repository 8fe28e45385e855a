"""What goes wrong on real machines and in real videos: a clear report each, and the rest of the run whole."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mllm4d.curate.depth import SGBM
from mllm4d.curate.executors import DIED
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.world import World
from mllm4d.qa.judge import Margins
from mllm4d.shards import read_index
from mllm4d.video import encode

WORLD = World(width=64, height=64, frames=8, fps=4.0)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Fragile(Source):
    """A world with a clip that kills its worker (so many times), and a clip that is much larger than the others."""

    folder: str
    kill: str = ""
    times: int = 0
    large: str = ""

    def keys(self, limit=None):
        return WORLD.keys(limit)

    def load(self, key):
        marks = Path(self.folder)
        if key == self.kill and len(list(marks.iterdir())) < self.times:
            (marks / str(len(list(marks.iterdir())))).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        world = World(width=448, height=448, frames=8, fps=4.0, noise=8.0) if key == self.large else WORLD
        return world.load(key)


def curation(folder, **source):
    marks = folder / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    return Curation(Fragile(str(marks), **source), str(folder / "out"), clips=12, workers=2, seed=0)


def shards(out):
    return {path.name: path.read_bytes() for path in out.glob("*.tar")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return shards(curation(tmp_path_factory.mktemp("whole")).run())


def test_a_worker_killed_in_the_middle_changes_nothing(whole, tmp_path):
    assert shards(curation(tmp_path, kill="world-00005", times=1).run()) == whole
    assert len(list((tmp_path / "marks").iterdir())) == 1


def test_a_clip_that_always_kills_its_worker_is_named_and_the_rest_is_whole(tmp_path):
    out = curation(tmp_path, kill="world-00005", times=99).run()
    assert read_index(out).notes["clips"] == {"usable": 11, "failed": {"world-00005": DIED}}
    assert len(list((tmp_path / "marks").iterdir())) == 2


RUN = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.curate.test_faults import curation
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from mllm4d.schema import InputError
try:
    curation(Path(sys.argv[1]), large="world-00007").run()
except InputError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_a_disk_that_takes_no_more_keeps_what_is_done_and_the_run_goes_on(tmp_path):
    command = [sys.executable, "-c", RUN.format(root=str(ROOT)), str(tmp_path)]
    # The large clip's video is more than the limit on one file, every other file is less.
    result = subprocess.run([*command, "150000"], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    message = result.stderr.strip().splitlines()[-1]
    assert "world-00007.mp4: cannot be written (File too large)" in message
    assert "of 12 clips are finished; the same command goes on in" in message
    assert not (tmp_path / "out").exists()
    staged = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
    assert not [name for name in staged if name.endswith(".part")]
    before = {name for name in staged if name.endswith(".json")}
    assert f"{len(before)} of 12 clips" in message
    assert before
    result = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "out.partial").exists()
    assert shards(tmp_path / "out") == shards(curation(tmp_path / "again", large="world-00007").run())


def film(folder, clip, left=None, right=None):
    """A stereo folder with two video files, calibration and poses, as a source hands it out."""
    folder.mkdir(parents=True)
    for name, frames in (
        ("left", clip.frames if left is None else left),
        ("right", clip.right if right is None else right),
    ):
        (folder / f"{name}.mp4").write_bytes(encode(frames, clip.times, quality=8))
    fx, fy, cx, cy = (float(clip.intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    write_calibration(folder, fx=fx, fy=fy, cx=cx, cy=cy, baseline=clip.baseline, fps=clip.fps)
    poses = torch.linalg.inv(clip.world_to_camera)[:, :3].flatten(1)
    (folder / "poses.txt").write_text("\n".join(" ".join(f"{x:.9e}" for x in row) for row in poses.tolist()))


def write_calibration(folder, **changes):
    path = folder / "calib.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **changes}))


def tilted(frames, pixels):
    """Frames shifted downwards."""
    shift = np.float32([[1, 0, 0], [0, 1, pixels]])
    size = frames.shape[2], frames.shape[1]
    return torch.from_numpy(
        np.stack([cv2.warpAffine(f, shift, size, borderMode=cv2.BORDER_REPLICATE) for f in frames.numpy()])
    )


def test_every_bad_video_is_reported_and_the_good_ones_are_whole(tmp_path):
    """A corrupt video, a cut, NaN in poses, a baseline of zero and a pair that is not rectified, beside good ones."""
    seen, known = (World(width=320, height=192, frames=12, fps=4.0, seed=3, truth=truth) for truth in (False, True))
    clips = [replace(seen.load(k), world_to_camera=known.load(k).world_to_camera) for k in seen.keys(6)]
    root = tmp_path / "videos"
    for number, clip in enumerate(clips):
        film(root / f"good{number}", clip)
    film(root / "corrupt", clips[0])
    whole = (root / "corrupt" / "right.mp4").read_bytes()
    (root / "corrupt" / "right.mp4").write_bytes(whole[: len(whole) // 2])
    joined = [
        torch.cat([one[:7], other[7:]])
        for one, other in ((clips[0].frames, clips[1].frames), (clips[0].right, clips[1].right))
    ]
    film(root / "cut", clips[0], *joined)
    film(root / "nan", clips[1])
    lines = (root / "nan" / "poses.txt").read_text().splitlines()
    (root / "nan" / "poses.txt").write_text("\n".join([*lines[:4], "nan " * 12, *lines[5:]]))
    film(root / "zero", clips[2])
    write_calibration(root / "zero", baseline=0)
    film(root / "tilted", clips[3], right=tilted(clips[3].right, 3))
    out = Curation(
        StereoFolder(str(root)),
        str(tmp_path / "out"),
        depth=SGBM(),
        odometry=StereoOdometry(),
        margins=Margins(percentile=5.0),
        pairs=30,
        per_clip=20,
        workers=0,
    ).run()
    notes = read_index(out).notes
    assert notes["clips"]["usable"] == 6
    expected = {
        "corrupt-0000": r"right\.mp4: (cannot be opened as a video|the video)",
        "cut-0000": r"clip 'cut-0000'.* cut between frames 6 and 7 \(1\.50 s\)",
        "nan-0000": r"poses\.txt, line 5: expected 12 finite numbers",
        "tilted-0000": r"clip 'tilted-0000': the pair is not rectified: .* lies 3.00 px lower",
        "zero-0000": r"calib\.json: key 'baseline' must be a positive number \(metres\), not 0",
    }
    assert notes["clips"]["failed"].keys() == expected.keys()
    for key, pattern in expected.items():
        assert re.search(pattern, notes["clips"]["failed"][key]), notes["clips"]["failed"][key]
    asked = {key for shard in read_index(out).shards for key in shard.keys}
    assert asked <= {f"good{number}-0000" for number in range(6)}
    assert len(asked) >= 3
