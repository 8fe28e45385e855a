"""A GRPO step for real: the tiny model draws, is scored and learns; on one rank and on two."""

import json
import math
import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch
from torch.testing import assert_close

from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import LoRA
from mllm4d.models.completions import stack
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.sharing import Plain, SharedPrefix
from mllm4d.models.tiny import TinyQwen3VL, build_tiny
from mllm4d.schema import InputError
from mllm4d.train import losses
from mllm4d.train.advantages import unscaled
from mllm4d.train.checkpoints import AtomicCheckpointIO, StepCheckpoint
from mllm4d.train.collapse import Collapse, CollapsedError
from mllm4d.train.experience import flat_prompts, in_minibatches
from mllm4d.train.rft import RFT
from mllm4d.train.rollout import SharedRollout
from mllm4d.train.scoring import Reward
from tests.conftest import ROOT
from tests.data.shard_sets import write_set
from tests.train.lessons import Batches, Lessons, torchrun, trained_weights, trainer


def vowels(text, question):
    """A reward that differs from completion to completion, whatever a random model says."""
    return sum(letter in "aeiou" for letter in text) / 10


def one(text, question):
    return 1.0


ADAPTERS = LoRA(r=4, alpha=8)


def rft(folder, reward=vowels, train=(), lora=ADAPTERS, **settings):
    base = TinyQwen3VL(str(folder / "tiny"), train=train, lora=lora)
    defaults = {
        "engine": SharedRollout(max_new_tokens=6),
        "rewards": [Reward("mine", reward)],
        "advantages": unscaled,
        "group": 4,
        "beta": 0.1,
        "learning_rate": 1.0,
        "optimizer": torch.optim.SGD,
        "gradient_clip": 1e9,
        "max_new_tokens": 3,
        "seed": 0,
    }
    return RFT(base, VideoSettings(), MultipleChoiceAccuracy(), **{**defaults, **settings})


class Record(lightning.Callback):
    """What every step logged, and what it drew."""

    def __init__(self):
        self.logged, self.experience = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})
        self.experience.append(outputs["experience"])


def fit(folder, data, module, **settings):
    record = Record()
    callbacks = [record, *settings.pop("callbacks", [])]
    checkpoint = settings.pop("ckpt_path", None)
    # An epoch at most: a step that teaches nothing does not count towards ``max_steps``.
    trainer(folder, callbacks=callbacks, **{"max_epochs": 1, **settings}).fit(module, data, ckpt_path=checkpoint)
    return record


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rft")
    build_tiny(folder / "tiny")
    write_set(folder / "shards", {"r1": [3, 1, 2, 2]}, frames=8, size=64)
    return folder


@pytest.fixture(scope="module")
def one_step(root):
    """A step on 8 prompts: the module, what was recorded, the adapters before."""
    module = rft(root)
    module.configure_model()
    before = trained_weights(module)
    return module, fit(root, Lessons(8), module), before


def test_a_step_is_the_one_worked_out_by_plain_forwards(root, one_step):
    module, record, before = one_step
    (experience,) = record.experience
    plain = rft(root)
    plain.configure_model()
    total, completions = 0.0, 0
    for rollout in experience.rollouts:
        rewards = torch.tensor([vowels(text, None) for text in rollout.texts])
        advantages = rewards - rewards.mean()
        if rewards.std() == 0:
            continue
        prompt = rollout.prompt.tokens["input_ids"]
        for k, advantage in enumerate(advantages):
            said = rollout.tokens[k, : rollout.lengths[k]]
            ids = torch.cat([prompt, said])[None]
            types = torch.nn.functional.pad(rollout.prompt.tokens["mm_token_type_ids"], (0, len(said)))[None]
            logits = plain.model(input_ids=ids, mm_token_type_ids=types, **rollout.prompt.vision).logits[0]
            logits[:, list(rollout.policy.banned)] = -torch.inf
            log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, said[:, None])[:, 0]
            # New adapters change nothing: the divergence from the reference has a gradient of 0, and the ratio is 1.
            total = total - advantage * (log_probs - log_probs.detach()).exp().mean()
            completions += 1
    (total / completions).backward()
    assert completions
    changed = 0
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            gradient = before[name] - trained_weights(module)[name]
            assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
            changed += int(gradient.abs().max() > 1e-4)
    assert changed


def test_the_ratio_is_one_and_the_log_says_what_was_drawn(one_step):
    _, record, _ = one_step
    (logged,), (experience,) = record.logged, record.experience
    assert logged["train/clip_fraction"] == 0
    assert logged["train/kl"] == pytest.approx(0, abs=1e-6)
    rewards = [vowels(text, None) for rollout in experience.rollouts for text in rollout.texts]
    assert len(rewards) == 32
    assert logged["train/reward/mean"] == pytest.approx(sum(rewards) / 32)
    assert logged["train/reward/mine"] == pytest.approx(sum(rewards) / 32)
    lengths = [int(n) for rollout in experience.rollouts for n in rollout.lengths]
    assert logged["train/length"] == pytest.approx(sum(lengths) / 32)
    assert logged["train/truncated"] == pytest.approx(
        sum(bool(t) for r in experience.rollouts for t in r.truncated) / 32
    )
    flat = sum(len({vowels(text, None) for text in rollout.texts}) == 1 for rollout in experience.rollouts)
    assert logged["train/zero_variance"] == pytest.approx(flat / 8)
    assert 0 < logged["train/entropy"] < math.log(1000)
    assert {f"train/seconds/{name}" for name in ("rollout", "reward", "reference", "update")} <= set(logged)


def test_what_scored_above_its_group_becomes_likelier(root):
    module = rft(root, learning_rate=0.05, beta=0.0)
    module.configure_model()
    record = fit(root, Lessons(8), module)
    (experience,) = record.experience
    said = stack(experience.rollouts)
    with torch.no_grad():
        after = module.scorer.score(module.model, module.inputs, experience.rollouts, torch.arange(32)).log_probs
    gain = ((after - said.log_probs) * said.mask).sum(1) / said.mask.sum(1)
    assert float((gain * experience.advantages).sum()) > 1e-4


@pytest.mark.parametrize(
    ("loss", "scorer"),
    [
        (losses.grpo, SharedPrefix(budget=1)),
        (losses.dapo, Plain(budget=200)),
        (losses.dr_grpo, SharedPrefix(budget=300)),
        (losses.gspo, SharedPrefix(budget=1)),
        (losses.cispo, Plain(budget=1)),
    ],
)
def test_micro_batches_are_one_batch_for_every_loss(root, loss, scorer):
    whole, parts = rft(root, loss=loss), rft(root, loss=loss, scorer=scorer)
    fit(root, Lessons(4, count=4), whole)
    fit(root, Lessons(4, count=4), parts)
    assert_close(trained_weights(parts), trained_weights(whole), rtol=0, atol=2e-5)


def test_groups_without_variance_teach_nothing_and_are_counted(root):
    module = rft(root, reward=one)
    module.configure_model()
    before = trained_weights(module)
    (logged,) = fit(root, Lessons(8), module, max_steps=-1).logged
    assert logged["train/zero_variance"] == 1
    assert logged["train/steps_taken"] == 0
    assert logged["train/loss"] == 0
    assert trained_weights(module).keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(module).items())


def test_groups_without_variance_are_drawn_again(root):
    def first_prompt_only(text, question):
        return vowels(text, question) if question.id == "clip0/000" else 1.0

    module = rft(root, reward=first_prompt_only, resample=2)
    record = fit(root, Lessons(4, count=4), module)
    # Three of four prompts, twice.
    assert record.logged[0]["train/resampled"] == pytest.approx(6 / 4)
    assert record.logged[0]["train/zero_variance"] == pytest.approx(3 / 4)
    plain = fit(root, Lessons(4, count=4), rft(root, reward=first_prompt_only))
    kept, again = record.experience[0].rollouts, plain.experience[0].rollouts
    assert [a.texts == b.texts for a, b in zip(kept, again, strict=True)] == [True, False, False, False]


def test_the_second_update_has_a_ratio_of_its_own(root):
    logged = fit(root, Lessons(8), rft(root, updates=2, learning_rate=0.5), max_steps=2).logged[0]
    assert logged["train/clip_fraction"] > 0
    assert logged["train/kl"] > 0
    assert logged["train/steps_taken"] == 1


def test_minibatches_are_optimiser_steps(root):
    module = rft(root, minibatches=2)
    run = trainer(root, max_steps=-1, max_epochs=1)
    run.fit(module, Lessons(8))
    assert run.global_step == 2


def test_weights_of_an_engine_that_is_this_model_are_one(root, one_step):
    module = rft(root, importance_cap=2.0)
    fit(root, Lessons(8), module)
    assert_close(trained_weights(module), trained_weights(one_step[0]), rtol=0, atol=2e-5)


def test_dealing_completions_to_minibatches():
    assert [part.tolist() for part in in_minibatches(torch.tensor([3, 5, 8, 9, 11]), 2)] == [[3, 8, 11], [5, 9]]
    informative = torch.tensor([True, False, False, False, False, True])
    assert flat_prompts(informative, torch.tensor([0, 0, 1, 1, 2, 2])) == [1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group": 1}, "model.group: 1"),
        ({"group": 5, "ranks_per_group": 2}, "multiple of 'ranks_per_group'"),
        ({"updates": 0}, "model.updates: 0"),
        ({"lora": None, "train": ("language",)}, "model.beta: the reference is the model without its adapters"),
        ({"beta": -1.0}, "cannot be negative"),
    ],
)
def test_settings_that_make_no_sense(root, settings, words):
    with pytest.raises(InputError, match=words):
        rft(root, **settings)


def test_a_run_that_collapses_stops_with_a_reason(root):
    # Every option is "left" or "right" here: a random model says neither.
    module = rft(root, collapse=Collapse(patience=2), learning_rate=0.0)
    with pytest.raises(CollapsedError, match="not one completion of the last 2 steps"):
        fit(root, Lessons(2), module, max_steps=-1)
    far = rft(root, collapse=Collapse(max_kl=1e-3), learning_rate=5.0)
    with pytest.raises(CollapsedError, match="nats a token from the reference"):
        fit(root, Lessons(2), far, max_steps=-1)
    watch = Collapse(patience=2)
    watch.look(0.0, 0.0, finite=False)
    watch.look(0.0, 0.0, finite=True)
    watch.look(0.0, 0.0, finite=False)
    with pytest.raises(CollapsedError, match="gradients of the last 2 steps were not finite"):
        watch.look(0.0, 0.0, finite=False)


class Same(Lessons):
    """Every rank gets the same questions."""

    def batches(self, generation=False):
        inputs = self.trainer.lightning_module.inputs
        rows = self.rows(inputs)
        yield QuestionBatch(inputs.collate([r for r, _ in rows], side="right"), None, tuple(q for _, q in rows))

    def train_dataloader(self):
        return Batches(self.batches())


def streamed(root):
    return ClipDataModule(str(root / "shards"), workers=0, batch_size=4, train_split="r1")


TWO_RANKS = """
import json, sys
from pathlib import Path
from tests.train.lessons import Lessons
from tests.train.test_rft import Same, fit, rft, streamed, trained_weights
import torch
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for name, data, settings in (
    ("prompts", Lessons(4), {}),
    ("groups", Same(8), {"ranks_per_group": 2}),
    ("streamed", streamed(folder), {"ranks_per_group": 2}),
):
    module = rft(folder, **settings)
    record = fit(out, data, module, devices=2, strategy="ddp", limit_val_batches=0)
    if module.global_rank == 0:
        torch.save(trained_weights(module), out / f"{name}.pt")
        (out / f"{name}.json").write_text(json.dumps(record.logged))
"""


def test_two_ranks_are_one_in_gradient_with_whole_groups_and_with_split_ones(root, one_step, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    torchrun(script, 29631, root, tmp_path)
    alone = rft(root)
    streamed_record = fit(root, streamed(root), alone, limit_val_batches=0)
    whole = (one_step[0], one_step[1])
    for name, (module, record) in {"prompts": whole, "groups": whole, "streamed": (alone, streamed_record)}.items():
        assert_close(torch.load(tmp_path / f"{name}.pt"), trained_weights(module), rtol=0, atol=1e-5)
        (logged,) = json.loads((tmp_path / f"{name}.json").read_text())
        for key in (
            "train/reward/mean",
            "train/loss",
            "train/kl",
            "train/entropy",
            "train/length",
            "train/zero_variance",
        ):
            assert logged[key] == pytest.approx(record.logged[0][key], rel=1e-4, abs=1e-6), (name, key)


class Kill(lightning.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def long_run(root, out, checkpoint=None, callbacks=()):
    """Four steps of two prompts, with a checkpoint after every second one."""
    saving = StepCheckpoint(out, every_n_train_steps=2, save_last=True, save_top_k=0)
    module = rft(root, optimizer=torch.optim.AdamW, learning_rate=0.01, lora=LoRA(r=4, alpha=8, dropout=0.2))
    record = fit(
        root,
        ClipDataModule(str(root / "shards"), workers=0, batch_size=2, train_split="r1"),
        module,
        max_steps=-1,
        limit_val_batches=0,
        enable_checkpointing=True,
        callbacks=[saving, *callbacks],
        plugins=[AtomicCheckpointIO()],
        ckpt_path=checkpoint,
    )
    return module, record


KILLED = """
import sys
from pathlib import Path
from tests.train.test_rft import Kill, long_run
long_run(Path(sys.argv[1]), Path(sys.argv[2]), callbacks=[Kill()])
"""


def test_a_run_that_was_killed_goes_on_as_the_run_that_was_not(root, tmp_path):
    module, whole = long_run(root, tmp_path / "whole")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PL_GLOBAL_SEED": os.environ.get("PL_GLOBAL_SEED", "0")}
    command = [sys.executable, str(script), str(root), str(tmp_path / "killed")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    again, rest = long_run(root, tmp_path / "killed", checkpoint=str(tmp_path / "killed" / "last.ckpt"))
    assert len(whole.logged) == 4
    assert len(rest.logged) == 2
    for one_logged, other in zip(whole.logged[2:], rest.logged, strict=True):
        for key in one_logged:
            assert "seconds" in key or one_logged[key] == other[key], key
    texts = [[rollout.texts for rollout in experience.rollouts] for experience in whole.experience[2:]]
    assert texts == [[rollout.texts for rollout in experience.rollouts] for experience in rest.experience]
    assert all(torch.equal(w, trained_weights(again)[n]) for n, w in trained_weights(module).items())
