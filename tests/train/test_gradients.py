"""Every answer token weighs the same: one batch = micro-batches = two ranks, by DDP and by FSDP2, on the CPU."""

import json

import pytest
import torch
from torch.testing import assert_close

from mllm4d.models.base import LoRA
from mllm4d.models.packing import PackedInputs
from mllm4d.models.tiny import build_tiny
from tests.train.lessons import Lessons, sft, torchrun, trained_weights, trainer

SETTINGS = {
    "full": {"train": ("vision", "merger", "language")},
    "lora": {"train": ("merger",), "lora": LoRA(r=4, alpha=8), "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    build_tiny(folder / "tiny")
    return folder


def step(root, batch_size, accumulate, packing=None, **settings):
    """One step of plain gradient descent at rate 1: the loss, and the weights, whose differences are gradients."""
    names = ("gradient_clip_val", "callbacks", "strategy", "devices")
    options = {name: settings.pop(name) for name in names if name in settings}
    module = sft(root, packing, **settings)
    run = trainer(root, accumulate_grad_batches=accumulate, **options)
    run.fit(module, Lessons(batch_size))
    return float(run.callback_metrics["train/loss"]), trained_weights(module), run


@pytest.fixture(scope="module")
def one_batch(root):
    return {name: step(root, 8, 1, **settings) for name, settings in SETTINGS.items()}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 4), (3, 3), (1, 8), (2, 7)])
def test_micro_batches_are_one_batch(root, one_batch, name, batch_size, accumulate):
    # In (3, 3) the last has two questions; in (2, 7) the epoch ends before the last micro-batch.
    loss, weights, _ = one_batch[name]
    found, other, _ = step(root, batch_size, accumulate, **SETTINGS[name])
    assert_close(found, loss, rtol=1e-5, atol=0)
    assert_close(other, weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_packed_rows_are_padded_batches(root, one_batch, share):
    def packing(inputs, model):
        return PackedInputs(inputs, model, share_prefix=share)

    loss, weights, _ = one_batch["full"]
    for batch_size, accumulate in ((8, 1), (3, 3)):
        found, other, _ = step(root, batch_size, accumulate, packing, **SETTINGS["full"])
        assert_close(found, loss, rtol=1e-5, atol=0)
        assert_close(other, weights, rtol=0, atol=1e-5)


def test_it_is_the_mean_over_all_tokens_of_plain_transformers_and_its_gradient(root, one_batch):
    module = sft(root, **SETTINGS["full"])
    module.configure_model()
    (batch,) = list(attached(Lessons(8), module).batches())
    module.model.eval()
    loss = module.model(**batch.inputs.model_inputs(), labels=batch.inputs.labels).loss
    loss.backward()
    assert_close(one_batch["full"][0], float(loss.detach()), rtol=1e-5, atol=0)
    for name, weight in one_batch["full"][1].items():
        parameter = module.get_parameter(name)
        assert_close(weight, parameter.detach() - parameter.grad, rtol=0, atol=1e-5, msg=name)


def attached(data, module):
    """A data module with a trainer that has come so far as to have a model."""
    data.trainer = trainer(".")
    data.trainer.strategy._lightning_module = module
    return data


def test_gradients_are_clipped_after_they_are_divided(root, one_batch):
    module = sft(root, **SETTINGS["full"])
    module.configure_model()
    before = trained_weights(module)
    norm = torch.stack([(before[n] - w).norm() for n, w in one_batch["full"][1].items()]).norm()
    for clip, accumulate in ((float(norm) / 4, 4), (float(norm) * 2, 4)):
        _, weights, _ = step(root, 2, accumulate, gradient_clip_val=clip, **SETTINGS["full"])
        wanted = min(1.0, clip / float(norm))
        for name, weight in weights.items():
            change = wanted * (one_batch["full"][1][name] - before[name])
            assert_close(weight, before[name] + change, rtol=0, atol=1e-5, msg=name)


TWO_RANKS = """
import json, sys
from pathlib import Path
from mllm4d.train.checkpoints import AtomicCheckpointIO
from mllm4d.train.sharding import ShardedStrategy
from tests.train.lessons import Lessons, sft, trainer
from tests.train.test_gradients import SETTINGS
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
values = {}
for kind, strategy in (("ddp", lambda: "ddp"), ("fsdp", ShardedStrategy)):
    for name, settings in SETTINGS.items():
        for batch_size, accumulate in ((2, 2), (4, 1)):
            options = {"devices": 2, "strategy": strategy(), "plugins": [AtomicCheckpointIO()]}
            fit = trainer(out, accumulate_grad_batches=accumulate, **options)
            module, key = sft(folder, **settings), f"{kind}-{name}-{batch_size}"
            fit.fit(module, Lessons(batch_size, evaluate=batch_size == 4))
            fit.save_checkpoint(out / f"{key}.ckpt")
            metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
            local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in module.parameters())
            values[key] = {**metrics, "share": local / sum(p.numel() for p in module.parameters())}
if fit.is_global_zero:
    (out / "values.json").write_text(json.dumps(values))
"""


@pytest.fixture(scope="module")
def two_ranks(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    script = out / "two.py"
    script.write_text(TWO_RANKS)
    torchrun(script, 29461, root, out)
    return out, json.loads((out / "values.json").read_text())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_are_one_rank(one_batch, two_ranks, kind, name):
    out, values = two_ranks
    loss, weights, _ = one_batch[name]
    for batch_size in (2, 4):
        found = values[f"{kind}-{name}-{batch_size}"]
        assert_close(found["train/loss"], loss, rtol=1e-5, atol=0)
        content = torch.load(out / f"{kind}-{name}-{batch_size}.ckpt", weights_only=True)
        # Nothing but what trains, in ordinary tensors, whatever the strategy.
        assert_close(content["state_dict"], weights, rtol=0, atol=1e-5)
        # Every rank has half of the model, or all of it.
        assert_close(found["share"], 0.5 if kind == "fsdp" else 1.0, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_validate_alike(root, two_ranks, name):
    run = trainer(root)
    run.fit(sft(root, **SETTINGS[name]), Lessons(8, evaluate=True))
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    assert {"val/loss", "val/accuracy", "val/invalid"} <= set(metrics)
    for kind in ("ddp", "fsdp"):
        found = two_ranks[1][f"{kind}-{name}-4"]
        assert_close({key: found[key] for key in metrics}, metrics, rtol=1e-4, atol=1e-5, equal_nan=True)
