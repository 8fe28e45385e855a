"""Attention inside a packed row, against a dense softmax and against transformers' own."""

import math

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm4d.models.attention import (
    BLOCKS,
    Group,
    Layout,
    attend,
    attention_inputs,
    attention_of,
    block_attention,
    shared_prefix_mask,
    use_block_attention,
)
from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.inputs import VideoSettings
from mllm4d.schema import InputError

ROW = Layout((Group(0, (3,)), Group(4, (2, 1, 5)), Group(2, (3,)), Group(0, (1,)), Group(1, (1, 1))))


def tensors(length, heads=4, size=8, kv=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, size), *[(1, kv or heads, length, size)] * 2]
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


def dense(query, key, value, mask, scale):
    scores = (query @ key.mT * scale).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


def test_mask_of_a_shared_prefix_by_hand():
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert shared_prefix_mask(2, [2, 1]).int().tolist() == expected
    assert torch.equal(shared_prefix_mask(0, [3]), torch.ones(3, 3).tril().bool())


def test_mask_of_a_row_by_hand():
    layout = Layout((Group(0, (2,)), Group(1, (1, 1))))
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 1],
    ]
    assert layout.mask().dtype == torch.bool
    assert layout.mask().int().tolist() == expected
    assert (layout.length, layout.unshared_length, layout.shared) == (5, 6, True)
    assert not Layout((Group(0, (2,)), Group(3, (4,)))).shared


@pytest.mark.parametrize("scale", [None, 0.7])
def test_attend_is_a_dense_softmax_under_the_mask_in_value_and_gradient(scale):
    inputs = tensors(ROW.length)
    outputs = [attend(*inputs, ROW, scale), dense(*inputs, ROW.mask(), scale or 8**-0.5)]
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in outputs]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_as_a_layer_calls_it_with_fewer_heads_of_keys():
    query, key, value = tensors(ROW.length, kv=2)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    output, weights = block_attention(module, query, key, value, None, scaling=0.5, layout=ROW)
    assert weights is None
    wide = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    expected = dense(query, *wide, ROW.mask(), 0.5).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def test_without_a_layout_it_is_sdpa():
    inputs = tensors(6, kv=2)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    mask = shared_prefix_mask(0, [4, 2])[None, None]
    for given in (None, mask):
        ours = block_attention(module, *inputs, given, scaling=0.5)[0]
        assert torch.equal(ours, sdpa_attention_forward(module, *inputs, given, scaling=0.5)[0])


def test_a_model_that_loses_the_layout_on_its_way_is_stopped():
    given = attention_inputs(ROW, BLOCKS)
    assert given["layout"] is ROW
    with pytest.raises(RuntimeError, match="Module got a packed row without its layout"):
        block_attention(nn.Module(), *tensors(ROW.length), given["attention_mask"])


def test_what_each_attention_needs():
    mask = ROW.mask()
    assert torch.equal(attention_inputs(ROW, "sdpa")["attention_mask"], mask[None, None])
    added = attention_inputs(ROW, "eager")["attention_mask"]
    assert torch.equal(added == 0, mask[None, None])
    assert (added[0, 0][~mask] < -1e38).all()
    assert attention_inputs(Layout((Group(0, (2,)), Group(0, (3,)))), "flash_attention_2") == {}
    with pytest.raises(InputError, match="'flash_attention_2' cannot share a prefix"):
        attention_inputs(ROW, "flash_attention_2")
    with pytest.raises(InputError, match="no way with attention 'paged'"):
        attention_inputs(ROW, "paged")


@pytest.mark.parametrize("lora", [None, LoRA(r=2, alpha=4)])
@pytest.mark.parametrize("name", ["qwen3", "smolvlm"])
def test_padded_batches_and_generation_stay_the_same(name, lora, folder_of):
    base = BaseModel(str(folder_of(name)), lora=lora)
    model, processor = base.load()
    inputs = base.inputs(model.eval(), processor, VideoSettings())
    frames = torch.randint(0, 256, (4, 56, 56, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    records = inputs.encode(frames, torch.arange(4) / 4, 4.0, ["Where?", "How far is it?"], ["A", "B"], ["a", "b"])
    prompts = inputs.collate([inputs.prompt_only(record) for record in records], "left").model_inputs()

    def outcome():
        with torch.no_grad():
            logits = model(**inputs.collate(records).model_inputs()).logits
        return logits, model.generate(**prompts, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    before, vision = outcome(), model.config.vision_config._attn_implementation
    assert attention_of(model) == "sdpa"
    use_block_attention(model)
    assert attention_of(model) == BLOCKS
    assert model.config.vision_config._attn_implementation == vision == "sdpa"
    for ours, theirs in zip(outcome(), before, strict=True):
        assert torch.equal(ours, theirs)
