import importlib.util
from collections import Counter

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from mllm4d.models.base import (
    BaseModel,
    LoRA,
    PartRow,
    format_table,
    part_of,
    quantization_config,
    reference,
    set_trained,
    trained_table,
)
from mllm4d.models.families import InternVL, Qwen3VL, family_of
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.schema import InputError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(params=["qwen3", "qwen25"])
def folder(request, folder_of):
    return str(folder_of(request.param))


def batch_for(processor):
    inputs = VideoInputs(processor, VideoSettings())
    frames = torch.randint(0, 256, (8, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return inputs.collate(
        inputs.encode(frames, torch.arange(8) / 4, 4.0, ["Where?", "Which way did it go?"], ["A", " left"], ["a", "b"])
    )


def loss_of(model, batch):
    return model(**batch.model_inputs(), labels=batch.labels).loss


@pytest.mark.parametrize(
    ("train", "adapters"),
    [
        (["language"], False),
        (["merger"], False),
        (["vision", "merger", "language"], False),
        ([], True),
        (["merger"], True),
        (["vision", "merger"], True),
    ],
)
def test_a_step_changes_exactly_what_is_to_train(folder, train, adapters):
    model, processor = BaseModel(folder, train=train, lora=LoRA(r=4, alpha=8) if adapters else None).load()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    # The first step moves an adapter's second factor, and by that the second step its first.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = batch_for(processor)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if (parameter != before[name]).any()}
    wanted = {name for name in before if ".lora_" in name or part_of(name) in train}
    assert changed <= wanted
    # A few full parameters may stay put by rounding; every adapter moves.
    assert len(changed) > 0.8 * len(wanted)
    assert {name for name in wanted if ".lora_" in name} <= changed
    assert bool(adapters) == any(".lora_" in name for name in before)


def test_table_counts_by_hand(tiny_folder):
    model, _ = BaseModel(str(tiny_folder), train=["merger"], lora=LoRA(r=4, alpha=8, targets=TARGETS)).load()
    rows = {row.part: row for row in trained_table(model)}
    # Four layers; 128 wide, 4 heads and 2 key-value heads of 32: rank 4 times (in + out) of each of the four layers.
    adapters = 4 * 4 * ((128 + 128) + (128 + 64) + (128 + 64) + (128 + 128))
    # A merger: 4 x 128 wide in, square layer, 128 out, with biases; norms of 128 once and of 512 twice (deepstack).
    merger = 3 * (512 * 512 + 512 + 512 * 128 + 128) + 2 * 128 + 2 * 2 * 512
    assert rows["lora"] == PartRow("lora", adapters, adapters)
    assert rows["merger"] == PartRow("merger", merger, merger)
    assert rows["vision"].trained == rows["language"].trained == 0
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())
    table = format_table(list(rows.values())).splitlines()
    assert table[0].split() == ["part", "trained", "parameters"]
    assert ["merger", "987,264", "987,264"] in [line.split() for line in table]


def test_adapters_sit_on_the_language_model_alone(folder):
    model, _ = BaseModel(folder, lora=LoRA(r=2, alpha=4, targets=(*TARGETS, "qkv", "proj", "fc1"))).load()
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    layers = model.config.text_config.num_hidden_layers
    assert Counter(name.split(".")[-1] for name in adapted) == dict.fromkeys(TARGETS, layers)
    assert all("language_model" in name for name in adapted)


@torch.no_grad()
def test_without_its_adapter_it_is_the_base_bit_for_bit(folder):
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model, processor = BaseModel(folder, lora=LoRA(r=4, alpha=8, dropout=0.1)).load()
    model.eval()
    batch = batch_for(processor)
    expected = base(**batch.model_inputs()).logits
    assert torch.equal(model(**batch.model_inputs()).logits, expected)  # the update is zero at step 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    assert (model(**batch.model_inputs()).logits - expected).abs().max() > 0.01
    with model.disable_adapter():
        assert torch.equal(model(**batch.model_inputs()).logits, expected)


def test_an_adapted_model_generates(folder):
    model, processor = BaseModel(folder, lora=LoRA(r=4, alpha=8)).load()
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.eval()
    inputs = batch_for(processor).model_inputs()
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **settings), base.generate(**inputs, **settings))


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
def test_checkpointing_computes_again_and_gives_the_same_gradients(folder, lora):
    gradients, forwards = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, processor = BaseModel(
            folder, train=["vision", "merger"], lora=lora, gradient_checkpointing=checkpointing
        ).load()
        count = Counter()
        layer = next(m for n, m in model.named_modules() if n.endswith("language_model.layers.0.input_layernorm"))
        layer.register_forward_hook(lambda *_, count=count: count.update(["forward"]))
        model.train()
        loss_of(model, batch_for(processor)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        forwards.append(count["forward"])
    assert forwards == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6, msg=name)
    assert sum(float(g.abs().sum()) for g in gradients[0].values()) > 0


def test_checkpointing_leaves_generation_its_cache(tiny_folder):
    model, processor = BaseModel(str(tiny_folder), train=["language"], gradient_checkpointing=True).load()
    model.eval()
    lengths = []
    model.model.language_model.layers[0].mlp.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    model.generate(**batch_for(processor).model_inputs(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert lengths[1:] == [1, 1]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype(tiny_folder, dtype, expected):
    model, _ = BaseModel(str(tiny_folder), dtype=dtype, train=["language"]).load()
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_attention_implementation_is_passed_on(tiny_folder):
    model, _ = BaseModel(str(tiny_folder), attn_implementation="eager", train=["language"]).load()
    assert model.config.text_config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ["tower"]}, "'tower' is not one of language, merger, vision"),
        ({"train": ["language"], "lora": LoRA()}, "not both"),
        ({"train": ["vision"], "lora": LoRA(parts=("language", "vision"))}, "'vision' trains in full or has adapters"),
        ({"train": ["language"], "quantization": "4bit"}, "'language' cannot train in full while 'quantization'"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        BaseModel("anything", **settings)


@pytest.mark.parametrize("name", ["", "missing", "deep/down/missing"])
def test_a_folder_without_a_model_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"config\.json: not found; expected the folder of a Hugging Face model"):
        BaseModel(str(tmp_path / name), train=["language"]).load()


def test_unknown_dtype_and_targets_are_refused(tiny_folder):
    with pytest.raises(InputError, match=r"base\.dtype: 'half8' is not a type"):
        BaseModel(str(tiny_folder), dtype="half8", train=["language"]).load()
    with pytest.raises(InputError, match=r"base\.lora\.targets: no layer of the language model is named query, qkv"):
        # The vision tower has "qkv", which does not count.
        BaseModel(str(tiny_folder), lora=LoRA(targets=("query", "qkv"))).load()


def test_a_missing_part_is_named_with_what_is_there():
    model = nn.ModuleDict({"language_model": nn.ModuleDict({"layer": nn.Linear(2, 2)}), "visual": nn.Module()})
    with pytest.raises(InputError, match=r"has no part 'vision'; its modules are language_model\.layer"):
        set_trained(model, ["vision"], None)
    with pytest.raises(InputError, match=r"'expert\.weight' belongs to none of the known parts"):
        set_trained(nn.ModuleDict({"expert": nn.Linear(2, 2)}), ["language"], None)


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "llava_onevision", "smolvlm", "internvl", "gemma3", "video_llama_3"]
)
def test_parts_of_other_families_are_known(family):
    config = AutoConfig.for_model(family)
    for part in (config.text_config, config.vision_config):
        for name in ("num_hidden_layers", "depth"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 1)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1]
    # SmolVLM's default names a padding token outside its own default vocabulary, which transformers 5.17 refuses.
    config.text_config.pad_token_id = config.pad_token_id = 0
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = {name: part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"vision", "merger", "language"}
    # A family's own names and the names of all families say the same.
    assert parts == {name: part_of(name, family_of(config)) for name in parts}
    # The language model is where the word embeddings are, and much the largest part here.
    assert parts[next(name for name in parts if name.endswith("embed_tokens.weight"))] == "language"
    assert parts[next(name for name in parts if "patch_embed" in name)] == "vision"


def test_defaults_are_the_papers():
    assert LoRA() == LoRA(r=128, alpha=256, targets=TARGETS, parts=("language",), dora=False)


def test_unknown_parts_of_adapters_are_refused():
    with pytest.raises(InputError, match=r"base\.lora\.parts: 'tower' is not one of"):
        LoRA(parts=("language", "tower"))
    with pytest.raises(InputError, match=r"base\.lora\.parts: names no part"):
        LoRA(parts=())


def test_adapters_on_parts_that_are_named(folder):
    qwen3 = AutoConfig.from_pretrained(folder).model_type == "qwen3_vl"
    merger = "linear_fc1" if qwen3 else "0"
    lora = LoRA(r=2, alpha=4, targets=("q_proj", "qkv", merger), parts=("language", "vision", "merger"))
    adapted, _ = BaseModel(folder, lora=lora).load()
    found = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert {(part_of(name), name.split(".")[-1]) for name in found} == {
        ("language", "q_proj"),
        ("vision", "qkv"),
        ("merger", merger),
        *([("vision", merger)] if qwen3 else []),  # the blocks of Qwen3-VL's tower have that name too
    }
    with pytest.raises(InputError, match=r"no layer of part 'vision' is named q_proj; its linear layers are .*qkv"):
        BaseModel(folder, lora=LoRA(r=2, alpha=4, targets=("q_proj",), parts=("language", "vision"))).load()


def test_dora_trains_magnitudes_too(folder):
    plain, _ = BaseModel(folder, lora=LoRA(r=4, alpha=8)).load()
    model, processor = BaseModel(folder, lora=LoRA(r=4, alpha=8, dora=True)).load()
    layers = [module for name, module in model.named_modules() if name.endswith("_proj") and hasattr(module, "lora_A")]
    # One magnitude an output of every adapted layer.
    more = sum(layer.out_features for layer in layers)
    rows, before = ({row.part: row for row in trained_table(m)} for m in (model, plain))
    assert rows["lora"].trained == before["lora"].trained + more
    batch = batch_for(processor)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch.model_inputs()).logits
    # At the start a weight of its own magnitude and direction is the weight.
    torch.testing.assert_close(model(**batch.model_inputs()).logits, base, rtol=0, atol=1e-4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    magnitudes = {n: p.detach().clone() for n, p in model.named_parameters() if "magnitude" in n}
    loss_of(model, batch).backward()
    optimizer.step()
    assert all((p != magnitudes[n]).any() for n, p in model.named_parameters() if n in magnitudes)


@torch.no_grad()
def test_the_reference_is_the_base_without_dropout_and_leaves_the_model_as_it_was(folder):
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model, processor = BaseModel(folder, lora=LoRA(r=4, alpha=8, dropout=0.5)).load()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    batch = batch_for(processor)
    model.train()
    visual = next(module for name, module in model.named_modules() if name.endswith("visual"))
    visual.eval()
    modes = [module.training for module in model.modules()]
    with reference(model) as inside:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        assert torch.equal(inside(**batch.model_inputs()).logits, base(**batch.model_inputs()).logits)
    assert [module.training for module in model.modules()] == modes
    assert (model(**batch.model_inputs()).logits - base(**batch.model_inputs()).logits).abs().max() > 0.01


def test_there_is_no_reference_beside_parts_that_train_in_full(folder):
    model, _ = BaseModel(folder, train=["merger"], lora=LoRA(r=2, alpha=4)).load()
    with pytest.raises(InputError, match="'merger' trains in full"), reference(model):
        pass
    model, _ = BaseModel(folder, train=["merger"]).load()
    with pytest.raises(InputError, match="this model has none"), reference(model):
        pass


def test_four_bits_without_bitsandbytes_are_refused(tiny_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(InputError, match=r"base\.quantization: '4bit' needs the package bitsandbytes"):
        BaseModel(str(tiny_folder), lora=LoRA(r=2, alpha=4), quantization="4bit").load()


@pytest.mark.parametrize(
    ("family", "kept"),
    [
        (Qwen3VL(), ("model.visual.blocks.0.attn.qkv", "model.visual.merger.linear_fc1")),
        (InternVL(), ("model.vision_tower.encoder.layer.0.attention.q_proj", "model.multi_modal_projector.linear_1")),
    ],
)
def test_four_bits_are_for_the_language_model_alone(family, kept, monkeypatch):
    from transformers.quantizers.quantizers_utils import should_convert_module

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: find("torch") if name == "bitsandbytes" else find(name)
    )
    config = quantization_config(family, torch.bfloat16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    # As transformers itself decides.
    assert should_convert_module("model.language_model.layers.0.self_attn.q_proj", config.llm_int8_skip_modules)
    for name in (*kept, "lm_head"):
        assert not should_convert_module(name, config.llm_int8_skip_modules)
