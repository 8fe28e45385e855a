"""Every family with its real model and processor classes: inputs, forward, loss, generation, saving, parts."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from mllm4d.models import families
from mllm4d.models.base import BaseModel, LoRA, part_of, trained_table
from mllm4d.models.families import Family, family_of, family_of_processor
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.schema import InputError
from tests.models.tiny_families import FAMILIES

PROMPTS = (
    "Which way?\nA. left\nB. right",
    "assistant",
    " Where is the red cube?\n\nWhat did the assistant say?\nassistant\nA. -0.5 m, żółty 🙂",
)
TARGETS = (
    "A",
    "left<answer>A</answer>",
    "<thinking>\nThe assistant\n\nassistant\nsays\n</thinking>\n<answer>B</answer>",
)
IDS = ("a", "b", "c")
NOTE = "Frame 1 at 0 s, frame 2 at 0.25 s, frame 3 at 0.5 s, frame 4 at 0.75 s."
NOTED = ("internvl", "smolvlm", "llava_onevision", "qwen2")
FIXED = ("internvl", "smolvlm", "llava_onevision", "gemma3")
WITHOUT_QWEN2 = [name for name in FAMILIES if name != "qwen2"]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def folder(name, folder_of):
    return folder_of(name)


@pytest.fixture
def inputs(folder):
    return inputs_of(folder)


@pytest.fixture
def model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def inputs_of(folder, **settings):
    config = AutoConfig.from_pretrained(folder)
    return VideoInputs(AutoProcessor.from_pretrained(folder), VideoSettings(**settings), family_of(config))


def clip(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=generator)


def encode(inputs, count=4, seed=0, number=slice(None)):
    texts = (texts[number] for texts in (PROMPTS, TARGETS, IDS))
    return inputs.encode(clip(count, seed), torch.arange(count) / 4, 4.0, *texts)


def mixed(inputs, name):
    """Rows of two clips: questions of different lengths and, where the family can, clips of different lengths."""
    first = encode(inputs, 4, number=slice(0, 2))
    second = encode(inputs, 4 if name == "llava_onevision" else 8, seed=1, number=slice(2, 3))
    return [first[0], *second, first[1]]


def plain(processor, name, frames, prompt, target):
    """What Hugging Face's own processor makes of one question about four frames at 4 frames a second."""
    question = {"type": "text", "text": f"{NOTE}\n{prompt}" if name in NOTED else prompt}
    content = [{"type": "video"}, question]
    vision = {"videos": [frames.permute(0, 3, 1, 2)], "do_sample_frames": False}
    vision["video_metadata"] = [VideoMetadata(total_num_frames=4, fps=4.0, duration=1.0, frames_indices=[0, 1, 2, 3])]
    if name == "smolvlm":  # transformers 5.17 wants a list of videos for every text
        vision |= {key: [vision[key]] for key in ("videos", "video_metadata")}
    if name == "gemma3":
        times = ("0 s", "0.25 s", "0.5 s", "0.75 s")
        texts = [{"type": "text", "text": f"Frame {number} at {time}:"} for number, time in enumerate(times, 1)]
        content = [item for text in texts for item in (text, {"type": "image"})] + [question]
        vision = {"images": [[frame.permute(2, 0, 1) for frame in frames]], "add_special_tokens": False}
    messages = [{"role": "user", "content": content}]
    options = {"enable_thinking": False} if name == "qwen35" else {}
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    if target is not None and name == "llava_onevision":
        text += target + "<|im_end|>"  # its template renders an answer otherwise than the prompt for one
    elif target is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
        text = processor.apply_chat_template(messages, tokenize=False, **options).removesuffix("\n")
    return processor(text=[text], return_tensors="pt", **vision)


def test_family_comes_from_the_model_and_from_the_processor(name, folder):
    expected = FAMILIES[name].family
    assert type(family_of(AutoConfig.from_pretrained(folder))) is expected
    # Qwen3.5 has Qwen3-VL's processor, and with it the same way of seeing.
    found = type(family_of_processor(AutoProcessor.from_pretrained(folder)))
    assert found is (families.Qwen3VL if name == "qwen35" else expected)


@pytest.mark.parametrize("with_targets", [False, True])
def test_every_question_is_what_the_plain_processor_makes_of_it(name, inputs, with_targets):
    targets = TARGETS if with_targets else (None,) * 3
    encoded = inputs.encode(clip(), torch.arange(4) / 4, 4.0, PROMPTS, TARGETS if with_targets else None, IDS)
    for prompt, target, record in zip(PROMPTS, targets, encoded, strict=True):
        expected = plain(inputs.processor, name, clip(), prompt, target)
        made = {**{k: v[None] for k, v in record.tokens.items()}, **record.vision}
        assert set(made) == set(expected) - {"attention_mask"}
        for key, tensor in made.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, msg=key)
        length = plain(inputs.processor, name, clip(), prompt, None)["input_ids"].shape[1]
        assert record.prompt_length == length


def test_labels_are_the_answer_and_its_end(name, inputs):
    labels = inputs.collate(encode(inputs)).labels
    texts = [inputs.tokenizer.decode(row[row != -100]) for row in labels]
    # SmolVLM's template puts a blank before an answer, which is the model's to say.
    blank = " " if name == "smolvlm" else ""
    assert texts == [f"{blank}{target}{FAMILIES[name].end}" for target in TARGETS]


def test_placeholders_are_as_many_as_features_by_hand(name, folder, model):
    tiny, inputs = FAMILIES[name], inputs_of(folder)
    for count in (4, 8):
        record = encode(inputs, count)[0]
        wanted = count // tiny.step * tiny.tokens + tiny.extra
        token = getattr(model.config, "video_token_id", None) if tiny.step == 2 else None
        token = token or getattr(model.config, "video_token_index", None) or model.config.image_token_id
        assert int((record.tokens["input_ids"] == token).sum()) == wanted
        assert inputs.family.features(inputs.processor, record.vision) == wanted
        assert inputs.family.frame_size(inputs.processor, record.vision) == (tiny.side, tiny.side)
        model(**inputs.collate([record]).model_inputs())  # which counts them too


def test_a_missing_placeholder_is_noticed(name, inputs):
    record = encode(inputs)[0]
    ids = record.tokens["input_ids"]
    ids[(ids == inputs.family.placeholder(inputs.processor)).nonzero()[0]] = 5
    with pytest.raises(InputError, match=r"'a' has \d+ video placeholders, but its clip \d+ features"):
        inputs.collate([record])


UNEVEN = torch.tensor([0.0, 0.2, 0.7, 1.3], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The middle of each pair.
        ("qwen3", "<0.1 seconds>|<1.0 seconds>"),
        ("qwen35", "<0.1 seconds>|<1.0 seconds>"),
        *((name, "Frame 1 at 0 s, frame 2 at 0.2 s, frame 3 at 0.7 s, frame 4 at 1.3 s.") for name in NOTED),
        ("qwen25", "Frame 1 at 0 s, frame 2 at 0.2 s, frame 3 at 0.7 s, frame 4 at 1.3 s."),
        ("gemma3", "Frame 1 at 0 s:|Frame 2 at 0.2 s:|Frame 3 at 0.7 s:|Frame 4 at 1.3 s:"),
    ],
)
def test_uneven_times_reach_the_model(name, expected, folder_of):
    inputs = inputs_of(folder_of(name))
    record = inputs.encode(clip(), UNEVEN, 24.0, ["Where?"], None, ["a"])[0]
    text = inputs.tokenizer.decode(record.tokens["input_ids"])
    places = [text.index(piece) for piece in expected.split("|")]
    assert places == sorted(places)
    assert text.index("Where?") > places[-1]


@pytest.mark.parametrize(("start", "noted"), [(0.0, False), (3.0, True)])
def test_qwen25_writes_times_only_where_one_gap_cannot_say_them(folder_of, start, noted):
    inputs = inputs_of(folder_of("qwen25"))
    record = inputs.encode(clip(), start + torch.arange(4) / 4, 24.0, ["Where?"], None, ["a"])[0]
    assert ("Frame 1 at 3 s" in inputs.tokenizer.decode(record.tokens["input_ids"])) == noted


@torch.no_grad()
def log_probs(model, batch, **more):
    log_probs = model(**batch.model_inputs(), **more).logits[:, :-1].log_softmax(-1)
    ids, mask = batch.tokens["input_ids"], batch.tokens["attention_mask"].bool()
    chosen = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    return [row[keep] for row, keep in zip(chosen, mask[:, :-1] & mask[:, 1:], strict=True)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_rows(name, model, inputs, side):
    records = mixed(inputs, name)
    batched = log_probs(model, inputs.collate(records, side))
    for row, record in zip(batched, records, strict=True):
        single = log_probs(model, inputs.collate([record]))[0]
        assert single.std() > 0.5  # flat logits would hide everything
        torch.testing.assert_close(row, single, rtol=0, atol=1e-4)
    # The clips matter: with the other clip's pixels a row is another.
    first, other = (log_probs(model, inputs.collate(encode(inputs, 4, seed, slice(0, 1))))[0] for seed in (0, 2))
    assert (first - other).abs().max() > 0.01


def test_generation_from_a_left_padded_batch_equals_single_rows(name, model, inputs):
    records = [inputs.prompt_only(record) for record in mixed(inputs, name)]

    def answers(rows):
        batch = inputs.collate(rows, "left")
        made = model.generate(**batch.model_inputs(), max_new_tokens=5, min_new_tokens=5, do_sample=False)
        return made[:, batch.tokens["input_ids"].shape[1] :]

    together = answers(records)
    assert len({tuple(row) for row in together.tolist()}) > 1  # not one answer for all
    assert torch.equal(together, torch.cat([answers([record]) for record in records]))


def test_loss_by_hand_and_it_reaches_every_trained_parameter(folder, inputs):
    model, _ = BaseModel(str(folder), train=["vision", "merger"], lora=LoRA(r=2, alpha=4)).load()
    model.train()
    batch = inputs.collate(encode(inputs))
    output = model(**batch.model_inputs(), labels=batch.labels)
    log_probs = output.logits[:, :-1].log_softmax(-1)
    chosen = batch.labels[:, 1:]
    by_hand = -log_probs.gather(-1, chosen.clamp(min=0)[..., None])[..., 0][chosen != -100].mean()
    torch.testing.assert_close(output.loss, by_hand)
    output.loss.backward()
    moved = {part_of(n) for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"vision", "merger", "language"}
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and ".lora_" in n]
    assert not silent


def test_saved_and_loaded_it_says_the_same(tmp_path, model, inputs):
    batch = inputs.collate(encode(inputs))
    model.save_pretrained(tmp_path)
    inputs.save(tmp_path)
    again = VideoInputs.load(tmp_path)
    assert type(again.family) is type(inputs.family)  # also where the processor alone would say another
    assert again.describe() == inputs.describe()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(**batch.model_inputs()).logits
        assert torch.equal(loaded(**again.collate(encode(again)).model_inputs()).logits, expected)


MODULES = {
    "qwen3": (["visual"], ["visual.merger", "visual.deepstack_merger_list"]),
    "qwen35": (["visual"], ["visual.merger"]),
    "qwen25": (["visual"], ["visual.merger"]),
    "qwen2": (["visual"], ["visual.merger"]),
    "internvl": (["vision_tower"], ["multi_modal_projector"]),
    "smolvlm": (["vision_model"], ["connector"]),
    "llava_onevision": (["vision_tower"], ["multi_modal_projector", "image_newline"]),
    "gemma3": (["vision_tower"], ["multi_modal_projector"]),
}


@pytest.mark.parametrize("adapters", [False, True])
def test_the_table_of_parts_counts_every_parameter_once(name, folder, adapters):
    model, _ = BaseModel(str(folder), train=["merger"], lora=LoRA(r=2, alpha=4) if adapters else None).load()
    rows = {row.part: row for row in trained_table(model)}
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    sizes = {n: p.numel() for n, p in plain.named_parameters()}

    def count(modules):
        prefixes = [f"model.{module}" for module in modules]
        return sum(size for n, size in sizes.items() if any(n == p or n.startswith(f"{p}.") for p in prefixes))

    vision, merger = (count(modules) for modules in MODULES[name])
    assert rows["merger"][1:] == (merger, merger)
    assert rows["vision"][1:] == (0, vision - (merger if name.startswith("qwen") else 0))
    assert rows["language"][1:] == (0, sum(sizes.values()) - rows["vision"].total - merger)
    assert sum(row.total for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert ("lora" in rows) == adapters
    if adapters:
        # Vision towers with layers of the same names have no adapters.
        names = [n for n, _ in model.named_parameters() if ".lora_" in n]
        assert all("language_model" in n or "text_model" in n for n in names)
        assert rows["lora"].trained == rows["lora"].total > 0


@pytest.mark.parametrize("number", [0, 1, 2])
def test_forward_with_its_positions_is_forward_without(name, model, inputs, number):
    record = mixed(inputs, name)[number]
    positions = inputs.family.positions(model, record)
    length = len(record.tokens["input_ids"])
    rope = name.startswith("qwen")
    assert positions.shape == ((4, length) if rope else (length,))
    if rope:
        assert (positions[1:] != positions[0]).any()
    batch = inputs.collate([record])
    given = log_probs(model, batch, position_ids=positions.unsqueeze(-2))
    torch.testing.assert_close(given, log_probs(model, batch), rtol=0, atol=0)
    # Others would be noticed.
    wrong = torch.where(torch.arange(length) > length // 2, positions + 3, positions)
    assert (log_probs(model, batch, position_ids=wrong.unsqueeze(-2))[0] - given[0]).abs().max() > 0.01


def test_positions_are_found_through_adapters(folder, name):
    model, processor = BaseModel(str(folder), lora=LoRA(r=2, alpha=4)).load()
    inputs = BaseModel(str(folder)).inputs(model, processor, VideoSettings())
    assert type(inputs.family) is FAMILIES[name].family
    record = encode(inputs)[0]
    base = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(inputs.family.positions(model, record), inputs.family.positions(base, record))


@pytest.mark.parametrize("name", FIXED)
def test_a_limit_below_a_fixed_size_is_refused(name, folder_of):
    with pytest.raises(InputError, match=r"max_pixels: 784 a frame, but .* scales frames to 3136; set it to null"):
        encode(inputs_of(folder_of(name), max_pixels=784))
    # The limit is no reason to scale twice.
    exact, free = (encode(inputs_of(folder_of(name), max_pixels=limit))[0] for limit in (3136, None))
    assert all(torch.equal(tensor, free.vision[key]) for key, tensor in exact.vision.items())


def test_llava_clips_of_different_lengths_are_refused(folder_of):
    inputs = inputs_of(folder_of("llava_onevision"))
    with pytest.raises(InputError, match=r"not of 4 and 6; set 'video\.frames' to 4 or less"):
        inputs.collate([*encode(inputs, 4), *encode(inputs, 6)])


@pytest.mark.parametrize("text", ["<video>", "<image>", "<start_of_image>", "<|video_pad|>"])
def test_a_second_video_in_a_text_is_refused(name, inputs, text):
    marker = inputs.family.marker(inputs.processor)
    if text == marker:
        with pytest.raises(InputError, match="its text holds the control token"):
            inputs.encode(clip(), torch.arange(4) / 4, 4.0, [f"What is {text}?"], None, ["a"])


@pytest.mark.parametrize("name", ["qwen3", "qwen25"])
def test_a_template_that_doubles_the_video_is_refused(name, folder_of):
    inputs = inputs_of(folder_of(name))
    inputs.processor.chat_template = "<|video_pad|>" + inputs.processor.chat_template
    with pytest.raises(InputError, match=r"writes '<\|video_pad\|>' 2 times for 1"):
        encode(inputs)


def test_the_published_frame_around_qwens_video_is_not_doubled(folder_of, tmp_path):
    folder = folder_of("qwen35")
    raw = AutoProcessor.from_pretrained(folder)
    doubled = raw.tokenizer.decode(plain(raw, "qwen35", clip(), "Where?", None)["input_ids"][0])
    assert "<|vision_start|><0.1 seconds><|vision_start|>" in doubled
    inputs = inputs_of(folder)
    record = inputs.encode(clip(), torch.arange(4) / 4, 4.0, ["Where?"], None, ["a"])[0]
    text = inputs.tokenizer.decode(record.tokens["input_ids"])
    assert text.startswith("<|im_start|>user\n<0.1 seconds><|vision_start|><|video_pad|>")
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == 2
    # Whoever reads the saved processor with plain transformers gets the same.
    inputs.save(tmp_path)
    saved = plain(AutoProcessor.from_pretrained(tmp_path), "qwen35", clip(), "Where?", None)
    assert torch.equal(saved["input_ids"][0], record.tokens["input_ids"])


@pytest.mark.parametrize("name", WITHOUT_QWEN2)
def test_a_processor_of_another_model_is_refused(name, folder_of):
    folder = folder_of(name)
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    family = family_of(config)
    family.check(config, processor)
    if name.startswith("qwen"):
        config.vision_config.patch_size = 16
    elif name == "gemma3":
        config.mm_tokens_per_image = 16
    else:
        config.vision_config.patch_size = (7, 7) if name == "internvl" else 7
    with pytest.raises(InputError, match="not of one model"):
        family.check(config, processor)


def test_a_processor_without_videos_asks_for_a_family(folder_of):
    processor = AutoProcessor.from_pretrained(folder_of("gemma3"))
    with pytest.raises(InputError, match=r"Gemma3Processor takes no videos; name .*'base\.family'"):
        VideoInputs(processor, VideoSettings(), Family())


def test_a_missing_chat_template_and_one_that_refuses(folder_of):
    inputs = inputs_of(folder_of("qwen2"))
    for template, message in [
        (None, "does not have a chat template"),
        ("{{ raise_exception('no system') }}", "no sys"),
    ]:
        inputs.processor.chat_template = template
        with pytest.raises(InputError, match=rf"^the chat template of Qwen2VLProcessor: .*{message}"):
            encode(inputs)


def test_a_missing_package_is_named(folder_of, monkeypatch):
    folder = folder_of("smolvlm")
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(InputError, match=r"its processor needs another package: .*num2words"):
        BaseModel(str(folder)).load()


def test_settings_of_a_family_that_is_not_imported(folder_of, tmp_path):
    inputs = inputs_of(folder_of("qwen2"))
    inputs.save(tmp_path)
    file = tmp_path / "video_inputs.json"
    file.write_text(file.read_text().replace('"Family"', '"Elsewhere"'))
    with pytest.raises(InputError, match=r"no family 'Elsewhere' among .*Qwen3VL"):
        VideoInputs.load(tmp_path)
    assert VideoInputs.load(tmp_path, Silent()).family.note(torch.zeros(1)) == "Look."


def test_a_model_type_that_two_claim_is_refused_and_a_subclass_does_not_inherit_the_claim():
    class Mine(families.Qwen3VL):
        pass

    config = AutoConfig.for_model("qwen3_vl")
    assert type(family_of(config)) is families.Qwen3VL
    Mine.model_types = ("qwen3_vl",)
    with pytest.raises(InputError, match=r"claimed by .*Qwen3VL and .*Mine; name one in 'base\.family'"):
        family_of(config)
    Mine.model_types = ()


class Silent(families.Qwen2_5VL):
    """A family of a user's own."""

    model_types = ()
    processors = ()

    def note(self, times):
        return "Look."


def test_a_family_by_class_path(folder_of):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseModel, "base")
    family = {"class_path": f"{__name__}.Silent"}
    settings = {"class_path": "mllm4d.models.base.BaseModel", "init_args": {"path": str(folder_of("qwen25"))}}
    settings["init_args"]["family"] = family
    base = parser.instantiate(parser.parse_args([f"--base={json.dumps(settings)}"])).base
    inputs = base.inputs(*base.load(), VideoSettings())
    assert type(inputs.family) is Silent
    record = inputs.encode(clip(), torch.arange(4) / 4, 4.0, ["Where?"], None, ["a"])[0]
    assert "<|vision_end|>Look.\nWhere?" in inputs.tokenizer.decode(record.tokens["input_ids"])
