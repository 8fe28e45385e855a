"""Traps that other systems fell into on the way from video to model; those not met elsewhere in these tests."""

from dataclasses import replace

import pytest
import torch

from mllm4d.data.encoding import encode_sample
from mllm4d.models.base import BaseModel
from mllm4d.models.completions import Rollout, policy_of
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.packing import PackedInputs
from mllm4d.models.sharing import Plain, SharedPrefix, score_all
from mllm4d.prompts import letter
from mllm4d.schema import InputError, Question, Sample
from mllm4d.train.losses import answer_loss
from mllm4d.video import encode
from tests.models.tiny_families import FAMILIES

ALL = ("vision", "merger", "language")
# What the published template of Qwen-VL asks: a key "video" is enough, whatever it says.
ASKS_FOR_KEYS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for item in message.content %}"
    "{% if item.type == 'image' or 'image' in item or 'image_url' in item %}<|image_pad|>"
    "{% elif item.type == 'video' or 'video' in item %}<|video_pad|>"
    "{% elif 'text' in item %}{{ item.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip(count=8, seed=0, side=56):
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed)).byte()


def load(folder, **settings):
    base = BaseModel(str(folder), train=ALL)
    model, processor = base.load()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "language_model" in name:
                parameter.mul_(1.5)
    return model.train(), base.inputs(model, processor, VideoSettings(**settings))


def encoded(inputs, frames, prompt="Where is it?", target=None, fps=4.0):
    (record,) = inputs.encode(frames, torch.arange(len(frames)) / 4, fps, [prompt], target and [target], ["q"])
    return record


@pytest.mark.parametrize("scorer", [Plain(), SharedPrefix()], ids=["plain", "shared"])
@torch.no_grad()
def test_log_probs_of_a_completion_are_not_blind_to_its_video(qwen3_folder, scorer):
    """A trainer that leaves the video out of this forward has a KL of 0, and nothing complains."""
    model, inputs = load(qwen3_folder)
    prompt, other = encoded(inputs, clip()), encoded(inputs, clip(seed=1))
    said = torch.tensor(inputs.tokenizer("left right A")["input_ids"])[None].repeat(2, 1)
    lengths = torch.full((2,), said.shape[1])
    group = Rollout(
        prompt, said, lengths, torch.zeros(said.shape), torch.zeros(2).bool(), ("", ""), policy_of(model, inputs)
    )
    seen = score_all(scorer, model, inputs, [group]).log_probs
    assert torch.equal(seen, score_all(scorer, model, inputs, [group]).log_probs)
    assert (seen - score_all(scorer, model, inputs, [replace(group, prompt=other)]).log_probs).abs().max() > 0.1


@pytest.mark.parametrize("name", list(FAMILIES))
def test_training_rollout_and_evaluation_are_shown_the_same(folder_of, tmp_path, name):
    """Frames, pixels, times and words of a prompt come from one setting, and so they do after saving."""
    _, inputs = load(folder_of(name), frames=4)
    frames = clip(9)
    training = encoded(inputs, frames, target="A")
    inputs.save(tmp_path)
    answering = encoded(VideoInputs.load(tmp_path), frames)
    for record in (encoded(inputs, frames), inputs.prompt_only(training), answering):
        assert record.tokens.keys() == training.tokens.keys()
        assert record.vision.keys() == training.vision.keys()
        assert len(record.tokens["input_ids"]) == record.prompt_length == training.prompt_length
        for key, tensor in record.tokens.items():
            assert torch.equal(tensor, training.tokens[key][: training.prompt_length])
        for key, tensor in record.vision.items():
            assert torch.equal(tensor, training.vision[key])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_frame_rate_says_nothing_where_there_are_times(folder_of, name):
    """The times are the decoder's: a wrong frame rate changes nothing, other times do."""
    _, inputs = load(folder_of(name))
    frames = clip()
    first, second = encoded(inputs, frames, fps=4.0), encoded(inputs, frames, fps=24.0)
    assert first.tokens["input_ids"].tolist() == second.tokens["input_ids"].tolist()
    assert all(torch.equal(tensor, second.vision[key]) for key, tensor in first.vision.items())
    # Uneven: nothing can have made these up.
    times = torch.tensor([0, 0.5, 1.2, 1.4, 3, 5, 5.5, 9])
    (third,) = inputs.encode(frames, times, 4.0, ["Where is it?"], None, ["q"])
    assert third.tokens["input_ids"].tolist() != first.tokens["input_ids"].tolist()


@pytest.mark.parametrize("fps", [None, 0, "24"])
def test_a_clip_without_a_frame_rate_is_refused_and_none_is_made_up(qwen3_folder, fps):
    _, inputs = load(qwen3_folder)
    times = torch.arange(8) / 4
    options = {"A": "left", "B": "right"}
    question = Question(
        "q", "camera_relative_direction", "Which way?", options, "A", "left", None, (0, 7), None, {}, None
    )
    scene = {"times": times.tolist(), **({} if fps is None else {"fps": fps})}
    sample = Sample("clip", encode(clip(), times), scene, (question,))
    with pytest.raises(InputError, match=r"clip\.scene\.json: key 'fps' is .*; expected frames a second"):
        encode_sample(sample, inputs, letter, [0])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_key_of_a_message_is_none(folder_of, name):
    """Columnar stores fill every item with every key, as None; a template that asks for a key then sees two videos."""
    _, inputs = load(folder_of(name))
    for item in inputs.family.content(torch.arange(4) / 4):
        assert set(item) == ({"type", "text"} if item["type"] == "text" else {"type"})
        assert all(isinstance(value, str) for value in item.values())


def test_a_template_that_asks_for_keys_sees_one_video_and_two_are_refused(folder_of, monkeypatch):
    _, inputs = load(folder_of("qwen3"))
    frames = clip()
    expected = encoded(inputs, frames).tokens["input_ids"]
    inputs.processor.chat_template = ASKS_FOR_KEYS
    assert torch.equal(encoded(inputs, frames).tokens["input_ids"], expected)
    # As a columnar store would have left the items.
    filled = [{"type": "video", "text": None}, {"type": "text", "text": "", "video": None}]
    monkeypatch.setattr(inputs.family, "content", lambda times: filled)
    with pytest.raises(InputError, match=r"writes '<\|video_pad\|>' 2 times for 1 of them"):
        encoded(inputs, frames)


def test_nothing_shortens_a_text_and_leaves_its_pixels(qwen3_folder):
    """Whatever the limit, a record is whole or refused: its placeholders are its features."""
    _, inputs = load(qwen3_folder)
    whole = len(encoded(inputs, clip(), target="A").tokens["input_ids"])
    for limit in (1, whole // 2, whole - 1, whole, 2 * whole):
        limited = VideoInputs(inputs.processor, VideoSettings(max_length=limit), inputs.family)
        if limit < whole:
            with pytest.raises(InputError, match=f"has {whole} tokens, 'max_length' allows {limit}"):
                encoded(limited, clip(), target="A")
        else:
            record = encoded(limited, clip(), target="A")
            features = inputs.family.features(inputs.processor, record.vision)
            assert (record.tokens["input_ids"] == inputs.processor.video_token_id).sum() == features == 64


def test_deepstack_reaches_a_packed_row_at_the_right_places(qwen3_folder):
    """Without its deepstack a row is another one; with it the mergers have the gradients of one by one."""
    model, inputs = load(qwen3_folder)
    packed = PackedInputs(inputs, model)
    records = [encoded(inputs, clip(count, seed), target="A") for count, seed in ((8, 0), (4, 1), (6, 2))]
    mergers = list(model.model.visual.deepstack_merger_list.parameters())

    def run(batches):
        model.zero_grad()
        loss = sum(answer_loss(model(**batch.model_inputs()).logits, batch.labels) for batch in batches) / len(batches)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in mergers]

    loss, gradients = run([packed.collate(records)])
    alone, expected = run([inputs.collate([record]) for record in records])
    torch.testing.assert_close(loss, alone, rtol=0, atol=1e-5)
    assert max(gradient.abs().max() for gradient in expected) > 1e-2
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in mergers:
            parameter.zero_()
        batch = packed.collate(records)
        assert abs(answer_loss(model(**batch.model_inputs()).logits, batch.labels) - loss) > 1e-3
