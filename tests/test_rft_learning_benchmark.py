"""The figures of the benchmark of what RFT teaches: rewards from TensorBoard's own file, gains paired by question."""

import json
import math
from argparse import Namespace

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.bench.test_report import finish, make_suite
from tools.benchmarks import rft_learning
from tools.benchmarks.rft_learning import STEPS, curve, show


def write_rewards(folder, rewards):
    with SummaryWriter(str(folder)) as writer:
        for step, reward in enumerate(rewards):
            writer.add_scalar("train/reward/mean", reward, step)


def test_rewards_are_means_of_the_first_and_of_the_last_steps(tmp_path):
    write_rewards(tmp_path / "a", [0.25] * STEPS + [0.9] * 5 + [0.5, 0.75] * (STEPS // 2))
    assert curve(tmp_path / "a") == {"steps": 2 * STEPS + 5, "first": 0.25, "last": 0.625}
    write_rewards(tmp_path / "b", [0.5] * (2 * STEPS - 1))
    with pytest.raises(SystemExit, match=f"{2 * STEPS - 1} steps; expected at least {2 * STEPS}"):
        curve(tmp_path / "b")


def test_mean_and_spread_over_the_seeds(capsys):
    row = {"config": "rft", "steps": 40, "before": 0.5, "low": -0.1, "high": 0.2, "p": 0.5, "words": 0.1}
    rows = [{**row, "seed": k, "first": 0.5, "last": 0.5 + k / 10, "after": 0.7 - k / 10} for k in range(3)]
    show(rows)
    shown = capsys.readouterr().out
    assert "rft: reward +0.100, spread 0.100, 3 seeds" in shown
    assert "rft: accuracy +0.100, spread 0.100, 3 seeds" in shown


def test_every_configuration_meets_every_seed_from_the_same_model(tmp_path, monkeypatch):
    calls = []

    def verb(folder, log, *words):
        calls.append((folder.name, [str(word) for word in words]))
        if words[0] == "fit":
            write_rewards(folder / "runs/rft/logs", [0.5] * STEPS + [0.75] * STEPS)
            (folder / "runs/rft/checkpoints").mkdir(parents=True)
            (folder / "runs/rft/checkpoints/last.ckpt").touch()

    monkeypatch.setattr(rft_learning, "mllm4d", verb)
    settings = Namespace(
        runs=tmp_path, model=tmp_path / "model", shards=tmp_path / "shards", minutes=7, jobs=2, prompts=24, more=[]
    )
    row = rft_learning.train(tmp_path / "some.yaml", 3, settings)
    assert (row["seed"], row["first"], row["last"]) == (3, 0.5, 0.75)
    (name, fit), (again, test) = calls
    assert name == again == "some-3"
    asked = dict(zip(fit[1::2], fit[2::2], strict=True))
    assert asked["--seed_everything"] == asked["--data.seed"] == "3"
    assert asked["--model.base.path"] == str(tmp_path / "model")
    assert (asked["--trainer.max_time"], asked["--data.batch_size"]) == ("00:00:07:00", "24")
    assert test[test.index("--ckpt_path") + 1] == str(tmp_path / "some-3/runs/rft/checkpoints/last.ckpt")


def test_a_gain_is_paired_by_question(tmp_path):
    (tmp_path / "shards").mkdir()
    suite = make_suite(tmp_path / "shards", lambda n, k: "AB"[(k // 2 + n) % 2])
    right = [min(q.right) for q in suite.questions()]
    wrong = ["A" if letter == "B" else "B" for letter in right]
    # Of 60, the first run has 15 right; the second those and the last 30.
    finish(tmp_path / "before", suite, right[:15] + wrong[15:])
    finish(tmp_path / "after", suite, right[:15] + wrong[15:30] + right[30:])
    found = rft_learning.gain(tmp_path / "before", tmp_path / "after")
    assert (found["before"], found["after"]) == (0.25, 0.75)
    assert found["low"] <= 0.5 <= found["high"]
    assert math.isnan(found["words"])
    results = json.loads((tmp_path / "after/results.json").read_text())
    results["scores"]["official"]["mean_in_words"] = 0.625
    (tmp_path / "after/results.json").write_text(json.dumps(results))
    assert rft_learning.words_of(tmp_path / "after") == 0.625
