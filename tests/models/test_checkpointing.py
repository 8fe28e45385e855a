"""What keeps memory down changes nothing else: frozen vision without a graph, checkpoints by part, Liger refused."""

import importlib.util
from collections import Counter

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from mllm4d.models.base import BaseModel, LoRA, part_of
from mllm4d.models.inputs import VideoSettings
from mllm4d.schema import InputError

FAMILIES = ["qwen3", "qwen25", "internvl", "llava_onevision", "gemma3"]


def batch_for(base, model, processor):
    inputs = base.inputs(model, processor, VideoSettings(frames=4))
    frames = torch.randint(0, 256, (4, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return inputs.collate(inputs.encode(frames, torch.arange(4) / 4, 4.0, ["Where?"], ["A"], ["a"]))


def run(folder, **settings):
    """Forward and backward; which layers' outputs need gradients, how often each ran, and the gradients."""
    torch.manual_seed(0)
    base = BaseModel(str(folder), **settings)
    model, processor = base.load()
    model.train()
    needs, forwards = {}, Counter()
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            part = part_of(name)

            def look(module, args, output, name=name, part=part):
                output = output[0] if isinstance(output, tuple) else output
                needs[name] = output.requires_grad

            module.register_forward_hook(look)
            inner = next(m for m in module.modules() if "Norm" in type(m).__name__)
            inner.register_forward_hook(lambda *_, part=part: forwards.update([part]))
    batch = batch_for(base, model, processor)
    model(**batch.model_inputs(), labels=batch.labels).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return needs, forwards, gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("train", [(), ("merger",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_leaves_no_graph_also_before_a_merger_that_trains(folder_of, family, train, checkpointing):
    needs, forwards, gradients = run(
        folder_of(family), train=train, lora=LoRA(r=2, alpha=4), gradient_checkpointing=checkpointing
    )
    towers = {name for name in needs if part_of(name) == "vision"}
    assert towers
    assert not any(needs[name] for name in towers)
    assert all(needs[name] for name in set(needs) - towers)
    # Nothing of it is computed again.
    assert forwards["vision"] == len(towers)
    assert gradients
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_checkpointing_by_part_computes_that_part_again_and_gives_the_same_gradients(folder_of, family):
    everything = {"train": ("vision", "merger", "language")}
    _, once, wanted = run(folder_of(family), **everything)
    for parts, twice in ((["language"], {"language"}), (["vision"], {"vision"}), (True, {"language", "vision"})):
        _, forwards, gradients = run(folder_of(family), **everything, gradient_checkpointing=parts)
        assert forwards == {part: count * (2 if part in twice else 1) for part, count in once.items()}
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_parts_that_cannot_be_checkpointed_are_refused(tiny_folder):
    with pytest.raises(InputError, match=r"base\.gradient_checkpointing: 'tower' is not one of"):
        BaseModel("anything", gradient_checkpointing=["tower"])
    base = BaseModel(str(tiny_folder), train=["merger"], gradient_checkpointing=["language", "merger"])
    with pytest.raises(InputError, match=r"part 'merger' has no layers .* there are some in language, vision"):
        base.load()


def test_liger_needs_its_package(tiny_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else find(name))
    with pytest.raises(InputError, match=r"base\.liger: needs the package liger-kernel"):
        BaseModel(str(tiny_folder), train=["language"], liger=True).load()
