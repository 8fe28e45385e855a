"""Packing: a row equals its questions one by one, in loss and gradient, and nothing leaks between them."""

import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mllm4d.models.attention import BLOCKS, Group, use_block_attention
from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.packing import PackedInputs, check_packing, collate_packed, pack_rows, skeleton
from mllm4d.schema import InputError
from mllm4d.train.losses import answer_loss

PACKED = ["qwen3", "qwen25", "qwen2", "internvl", "smolvlm", "llava_onevision"]
FIRST = ["Where is it?", "Where was the red cube at 0.5 s?", "How far?"], ["A", "B then left", "C"]
SECOND = ["Who?", "Which way did it go in the end?"], ["left left", "D"]
ALL = ("vision", "merger", "language")


@pytest.fixture(params=PACKED)
def name(request):
    return request.param


def load(folder_of, name, train=ALL, **settings):
    """The model in training (no dropout in any of them) and its preprocessing."""
    base = BaseModel(str(folder_of(name)), train=train, **settings)
    model, processor = base.load()
    return model.train(), base.inputs(model, processor, VideoSettings())


@pytest.fixture
def loaded(folder_of, name):
    return load(folder_of, name)


def encode(inputs, count, seed, prompts, targets):
    frames = torch.randint(0, 256, (count, 56, 56, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    ids = [f"{seed}/{number}" for number in range(len(prompts))]
    return inputs.encode(frames, torch.arange(count) / 4, 4.0, prompts, targets, ids)


def mixed(inputs, name):
    """Questions of two clips that take turns; the clips have different frame counts where the model can take them."""
    a, b = encode(inputs, 8, 0, *FIRST), encode(inputs, 8 if name == "llava_onevision" else 4, 1, *SECOND)
    return [a[0], b[0], a[1], a[2], b[1]]


def loss_of(model, batch):
    return answer_loss(model(**batch.model_inputs()).logits, batch.labels)


def one_by_one(model, inputs, records):
    """Mean over all answer tokens, every question in a forward of its own."""
    counts = [len(record.tokens["input_ids"]) - record.prompt_length for record in records]
    losses = [loss_of(model, inputs.collate([record])) for record in records]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, loss, expected):
    value, grads = expected
    torch.testing.assert_close(loss, value, rtol=0, atol=1e-5)
    ours = gradients(model, loss)
    assert ours.keys() == grads.keys()
    assert max(grad.abs().max() for grad in grads.values()) > 0.1
    for key, grad in ours.items():
        torch.testing.assert_close(grad, grads[key], rtol=0, atol=1e-5)


def expected_of(model, inputs, records):
    loss = one_by_one(model, inputs, records)
    return loss.detach(), gradients(model, loss)


def test_packed_is_padded_is_one_by_one_in_loss_and_gradient(name, loaded):
    model, inputs = loaded
    records = mixed(inputs, name)
    expected = expected_of(model, inputs, records)
    assert expected[0] > 1
    assert_same(model, loss_of(model, inputs.collate(records)), expected)
    use_block_attention(model)
    lengths = [len(record.tokens["input_ids"]) for record in records]
    packed = collate_packed(records, inputs, model)
    assert packed.layout.length == packed.layout.unshared_length == sum(lengths) == packed.labels.numel()
    assert_same(model, loss_of(model, packed), expected)
    shared = collate_packed(records, inputs, model, share_prefix=True)
    assert [len(group.branches) for group in shared.layout.groups] == [3, 2]
    assert shared.layout.unshared_length == sum(lengths)
    assert shared.layout.length < 0.6 * sum(lengths)
    assert_same(model, loss_of(model, shared), expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["qwen3", "llava_onevision"])
def test_block_masks_give_the_same(name, implementation, folder_of):
    model, inputs = load(folder_of, name, attn_implementation=implementation)
    records = mixed(inputs, name)
    expected = expected_of(model, inputs, records)
    for share in (False, True):
        batch = collate_packed(records, inputs, model, share)
        assert batch.attention["attention_mask"].shape == (1, 1, batch.layout.length, batch.layout.length)
        assert_same(model, loss_of(model, batch), expected)


def test_positions_alone_tell_transformers_where_samples_begin(name, loaded):
    """What flash attention goes by, which has no mask."""
    model, inputs = loaded
    records = mixed(inputs, name)
    batch = replace(collate_packed(records, inputs, model), attention={})
    torch.testing.assert_close(loss_of(model, batch), one_by_one(model, inputs, records), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "qwen25"])
def test_with_adapters_and_gradient_checkpointing(name, folder_of):
    plain, inputs = load(folder_of, name, train=["merger"], lora=LoRA(r=2, alpha=4))
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if ".lora_B." in key:  # zero at first, so that A would have no gradient
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(key)))
    model, _ = load(folder_of, name, train=["merger"], lora=LoRA(r=2, alpha=4), gradient_checkpointing=True)
    model.load_state_dict(plain.state_dict())
    records = mixed(inputs, name)
    expected = expected_of(plain, inputs, records)
    packed = PackedInputs(inputs, model)
    assert packed.collate(records).layout.shared
    assert_same(model, loss_of(model, packed.collate(records)), expected)


@pytest.mark.parametrize("share", [False, True])
@torch.no_grad()
def test_no_sample_sees_another(name, loaded, share):
    """Another sample changed: logits of the rest are the same to the last bit."""
    model, inputs = loaded
    use_block_attention(model)
    records = mixed(inputs, name)
    rows = collate_packed(records, inputs, model, share)

    def pieces(batch):
        sizes = [n for prefix, (first, *rest) in batch.layout.groups for n in (prefix + first, *rest)]
        return dict(zip(batch.ids, model(**batch.model_inputs()).logits[0].split(sizes), strict=True))

    before = pieces(rows)
    frames = {
        name: pixels + torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5))
        for name, pixels in records[0].vision.items()
        if name.startswith("pixel_values")
    }
    vision = {**records[0].vision, **frames}
    other = [replace(record, vision=vision) if record.vision is records[0].vision else record for record in records]
    after = pieces(collate_packed(other, inputs, model, share))
    for id in before:
        assert torch.equal(before[id], after[id]) == id.startswith("1/")

    for changed in records:
        ids = changed.tokens["input_ids"].clone()
        ids[-3:] = torch.tensor([20, 21, 22])
        texts = [replace(r, tokens={**r.tokens, "input_ids": ids}) if r is changed else r for r in records]
        after = pieces(collate_packed(texts, inputs, model, share))
        for id in before:
            assert torch.equal(before[id], after[id]) == (id != changed.id)


@pytest.mark.parametrize("name", ["qwen3", "qwen25", "qwen2"])
@torch.no_grad()
def test_what_generate_leaves_behind_changes_nothing(name, folder_of):
    model, inputs = load(folder_of, name)
    packed = PackedInputs(inputs, model.eval())
    records = mixed(inputs, name)
    batch = packed.collate(records)
    before = model(**batch.model_inputs()).logits
    prompts = packed.collate([packed.prompt_only(record) for record in records[:3]], "left")
    model.generate(**prompts.model_inputs(), max_new_tokens=3, do_sample=False)
    assert model.model.rope_deltas.any()
    assert torch.equal(model(**batch.model_inputs()).logits, before)


@pytest.mark.parametrize("name", ["qwen3", "qwen25"])
@torch.no_grad()
def test_other_positions_would_be_noticed(name, folder_of):
    model, inputs = load(folder_of, name)
    use_block_attention(model)
    batch = collate_packed(mixed(inputs, name), inputs, model, share_prefix=True)
    right = batch.tokens["position_ids"]
    assert right.shape == (4, 1, batch.layout.length)
    tokens = {key: batch.tokens[key] for key in ("input_ids", "mm_token_type_ids")}
    grids = {key: value for key, value in batch.vision.items() if not key.startswith("pixel")}
    # Counted over the row, so that later questions do not go on where the video ends; and of one dimension.
    for rope in (model.model.get_rope_index(**tokens, **grids)[0], right[:1].expand(3, -1, -1)):
        wrong = {**batch.tokens, "position_ids": torch.cat([right[:1], rope])}
        assert abs(loss_of(model, replace(batch, tokens=wrong)) - loss_of(model, batch)) > 1e-3


def test_a_row_by_hand(folder_of):
    model, inputs = load(folder_of, "qwen3")
    records = mixed(inputs, "qwen3")
    batch = collate_packed(records, inputs, model, share_prefix=True)
    assert batch.ids == ("0/0", "0/1", "0/2", "1/0", "1/1")
    first, second = records[0], records[2]  # "Where is it?" and "Where was the red cube at 0.5 s?"
    ids, others = first.tokens["input_ids"], second.tokens["input_ids"]
    prefix = next(place for place, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    how = records[3].tokens["input_ids"]
    prefix = min(prefix, next(place for place, (a, b) in enumerate(zip(ids, how, strict=False)) if a != b))
    assert batch.layout.groups[0] == Group(prefix, (len(ids) - prefix, len(others) - prefix, len(how) - prefix))
    row = torch.cat([ids, others[prefix:], how[prefix:]])
    assert torch.equal(batch.tokens["input_ids"][0, : len(row)], row)
    answer = len(ids) - first.prompt_length
    labels = batch.labels[0]
    assert torch.equal(labels[: len(ids)], torch.cat([torch.full((len(ids) - answer,), -100), ids[-answer:]]))
    # The second question goes on where the prefix ends, in all four positions.
    places = batch.tokens["position_ids"][:, 0]
    assert torch.equal(places[:, len(ids)], places[:, prefix])
    assert (places[:, prefix] - places[:, prefix - 1] == 1).all()
    # Eight frames two a step, then four: each clip once.
    assert batch.vision["video_grid_thw"].tolist() == [[4, 8, 8], [2, 8, 8]]
    plain = collate_packed(records, inputs, model)
    assert plain.vision["video_grid_thw"][:, 0].tolist() == [4, 2, 4, 4, 2]
    assert plain.ids == ("0/0", "1/0", "0/1", "0/2", "1/1")
    assert plain.model_inputs()["use_cache"] is False
    assert {tensor.device.type for tensor in plain.to("meta").model_inputs().values() if torch.is_tensor(tensor)} == {
        "meta"
    }


@pytest.mark.parametrize("name", ["qwen3", "smolvlm"])
def test_several_answers_to_one_prompt_share_all_of_it(name, folder_of):
    model, inputs = load(folder_of, name)
    records = encode(inputs, 4, 0, ["Where is it?"] * 3, ["A", "B then left", "C"])
    expected = expected_of(model, inputs, records)
    use_block_attention(model)
    batch = collate_packed(records, inputs, model, share_prefix=True)
    # Its last token says the first of the answer: one for each.
    assert batch.layout.groups[0].prefix == records[0].prompt_length - 1
    assert_same(model, loss_of(model, batch), expected)


def test_only_the_very_same_clip_is_shared(folder_of):
    model, inputs = load(folder_of, "qwen3")
    records = [encode(inputs, 4, seed, *SECOND)[0] for seed in (0, 0)]
    batch = collate_packed(records, inputs, model, share_prefix=True)
    assert not batch.layout.shared
    # Through a worker process one clip's questions still share it.
    again = pickle.loads(pickle.dumps(encode(inputs, 4, 0, *SECOND)))
    assert collate_packed(again, inputs, model, share_prefix=True).layout.shared


def test_the_preprocessing_packs_for_training_and_pads_for_generation(folder_of):
    model, inputs = load(folder_of, "qwen3")
    records = mixed(inputs, "qwen3")
    packed = PackedInputs(inputs, model)
    assert model.config.text_config._attn_implementation == BLOCKS
    assert packed.describe() == inputs.describe()
    assert packed.collate(records).labels.shape[0] == 1
    assert not PackedInputs(inputs, model, share_prefix=False).collate(records).layout.shared
    prompts = [inputs.prompt_only(record) for record in records]
    for ours, theirs in zip(
        packed.collate(prompts, "left").tokens.values(), inputs.collate(prompts, "left").tokens.values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    # What travels to reading processes has no weights.
    assert not list(packed.skeleton.parameters())
    extra = len(pickle.dumps(packed)) - len(pickle.dumps(inputs))
    assert extra < 100_000
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(again.collate(records).tokens["position_ids"], packed.collate(records).tokens["position_ids"])


@pytest.mark.parametrize(("name", "kind"), [("gemma3", "sliding_attention"), ("qwen35", "linear_attention")])
def test_models_whose_samples_cannot_be_kept_apart_are_refused(name, kind, folder_of):
    model, inputs = load(folder_of, name)
    with pytest.raises(InputError, match=rf"a \w+ model cannot be packed: its layers have {kind}"):
        PackedInputs(inputs, model)
    with pytest.raises(InputError, match="cannot be packed"):
        collate_packed(encode(inputs, 4, 0, *SECOND), inputs, model)


def test_images_that_attend_in_both_directions_are_refused(folder_of):
    model, inputs = load(folder_of, "gemma3")
    model.config.text_config.layer_types = ["full_attention"] * 2
    check_packing(model)
    with pytest.raises(InputError, match=r"question '0/0': .*attend in both directions"):
        collate_packed(encode(inputs, 4, 0, *SECOND), inputs, model)


def test_a_window_without_layer_types_and_a_state_are_refused(folder_of):
    model, _ = load(folder_of, "qwen3")
    shell = skeleton(model)
    check_packing(shell)
    shell._is_stateful = True
    with pytest.raises(InputError, match="its layers have a state"):
        check_packing(shell)
    model, _ = load(folder_of, "smolvlm")
    model.config.text_config.layer_types, model.config.text_config.sliding_window = None, 4
    with pytest.raises(InputError, match="sliding_attention"):
        check_packing(model)


def test_a_missing_placeholder_is_named_though_another_has_one_too_many(folder_of):
    model, inputs = load(folder_of, "qwen3")
    records = [encode(inputs, 4, seed, *SECOND)[0] for seed in (0, 1)]
    token = inputs.family.placeholder(inputs.processor)
    ids = [record.tokens["input_ids"] for record in records]
    ids[0][(ids[0] == token).nonzero()[0]] = 5
    ids[1][-1] = token
    with pytest.raises(InputError, match=r"question '0/0' has 31 video placeholders, but its clip 32 features"):
        collate_packed(records, inputs, model)


def test_llava_clips_of_different_lengths_are_refused(folder_of):
    model, inputs = load(folder_of, "llava_onevision")
    with pytest.raises(InputError, match="takes clips of equally many frames in a batch"):
        collate_packed([*encode(inputs, 4, 0, *SECOND), *encode(inputs, 6, 1, *SECOND)], inputs, model)


def test_rows_by_hand():
    # 7, 6, 5, 4, 3, 2 into 10: 7+3, 6+4, 5+2.
    assert pack_rows([2, 3, 4, 5, 6, 7], 10) == [[0, 3], [1, 5], [2, 4]]
    assert pack_rows([], 10) == []
    # Two ranks: the fullest row (7+3, the first of two) is halved.
    assert pack_rows([2, 3, 4, 5, 6, 7], 10, multiple=2) == [[0, 3], [1], [2, 4], [5]]
    with pytest.raises(InputError, match="question 1 has 11 tokens, but a row may have 10"):
        pack_rows([2, 11], 10)
    for lengths, multiple in [([2, 1], 4), ([9, 9, 9], 2)]:
        with pytest.raises(
            InputError, match=rf"{len(lengths)} questions, each in a row .* no multiple of {multiple} rows"
        ):
            pack_rows(lengths, 10, multiple)
    assert pack_rows([9, 9, 9, 1], 10, multiple=2) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("multiple", [1, 2, 8])
def test_rows_hold_every_question_once_within_the_budget(seed, multiple):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 100, (60,), generator=generator).tolist()
    rows = pack_rows(lengths, 128, multiple)
    assert rows == pack_rows(list(lengths), 128, multiple)
    assert sorted(item for row in rows for item in row) == list(range(60))
    assert all(0 < sum(lengths[item] for item in row) <= 128 for row in rows)
    assert len(rows) % multiple == 0
    assert len(rows) < 11 / 9 * sum(lengths) / 128 + 1 + 2 * multiple
    assert all(row == sorted(row) for row in rows)
    assert all(a[0] < b[0] for a, b in pairwise(rows))


def test_the_skeleton_is_the_model_for_positions(name, loaded):
    model, inputs = loaded
    assert isinstance(inputs, VideoInputs)
    for record in mixed(inputs, name):
        assert torch.equal(inputs.family.positions(skeleton(model), record), inputs.family.positions(model, record))
