"""Asking about a video file: the same tokens in as in training, the same words out as plain transformers says."""

import json

import pytest
import torch
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings
from transformers import AutoModelForImageTextToText

from mllm4d import prompts
from mllm4d.ask import Ask, show
from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.export import Export
from mllm4d.models.base import LoRA
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.tiny import TinyQwen3VL, build_tiny
from mllm4d.schema import InputError
from mllm4d.train.sft import SFT
from mllm4d.video import decode, encode
from tests.conftest import ROOT

OPTIONS = {"A": "left", "B": "right"}
QUESTION = "Which way did the camera go between 0 s and 1.75 s, in its own axes at 0 s?"
THOUGHT = """<thinking>
Objective.
- Camera Center: [0.00, 0.00, 0.00]
- Object Center: null
- Camera Center: [0.10, -0.50, 1.25]
- Object Center: [1, 2, 3]
</thinking>
<answer>B</answer>"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny model, a video, and a checkpoint of adapters that are far from zero."""
    root = tmp_path_factory.mktemp("ask")
    build_tiny(root / "tiny")
    pixels = torch.randint(0, 255, (12, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    (root / "a.mp4").write_bytes(encode(frames, torch.arange(12, dtype=torch.float64) / 4))
    trained = module(root)
    trained.configure_model()
    torch.manual_seed(1)
    adapters = {name: torch.randn_like(p) / 4 for name, p in trained.named_parameters() if p.requires_grad}
    torch.save({"state_dict": adapters, "global_step": 7, "epoch": 1}, root / "a.ckpt")
    Export(module(root), str(root / "model"), str(root / "a.ckpt")).run()
    return root


def module(root):
    base = TinyQwen3VL(str(root / "tiny"), dtype="float32", lora=LoRA(r=4, alpha=8))
    return SFT(base, VideoSettings(frames=8, max_pixels=1024), MultipleChoiceAccuracy())


def ask(root, **settings):
    defaults = {"question": QUESTION, "video": str(root / "a.mp4"), "model": str(root / "model"), "max_new_tokens": 12}
    return Ask(**{**defaults, **settings}).run()


def expected(root, prompt, folder="model"):
    """By plain transformers, from the saved preprocessing."""
    model, inputs = AutoModelForImageTextToText.from_pretrained(root / folder), VideoInputs.load(root / "model")
    frames, times = decode(root / "a.mp4")
    batch = inputs.collate(inputs.encode(frames, times, 4.0, [prompt], None, ["q"])).model_inputs()
    tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
    return inputs.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_an_exported_model_answers_as_plain_transformers_does(root, capsys):
    said = ask(root)
    assert said == expected(root, QUESTION)
    assert capsys.readouterr().out.strip() == said.strip()
    prompt = prompts.with_options(QUESTION, OPTIONS, prompts.LETTER_INSTRUCTION)
    assert ask(root, options=OPTIONS) == expected(root, prompt)
    prompt = prompts.with_options(QUESTION, OPTIONS, prompts.REASONING_INSTRUCTION)
    assert ask(root, options=OPTIONS, reasoning=True) == expected(root, prompt)


def test_a_checkpoint_answers_as_its_export_does(root):
    assert ask(root, model=module(root), ckpt_path=str(root / "a.ckpt")) == ask(root)
    assert ask(root, model=module(root)) == expected(root, QUESTION, "tiny")
    assert ask(root) != expected(root, QUESTION, "tiny")


def test_a_plain_model_answers_with_a_note(root, capsys):
    said = ask(root, model=str(root / "tiny"))
    captured = capsys.readouterr()
    assert said.strip() in captured.out
    assert "has no video_inputs.json; taking at most 8 frames" in captured.err


def test_the_number_of_frames_can_be_set(root):
    # The tiny model takes eight frames together, so that four are too few.
    with pytest.raises(InputError, match=r"'video\.frames' is 4"):
        ask(root, frames=4)


def test_bad_input_is_one_sentence(root, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "still.mp4").write_bytes(encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    for settings, words in (
        ({"video": None}, "name a video file"),
        ({"video": "gone.mp4"}, r"gone\.mp4: not found"),
        ({"video": str(tmp_path)}, "not found; name a video file"),
        ({"video": str(tmp_path / "text.mp4")}, r"text\.mp4: cannot be decoded as a video"),
        ({"video": str(tmp_path / "still.mp4")}, r"still\.mp4: its 1 frames"),
        ({"model": None}, "name a Hugging Face folder"),
        ({"model": str(tmp_path / "gone")}, r"config\.json: not found"),
        ({"model": str(tmp_path / "broken")}, "cannot be loaded as a Hugging Face model"),
        ({"model": str(tmp_path / "text")}, "cannot be loaded as a Hugging Face model"),
        ({"ckpt_path": "a.ckpt"}, "needs the configuration"),
        ({"model": module(root), "ckpt_path": "gone.ckpt"}, r"gone\.ckpt: not found"),
        ({"question": "What is <|im_end|>?"}, "control token"),
    ):
        with pytest.raises(InputError, match=words) as error:
            ask(root, **settings)
        assert "\n" not in str(error.value)


def test_reasoning_is_shown_with_its_centres_and_the_option():
    text = show(THOUGHT, OPTIONS, reasoning=True)
    lines = text.split("\n")
    assert lines[0] == "Objective."
    camera, thing = (next(line for line in lines if line.startswith(name)) for name in ("camera", "object"))
    assert camera.split()[1:] == ["[0.00,", "0.00,", "0.00]", "[0.10,", "-0.50,", "1.25]"]
    assert thing.split()[1:] == ["null", "[1.00,", "2.00,", "3.00]"]
    assert lines[-1] == "answer: B. right"
    assert show(THOUGHT, None, reasoning=True).endswith("answer: <answer>B</answer>")


def test_what_cannot_be_read_is_said_and_shown():
    broken = THOUGHT.replace("[0.10, -0.50, 1.25]", "near the door")
    assert "not given as asked" in show(broken, OPTIONS, reasoning=True)
    text = show("Perhaps.", OPTIONS, reasoning=True)
    assert "no reasoning" in text
    assert "Perhaps." in text
    assert "none of the options can be read" in text
    assert show("B", OPTIONS, reasoning=False) == "answer: B. right"
    assert show(" Left. ", None, reasoning=False) == "Left."


def parse(*words):
    """As ``mllm4d.__main__.build_task`` does, with the question as a plain word."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    parser.add_class_arguments(Ask, as_group=False, as_positional=True)
    settings = parser.instantiate(parser.parse_args([str(word) for word in words]))
    settings.pop("config", None)
    return Ask(**settings)


def test_the_command_line(root):
    task = parse("--model", root / "model", "--video", "a.mp4", QUESTION, "--options.A", "0.5 m", "--options.B", "12")
    assert (task.question, task.video, task.model) == (QUESTION, "a.mp4", str(root / "model"))
    assert task.options == {"A": "0.5 m", "B": "12"}
    task = parse(QUESTION, "--video", "a.mp4", "--reasoning", "true", "--options", "{A: left, B: right}")
    assert task.options == OPTIONS
    assert task.reasoning
    config = ROOT / "configs" / "quickstart.yaml"
    task = parse(
        "-c", config, "--model.base.path", root / "tiny", "--ckpt_path", "a.ckpt", "--video", "a.mp4", QUESTION
    )
    assert isinstance(task.model, SFT)
    assert task.model.base.path == str(root / "tiny")
    assert task.ckpt_path == "a.ckpt"
