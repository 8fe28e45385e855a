"""Rollouts: the sampler says what the training forward says, and draws what it may."""

import warnings
from dataclasses import replace

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.completions import Policy, policy_of, stack
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.sharing import Plain, SharedPrefix, score_all
from mllm4d.schema import InputError
from mllm4d.train.rollout import GenerateRollout, SharedRollout
from mllm4d.train.rollout.cache import RoomyLayer, make_room
from mllm4d.train.rollout.engine import finish, numbers_of, uniforms
from mllm4d.train.rollout.hf import Drawer
from tests.models import tiny_families

FAMILIES = ["qwen3", "qwen25", "qwen2", "qwen35", "internvl", "smolvlm", "llava_onevision", "gemma3"]
# Qwen3.5's linear attention is computed in chunks or step by step: two ways of rounding, in float32 whatever the type.
LOOSE = 1e-4


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    made = {}

    def folder_of(name):
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        if name not in made:
            made[name] = tiny_families.build(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder_of


def load(folder_of, name, **settings):
    """The model in training, its weights scaled up, with two end tokens where it has them, and its preprocessing."""
    base = BaseModel(str(folder_of(name)), **settings)
    model, processor = base.load()
    if name == "qwen3":
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.ndim > 1 and "language_model" in key and "lora" not in key:
                    parameter.mul_(1.5)
    inputs = base.inputs(model, processor, VideoSettings())
    if name.startswith("qwen"):
        ids = inputs.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
        (model.base_model.model if hasattr(model, "peft_config") else model).generation_config.eos_token_id = ids
    return model.train(), inputs


def prompts_of(inputs, name="qwen3"):
    """Prompts of different lengths, about clips of different frame counts where the model can take them."""

    def encode(count, seed, prompt):
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (count, 56, 56, 3), generator=generator, dtype=torch.uint8)
        return inputs.encode(frames, torch.arange(count) / 4, 4.0, [prompt], None, [str(seed)])[0]

    second = 8 if name == "llava_onevision" else 4
    return [encode(8, 0, "Where is it?"), encode(second, 1, "Which way did the red cube go in the end?")]


def likely_ends(model, inputs, bias=4.0):
    """Let completions end often, and soon: some early, some late."""
    ends = torch.tensor(policy_of(model, inputs).ends)

    def favour(module, arguments, output):
        output.logits[..., ends] += bias
        return output

    return model.register_forward_hook(favour)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_log_probs_are_those_of_the_training_forward(name, temperature, folder_of):
    """Two videos in a left-padded batch, each encoded once for its group; and the same as transformers' generate."""
    model, inputs = load(folder_of, name)
    prompts = prompts_of(inputs, name)
    engine = SharedRollout(max_new_tokens=10, temperature=temperature)
    rollouts = engine.generate(model, inputs, prompts, group=3, seed=7)
    found = stack(rollouts)
    assert float(found.log_probs[found.mask].std()) > 0.5  # logits are not flat
    scores = score_all(Plain(), model, inputs, rollouts)
    assert_close(scores.log_probs, found.log_probs, rtol=0, atol=LOOSE if name == "qwen35" else 1e-5)
    if name not in ("qwen35", "gemma3"):
        assert_close(score_all(SharedPrefix(), model, inputs, rollouts).log_probs, found.log_probs, rtol=0, atol=1e-5)
    theirs = GenerateRollout(10, temperature).generate(model, inputs, prompts, group=3, seed=7)
    assert torch.equal(stack(theirs).tokens, found.tokens)
    assert_close(stack(theirs).log_probs, found.log_probs, rtol=0, atol=LOOSE if name == "qwen35" else 1e-5)


@pytest.mark.parametrize("wrong", ["mask", "positions", "temperature"])
def test_a_wrong_sampler_would_be_noticed(wrong, folder_of, monkeypatch):
    """The attention mask dropped, 1-D positions, the temperature not applied: each moves log-probs by more than 0.1."""
    model, inputs = load(folder_of, "qwen3")
    if wrong == "positions":

        def flat(model, inputs, prompt, count):
            return torch.arange(len(prompt.tokens["input_ids"]) + count).expand(4, -1)

        monkeypatch.setattr("mllm4d.train.rollout.hf.positions_after", flat)
    if wrong == "mask":

        def drop(module, args, kwargs):
            return args, {**kwargs, "attention_mask": torch.ones_like(kwargs["attention_mask"])}

        hook = model.register_forward_pre_hook(drop, with_kwargs=True)
    rollouts = SharedRollout(8, temperature=0.7).generate(model, inputs, prompts_of(inputs), 3, 7)
    if wrong == "mask":
        hook.remove()
    if wrong == "temperature":
        rollouts = [replace(rollout, policy=replace(rollout.policy, temperature=1.0)) for rollout in rollouts]
    scores = score_all(SharedPrefix(), model, inputs, rollouts)
    assert float((scores.log_probs - stack(rollouts).log_probs).abs().max()) > 0.1


def test_the_ratio_is_exactly_one_at_the_first_update(folder_of):
    """mu = 1: the same forward for old and new."""
    model, inputs = load(folder_of, "qwen3", train=["language"])
    rollouts = SharedRollout(8).generate(model, inputs, prompts_of(inputs), 3, 7)
    scorer = SharedPrefix(budget=160)
    old = score_all(scorer, model, inputs, rollouts).log_probs
    batches = scorer.split(rollouts)
    assert len(batches) > 1
    for numbers in batches:
        new = scorer.score(model, inputs, rollouts, numbers).log_probs
        assert new.requires_grad
        assert bool(((new - old[numbers]).exp() == 1).all())


@pytest.mark.parametrize("name", ["qwen3", "qwen35", "gemma3"])
def test_rows_that_have_ended_leave_the_batch_and_change_nothing(name, folder_of):
    model, inputs = load(folder_of, name)
    hook = likely_ends(model, inputs)
    prompts = prompts_of(inputs, name)
    rows = []
    watch = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = stack(SharedRollout(16).generate(model, inputs, prompts, 6, 5))
    watch.remove()
    lengths = found.mask.sum(1)
    assert len(set(lengths.tolist())) > 3
    # The prompts once, then as many rows as have not ended before.
    assert rows == [2] + [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]
    one_by_one = [GenerateRollout(16, max_rows=1).generate(model, inputs, [prompt], 6, 5)[0] for prompt in prompts]
    hook.remove()
    assert torch.equal(stack(one_by_one).tokens, found.tokens)
    assert_close(stack(one_by_one).log_probs, found.log_probs, rtol=0, atol=LOOSE if name == "qwen35" else 1e-5)


def test_the_video_and_the_prompt_are_encoded_once_for_the_group(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs)
    tokens, grids = [], []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: grids.append(kwargs["grid_thw"][:, 0].tolist()), with_kwargs=True
    )
    SharedRollout(4).generate(model, inputs, prompts, 5, 1)
    longest = max(len(prompt.tokens["input_ids"]) for prompt in prompts)
    assert tokens == [(2, longest), (10, 1), (10, 1), (10, 1)]
    assert grids == [[4, 2]]


def test_a_cache_with_room_holds_what_transformers_holds(monkeypatch):
    monkeypatch.setattr("mllm4d.train.rollout.cache.ROOM", 3)
    generator = torch.Generator().manual_seed(0)
    plain = tf.DynamicCache()
    plain.update(*torch.randn(2, 2, 3, 5, 4, generator=generator), 0)
    roomy = make_room(tf.DynamicCache())
    roomy.update(plain.layers[0].keys, plain.layers[0].values, 0)
    roomy = make_room(roomy)
    assert isinstance(roomy.layers[0], RoomyLayer)
    for step in range(9):
        for cache in (plain, roomy):
            if step == 1:
                cache.reorder_cache(torch.tensor([0, 0, 1, 1, 1]))
            if step == 6:
                cache.reorder_cache(torch.tensor([1, 4]))
        rows = plain.layers[0].keys.shape[0]
        new = torch.randn(2, rows, 3, 1, 4, generator=generator)
        for ours, theirs in zip(roomy.update(*new, 0), plain.update(*new, 0), strict=True):
            assert torch.equal(ours, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length() == 6 + step
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)
    # Written in place, as long as there is room.
    layer = roomy.layers[0]
    layer.hold(layer.keys, layer.values)
    before = layer.keys.data_ptr()
    layer.update(*torch.randn(2, 2, 3, 1, 4))
    assert layer.keys.data_ptr() == before


def test_only_what_may_be_said_is_said(folder_of):
    """Placeholders and other marks are banned in the sampler and in the scores, however likely; end tokens are not."""
    model, inputs = load(folder_of, "qwen3")
    policy = policy_of(model, inputs)
    ids = inputs.tokenizer.convert_tokens_to_ids
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    assert policy.banned == tuple(sorted(ids(marks)))
    assert policy.ends == tuple(sorted(ids(["<|im_end|>", "<|endoftext|>"])))
    assert not set(policy.banned) & set(ids(["<thinking>", "</answer>", "A"]))

    def favour(module, arguments, output):
        output.logits[..., ids("<|video_pad|>")] += 50
        return output

    hook = model.register_forward_hook(favour)
    rollouts = SharedRollout(6).generate(model, inputs, prompts_of(inputs), 4, 0)
    found = stack(rollouts)
    assert not torch.isin(found.tokens[found.mask], torch.tensor(policy.banned)).any()
    assert float(found.log_probs.min()) > -40
    hook.remove()
    scores = score_all(SharedPrefix(), model, inputs, rollouts)
    assert_close(scores.log_probs, found.log_probs, rtol=0, atol=1e-5)
    # Without the ban the scores are other ones.
    free = [replace(rollout, policy=replace(policy, banned=())) for rollout in rollouts]
    assert float((score_all(SharedPrefix(), model, inputs, free).log_probs - found.log_probs).abs().max()) > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_placeholder_is_banned_and_its_end_token_is_not(name, folder_of):
    model, inputs = load(folder_of, name)
    policy = policy_of(model, inputs)
    assert inputs.family.placeholder(inputs.processor) in policy.banned
    assert inputs.tokenizer.eos_token_id in policy.ends
    assert inputs.tokenizer.convert_tokens_to_ids(tiny_families.FAMILIES[name].end) in policy.ends
    assert not set(policy.banned) & set(policy.ends)


def test_ids_that_the_tokenizer_does_not_know_are_banned(folder_of):
    """Published vocabularies are padded."""
    model, inputs = load(folder_of, "qwen25")
    known = policy_of(model, inputs).banned
    size = len(inputs.tokenizer)
    model.resize_token_embeddings(size + 3)
    assert policy_of(model, inputs).banned == (*known, size, size + 1, size + 2)


def test_completions_stop_at_either_end_token_and_nothing_counts_after_it(folder_of):
    _, inputs = load(folder_of, "qwen3")
    first, second = inputs.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    a, b = inputs.tokenizer.convert_tokens_to_ids(["A", "B"])
    said = torch.tensor([[a, first, b, second], [second, a, a, a], [a, b, a, b], [a, b, a, first]])
    policy = Policy(1.0, (), (second, first))
    rollout = finish(inputs, None, said, torch.full((4, 4), -1.0), policy, True)
    assert rollout.lengths.tolist() == [2, 1, 4, 4]
    assert rollout.truncated.tolist() == [False, False, True, False]
    assert rollout.mask.sum(1).tolist() == [2, 1, 4, 4]
    assert rollout.log_probs.sum(1).tolist() == [-2, -1, -4, -4]
    assert rollout.tokens[0].tolist() == [a, first, *[inputs.tokenizer.pad_token_id] * 2]
    assert rollout.texts == ("A", "", "ABAB", "ABA")
    # All of them short: no column is kept for nothing.
    assert finish(inputs, None, said[:2], said[:2] * -1.0, policy, True).tokens.shape == (2, 2)


def test_drawing_follows_the_distribution_at_any_number():
    logits = torch.tensor([[0.0, 1.0, -2.0, 3.0, 0.5]])
    drawer = Drawer(Policy(0.7, (0, 3), (1,)), None, None, torch.device("cpu"))
    wanted = (logits[0, [1, 2, 4]] / 0.7).softmax(-1)
    count = 100_000
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, log_probs = drawer(logits.expand(count, -1), even)
    found = torch.bincount(tokens, minlength=5) / count
    # Evenly spaced numbers meet each share to one part in the count.
    assert_close(found[[1, 2, 4]], wanted, rtol=0, atol=2e-5)
    assert found[[0, 3]].tolist() == [0, 0]
    assert_close(log_probs.exp(), torch.zeros(5).index_put((torch.tensor([1, 2, 4]),), wanted)[tokens])
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert drawer(logits.expand(2, -1), ends)[0].tolist() == [1, 4]
    # As likely as 1e-30 to 1, and all others banned: still only what may be said.
    far = torch.tensor([[80.0, -70.0, 80.0, 80.0, 0.0]])
    assert Drawer(Policy(1.0, (0, 2, 3), (1,)), None, None, torch.device("cpu"))(far, ends[1:])[0].tolist() == [4]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, None), (None, 7), (0.6, 20)])
def test_cut_distributions_are_those_of_transformers(top_p, top_k):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    drawer = Drawer(Policy(0.9, (), (1,)), top_p, top_k, torch.device("cpu"))
    wanted = logits / 0.9
    if top_k:
        wanted = tf.TopKLogitsWarper(top_k)(None, wanted)
    if top_p:
        wanted = tf.TopPLogitsWarper(top_p)(None, wanted)
    found = drawer.log_probs(logits)
    assert_close(found, wanted.log_softmax(-1))
    assert bool(found.isneginf().any())


def test_support_is_full_by_default_and_a_cut_one_is_warned_about(folder_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, same = SharedRollout(4), SharedRollout(4, top_p=1.0)
    with pytest.warns(UserWarning, match="importance ratio is biased"):
        cut = SharedRollout(4, top_k=2)
    model, inputs = load(folder_of, "qwen3")
    assert all(r.full_support for e in (whole, same) for r in e.generate(model, inputs, prompts_of(inputs), 2, 0))
    rollouts = cut.generate(model, inputs, prompts_of(inputs), 2, 0)
    assert not any(rollout.full_support for rollout in rollouts)
    found = stack(rollouts)
    assert float(found.log_probs.min()) > torch.tensor(0.5).log() - 6  # of the cut distribution
    assert float((score_all(SharedPrefix(), model, inputs, rollouts).log_probs - found.log_probs).abs().max()) > 0.1


@pytest.mark.parametrize("engine", [SharedRollout, GenerateRollout])
def test_what_is_drawn_depends_on_seed_prompt_and_number_alone(engine, folder_of):
    """Not on other prompts, their order, or how groups are spread over calls and ranks."""
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs)
    whole = engine(6).generate(model, inputs, prompts, 4, seed=3)
    again = engine(6, max_rows=4).generate(model, inputs, prompts[::-1], 4, seed=3)[::-1]
    halves = [engine(6).generate(model, inputs, prompts, 2, seed=3, first=first) for first in (0, 2)]
    other = engine(6).generate(model, inputs, prompts, 4, seed=4)
    for n, rollout in enumerate(whole):
        assert len({tuple(row) for row in rollout.tokens.tolist()}) == 4
        assert torch.equal(rollout.tokens, again[n].tokens)
        assert torch.equal(rollout.tokens, torch.cat([half[n].tokens for half in halves]))
        assert not torch.equal(rollout.tokens, other[n].tokens)
        assert rollout.prompt is prompts[n]
    # The same question twice in a call draws anew.
    twice = engine(6).generate(model, inputs, [prompts[0], prompts[0]], 2, seed=3)
    assert torch.equal(torch.cat([rollout.tokens for rollout in twice]), whole[0].tokens)


def test_numbers_and_noise_by_hand(folder_of):
    _, inputs = load(folder_of, "qwen3")
    a, b = prompts_of(inputs)
    assert numbers_of([a, b, a], 2, 4) == [[4, 5], [4, 5], [6, 7]]
    noise = uniforms(1, "q", [0, 1], 1000)
    assert noise.shape == (2, 1000)
    assert noise.dtype == torch.float64
    assert torch.equal(noise[1:], uniforms(1, "q", [1], 1000))
    assert torch.equal(noise[:, :7], uniforms(1, "q", [0, 1], 7))
    assert not torch.equal(noise, uniforms(1, "r", [0, 1], 1000))
    assert abs(float(noise.mean()) - 0.5) < 0.03


@pytest.mark.parametrize("engine", [SharedRollout, GenerateRollout])
def test_the_model_is_left_as_it_was(engine, folder_of):
    """Training modes, gradients, the cache's switch, and no positions left behind for the next forward."""
    model, inputs = load(folder_of, "qwen3", lora=LoRA(r=2, alpha=4, dropout=0.3), gradient_checkpointing=True)
    prompts = prompts_of(inputs)
    model.base_model.model.model.visual.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    first = engine(5).generate(model, inputs, prompts, 2, 0)
    assert {name: module.training for name, module in model.named_modules()} == modes
    inner = model.base_model.model
    assert inner.model.rope_deltas is None
    assert inner.config.use_cache is False
    assert torch.is_grad_enabled()
    assert not stack(first).log_probs.requires_grad
    # Dropout was off: the same twice, and as in evaluation.
    second = engine(5).generate(model.eval(), inputs, prompts, 2, 0)
    assert torch.equal(stack(first).log_probs, stack(second).log_probs)
    scores = score_all(SharedPrefix(), model, inputs, first)
    assert_close(scores.log_probs, stack(first).log_probs, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was_when_a_rollout_fails(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompt = prompts_of(inputs)[0]
    ids = prompt.tokens["input_ids"].clone()
    ids[(ids == inputs.family.placeholder(inputs.processor)).nonzero()[0]] = 5
    with pytest.raises(InputError, match="63 video placeholders"):
        SharedRollout(5).generate(model, inputs, [replace(prompt, tokens={**prompt.tokens, "input_ids": ids})], 2, 0)
    assert all(module.training for module in model.modules())


def test_bad_settings_and_prompts_are_named(folder_of):
    for settings, message in [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is below 1"),
        ({"top_p": 0.0}, "top_p: 0.0 is not above 0"),
        ({"top_k": 0}, "top_k: 0 is below 1"),
    ]:
        for engine in (SharedRollout, GenerateRollout):
            with pytest.raises(InputError, match=message):
                engine(**settings)
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs)
    with pytest.raises(InputError, match=r"temperature: 0\.0 is not above 0"):
        SharedRollout(temperature=0.0).generate(model, inputs, prompts, 2, 0)
    with pytest.raises(InputError, match="question '0': is to be answered, but has an answer"):
        SharedRollout(4).generate(model, inputs, [replace(prompts[0], prompt_length=3)], 2, 0)


def test_rollouts_move_between_devices(folder_of):
    model, inputs = load(folder_of, "qwen3")
    rollout = SharedRollout(4).generate(model, inputs, prompts_of(inputs), 2, 0)[0].to("meta")
    tensors = [rollout.tokens, rollout.lengths, rollout.log_probs, rollout.truncated, rollout.mask]
    tensors += [*rollout.prompt.tokens.values(), *rollout.prompt.vision.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
