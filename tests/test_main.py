"""The verbs as people use them: every shipped config is built, overrides reach where they should, bad input says so."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from mllm4d.__main__ import build_task
from mllm4d.bench.data import SuiteData
from mllm4d.bench.likelihood import LetterLikelihood
from mllm4d.bench.module import Bench
from mllm4d.cli import TrainerCLI, run_trainer
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.world import World
from mllm4d.train.module import MLLMModule
from tests.conftest import ROOT

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml"))
CURATE = [path for path in CONFIGS if path.parent.name == "curate"]
TRAINER = [path for path in CONFIGS if path.parent.name not in ("curate", "model", "trainer", "bench")]
BENCH = [path for path in CONFIGS if path.parent.name == "bench"]
MODELS = [path for path in CONFIGS if path.parent.name == "model"]


def mllm4d(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "mllm4d", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=300)


def fails(result, *words):
    """One line says what is wrong, and there is no traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line, result.stderr


@pytest.fixture
def build(monkeypatch):
    """Build what a trainer verb would run, without running it."""

    def build(*arguments):
        monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, subcommand: None)
        monkeypatch.setattr(sys, "argv", ["mllm4d"])
        return run_trainer(list(map(str, arguments)))

    return build


@pytest.mark.parametrize("path", CURATE, ids=lambda path: path.stem)
def test_every_curation_config_is_built_and_opens_with_its_command(path):
    assert isinstance(build_task("curate", ["-c", str(path)]), Curation)
    assert f"python -m mllm4d curate -c {path.relative_to(ROOT)}" in path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
@pytest.mark.parametrize("path", TRAINER, ids=lambda path: path.stem)
def test_every_trainer_config_is_built_and_opens_with_its_command(path, verb, build):
    cli = build(verb, "-c", path)
    assert isinstance(cli.model, MLLMModule)
    assert f"python -m mllm4d fit -c {path.relative_to(ROOT)}" in path.read_text().split("\n\n")[0]


@pytest.mark.parametrize("path", BENCH, ids=lambda path: path.stem)
def test_every_bench_config_is_built_and_opens_with_its_command(path, build):
    cli = build("test", "-c", path)
    assert isinstance(cli.model, Bench)
    assert isinstance(cli.datamodule, SuiteData)
    assert str(cli.model.out) == f"runs/bench/{path.stem}"
    comment = path.read_text().split("\n\n")[0]
    assert f"python -m mllm4d test -c {path.relative_to(ROOT)}" in comment
    assert f"{cli.model.out}: results.md, report.html, results.json" in comment


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_config_goes_with_a_bench_config(path, build):
    cli = build("test", "-c", ROOT / "configs/bench/vlm4d.yaml", "-c", path)
    assert cli.model.base.path in path.read_text()


def test_adapters_and_the_way_of_answering_are_named_on_the_command_line_of_a_bench(build):
    words = ["--model.base.lora.r", "16", "--model.answering", "mllm4d.bench.likelihood.LetterLikelihood"]
    cli = build("test", "-c", ROOT / "configs/bench/mllm4d.yaml", *words, "--data.suite.shards", "elsewhere")
    assert (cli.model.base.lora.r, cli.model.base.lora.alpha) == (16, 256)
    assert isinstance(cli.model.answering, LetterLikelihood)
    assert cli.datamodule.suite.shards == "elsewhere"
    vllm = ["--model.answering", "mllm4d.bench.vllm.VLLMGeneration", "--model.answering.model", "folder"]
    words = [*vllm, "--model.answering.max_new_tokens", "5", "--model.answering.engine.max_model_len", "4096"]
    way = build("test", "-c", ROOT / "configs/bench/mllm4d.yaml", *words).model.answering
    assert (way.model, way.max_new_tokens, way.engine) == ("folder", 5, {"max_model_len": 4096})
    assert build("test", "-c", ROOT / "configs/bench/mllm4d.yaml", "--model.video", "null").model.video is None


def test_overrides_reach_what_refers_to_them(build):
    cli = build("fit", "-c", ROOT / "configs/quickstart.yaml", "--data.shards", "elsewhere", "--data.batch_size", "7")
    assert cli.datamodule.batch_size == 7
    assert str(cli.datamodule.folder) == cli.datamodule.curation.out == "elsewhere"


def test_a_later_config_wins_and_keeps_the_rest(build, tmp_path):
    later = tmp_path / "later.yaml"
    later.write_text("model:\n  init_args:\n    learning_rate: 0.5\n")
    cli = build("fit", "-c", ROOT / "configs/quickstart.yaml", "-c", later)
    assert cli.model.learning_rate == 0.5
    assert cli.model.base.train == ["vision", "merger", "language"]


def test_an_unknown_verb_and_an_unknown_key():
    fails(mllm4d("train"), "no verb 'train'")
    fails(mllm4d("curate", "-c", "configs/curate/world.yaml", "--clip", "3"), "clip")
    result = mllm4d("fit", "-c", "configs/quickstart.yaml", "--data.batchsize", "3")
    assert result.returncode == 2
    assert "batchsize" in result.stderr


@pytest.fixture
def pairs(tmp_path, real_data):
    """Eight real stereo pairs in KITTI's layout, to be damaged."""
    folder = tmp_path / "in" / "street"
    for side in ("image_l", "image_r"):
        (folder / side).mkdir(parents=True)
        for k in range(8):
            shutil.copy(real_data / "kitti_stereo" / side / f"{k:06d}.png", folder / side)
    shutil.copy(real_data / "kitti_stereo" / "calib.txt", folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def no_calibration(folder):
    (folder / "calib.txt").unlink()
    return "calib"


def other_size(folder):
    Image.new("L", (640, 370)).save(folder / "image_r" / "000003.png")
    return "000003.png"


def truncated(folder):
    path = folder / "image_l" / "000005.png"
    path.write_bytes(path.read_bytes()[:5000])
    return "000005.png"


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return "street"


@pytest.mark.parametrize("damage", [no_calibration, other_size, truncated, empty])
def test_bad_stereo_folders_give_one_clear_error_and_leave_nothing(pairs, tmp_path, damage):
    name = damage(pairs)
    out = tmp_path / "out"
    out.mkdir()
    result = mllm4d("curate", "-c", "configs/curate/stereo.yaml", "--source.root", pairs, "--out", out / "shards")
    fails(result, "mllm4d curate: ", name)
    assert list(out.iterdir()) == []


def test_an_answer_outside_the_options_stops_training(tmp_path):
    shards = Curation(
        World(width=64, height=64, frames=8, fps=4.0), str(tmp_path / "shards"), clips=12, workers=0
    ).run()
    path = shards / "train-000000.tar"
    members = []
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            if member.name.endswith("qa.json"):
                questions = json.loads(content)
                questions[0]["answer"] = "Z"
                content = json.dumps(questions).encode()
            members.append((member.name, content))
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    # Where clips lie in the tar, and their checksums, would be told wrong now: without them the shard is read through.
    index = json.loads((shards / "index.json").read_text())
    for name in ("spans", "crc32"):
        del index["shards"][0][name]
    (shards / "index.json").write_text(json.dumps(index))
    result = mllm4d(
        "fit", "-c", ROOT / "configs/quickstart.yaml", "--data.shards", shards, "--data.curation", "null", cwd=tmp_path
    )
    fails(result, "mllm4d fit: ", "train-000000.tar: ", "answer 'Z' is not among the options")
    assert not (tmp_path / "runs" / "quickstart" / "checkpoints").exists()
