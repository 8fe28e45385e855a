"""What goes wrong on real machines and in real videos: a clear report each, and the rest of the run whole."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mllm4d.curate.executors import DIED
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.base import Source
from mllm4d.curate.sources.world import World
from mllm4d.shards import read_index

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
