"""Real processes, really killed; a real Ray cluster on this machine."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mllm4d.curate.executors import DIED, InThisProcess, LocalProcesses, RayTasks
from mllm4d.schema import UnfinishedError

KEYS = [f"k{n}" for n in range(9)]


@dataclass(frozen=True)
class Mark:
    """Leaves a mark for every time it works on a key; some keys kill the process, fail or stop the run."""

    folder: Path
    kill: str = ""
    times: int = 0
    full: str = ""

    def __call__(self, key):
        begun = len(list(self.folder.glob(f"{key}.*")))
        (self.folder / f"{key}.{begun}").touch()
        if key == self.kill and begun < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if key == self.full:
            raise UnfinishedError("the disk is full")
        return key, "odd" if int(key[1:]) % 2 else None


EXPECTED = {key: "odd" if int(key[1:]) % 2 else None for key in KEYS}
EXECUTORS = [InThisProcess(), LocalProcesses(1), LocalProcesses(2)]


@pytest.mark.parametrize("executor", EXECUTORS, ids=repr)
def test_every_key_comes_back_once(executor, tmp_path):
    outcomes = list(executor.map(Mark(tmp_path), KEYS))
    assert dict(outcomes) == EXPECTED
    assert len(outcomes) == len(KEYS) == len(list(tmp_path.iterdir()))
    assert list(executor.map(Mark(tmp_path), [])) == []


def test_a_killed_worker_costs_nothing(tmp_path):
    assert dict(LocalProcesses(2).map(Mark(tmp_path, kill="k3", times=1), KEYS)) == EXPECTED


def test_a_clip_that_kills_its_worker_again_is_given_up_and_the_others_are_done(tmp_path):
    assert dict(LocalProcesses(2).map(Mark(tmp_path, kill="k3", times=9), KEYS)) == {**EXPECTED, "k3": DIED}
    assert len(list(tmp_path.glob("k3.*"))) == 2


def test_a_full_disk_ends_the_work(tmp_path):
    with pytest.raises(UnfinishedError, match="the disk is full"):
        list(LocalProcesses(2).map(Mark(tmp_path, full="k2"), KEYS))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two cores that other processes can join."""
    ray = pytest.importorskip("ray")
    node = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    yield node.address_info["address"]
    ray.shutdown()


def test_ray_does_the_same(cluster, tmp_path):
    assert dict(RayTasks().map(Mark(tmp_path), KEYS)) == EXPECTED
    assert len(list(tmp_path.iterdir())) == len(KEYS)


def test_ray_gives_up_a_clip_that_kills_its_worker_twice(cluster, tmp_path):
    outcomes = dict(RayTasks().map(Mark(tmp_path, kill="k3", times=9), KEYS))
    assert outcomes == {**EXPECTED, "k3": DIED}
    assert len(list(tmp_path.glob("k3.*"))) == 2


def test_ray_hands_on_what_stops_the_run(cluster, tmp_path):
    with pytest.raises(UnfinishedError, match="the disk is full"):
        list(RayTasks().map(Mark(tmp_path, full="k2"), KEYS))


def test_the_command_joins_a_cluster(cluster, tmp_path):
    command = [sys.executable, "-m", "mllm4d", "curate", "-c", "configs/curate/world.yaml", "--clips", "12"]
    small = ["--source.width", "64", "--source.height", "64", "--source.frames", "8", "--source.fps", "4"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    root = Path(__file__).resolve().parents[2]
    made = []
    for name, executor in (("ray", ["--executor", "ray"]), ("local", ["--workers", "0"])):
        out = ["--out", str(tmp_path / name)]
        result = subprocess.run(
            [*command, *small, *out, *executor], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
