"""The whole way on a real clip: KITTI's street to shards, a tiny model trained on them, scores."""

import os
import re
import subprocess
import sys

import pytest
import torch

from mllm4d.geometry.pose import center, path_rms, rebase
from mllm4d.shards import read_index, read_shard
from tests.conftest import ROOT


def run(*arguments, cwd):
    command = [sys.executable, "-m", "mllm4d", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory, real_data):
    """Shards with the folder's poses and with estimated ones."""
    root, folders = tmp_path_factory.mktemp("kitti"), {}
    for poses in ("folder", "estimate"):
        folders[poses] = root / poses
        settings = ["--source.root", real_data / "kitti_stereo", "--source.poses", poses, "--out", folders[poses]]
        run("curate", "-c", ROOT / "configs/curate/stereo.yaml", *settings, cwd=root)
    return folders


def samples(folder):
    return {s.key: s for shard in read_index(folder).shards for s in read_shard(folder / shard.path)}


def poses_of(sample):
    return torch.tensor(sample.scene["camera"]["world_to_camera"], dtype=torch.float64)


def truth(real_data, frames):
    rows = (real_data / "kitti_stereo" / "poses.txt").read_text().split("\n")
    rows = [[float(x) for x in row.split()] for row in rows if row.strip()]
    camera_to_world = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    camera_to_world[:, :3] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3, 4)
    return rebase(torch.linalg.inv(camera_to_world)[frames])


def test_estimated_paths_are_within_035_m_of_ground_truth(shards, real_data):
    found = samples(shards["estimate"])
    frames = sorted(frame for sample in found.values() for frame in sample.scene["provenance"]["frames"])
    assert frames == list(range(51))
    for sample in found.values():
        expected = truth(real_data, sample.scene["provenance"]["frames"])
        assert path_rms(poses_of(sample), expected) < 0.35
        assert sample.scene["quality"]["odometry"]["inliers_min"] > 50


def test_given_paths_are_the_folders(shards, real_data):
    for sample in samples(shards["folder"]).values():
        expected = truth(real_data, sample.scene["provenance"]["frames"])
        assert (center(poses_of(sample)) - center(expected)).norm(dim=-1).max() < 1e-4


def test_answers_follow_from_the_ground_truth_path(shards, real_data):
    for sample in samples(shards["folder"]).values():
        path = center(truth(real_data, sample.scene["provenance"]["frames"]))
        for question in sample.questions:
            i, j = question.anchors
            assert question.answer_value == pytest.approx(float((path[j] - path[i]).norm()), abs=1e-3)
            assert question.solution["camera_center"][1] == pytest.approx(path[j].tolist(), abs=2e-3)


def test_fit_trains_on_them_and_test_scores(shards, tmp_path):
    settings = ["-c", ROOT / "configs/quickstart.yaml", "--data.shards", shards["estimate"], "--data.curation", "null"]
    printed = run("fit", *settings, "--trainer.max_epochs", 1, cwd=tmp_path)
    assert "last.ckpt" in printed
    checkpoint = tmp_path / "runs" / "quickstart" / "checkpoints" / "last.ckpt"
    printed = run("test", *settings, "--ckpt_path", checkpoint, cwd=tmp_path)
    asked = sum(sum(shard.questions) for shard in read_index(shards["estimate"]).split("test"))
    assert re.search(rf"camera_absolute_distance\s+{asked}\s+\d+\.\d", printed), printed
