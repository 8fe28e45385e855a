"""A run that was killed goes on as the run that was not: the same losses to the last bit, on one rank and on two."""

import json
import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch

from mllm4d.data.datamodule import ClipDataModule
from mllm4d.models.base import LoRA
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.packing import PackedInputs
from mllm4d.models.tiny import build_tiny
from mllm4d.schema import InputError
from mllm4d.train.checkpoints import AtomicCheckpointIO, StepCheckpoint
from mllm4d.train.seeds import step_seed
from tests.conftest import ROOT
from tests.data.shard_sets import write_set
from tests.train.lessons import Lessons, Losses, sft, torchrun, trained_weights, trainer

SETTINGS = {
    "train": ("merger",),
    "lora": LoRA(r=4, alpha=8, dropout=0.3),
    "optimizer": torch.optim.AdamW,
    "learning_rate": 0.01,
    "warmup": 0.3,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    build_tiny(folder / "tiny")
    counts = [3, 1, 2, 4, 2, 3, 1]  # 16 questions
    write_set(folder / "shards", {"train": counts, "val": [2]}, frames=8, size=64)
    return folder


class Kill(lightning.Callback):
    """Ends the process as the kernel would, in the middle of an accumulation."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)


def run(root, out, checkpoint=None, callbacks=(), devices=1, strategy="auto", keep=0, **settings):
    """Two epochs of 4 optimiser steps (8 batches a rank, 2 a step), with a checkpoint after every third."""
    losses = Losses()
    saving = StepCheckpoint(out, every_n_train_steps=3, save_last=True, save_top_k=keep, filename="{step}")
    fit = trainer(
        out,
        max_steps=-1,
        max_epochs=2,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        enable_checkpointing=True,
        callbacks=[losses, saving, *callbacks],
        plugins=[AtomicCheckpointIO()],
        devices=devices,
        strategy=strategy,
        gradient_clip_val=1.0,
    )
    module = sft(root, **{**SETTINGS, **settings})
    data = ClipDataModule(str(root / "shards"), workers=0, batch_size=2 // devices, window=8)
    fit.fit(module, data, ckpt_path=checkpoint)
    return losses.values, module


ALONE = """
import sys
from pathlib import Path
from tests.train.test_resume import Kill, run
run(Path(sys.argv[1]), Path(sys.argv[2]), callbacks=[Kill()])
"""


def test_killed_in_the_middle_of_an_epoch_it_goes_on_with_the_same_losses_and_weights(root, tmp_path):
    losses, module = run(root, tmp_path / "whole")
    assert len(losses) == 8
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", ALONE, str(root), str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    checkpoint = tmp_path / "killed" / "last.ckpt"
    # After the 6th step, the 2nd of 4 of the second epoch; killed in the middle of the 7th.
    content = torch.load(checkpoint, weights_only=True)
    assert (content["global_step"], content["epoch"]) == (6, 1)
    again, resumed = run(root, tmp_path / "killed", checkpoint)
    assert again == losses[6:]
    weights = trained_weights(module)
    for name, weight in trained_weights(resumed).items():
        assert torch.equal(weight, weights[name]), name


def test_a_checkpoint_holds_what_trains_and_nothing_that_could_run(root, tmp_path):
    _, module = run(root, tmp_path)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 8  # not the 6th, the last of three
    weights = trained_weights(module)
    assert set(content["state_dict"]) == set(content["trained"]) == set(weights)
    assert all("lora_" in name or "merger" in name for name in weights)
    assert len(content["optimizer_states"][0]["state"]) == len(weights)
    # Weights and two moments in float32, and a little.
    assert (tmp_path / "last.ckpt").stat().st_size < 3.3 * 4 * sum(weight.numel() for weight in weights.values())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


TWO_RANKS = """
import json, sys
from pathlib import Path
from mllm4d.train.sharding import ShardedStrategy
from tests.train.test_resume import run
root, out = Path(sys.argv[1]), Path(sys.argv[2])
values = {}
for kind, strategy in (("ddp", lambda: "ddp"), ("fsdp", ShardedStrategy)):
    values[kind], _ = run(root, out / kind, devices=2, strategy=strategy(), keep=-1)
    middle = out / kind / "step=6.ckpt"
    values[f"{kind}-again"], module = run(root, out / f"{kind}-again", middle, devices=2, strategy=strategy())
if module.global_rank == 0:
    (out / "values.json").write_text(json.dumps(values))
"""


def test_two_ranks_go_on_with_the_same_losses_by_ddp_and_fsdp(root, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    torchrun(script, 29471, root, tmp_path)
    values = json.loads((tmp_path / "values.json").read_text())
    for kind in ("ddp", "fsdp"):
        assert len(values[kind]) == 8
        assert values[f"{kind}-again"] == values[kind][6:], kind
        content = torch.load(tmp_path / kind / "last.ckpt", weights_only=True)
        assert all("lora_" in name or "merger" in name for name in content["state_dict"])


def test_dropout_follows_from_seed_place_and_rank_alone(root):
    seeds = [step_seed(*place) for place in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
    assert len(set(seeds)) == 5
    losses = []
    for seed, before in ((0, 1), (0, 2), (3, 1)):

        class Draw(lightning.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, before=before):
                torch.rand(before)
                for name, parameter in pl_module.named_parameters():
                    if "lora_B" in name and trainer.global_step == 0:  # zero at the start, where dropout shows nothing
                        parameter.data.fill_(0.01)

        record = Losses()
        settings = {**SETTINGS, "seed": seed, "learning_rate": 0.0, "train": ()}
        trainer(root, callbacks=[Draw(), record]).fit(sft(root, **settings), Lessons(8))
        losses += record.values
    # What was drawn before counts for nothing. The third also begins with other adapters.
    assert losses[0] == losses[1] != losses[2]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    code = (
        "import os, signal, sys, torch\n"
        "from mllm4d.train.checkpoints import AtomicCheckpointIO\n"
        "class Killer:\n"
        "    def __reduce__(self):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "io = AtomicCheckpointIO()\n"
        "io.save_checkpoint({'n': 1, 'w': torch.ones(1000)}, sys.argv[1])\n"
        "io.save_checkpoint({'n': 2, 'w': torch.ones(1000), 'x': Killer()}, sys.argv[1])\n"
    )
    path = tmp_path / "deep" / "last.ckpt"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert AtomicCheckpointIO().load_checkpoint(path)["n"] == 1
    AtomicCheckpointIO().save_checkpoint({"n": 3}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["n"] == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_another_preprocessing_or_other_parts_is_refused_also_without_a_trainer(root):
    def loaded(**settings):
        module = sft(root, **{**SETTINGS, **settings})
        module.configure_model()
        return module

    checkpoint = {"state_dict": trained_weights(loaded())}
    loaded().on_save_checkpoint(checkpoint)
    checkpoint = json.loads(json.dumps({**checkpoint, "state_dict": {}}))  # plain values but for the weights
    loaded().on_load_checkpoint(checkpoint)
    # Packed or padded, a question is the same to the model.
    loaded(packing=PackedInputs).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"checkpoint: was made with settings\.frames 8, but here it is 4"):
        loaded(video=VideoSettings(frames=4)).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"checkpoint: .* trained parameters differ"):
        loaded(train=()).on_load_checkpoint(checkpoint)
