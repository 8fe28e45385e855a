"""Every model's YAML beside the trainer's: parsed, built, and no weights read."""

import json
import sys

import pytest

from mllm4d.cli import TrainerCLI, run_trainer
from mllm4d.models.base import BaseModel
from tests.conftest import ROOT

MODELS = sorted((ROOT / "configs" / "model").glob("*.yaml"))
SFT = ROOT / "configs" / "sft.yaml"
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture
def build(monkeypatch):
    """Build what ``fit`` would run, without running it."""

    def build(*arguments):
        monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, subcommand: None)
        monkeypatch.setattr(BaseModel, "load", lambda self: pytest.fail("weights were read"))
        monkeypatch.setattr(sys, "argv", ["mllm4d"])
        return run_trainer(["fit", *map(str, arguments)])

    return build


def test_every_family_has_a_model():
    names = {"qwen3_vl", "qwen2_5_vl", "qwen3_5", "internvl3", "smolvlm2", "llava_onevision", "gemma3"}
    assert all(any(path.stem.startswith(name) for path in MODELS) for name in names)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_is_built_beside_the_trainer_and_opens_with_its_command(path, build):
    alone, cli = build("-c", SFT), build("-c", SFT, "-c", path)
    text = path.read_text()
    assert f"python -m mllm4d fit -c configs/sft.yaml -c {path.relative_to(ROOT)}" in text.split("\n\n")[0]
    assert len([line for line in text.split("\n\n", 1)[1].splitlines() if line.strip()]) <= 16
    base, video = cli.model.base, cli.model.video
    assert f"path: {base.path}\n" in text
    assert base.path.count("/") == 1
    # What the model's file does not say stays the trainer's.
    assert (base.lora.r, base.lora.alpha, base.gradient_checkpointing) == (128, 256, True)
    assert set(QKVO) <= set(base.lora.targets)
    assert cli.model.learning_rate == alone.model.learning_rate
    assert cli.datamodule.batch_size == alone.datamodule.batch_size
    # A limit on pixels makes sense only where the size of a frame can be chosen.
    assert (video.max_pixels is None) == (not path.stem.startswith("qwen"))


def test_adapters_and_weights_from_yaml(build, tmp_path):
    changes = {"lora": {"dora": True, "parts": ["language", "merger"], "targets": ["linear_fc1", "q_proj"]}}
    changes |= {"quantization": "4bit", "family": {"class_path": "mllm4d.models.families.Qwen3VL"}}
    later = tmp_path / "later.yaml"
    later.write_text(json.dumps({"model": {"init_args": {"base": {"init_args": changes}}}}))
    base = build("-c", SFT, "-c", later).model.base
    assert (base.lora.dora, list(base.lora.parts), base.quantization) == (True, ["language", "merger"], "4bit")
    assert type(base.family).__name__ == "Qwen3VL"
