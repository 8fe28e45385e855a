from collections import Counter

import pytest
import torch

from mllm4d import prompts
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.world import World
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.packing import PackedInputs
from mllm4d.models.tiny import build_model, build_processor, build_tokenizer
from mllm4d.schema import InputError
from mllm4d.shards import read_index, read_shard


@pytest.fixture(scope="module")
def inputs():
    return VideoInputs(build_processor(build_tokenizer()), VideoSettings(frames=8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    source = World(width=64, height=64, frames=8, fps=4.0)
    out = tmp_path_factory.mktemp("world") / "shards"
    splits = {"train": 0.6, "test": 0.4}
    return Curation(source, str(out), clips=16, pairs=12, workers=0, clips_per_shard=4, splits=splits).run()


def module(shards, inputs, **settings):
    data = ClipDataModule(str(shards), inputs=inputs, **{"workers": 0, "batch_size": 5, "window": 20, **settings})
    data.setup()
    return data


def same(first, second):
    assert [b.questions for b in first] == [b.questions for b in second]
    for a, b in zip(first, second, strict=True):
        for name, tensor in a.inputs.model_inputs().items():
            assert torch.equal(tensor, b.inputs.model_inputs()[name]), name


def test_an_epoch_has_every_question_once_in_as_many_batches_as_it_says(shards, inputs):
    loader = module(shards, inputs).train_dataloader()
    expected, batches = len(loader), list(loader)
    assert len(batches) == expected
    wanted = [q.id for s in read_index(shards).split("train") for x in read_shard(shards / s.path) for q in x.questions]
    assert Counter(q.id for batch in batches for q in batch.questions) == Counter(wanted)


def test_the_order_does_not_depend_on_the_number_of_workers(shards, inputs):
    batches = [list(module(shards, inputs, workers=n).train_dataloader()) for n in (0, 1, 2)]
    same(batches[0], batches[1])
    same(batches[0], batches[2])


def test_epochs_differ_and_seeds_repeat(shards, inputs):
    loader = module(shards, inputs).train_dataloader()
    first, second = list(loader), list(loader)
    assert [b.questions for b in first] != [b.questions for b in second]
    same(first, list(module(shards, inputs).train_dataloader()))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_its_style_and_evaluation_the_last(shards, inputs, workers):
    styles = [prompts.open_answer, prompts.text_and_letter]
    data = module(shards, inputs, first_styles=styles[:1], style=styles[1], workers=workers)
    loader = data.train_dataloader()

    def styled(batches, style):
        for batch in batches:
            for row, labels, question in zip(
                batch.inputs.tokens["input_ids"], batch.inputs.labels, batch.questions, strict=True
            ):
                dialogue = style(question)
                assert dialogue.prompt in inputs.tokenizer.decode(row)
                assert inputs.tokenizer.decode(labels[labels >= 0]) == f"{dialogue.target}<|im_end|>"

    for style in [*styles, styles[-1]]:
        styled(list(loader), style)
    styled(list(data.test_dataloader()), styles[-1])


def test_several_styles_have_no_one_length(shards, inputs):
    with pytest.raises(InputError, match="'batch_tokens' measures one style"):
        module(shards, inputs, first_styles=[prompts.open_answer], batch_tokens=8000)


def test_a_clip_is_decoded_once_for_all_its_questions(shards, inputs, monkeypatch):
    from mllm4d.data import encoding

    decoded = []
    decode = encoding.decode
    monkeypatch.setattr(encoding, "decode", lambda video, name, only: decoded.append(name) or decode(video, name, only))
    list(module(shards, inputs).train_dataloader())
    assert len(decoded) == len(set(decoded)) == sum(len(s.keys) for s in read_index(shards).split("train"))


def test_frames_that_are_not_used_are_not_converted(shards, monkeypatch):
    from mllm4d.data import encoding

    few = VideoInputs(build_processor(build_tokenizer(), temporal_patch=2), VideoSettings(frames=3))
    shard = read_index(shards).shards[0]
    sample = next(read_shard(shards / shard.path))
    counts = []
    decode = encoding.decode

    def counting(video, name, only):
        frames, times = decode(video, name, only)
        counts.append((len(frames), len(times)))
        return frames, times

    monkeypatch.setattr(encoding, "decode", counting)
    pairs, _ = encoding.encode_sample(sample, few, prompts.letter, [0])
    assert counts == [(3, 8)]
    frames, times = decode(sample.video)
    dialogue = prompts.letter(sample.questions[0])
    (expected,) = few.encode(frames, times, 4.0, [dialogue.prompt], [dialogue.target], [sample.questions[0].id])
    for name, tensor in {**expected.tokens, **expected.vision}.items():
        assert torch.equal({**pairs[0][2].tokens, **pairs[0][2].vision}[name], tensor), name


@pytest.mark.parametrize("together", [False, True])
def test_packed_rows_and_their_questions_are_in_one_order(shards, inputs, together):
    packed = PackedInputs(inputs, build_model(inputs.tokenizer))
    loader = module(shards, packed, together=together, batch_tokens=8000).train_dataloader()
    loader.generation = True
    mixed, regrouped = 0, 0
    for batch in loader:
        assert [question.id for question in batch.questions] == list(batch.inputs.ids) == list(batch.prompts.ids)
        clips = [question.id.rsplit("/", 1)[0] for question in batch.questions]
        mixed += len(set(clips)) > 1
        regrouped += len(set(clips)) < len(clips)
        # Each clip's video is there once.
        assert len(batch.inputs.vision.clips) == len(batch.inputs.vision["video_grid_thw"]) == len(set(clips))
    assert mixed
    assert regrouped


def test_together_a_clip_comes_in_one_step(shards, inputs):
    data = module(shards, inputs, together=True, batch_tokens=2000)
    batches = list(data.train_dataloader())
    steps = {}
    for number, batch in enumerate(batches):
        for question in batch.questions:
            steps.setdefault(question.id.rsplit("/", 1)[0], set()).add(number)
    assert all(len(found) == 1 for found in steps.values())
    wanted = [q.id for s in read_index(shards).split("train") for x in read_shard(shards / s.path) for q in x.questions]
    assert Counter(q.id for batch in batches for q in batch.questions) == Counter(wanted)
    # What packed rows take: the video of each clip once. The estimate is never below it.
    packed = PackedInputs(inputs, build_model(inputs.tokenizer))
    lengths = [
        batch.inputs.layout.length
        for batch in module(shards, packed, together=True, batch_tokens=2000).train_dataloader()
    ]
    assert max(lengths) <= 2000
    assert (
        len(lengths) == len(batches) == len(module(shards, inputs, together=True, batch_tokens=2000).train_dataloader())
    )
    # A resumed run plans the same without measuring again.
    again = ClipDataModule(str(shards), inputs=inputs, workers=0, window=20, together=True, batch_tokens=2000)
    again.load_state_dict(data.state_dict())
    same(batches, list(again.train_dataloader()))
    assert again.state_dict() == data.state_dict()
    assert again.state_dict()["order"]["together"] is True


def test_only_the_answer_is_learnt(shards, inputs):
    batch = next(iter(module(shards, inputs, style=prompts.text_and_letter).train_dataloader()))
    decode = inputs.tokenizer.decode
    for labels, question in zip(batch.inputs.labels, batch.questions, strict=True):
        target = prompts.text_and_letter(question).target
        assert decode(labels[labels != -100]) == f"{target}<|im_end|>"


def test_evaluation_keeps_the_order_and_has_prompts_without_answers(shards, inputs):
    batches = list(module(shards, inputs).test_dataloader())
    wanted = [q.id for s in read_index(shards).split("test") for x in read_shard(shards / s.path) for q in x.questions]
    assert [q.id for batch in batches for q in batch.questions] == wanted
    text = inputs.tokenizer.decode(batches[0].prompts.tokens["input_ids"][0])
    assert text.endswith("<|im_start|>assistant\n")
    assert batches[0].questions[0].question in text


def test_splits_that_are_not_there(shards, inputs):
    assert module(shards, inputs).val_dataloader() == []
    with pytest.raises(InputError, match="lists no shard of split 'val'"):
        module(shards, inputs, train_split=["train", "val"]).train_dataloader()


def test_no_shards_and_a_curation_for_another_folder(tmp_path, inputs):
    with pytest.raises(InputError, match=r"index\.json: not found"):
        ClipDataModule(str(tmp_path)).setup()
    with pytest.raises(InputError, match=r"'curation\.out' is 'elsewhere'"):
        ClipDataModule(str(tmp_path), curation=Curation(World(), "elsewhere"))


def test_a_video_whose_frames_are_not_the_scenes_is_named(shards, inputs):
    from dataclasses import replace

    from mllm4d.data.encoding import encode_sample

    shard = read_index(shards).shards[0]
    sample = next(read_shard(shards / shard.path))
    scene = {**sample.scene, "times": sample.scene["times"][:-1]}
    with pytest.raises(InputError, match=rf"{sample.key}\.mp4: has 8 frames, but .* has 7 times"):
        encode_sample(replace(sample, scene=scene), inputs, prompts.letter, [0])
