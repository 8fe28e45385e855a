"""Every trainer's YAML beside every training's: parsed, and built as far as this machine can."""

import importlib.util
import json
import sys

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from mllm4d.cli import TrainerCLI, run_trainer
from mllm4d.models.packing import PackedInputs
from mllm4d.train.checkpoints import AtomicCheckpointIO, StepCheckpoint
from mllm4d.train.sharding import ShardedStrategy
from tests.conftest import ROOT

TRAINERS = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
TRAININGS = [ROOT / "configs" / f"{name}.yaml" for name in ("sft", "cold_start")]


@pytest.fixture
def build(monkeypatch):
    """Build what ``fit`` would run, without running it."""

    def build(*arguments):
        monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, subcommand: None)
        monkeypatch.setattr(sys, "argv", ["mllm4d"])
        return run_trainer(["fit", *map(str, arguments)])

    return build


@pytest.mark.parametrize("training", TRAININGS, ids=lambda path: path.stem)
def test_a_training_by_itself(training, build):
    cli = build("-c", training)
    model, trainer = cli.model, cli.trainer
    assert (model.base.lora.r, model.base.lora.alpha, model.learning_rate) == (128, 256, 2e-5)
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    (checkpoint,) = trainer.checkpoint_callbacks
    assert type(checkpoint) is StepCheckpoint
    optimizer = model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5}])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("training", TRAININGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", TRAINERS, ids=lambda path: path.stem)
def test_every_trainer_is_built_beside_every_training(path, training, build):
    head = path.read_text().split("\n\n")[0]
    assert f"python -m mllm4d fit -c configs/sft.yaml -c configs/trainer/{path.name}" in head
    kind, gpus = path.stem.removesuffix("gpu").split("_")
    # As many CPUs as it wants GPUs: what is built is the same.
    arguments = ["-c", training, "-c", path, "--trainer.accelerator", "cpu"]
    if kind == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            # It is parsed, and then asks for the package.
            with pytest.raises(ValueError, match=r"must have DeepSpeed installed[\s\S]*stage=2"):
                build(*arguments)
        else:
            assert build("-c", training, "-c", path).trainer.strategy.zero_stage_2
        return
    trainer = build(*arguments).trainer
    assert trainer.world_size == int(gpus)
    assert type(trainer.strategy) is {"ddp": DDPStrategy, "fsdp": ShardedStrategy}[kind]
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    assert trainer.precision == "bf16-mixed"
    # Packing and checkpoints stay the training's.
    assert len(trainer.checkpoint_callbacks) == 1


def test_packing_by_class_path_gets_inputs_and_model(build, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(PackedInputs, "__init__", lambda self, *args, **settings: given.append((args, settings)))
    later = tmp_path / "later.yaml"
    packing = {"class_path": "mllm4d.models.packing.PackedInputs", "init_args": {"share_prefix": False}}
    later.write_text(json.dumps({"model": {"init_args": {"packing": packing}}}))
    made = build("-c", TRAININGS[0], "-c", later).model.packing("inputs", "model")
    assert isinstance(made, PackedInputs)
    assert given == [(("inputs", "model"), {"share_prefix": False})]
    later.write_text(json.dumps({"model": {"init_args": {"packing": None}}}))
    assert build("-c", TRAININGS[0], "-c", later).model.packing is None


def test_settings_as_a_config_writes_them(build, tmp_path):
    later = tmp_path / "later.yaml"
    base = {"gradient_checkpointing": ["language"], "train": ["merger"], "liger": True}
    settings = {"base": {"init_args": base}, "learning_rates": {"merger": 1e-5}, "seed": 3, "chunk": 64}
    settings["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "fused": False}}
    later.write_text(json.dumps({"model": {"init_args": settings}}))
    model = build("-c", TRAININGS[0], "-c", later).model
    assert (list(model.base.gradient_checkpointing), model.base.liger) == (["language"], True)
    assert (model.learning_rates, model.seed, model.chunk) == ({"merger": 1e-5}, 3, 64)
    optimizer = model.optimizer([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5}])
    assert (type(optimizer), optimizer.defaults["momentum"]) == (torch.optim.SGD, 0.9)
