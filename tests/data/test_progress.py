"""Resuming: the batches after a checkpoint are those of the run that was never stopped, and nothing is read again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from mllm4d.data.datamodule import ClipDataModule
from mllm4d.schema import InputError
from tests.data.shard_sets import PlainInputs, Recorder, trainer, write_set

COUNTS = [3, 1, 2, 4, 2, 3, 1, 5, 2, 3]  # 26 questions: 7 batches of at most 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("resume") / "shards", {"train": COUNTS, "val": [2, 2]})


def data(shards, **settings):
    defaults = {"workers": 0, "batch_size": 4, "eval_batch_size": 3, "window": 12, "inputs": PlainInputs()}
    return ClipDataModule(str(shards), **{**defaults, **settings})


class SaveAlways(lightning.Callback):
    """A checkpoint after every batch, between optimiser steps too, and at the end of every validation and epoch."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def save(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{self.count:03d}.ckpt")
        self.count += 1

    on_train_batch_end = on_validation_end = on_train_epoch_end = save


def run(shards, folder, checkpoint=None, callbacks=(), data_settings=None, **settings):
    """Train; returns the module and its data."""
    module, loaded = Recorder(), data(shards, **(data_settings or {}))
    trainer(folder, callbacks=list(callbacks), **settings).fit(module, loaded, ckpt_path=checkpoint)
    return module, loaded


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"max_epochs": -1, "max_steps": 17},
        {"val_check_interval": 3},
        {"limit_train_batches": 5, "limit_val_batches": 0},
    ],
    ids=str,
)
def test_after_every_checkpoint_the_rest_is_that_of_the_run_that_was_not_stopped(shards, tmp_path, settings):
    module, _ = run(shards, tmp_path, callbacks=[SaveAlways(tmp_path)], **settings)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert saved
    for path in saved:
        content = torch.load(path, weights_only=True)
        steps = settings.get("accumulate_grad_batches", 1)
        # What was seen after the last optimiser step is not in the weights.
        trained = content["seen"]
        lost = len(trained) % sum(epoch == 0 for epoch, _ in module.seen) % steps
        again, _ = run(shards, tmp_path / "again", checkpoint=str(path), **settings)
        assert trained[: len(trained) - lost] + again.seen == module.seen, path.name
        assert float(again.weight) == float(module.weight), path.name


def test_nothing_that_was_trained_is_read_again(shards, tmp_path):
    module, _ = run(shards, tmp_path, callbacks=[SaveAlways(tmp_path)], max_epochs=1, limit_val_batches=0)
    again, loaded = run(
        shards, tmp_path / "again", checkpoint=str(tmp_path / "004.ckpt"), max_epochs=1, limit_val_batches=0
    )
    rest = [id for _, ids in module.seen[5:] for id in ids]
    assert [id for _, ids in again.seen for id in ids] == rest
    assert sorted(loaded.inputs.questions) == sorted(rest)


def test_processes_that_read_ahead_change_nothing(shards, tmp_path):
    two = {"max_epochs": 2, "limit_val_batches": 0, "data_settings": {"workers": 2}}
    module, _ = run(shards, tmp_path, callbacks=[SaveAlways(tmp_path)], **two)
    again, _ = run(shards, tmp_path / "again", checkpoint=str(tmp_path / "003.ckpt"), **two)
    assert module.seen[4:] == again.seen
    assert module.seen == run(shards, tmp_path / "none", max_epochs=2, limit_val_batches=0)[0].seen


def test_with_another_order_only_the_end_of_an_epoch_can_be_resumed(shards, tmp_path):
    run(shards, tmp_path, callbacks=[SaveAlways(tmp_path)], max_epochs=1, limit_val_batches=0)
    for settings, message in (
        ({"batch_size": 5}, "data.batch_size: .*with 4, now it is 5"),
        ({"seed": 1}, "data.seed"),
    ):
        middle = {"checkpoint": str(tmp_path / "002.ckpt"), "data_settings": settings, "max_epochs": 2}
        with pytest.raises(InputError, match=message):
            run(shards, tmp_path / "again", **middle)
        end = sorted(tmp_path.glob("*.ckpt"))[-1]
        again, _ = run(shards, tmp_path / "again", **{**middle, "checkpoint": str(end)})
        assert {epoch for epoch, _ in again.seen} == {1}
        assert sum(len(ids) for _, ids in again.seen) == sum(COUNTS)


def test_a_checkpoint_can_be_scored_with_any_order(shards, tmp_path):
    run(shards, tmp_path, callbacks=[SaveAlways(tmp_path)], max_epochs=1, limit_val_batches=0)
    other = data(shards, batch_size=7, seed=3)
    trainer(tmp_path).validate(Recorder(), other, ckpt_path=str(tmp_path / "002.ckpt"), verbose=False)


TWO_RANKS = """
import json, sys
from pathlib import Path
from tests.data.test_progress import SaveAlways, data
from tests.data.shard_sets import Recorder, trainer
shards, out, checkpoint = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
module = Recorder()
callbacks = [] if checkpoint else [SaveAlways(out)]
fit = trainer(out, devices=2, strategy="ddp", max_epochs=2, limit_val_batches=0, callbacks=callbacks)
fit.fit(module, data(shards, batch_size=2), ckpt_path=checkpoint or None)
name = f"{'again' if checkpoint else 'whole'}{fit.global_rank}.json"
out.joinpath(name).write_text(json.dumps([ids for _, ids in module.seen]))
"""


def torchrun(script, port, *arguments):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_ranks_go_on_where_they_were(shards, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    torchrun(script, 29431, shards, tmp_path, "")
    # 26 questions, 13 a rank, 7 steps: in the middle of the second epoch.
    torchrun(script, 29432, shards, tmp_path, tmp_path / "010.ckpt")
    whole, again = (
        [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in (0, 1)] for name in ("whole", "again")
    )
    assert [len(rank) for rank in whole] == [14, 14]
    for rank in (0, 1):
        assert again[rank] == whole[rank][10:]
    for epoch in (slice(0, 7), slice(7, 14)):
        seen = [id for rank in whole for ids in rank[epoch] for id in ids]
        assert len(seen) == len(set(seen)) == sum(COUNTS)
