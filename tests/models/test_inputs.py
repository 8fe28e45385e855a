import dataclasses
import json
import re

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from mllm4d.models.inputs import TooLong, VideoInputs, VideoSettings
from mllm4d.schema import InputError

PROMPTS = (
    "From 0.5 s to 1.25 s, in which direction did the camera move?\nA. left\nB. right",
    "assistant",
    " Where is the red cube?\n\nWhat did the assistant say?\nassistant\nA. -0.5 m, żółty 🙂",
)
TARGETS = (
    "A",
    " left<answer>A</answer>",
    "<thinking>\nThe assistant\n\nassistant\nsays\n</thinking>\n<answer>B</answer>\n",
)
IDS = ("a", "b", "c")


@pytest.fixture(params=["tiny", "qwen3", "qwen25"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture
def qwen3(qwen3_folder):
    return VideoInputs(AutoProcessor.from_pretrained(qwen3_folder), VideoSettings())


def clip(count=8, height=56, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def plain(processor, frames, prompt, target=None):
    """What Hugging Face's own processor makes of one question about a clip at 4 frames a second."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]
    if target is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None)
    count = len(frames)
    metadata = VideoMetadata(total_num_frames=count, fps=4.0, duration=count / 4, frames_indices=list(range(count)))
    return processor(
        text=[text if target is None else text.removesuffix("\n")],
        videos=[frames.permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


@pytest.mark.parametrize("with_targets", [False, True])
def test_every_question_is_what_the_plain_processor_makes_of_it(processor, with_targets):
    frames = clip()
    targets = TARGETS if with_targets else None
    encoded = VideoInputs(processor, VideoSettings()).encode(frames, torch.arange(8) / 4, 4.0, PROMPTS, targets, IDS)
    for number, record in enumerate(encoded):
        expected = plain(processor, frames, PROMPTS[number], targets[number] if targets else None)
        made = {**{k: v[None] for k, v in record.tokens.items()}, **record.vision}
        assert set(made) == set(expected) - {"attention_mask"}
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)
        assert record.prompt_length == plain(processor, frames, PROMPTS[number])["input_ids"].shape[1]
        assert record.id == IDS[number]


def test_labels_are_the_answer_and_its_end(processor):
    inputs = VideoInputs(processor, VideoSettings())
    encoded = inputs.encode(clip(), torch.arange(8) / 4, 4.0, PROMPTS, TARGETS, IDS)
    for side in ("left", "right"):
        labels = inputs.collate(encoded, side).labels
        for row, target in zip(labels, TARGETS, strict=True):
            assert processor.tokenizer.decode(row[row != -100]) == target + "<|im_end|>"
    prompts = inputs.collate([inputs.prompt_only(record) for record in encoded], "left")
    assert (prompts.labels == -100).all()
    assert all(text.endswith("<|im_start|>assistant\n") for text in processor.batch_decode(prompts.tokens["input_ids"]))


def test_pixels_are_processed_once_and_shared(processor, monkeypatch):
    calls = []
    original = type(processor.video_processor)._preprocess

    def counting(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    inputs = VideoInputs(processor, VideoSettings())
    inputs.encode(clip(), torch.arange(8) / 4, 4.0, PROMPTS, TARGETS, IDS)
    monkeypatch.setattr(type(processor.video_processor), "_preprocess", counting)
    encoded = inputs.encode(clip(seed=1), torch.arange(8) / 4, 4.0, PROMPTS, TARGETS, IDS)
    # Once for all questions where the processor scales 56 pixels to 64, and not at all where it leaves them.
    assert len(calls) == (processor.video_processor.patch_size == 8)
    assert all(record.vision is encoded[0].vision for record in encoded)


def seconds(inputs, record):
    return re.findall(r"<([0-9.]+) seconds>", inputs.tokenizer.decode(record.tokens["input_ids"]))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.0, 0.2, 0.7, 1.3], ["0.1", "1.0"]),
        ([3.0, 3.4, 9.1, 9.3], ["3.2", "9.2"]),
        ([k / 30 for k in range(0, 60, 10)], ["0.2", "0.8", "1.5"]),
    ],
)
def test_times_are_the_decoders_also_when_uneven(qwen3, times, expected):
    # A step of the model holds two frames and carries the middle of their times; the nominal rate says otherwise.
    record = qwen3.encode(clip(len(times)), torch.tensor(times, dtype=torch.float64), 24.0, ["?"], None, ["a"])[0]
    assert seconds(qwen3, record) == expected


def test_sampled_frames_keep_their_times(qwen3):
    times = torch.arange(30, dtype=torch.float64) / 10
    frames = clip(30)
    assert qwen3.sample(30) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert qwen3.sample(5) == [0, 1, 2, 3, 4]
    chosen = qwen3.sample(30)
    all_at_once = qwen3.encode(frames, times, 10.0, ["?"], None, ["a"])[0]
    by_hand = qwen3.encode(frames[chosen], times[chosen], 10.0, ["?"], None, ["a"])[0]
    assert seconds(qwen3, all_at_once) == ["0.2", "1.0", "1.9", "2.7"]
    assert torch.equal(all_at_once.vision["pixel_values_videos"], by_hand.vision["pixel_values_videos"])


@pytest.mark.parametrize(("times", "expected"), [([0, 0.25, 0.5, 0.75], 0.5), ([1, 1.1, 1.2, 2.5], 1.0)])
def test_qwen25_gets_the_mean_seconds_of_a_step(qwen25_folder, times, expected):
    inputs = VideoInputs(AutoProcessor.from_pretrained(qwen25_folder), VideoSettings())
    record = inputs.encode(clip(4), torch.tensor(times), 24.0, ["?"], None, ["a"])[0]
    assert record.vision["second_per_grid_ts"].tolist() == pytest.approx([expected], abs=1e-3)


def mixed_records(inputs, step):
    """Three records of two clips of different lengths, with questions and answers of different lengths."""
    first = inputs.encode(clip(8), torch.arange(8) / 4, 4.0, PROMPTS[:2], TARGETS[:2], IDS[:2])
    second = inputs.encode(
        clip(8 + 4 * step, 84, 56, 1),
        torch.arange(8 + 4 * step) / 2,
        2.0,
        *([texts[2]] for texts in (PROMPTS, TARGETS, IDS)),
    )
    return [first[0], second[0], first[1]]


@torch.no_grad()
def log_probs(model, batch, **changes):
    inputs = {k: v for k, v in {**batch.model_inputs(), **changes}.items() if v is not None}
    log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
    ids, mask = batch.tokens["input_ids"], batch.tokens["attention_mask"].bool()
    chosen = log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    return [row[keep] for row, keep in zip(chosen, mask[:, :-1] & mask[:, 1:], strict=True)]


def largest_difference(rows, others):
    return max(float((row - other).abs().max()) for row, other in zip(rows, others, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_rows(folder, processor, side):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    step = 8 if processor.video_processor.temporal_patch_size == 8 else 1
    inputs = VideoInputs(processor, VideoSettings(frames=64))
    records = mixed_records(inputs, step)
    batch = inputs.collate(records, side)
    assert batch.vision["video_grid_thw"][:, 0].unique().numel() == 2
    batched = log_probs(model, batch)
    for row, record in zip(batched, records, strict=True):
        single = log_probs(model, inputs.collate([record]))[0]
        assert single.std() > 0.5  # flat logits would hide everything
        torch.testing.assert_close(row, single, rtol=0, atol=1e-4)
    # The same comparison sees a forgotten mask. Without token types Qwen3-VL raises, Qwen2.5-VL is silently wrong.
    if side == "left":
        assert largest_difference(log_probs(model, batch, attention_mask=None), batched) > 0.01
    if "second_per_grid_ts" in batch.vision:
        assert largest_difference(log_probs(model, batch, mm_token_type_ids=None), batched) > 0.01
    else:
        with pytest.raises(ValueError, match="mm_token_type_ids"):
            log_probs(model, batch, mm_token_type_ids=None)


def test_generation_from_a_left_padded_batch_equals_single_rows(folder, processor):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = VideoInputs(processor, VideoSettings(frames=64))
    step = 8 if processor.video_processor.temporal_patch_size == 8 else 1
    records = [inputs.prompt_only(record) for record in mixed_records(inputs, step)]

    before = log_probs(model, inputs.collate(records, "right"))

    def answers(rows):
        batch = inputs.collate(rows, "left")
        made = model.generate(**batch.model_inputs(), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return made[:, batch.tokens["input_ids"].shape[1] :]

    together = answers(records)
    assert together.unique().numel() > 3
    assert torch.equal(together, torch.cat([answers([record]) for record in records]))
    # Positions that ``generate`` left behind in the model do no harm to the next forward.
    assert largest_difference(log_probs(model, inputs.collate(records, "right")), before) == 0


def test_too_long_is_refused_and_nothing_is_cut(processor):
    limits = {"prompts": PROMPTS[:1], "targets": TARGETS[:1], "ids": ["q7"]}
    length = len(
        VideoInputs(processor, VideoSettings())
        .encode(clip(), torch.arange(8) / 4, 4.0, **limits)[0]
        .tokens["input_ids"]
    )
    exact = VideoInputs(processor, VideoSettings(max_length=length))
    assert len(exact.encode(clip(), torch.arange(8) / 4, 4.0, **limits)[0].tokens["input_ids"]) == length
    with pytest.raises(TooLong, match=f"'q7' has {length} tokens, 'max_length' allows {length - 1}"):
        VideoInputs(processor, VideoSettings(max_length=length - 1)).encode(clip(), torch.arange(8) / 4, 4.0, **limits)


def test_placeholders_must_equal_features(qwen3):
    record = qwen3.encode(clip(), torch.arange(8) / 4, 4.0, PROMPTS[:1], None, ["q7"])[0]
    ids = record.tokens["input_ids"].clone()
    ids[(ids == qwen3.processor.video_token_id).nonzero()[0]] = 5
    broken = dataclasses.replace(record, tokens={**record.tokens, "input_ids": ids})
    with pytest.raises(InputError, match="'q7' has 63 video placeholders, but its clip 64 features"):
        qwen3.collate([broken])
    with pytest.raises(InputError, match="'q7' has video placeholders, but no clip"):
        qwen3.collate([dataclasses.replace(record, vision={})])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>", "<|endoftext|>"])
def test_control_tokens_in_texts_are_refused(processor, number, token):
    texts = [["What is this?", "And this?"], ["A", "B"]]
    texts[number][1] += token
    with pytest.raises(InputError, match=re.escape(f"question 'b': its text holds the control token '{token}'")):
        VideoInputs(processor, VideoSettings()).encode(clip(), torch.arange(8) / 4, 4.0, *texts, ["a", "b"])


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (clip(8).float(), torch.arange(8), "frames must be"),
        (clip(8), torch.arange(7), "and 7 times"),
        (clip(1), torch.arange(1), "takes 2 frames together, but the clip has 1"),
    ],
)
def test_bad_clips_are_refused(qwen3, frames, times, message):
    with pytest.raises(InputError, match=message):
        qwen3.encode(frames, times, 4.0, ["?"], None, ["a"])


@pytest.mark.parametrize("name", ["frames", "max_pixels", "max_length"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"video.{name}: 0 is below 1"):
        VideoSettings(**{name: 0})


def test_pixel_limit_holds_and_the_frame_is_scaled_once(qwen3, monkeypatch):
    inputs = VideoInputs(qwen3.processor, VideoSettings(max_pixels=4096))
    grey = torch.full((8, 96, 320, 3), 128, dtype=torch.uint8)
    record = inputs.encode(grey, torch.arange(8) / 4, 4.0, ["?"], None, ["a"])[0]
    # 96x320 by a factor of 0.365 is 35x116.8; whole units of 16 pixels below that are 32x112, in patches of 8: 4x14.
    assert record.vision["video_grid_thw"].tolist() == [[4, 4, 14]]
    torch.testing.assert_close(
        record.vision["pixel_values_videos"], torch.full((4 * 4 * 14, 3 * 2 * 8 * 8), (128 / 255 - 0.5) / 0.5)
    )
    small = inputs.encode(clip(8, 64, 64), torch.arange(8) / 4, 4.0, ["?"], None, ["a"])[0]
    unlimited = qwen3.encode(clip(8, 64, 64), torch.arange(8) / 4, 4.0, ["?"], None, ["a"])[0]
    assert torch.equal(small.vision["pixel_values_videos"], unlimited.vision["pixel_values_videos"])


def test_a_processor_that_scales_up_beyond_the_limit_is_refused(qwen25_folder):
    settings = VideoSettings(
        max_pixels=56 * 56, options={"size": {"shortest_edge": 112 * 112, "longest_edge": 224 * 224}}
    )
    inputs = VideoInputs(AutoProcessor.from_pretrained(qwen25_folder), settings)
    with pytest.raises(InputError, match="max_pixels: 3136 a frame, but the model's processor scales frames to 12544"):
        inputs.encode(clip(), torch.arange(8) / 4, 4.0, ["?"], None, ["a"])


def test_system_prompt_comes_first(processor):
    inputs = VideoInputs(processor, VideoSettings(system="Look closely."))
    record = inputs.encode(clip(), torch.arange(8) / 4, 4.0, ["?"], None, ["a"])[0]
    text = processor.tokenizer.decode(record.tokens["input_ids"])
    assert text.startswith("<|im_start|>system\nLook closely.<|im_end|>\n<|im_start|>user\n")
    assert text.count("system") == 1


def test_settings_travel_with_the_processor(processor, tmp_path):
    settings = VideoSettings(frames=8, max_pixels=3136, max_length=500, system="Look.", options={"do_normalize": False})
    inputs = VideoInputs(processor, settings)
    inputs.save(tmp_path)
    loaded = VideoInputs.load(tmp_path)
    assert loaded.settings == settings
    arguments = (clip(12, 84, 84), torch.arange(12) / 4, 4.0, PROMPTS, TARGETS, IDS)
    for one, other in zip(inputs.encode(*arguments), loaded.encode(*arguments), strict=True):
        for name, tensor in {**one.tokens, **one.vision}.items():
            assert torch.equal(tensor, {**other.tokens, **other.vision}[name])


def test_missing_and_unknown_settings_are_refused(processor, tmp_path):
    with pytest.raises(InputError, match=r"video_inputs\.json: not found"):
        VideoInputs.load(tmp_path)
    (tmp_path / "video_inputs.json").write_text('{"frames": 8, "fps": 24}')
    with pytest.raises(InputError, match="unknown key 'fps'"):
        VideoInputs.load(tmp_path)


def test_a_template_that_puts_the_question_first_is_refused(processor):
    processor.chat_template = (
        "{% for m in messages %}{{ m.content[1].text if m.role == 'user' }}<|video_pad|>{% endfor %}"
    )
    with pytest.raises(InputError, match="the video, and after it the question"):
        VideoInputs(processor, VideoSettings()).encode(clip(), torch.arange(8) / 4, 4.0, ["Where?"], None, ["a"])


def test_batch_moves_whole(qwen3):
    batch = qwen3.collate(qwen3.encode(clip(), torch.arange(8) / 4, 4.0, PROMPTS, TARGETS, IDS)).to("meta")
    tensors = [*batch.tokens.values(), batch.labels, *batch.vision.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.ids == IDS


def test_the_description_says_what_decides_and_survives_json(processor, tmp_path):
    settings = VideoSettings(frames=8, max_pixels=4096, options={"do_normalize": False})
    inputs = VideoInputs(processor, settings)
    described = inputs.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["settings"] == dataclasses.asdict(settings)
    sizes = described["processor"]["pixels"]
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        assert sizes[name] == getattr(processor.video_processor, name)
    assert sizes["size"] == {
        "shortest_edge": processor.video_processor.size["shortest_edge"],
        "longest_edge": processor.video_processor.size["longest_edge"],
    }
    inputs.save(tmp_path)
    VideoInputs.load(tmp_path).check_same(described, "last.ckpt")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"settings": {"frames": 16}}, "settings.frames 16, but here it is 8"),
        ({"settings": {"options": {"size": 3}}}, r"settings\.options None"),
        ({"processor": {"class": "Other"}}, "processor.class 'Other'"),
        ({"processor": {"pixels": {"patch_size": 32}}}, "processor.pixels.patch_size 32"),
        ({"processor": {"vocabulary": "0"}}, "processor.vocabulary '0'"),
        ({"family": "Gemma3"}, "family 'Gemma3'"),
        ({"audio": True}, "audio True, but here it is None"),
    ],
)
def test_another_preprocessing_is_refused_by_its_first_key(qwen3, change, key):
    saved = json.loads(json.dumps(qwen3.describe()))

    def merge(entries, changes):
        for name, value in changes.items():
            if isinstance(value, dict):
                merge(entries.setdefault(name, {}), value)
            else:
                entries[name] = value

    merge(saved, change)
    with pytest.raises(InputError, match=rf"^last\.ckpt: was made with {key}"):
        qwen3.check_same(saved, "last.ckpt")


def test_vocabulary_and_template_are_part_of_the_description(qwen3):
    saved = qwen3.describe()
    qwen3.processor.chat_template += " "
    with pytest.raises(InputError, match=r"processor\.chat_template"):
        qwen3.check_same(saved, "last.ckpt")
    saved = qwen3.describe()
    qwen3.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"processor\.vocabulary"):
        qwen3.check_same(saved, "last.ckpt")


@pytest.mark.parametrize("prompt", ["a", "e", "v", "u", "0", "1", "_", "|", ">", "\n", "user", "vision", "?"])
def test_a_question_whose_words_are_also_in_the_template(processor, prompt):
    frames = clip()
    prompts = ["Where is it?", prompt]
    encoded = VideoInputs(processor, VideoSettings()).encode(
        frames, torch.arange(8) / 4, 4.0, prompts, ["A", "n"], ["a", "b"]
    )
    expected = plain(processor, frames, prompt, "n")
    assert torch.equal(encoded[1].tokens["input_ids"], expected["input_ids"][0])
    assert encoded[1].prompt_length == plain(processor, frames, prompt)["input_ids"].shape[1]
