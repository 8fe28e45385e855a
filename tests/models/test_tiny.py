import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from mllm4d import prompts
from mllm4d.answers import read_option
from mllm4d.models import tiny
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.tiny import PretrainedTiny, TinyQwen3VL, build_tiny
from mllm4d.schema import InputError
from tools.tiny import evaluation
from tools.tiny.batches import drills, encode_text


@pytest.fixture(scope="module")
def model(tiny_folder):
    return AutoModelForImageTextToText.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def processor(tiny_folder):
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def batch(processor):
    """Two clips of eight frames of 64x64 with one question each."""
    inputs = VideoInputs(processor, VideoSettings())
    frames = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = [["Which way did the red cube go?\nA. left\nB. right"], ["A"]]
    return inputs.collate([inputs.encode(f, torch.arange(8) / 4, 4.0, *texts, ["q"])[0] for f in frames])


def test_auto_classes_load_it(model, processor):
    assert type(model) is Qwen3VLForConditionalGeneration
    assert type(processor) is Qwen3VLProcessor
    assert model.dtype == torch.float32
    total = sum(parameter.numel() for parameter in model.parameters())
    assert 2_300_000 < total < 2_500_000
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.text_config.vocab_size == len(processor.tokenizer) <= tiny.VOCABULARY


def test_special_tokens_of_model_and_tokenizer_agree(model, processor):
    ids = processor.tokenizer.convert_tokens_to_ids
    config = model.config
    assert config.video_token_id == processor.video_token_id == ids("<|video_pad|>")
    assert config.image_token_id == processor.image_token_id == ids("<|image_pad|>")
    assert config.vision_start_token_id == ids("<|vision_start|>")
    assert config.vision_end_token_id == ids("<|vision_end|>")
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == ids("<|im_end|>")
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id == ids("<|endoftext|>")


def test_frames_are_not_scaled_and_the_video_is_marked_once(batch, processor):
    assert batch.vision["video_grid_thw"].tolist() == [[1, 8, 8], [1, 8, 8]]
    text = processor.tokenizer.decode(batch.tokens["input_ids"][0])
    # The middle of eight frames at 4 frames a second: (0 + 1.75) / 2.
    video = "<0.9 seconds><|vision_start|>" + 16 * "<|video_pad|>" + "<|vision_end|>"
    assert text == (
        f"<|im_start|>user\n{video}Which way did the red cube go?\nA. left\nB. right<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>"
    )


def test_loss_reaches_every_parameter(model, batch):
    model.zero_grad()
    output = model(**batch.model_inputs(), labels=batch.labels)
    log_probs = output.logits.log_softmax(-1)
    # By hand: the letter and the end token, each told by the position before it.
    rows = [log_probs[:, -3].gather(1, batch.labels[:, -2:-1]), log_probs[:, -2].gather(1, batch.labels[:, -1:])]
    assert (batch.labels != -100).sum(1).tolist() == [2, 2]
    torch.testing.assert_close(output.loss, -torch.cat(rows).mean())
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    model.zero_grad()


@torch.no_grad()
def test_it_sees_the_video_and_the_order_of_its_frames(model, batch):
    inputs = batch.model_inputs()
    logits = model(**inputs).logits[:, -3]
    assert logits.std() > 0.3
    assert (logits[0] - logits[1]).abs().max() > 0.1
    # A patch holds three colours, eight frames, eight by eight pixels.
    patches = inputs["pixel_values_videos"].view(-1, 3, 8, 8, 8)
    backwards = model(**inputs | {"pixel_values_videos": patches.flip(2).flatten(1)}).logits[:, -3]
    assert (logits - backwards).abs().max() > 0.1


def test_it_generates(model, processor, batch):
    prompts = batch.tokens["input_ids"][:, :-2]
    inputs = batch.model_inputs() | {
        "input_ids": prompts,
        "attention_mask": torch.ones_like(prompts),
        "mm_token_type_ids": batch.tokens["mm_token_type_ids"][:, :-2],
    }
    ids = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert ids.shape == (2, prompts.shape[1] + 5)
    assert torch.equal(ids[:, :-5], prompts)


@pytest.mark.parametrize(
    "text",
    [
        "From 0.5 s to 1.25 s, where did it go?",
        "- Camera Center: [-0.12, 13.4, null]",
        " leading,  double  and trailing blanks \n\n\t",
        "żółć 你好 🙂 \u0000 e\u0301 don't",
        "",
    ],
)
def test_any_text_comes_back(processor, text):
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12.5 s", "1|2|.|5| s"),
        ("\nA. left\nB. 0.53 m", "\n|A|.| left|\n|B|.| 0|.|5|3| m"),
        (" [-1, null]", " [|-|1|,| null|]"),
        ("the red cube", "the| red| cube"),
        ("</thinking>\n<answer>B</answer>", "</thinking>|\n|<answer>|B|</answer>"),
        ("<0.9 seconds>", "<|0|.|9| seconds|>"),
    ],
)
def test_words_numbers_and_letters_are_apart(processor, text, tokens):
    tokenizer = processor.tokenizer
    assert "|".join(tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]) == tokens


def test_tags_survive_decoding_and_control_tokens_do_not(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("<|im_start|><answer>B</answer><|im_end|><|video_pad|>")["input_ids"]
    assert len(ids) == 6
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<answer>B</answer>"


def test_same_seed_same_bytes_in_another_process(tiny_folder, tmp_path):
    code = f"from mllm4d.models.tiny import build_tiny; build_tiny({str(tmp_path / 'tiny')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    names = sorted(path.name for path in tiny_folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "tiny").iterdir())
    for name in names:
        assert (tiny_folder / name).read_bytes() == (tmp_path / "tiny" / name).read_bytes(), name


def test_another_seed_other_weights_and_the_global_generator_is_left_alone(tiny_folder, tmp_path):
    state = torch.get_rng_state()
    build_tiny(tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    weights, others = (AutoModelForImageTextToText.from_pretrained(f) for f in (tiny_folder, tmp_path / "other"))
    differing = [n for (n, a), b in zip(weights.named_parameters(), others.parameters(), strict=True) if (a != b).any()]
    assert len(differing) > 30


def test_folder_is_made_once_and_then_read(tmp_path):
    base = TinyQwen3VL(str(tmp_path / "runs" / "tiny"), seed=3, train=["language"])
    base.prepare()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "tiny").iterdir()}
    loaded, _ = base.load()
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "tiny").iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny"]
    assert {n.split(".")[1] for n, p in loaded.named_parameters() if p.requires_grad} == {"language_model"}


@pytest.mark.parametrize("settings", [{"seed": 1}, {"temporal_patch": 2}])
def test_a_folder_made_otherwise_is_refused(tiny_folder, settings):
    with pytest.raises(InputError, match=r"config\.json: this model was made with .*name another 'path'"):
        TinyQwen3VL(str(tiny_folder), train=["language"], **settings).load()


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        TinyQwen3VL(str(tmp_path), train=["language"]).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "build_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_tiny(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_temporal_patch_decides_how_many_times_the_model_reads(qwen3_folder):
    assert json.loads((qwen3_folder / "config.json").read_text())["vision_config"]["temporal_patch_size"] == 2
    inputs = VideoInputs(AutoProcessor.from_pretrained(qwen3_folder), VideoSettings())
    record = inputs.encode(torch.zeros(8, 64, 64, 3, dtype=torch.uint8), torch.arange(8) / 4, 4.0, ["?"], None, ["a"])
    assert record[0].vision["video_grid_thw"].tolist() == [[4, 8, 8]]


def test_the_pretrained_one_comes_with_the_package():
    base = PretrainedTiny(train=["merger"])
    files = list(tiny.PRETRAINED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {"README.md", "model.safetensors", "tokenizer.json", "video_inputs.json"} <= {file.name for file in files}
    model, processor = base.load()
    assert type(model) is Qwen3VLForConditionalGeneration
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        "merger",
        "deepstack_merger_list",
    }
    saved = VideoInputs.load(tiny.PRETRAINED)
    assert saved.settings == VideoSettings(frames=8, max_pixels=4096)


def test_the_pretrained_one_finds_a_letter_by_its_text():
    model, processor = PretrainedTiny().load()
    inputs = VideoInputs(processor, VideoSettings(frames=8, max_pixels=4096))
    questions = [question for question in drills(120) if question.task == "letter_of"]
    rows = [encode_text(inputs, prompts.text_and_letter(question)) for question in questions]
    said = evaluation.answer(model, inputs, rows, "cpu")
    right = [read_option(text, q.options) == q.answer for text, q in zip(said, questions, strict=True)]
    # 0.90 of them by its card; with random weights at most the third that chance gives.
    assert len(right) > 40
    assert sum(right) / len(right) > 0.75
