"""``tools/memory.py``: the released Qwen3-VL-8B without a download, a folder, and a training's configuration."""

import json
import re
import time

import pytest
import torch

from mllm4d.models.base import BaseModel, LoRA, trained_table
from mllm4d.models.families import Qwen3VL
from mllm4d.models.memory import adapter_rows, meta_model
from tests.conftest import ROOT
from tests.models.conftest import tiny_folder  # noqa: F401
from tools.memory import PAPER, QWEN3_VL_8B, Plan, autocast_of, main, qwen3_vl_8b, read_plan


@pytest.fixture(scope="module")
def released():
    config, processor = qwen3_vl_8b()
    start = time.process_time()
    model = meta_model(config, PAPER)
    return config, processor, model, time.process_time() - start


def test_the_released_model_has_its_parameters(released):
    config, _, model, seconds = released
    rows = {row.part: row.total for row in trained_table(model, Qwen3VL())}
    # By hand. A decoder layer: q and o, k and v, the MLP, two norms of 4096 and two of 128.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 128
    language = 2 * 151_936 * 4096 + 36 * layer + 4096
    block = 4 * (1152 * 1152 + 1152) + (1152 * 4304 + 4304) + (4304 * 1152 + 1152) + 4 * 1152
    vision = 27 * block + (3 * 2 * 16 * 16 * 1152 + 1152) + 2304 * 1152
    merger = 4 * (4608 * 4608 + 4608 + 4608 * 4096 + 4096) + 2 * 1152 + 3 * 2 * 4608
    assert (rows["language"], rows["vision"], rows["merger"]) == (language, vision, merger)
    # As the released weights have: 8.77 billion.
    assert language + vision + merger == 8_767_123_696
    assert config.model_type == "qwen3_vl"
    assert all(parameter.is_meta for parameter in model.parameters())
    assert seconds < 60


def test_the_papers_adapters_by_hand(released):
    rows = {row.name: row for row in adapter_rows(released[2], Qwen3VL())}
    # Rank times (in + out) of 36 layers; 32 heads of queries and 8 of keys and values, of 128.
    wide, narrow = 36 * 128 * (4096 + 4096), 36 * 128 * (4096 + 1024)
    assert {name: row.parameters for name, row in rows.items()} == {
        "q_proj": wide,
        "k_proj": narrow,
        "v_proj": narrow,
        "o_proj": wide,
    }
    assert all((row.part, row.layers) == ("language", 36) for row in rows.values())
    assert sum(row.parameters for row in rows.values()) == 122_683_392
    trained = sum(p.numel() for p in released[2].parameters() if p.requires_grad)
    assert trained == 122_683_392


def test_the_embedded_figures_are_those_of_the_class(released):
    """What the class of transformers has as its own defaults for the tower is what is written in the tool."""
    from transformers import Qwen3VLVisionConfig

    vision, default = released[0].vision_config, Qwen3VLVisionConfig()
    for name in ("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "num_position_embeddings"):
        assert getattr(vision, name) == getattr(default, name)
    assert list(vision.deepstack_visual_indexes) == list(default.deepstack_visual_indexes)


def test_one_command_prints_the_tables(capsys):
    main(["--frames", "8", "--clips", "1"])
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["lora", "122,683,392", "122,683,392"] in lines
    assert ["language", "q_proj", "36", "4096", "4096", "37,748,736"] in lines
    assert re.search("8 frames, 1 +8 frames, 8 DDP +8 frames, 8 FSDP", out)
    (weights,) = [[float(x) for x in line[1:]] for line in lines if line[:1] == ["weights"]]
    # 8.77 billion in bfloat16 and the adapters in float32, and an eighth of it.
    whole = (2 * 8_767_123_696 + 4 * 122_683_392) / 1e9
    assert weights == pytest.approx([whole, whole, whole / 8], abs=0.006)
    # 360x640 within 50,176 pixels is 160x288: 45 tokens for each of 4 steps.
    assert "1 clips: 8 frames: 293 tokens" in out
    totals = next([float(x) for x in line[1:]] for line in lines if line[:1] == ["total"])
    assert totals[0] == totals[1] > 19
    assert totals[2] < 8


def test_a_training_configuration_is_merged_as_fit_does(tmp_path):
    later = tmp_path / "later.yaml"
    later.write_text(
        json.dumps(
            {
                "model": {
                    "init_args": {
                        "base": {"init_args": {"train": ["merger"], "lora": {"r": 16}}},
                        "packing": None,
                        "optimizer": {"class_path": "torch.optim.SGD"},
                    }
                },
                "data": {"init_args": {"batch_tokens": 4096}},
                "trainer": {"precision": "32-true"},
            }
        )
    )
    first = read_plan(["-c", str(ROOT / "configs" / "sft.yaml")])
    assert first.base.path == QWEN3_VL_8B
    assert (first.packed, first.clips, first.tokens, first.precision) == (True, 8, None, "bf16-mixed")
    assert first.base.gradient_checkpointing is True
    assert (first.base.lora.r, first.base.lora.alpha) == (128, 256)
    assert autocast_of(first.precision) == torch.bfloat16
    second = read_plan(["-c", str(ROOT / "configs" / "sft.yaml"), "-c", str(later)])
    assert (second.base.lora.r, second.base.lora.alpha, list(second.base.train)) == (16, 256, ["merger"])
    assert (second.packed, second.tokens, second.precision) == (False, 4096, "32-true")
    assert autocast_of(second.precision) is None


def test_a_folder(tiny_folder, capsys):  # noqa: F811
    main([str(tiny_folder), "--frames", "8", "--size", "64", "64", "--gpus", "1"])
    out = capsys.readouterr().out
    rows = {row.part: row.trained for row in trained_table(BaseModel(str(tiny_folder), lora=LoRA()).load()[0])}
    assert f"{rows['lora']:,}" in out
    assert "8 clips: 8 frames:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nothing"], r"nothing/config\.json: not found"),
        (["nobody/nothing"], "nobody/nothing: its configuration cannot be read"),
        (["--size", "2", "2", "--frames", "1"], "the model takes 2 frames together"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_a_precision_that_is_not_known_is_named():
    from mllm4d.schema import InputError

    with pytest.raises(InputError, match=r"trainer\.precision: 'transformer-engine' cannot be counted"):
        autocast_of("transformer-engine")
    assert Plan().base is PAPER
