"""A dry step against a real one on the CPU: what autograd keeps, the allocator's highest moment, operations by hand."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig

from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.dry_run import dry_step
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.logprobs import answer_positions, hidden_at, token_log_probs
from mllm4d.models.memory import example_batch, meta_model
from mllm4d.models.packing import PackedInputs
from mllm4d.schema import InputError
from tests.models.tiny_families import FAMILIES

ALL = ("vision", "merger", "language")
ADAPTERS = {"lora": LoRA(r=8, alpha=16)}
CHUNK = 48


def settings_of(folder, **settings):
    return BaseModel(str(folder), dtype="float32", **settings)


def batch_for(base, model, processor, packed, frames=4, clips=2):
    inputs = base.inputs(model, processor, VideoSettings(frames=frames))
    return example_batch(PackedInputs(inputs, model) if packed else inputs, frames, 56, 56, 30, 20, clips)


def dry(base, packed, autocast=None, **size):
    _, processor = base.load()
    model = meta_model(AutoConfig.from_pretrained(base.path), base)
    return dry_step(model, batch_for(base, model, processor, packed, **size), chunk=CHUNK, autocast=autocast)


def real(base, packed, autocast=None, **size):
    """Bytes that autograd keeps for the backward pass, and the most that the allocator had given out at a time."""
    model, processor = base.load()
    model.train()
    batch = batch_for(base, model, processor, packed, **size)
    inputs = {k: torch.rand(v.shape) if k.startswith("pixel_values") else v for k, v in batch.model_inputs().items()}
    at, targets = answer_positions(batch.labels)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))

    def forward():
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            states, head = hidden_at(model, {**inputs, "use_cache": False}, at)
            return -token_log_probs(states, head, targets, CHUNK).sum()

    before = [*model.parameters(), *model.buffers(), *inputs.values(), at, targets]
    before = {t.untyped_storage()._cdata for t in before if isinstance(t, torch.Tensor)}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in before:
            saved[storage._cdata] = weakref.ref(storage)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    kept = {ref() for ref in saved.values()} - {None}
    size = sum(storage.nbytes() for storage in kept)
    del kept
    loss.backward()
    del loss
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        forward().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return size, peak


@pytest.mark.parametrize(("frames", "clips"), [(4, 2), (8, 3)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("what", [ADAPTERS, {"train": ALL}], ids=["lora", "full"])
def test_kept_and_highest_are_the_real_ones(tiny_folder, what, checkpointing, frames, clips):
    base = settings_of(tiny_folder, **what, gradient_checkpointing=checkpointing)
    size = {"packed": True, "frames": 8 * (frames // 4), "clips": clips}
    step, (kept, peak) = dry(base, **size), real(base, **size)
    assert sum(step.kept.values()) == pytest.approx(kept, rel=0.2)
    assert step.peak == pytest.approx(peak, rel=0.05)
    # A frozen tower keeps nothing; checkpoints keep little.
    assert (step.kept["vision"] == 0) == ("lora" in what)
    assert ("language" in step.again) == checkpointing


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3", "qwen2")])
def test_every_family(folder_of, name):
    base = settings_of(folder_of(name), **ADAPTERS, gradient_checkpointing=True)
    packed = name not in ("gemma3", "qwen35")
    step, (_, peak) = dry(base, packed), real(base, packed)
    assert step.peak == pytest.approx(peak, rel=0.1)
    assert step.kept["vision"] == 0


@pytest.mark.parametrize("what", [ADAPTERS, {"train": ALL}], ids=["lora", "full"])
def test_autocast(tiny_folder, what):
    base = settings_of(tiny_folder, **what)
    size = {"packed": False, "frames": 8, "clips": 6}
    step, (kept, peak) = dry(base, **size, autocast=torch.bfloat16), real(base, **size, autocast=torch.bfloat16)
    # On a CPU autocast leaves norms in bfloat16, on a GPU, which is what counts, it raises them.
    assert sum(step.kept.values()) == pytest.approx(kept, rel=0.1)
    assert step.peak == pytest.approx(peak, rel=0.1)
    assert step.kept["language"] < 0.9 * dry(base, **size).kept["language"]


def test_operations_by_hand(qwen3_folder):
    step = dry(settings_of(qwen3_folder, train=ALL), packed=True, frames=4, clips=3)
    # One of three questions: 4 frames are 2 steps of 16 tokens, 64 patches each.
    length = step.tokens // 3
    # Queries and outputs, keys and values, three matrices of the MLP; scores and values of 4 heads of 32.
    matrices = 2 * 3 * length * 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320)
    attention = 3 * 4 * 4 * length * length * 4 * 32
    assert step.forward["language"] == matrices + attention
    # As much again for the gradients of weights and of inputs; attention does five products where it did two.
    assert step.backward["language"] == 2 * matrices + 2.5 * attention
    # Answers of 20 tokens and "<|im_end|>".
    word = 2 * 128 * AutoConfig.from_pretrained(qwen3_folder).text_config.vocab_size
    assert step.forward["head"] == 3 * 21 * word
    assert step.backward["head"] == 2 * 3 * 21 * word
    # Of two chunks of logits the first is made again.
    assert step.again == {"head": CHUNK * word}
    patches = 3 * 2 * 64
    embedding = 2 * patches * 3 * 2 * 8 * 8 * 128
    tower = 2 * patches * 3 * (4 * 128 * 128 + 2 * 128 * 256) + 3 * patches * 4 * 64 * 128
    merger = 2 * (patches // 4) * 3 * (512 * 512 + 512 * 128)
    assert step.forward["vision"] == embedding + tower + merger
    assert step.flops == sum(step.forward.values()) + sum(step.backward.values())
    assert sum(step.flops_per_token().values()) == pytest.approx(step.flops / step.tokens)


def test_what_is_done_again_is_no_more_work_for_the_model(qwen3_folder):
    once, twice = (
        dry(settings_of(qwen3_folder, train=ALL, gradient_checkpointing=checkpointing), packed=True)
        for checkpointing in (False, True)
    )
    assert twice.flops == once.flops
    # The last product of a layer, one of seven, is not done again: nothing needs what comes out.
    assert 0.7 < twice.again["language"] / once.forward["language"] < 0.9


def test_a_row_of_equal_lengths_is_as_much_work_as_a_padded_batch(qwen3_folder):
    base = settings_of(qwen3_folder, **ADAPTERS)
    row, padded = dry(base, packed=True, clips=4), dry(base, packed=False, clips=4)
    assert (row.tokens, row.forward, row.backward) == (padded.tokens, padded.forward, padded.backward)


def test_weights_and_nothing_that_trains_are_refused(qwen3_folder):
    base = settings_of(qwen3_folder, **ADAPTERS)
    model, processor = base.load()
    batch = batch_for(base, model, processor, packed=False)
    with pytest.raises(InputError, match="has weights; expected one on the meta device"):
        dry_step(model, batch)
    with pytest.raises(InputError, match=r"model\.base: nothing would train"):
        dry(settings_of(qwen3_folder), packed=False)
