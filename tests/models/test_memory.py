"""The items of the estimate against real tensors and by hand."""

import pytest
import torch
from transformers import AutoConfig

from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.dry_run import Step
from mllm4d.models.families import Qwen3VL
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.memory import (
    AdapterRow,
    Memory,
    adapter_rows,
    estimate,
    example_batch,
    format_memory,
    gathered_bytes,
    meta_model,
)
from mllm4d.schema import InputError

STEP = Step(100, {"vision": 1, "language": 20, "head": 300}, 1321, {}, {}, {})


def setting(folder, **settings):
    base = BaseModel(str(folder), **{"dtype": "float32", "lora": LoRA(r=8, alpha=16), **settings})
    model, processor = base.load()
    meta = meta_model(AutoConfig.from_pretrained(folder), base)
    batch = example_batch(base.inputs(model, processor, VideoSettings()), 8, 56, 56, 20, 5, clips=2)
    return model, meta, batch


@pytest.mark.parametrize("settings", [{}, {"train": ("merger",)}, {"lora": None, "train": ("language",)}])
def test_weights_gradients_and_states_are_those_of_a_real_step(tiny_folder, settings):
    model, meta, batch = setting(tiny_folder, **settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = [s for state in optimizer.state.values() for s in state.values() if s.ndim]
    memory = estimate(meta, batch, STEP)
    assert memory.weights == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert memory.gradients == sum(p.grad.nbytes for p in trained)
    assert memory.optimizer == sum(s.nbytes for s in states)
    assert memory.inputs == sum(
        t.nbytes for t in [*batch.model_inputs().values(), batch.labels] if isinstance(t, torch.Tensor)
    )
    assert (memory.vision, memory.language, memory.loss, memory.working, memory.gathered) == (1, 20, 300, 1000, 0)
    assert memory.total == sum(memory.items().values())


def test_adapters_of_a_half_precision_model_stay_in_float32(tiny_folder):
    _, meta, batch = setting(tiny_folder, dtype="bfloat16")
    adapters = sum(row.parameters for row in adapter_rows(meta, Qwen3VL()))
    memory = estimate(meta, batch, STEP)
    assert memory.gradients == 4 * adapters
    assert memory.optimizer == 8 * adapters
    assert estimate(meta, batch, STEP, state_bytes=2).optimizer == 2 * adapters
    assert estimate(meta, batch, STEP, devices=8) == memory


def test_adapters_by_hand(tiny_folder):
    _, meta, _ = setting(tiny_folder)
    assert adapter_rows(meta, Qwen3VL()) == [
        AdapterRow("language", "q_proj", 4, (128, 128), 4 * 8 * 256),
        AdapterRow("language", "k_proj", 4, (128, 64), 4 * 8 * 192),
        AdapterRow("language", "v_proj", 4, (128, 64), 4 * 8 * 192),
        AdapterRow("language", "o_proj", 4, (128, 128), 4 * 8 * 256),
    ]


def test_sharded_by_hand(tiny_folder):
    _, meta, batch = setting(tiny_folder)
    whole, shared = estimate(meta, batch, STEP), estimate(meta, batch, STEP, devices=4, sharded=True)
    buffers = sum(b.nbytes for b in meta.buffers())
    assert shared.weights - buffers == -(-(whole.weights - buffers) // 4)
    assert (shared.gradients, shared.optimizer) == (-(-whole.gradients // 4), -(-whole.optimizer // 4))
    # Two decoder layers, the larger ones: matrices, norms (two of 128, two of 32), adapters.
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320 + 2 * 128 + 2 * 32 + 8 * (2 * 256 + 2 * 192)
    # A layer of the tower: matrices with biases, two norms.
    block = 4 * 128 * 128 + 4 * 128 + 2 * 128 * 256 + 256 + 128 + 4 * 128
    total = sum(p.numel() for p in meta.parameters())
    rest = total - 4 * layer - 3 * block
    assert shared.gathered == gathered_bytes(meta) == 4 * (rest + 2 * layer)
    assert gathered_bytes(meta, torch.bfloat16) == 2 * (rest + 2 * layer)
    assert estimate(meta, batch, STEP, devices=1, sharded=True) == whole


def test_four_bits_are_the_language_models_matrices(tiny_folder):
    _, meta, batch = setting(tiny_folder, dtype="bfloat16")
    whole, small = estimate(meta, batch, STEP), estimate(meta, batch, STEP, four_bits=True)
    matrices = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320)
    assert whole.weights - small.weights == pytest.approx(matrices * (2 - 4.127 / 8), abs=1)
    with pytest.raises(InputError, match="4 bits cannot be sharded"):
        estimate(meta, batch, STEP, devices=2, sharded=True, four_bits=True)


@pytest.mark.parametrize(("question", "answer"), [(1, 1), (20, 5)])
def test_an_example_has_as_many_tokens_as_it_says(tiny_folder, question, answer):
    base = BaseModel(str(tiny_folder), dtype="float32", train=("language",))
    model, processor = base.load()
    inputs = base.inputs(model, processor, VideoSettings())
    batch = example_batch(inputs, 8, 56, 56, question, answer, clips=3)
    plain = example_batch(inputs, 8, 56, 56, 1, 1)
    assert batch.labels.shape == (3, plain.labels.shape[1] + question + answer - 2)
    assert (batch.labels != -100).sum() == 3 * ((plain.labels != -100).sum() + answer - 1)
    assert batch.tokens["attention_mask"].all()
    # A clip of 8 frames makes 16 features; as many places wait for them.
    assert (batch.tokens["input_ids"] == processor.video_token_id).sum() == 3 * 16
    assert all(tensor.is_meta == name.startswith("pixel_values") for name, tensor in batch.vision.items())


def test_the_real_model_is_left_out_of_memory(tiny_folder):
    base = BaseModel(str(tiny_folder), lora=LoRA(r=8, alpha=16), gradient_checkpointing=["language"])
    meta = meta_model(AutoConfig.from_pretrained(tiny_folder), base)
    assert all(p.is_meta for p in meta.parameters())
    assert meta.training
    # "auto" is what a GPU would have.
    assert {p.dtype for n, p in meta.named_parameters() if "lora" not in n} == {torch.bfloat16}
    layers = {n for n, m in meta.named_modules() if getattr(m, "gradient_checkpointing", False) and "layers." in n}
    assert len(layers) == 4


def test_the_table_adds_up():
    memory = Memory(*(n * 10**9 for n in range(1, 10)))
    lines = format_memory({"one": memory, "a longer heading": memory}).splitlines()
    assert lines[0].split(maxsplit=5) == ["GB", "on", "each", "GPU", "one", "a longer heading"]
    assert [line.split()[-1] for line in lines[1:]] == [*(f"{n}.00" for n in range(1, 10)), "45.00"]
