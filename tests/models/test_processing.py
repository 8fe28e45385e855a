"""Clips prepared without the Hugging Face processor, against that processor."""

import logging
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoProcessor
from transformers.video_utils import VideoMetadata

from mllm4d.models.families import family_of
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.patches import Patches

NAMES = ("qwen3", "qwen25", "qwen35")
EVEN, UNEVEN = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75], [0.0, 0.2, 0.7, 1.3, 9.9, 10.04, 61.5, 100.25]


def load(folder, **settings):
    return VideoInputs(
        AutoProcessor.from_pretrained(folder), VideoSettings(**settings), family_of(AutoConfig.from_pretrained(folder))
    )


def clip(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def plain(inputs, frames, times, options, note=""):
    """The model's own processor on the whole chat, with its own template and its own words."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": f"{note}Where is it?"}]}]
    template = inputs.family.template_options
    text = inputs.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template)
    gap = (times[-1] - times[0]) / (len(times) - 1)
    about = VideoMetadata(
        total_num_frames=round(1000 * gap * len(times)), fps=1000.0, frames_indices=[round(1000 * t) for t in times]
    )
    return inputs.processor(
        text=[text],
        videos=[frames.permute(0, 3, 1, 2)],
        video_metadata=[about],
        do_sample_frames=False,
        return_tensors="pt",
        **options,
    )


def noted(name, times):
    # Qwen2.5-VL's tokens have no times; two frames from 0 s on have one gap, which says all.
    if name != "qwen25" or times == EVEN[: len(times)] or (len(times) == 2 and not times[0]):
        return ""
    words = ", ".join(f"frame {n} at {f'{t:.2f}'.rstrip('0').rstrip('.')} s" for n, t in enumerate(times, 1))
    return f"{words.capitalize()}.\n"


def assert_same(record, expected):
    made = {**{name: tensor[None] for name, tensor in record.tokens.items()}, **record.vision}
    assert set(made) == set(expected) - {"attention_mask"}
    for name, tensor in made.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"size": {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}}], ids=str)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (112, 56), (70, 90), (224, 112)])
def test_bit_equal_to_the_processor(name, options, height, width, folder_of, monkeypatch):
    inputs = load(folder_of(name), options=options)
    calls = []
    process = type(inputs.family).process
    monkeypatch.setattr(type(inputs.family), "process", lambda *given: calls.append(1) or process(*given))
    for count in (2, 5, 8):  # five are not a whole number of steps
        for seed, times in enumerate((EVEN[:count], UNEVEN[-count:], UNEVEN[:count])):
            frames = clip(count, height, width, seed)
            at = torch.tensor(times, dtype=torch.float64)
            record = inputs.encode(frames, at, 4.0, ["Where is it?"], None, ["a"])[0]
            assert isinstance(record.vision, Patches)
            assert_same(record, plain(inputs, frames, times, options, noted(name, times)))
    assert len(calls) == 3  # the first clip of each size


@pytest.mark.parametrize("name", NAMES)
def test_equal_after_scaling_to_the_limit_and_in_another_process(name, folder_of):
    inputs = load(folder_of(name), max_pixels=4096)
    # 96x320 by a factor of 0.365 is 35x116; whole units below that, of 16 or 28 pixels.
    frames = clip(4, 96, 320)
    size = (28, 112) if name == "qwen25" else (32, 112)
    small = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True
    ).round()
    expected = plain(inputs, small.byte().permute(0, 2, 3, 1), EVEN[:4], {})
    times = torch.tensor(EVEN[:4])
    for one in (inputs, inputs, pickle.loads(pickle.dumps(inputs))):
        assert_same(one.encode(frames, times, 4.0, ["Where is it?"], None, ["a"])[0], expected)


def test_a_processor_that_does_more_is_used_for_every_clip(folder_of, monkeypatch, caplog):
    inputs = load(folder_of("qwen3"))
    video = inputs.processor.video_processor
    preprocess = type(video)._preprocess

    def brighter(self, videos, **settings):
        output = preprocess(self, videos, **settings)
        output["pixel_values_videos"] = output["pixel_values_videos"] + 1
        return output

    monkeypatch.setattr(type(video), "_preprocess", brighter)
    for seed in range(2):
        with caplog.at_level(logging.WARNING):
            frames = clip(4, 64, 64, seed)
            record = inputs.encode(frames, torch.tensor(EVEN[:4]), 4.0, ["Where is it?"], None, ["a"])[0]
        assert not isinstance(record.vision, Patches)
        assert_same(record, plain(inputs, frames, EVEN[:4], {}))
    assert caplog.text.count("go through the processor") == 1


def test_options_that_change_pixels_go_to_the_processor(folder_of):
    inputs = load(folder_of("qwen3"), options={"do_normalize": False})
    frames = clip(4, 64, 64)
    record = inputs.encode(frames, torch.tensor(EVEN[:4]), 4.0, ["Where is it?"], None, ["a"])[0]
    assert not isinstance(record.vision, Patches)
    assert_same(record, plain(inputs, frames, EVEN[:4], {"do_normalize": False}))


def test_a_padded_batch_keeps_a_clip_once_and_the_model_gets_it_for_every_row(folder_of):
    inputs = load(folder_of("qwen3"))
    times = torch.tensor(EVEN[:4])
    first = inputs.encode(clip(4, 64, 64), times, 4.0, ["Where?", "When?"], ["A", "B"], ["a", "b"])
    second = inputs.encode(clip(4, 64, 64, 1), times, 4.0, ["Why?"], ["C"], ["c"])
    batch = inputs.collate([first[0], *second, first[1]])
    assert len(batch.vision.clips) == 2
    pixels = [record.vision["pixel_values_videos"] for record in (first[0], *second, first[1])]
    assert torch.equal(batch.model_inputs()["pixel_values_videos"], torch.cat(pixels))


@pytest.mark.parametrize("name", [*NAMES, "internvl"])
@pytest.mark.parametrize("count", [4, 30])
def test_tokens_of_a_clip_that_nobody_has_read(name, count, folder_of):
    inputs = load(folder_of(name), frames=8)
    record = inputs.encode(clip(count, 70, 90), torch.arange(count) / 4, 4.0, ["?"], None, ["a"])[0]
    own = len(record.tokens["input_ids"]) - inputs.tokens_of(count, 70, 90)
    # What is left is the question: at most its times, which are written in it where the processor has none.
    text = inputs.tokenizer.decode(record.tokens["input_ids"][-own:])
    assert "?<|im_end|>\n<|im_start|>assistant\n" in text
    assert inputs.tokenizer.decode(record.tokens["input_ids"][:-own]).count("?") == 0
