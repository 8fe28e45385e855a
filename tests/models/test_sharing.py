"""Prompts paid for once: the same log-probabilities and gradients as of every completion with its own prompt."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mllm4d.models.attention import BLOCKS
from mllm4d.models.base import BaseModel, LoRA, reference
from mllm4d.models.completions import Policy, Rollout, extended, policy_of, positions_after, stack
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.sharing import Piece, Plain, SharedPrefix, score_all, shared_row
from mllm4d.schema import InputError

SHARED = ["qwen3", "qwen25", "qwen2", "internvl", "smolvlm", "llava_onevision"]
ALL = ("vision", "merger", "language")


def load(folder_of, name, train=ALL, **settings):
    """The model in training (no dropout in any of them), its weights scaled up, and its preprocessing."""
    base = BaseModel(str(folder_of(name)), train=train, **settings)
    model, processor = base.load()
    if name == "qwen3":  # the others' are large already
        with torch.no_grad():
            for parameter in model.model.language_model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1.5)
    return model.train(), base.inputs(model, processor, VideoSettings())


def prompts_of(inputs, name):
    """Two prompts of different lengths, about clips of different frame counts where the model can take them."""

    def encode(count, seed, prompt):
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (count, 56, 56, 3), generator=generator, dtype=torch.uint8)
        return inputs.encode(frames, torch.arange(count) / 4, 4.0, [prompt], None, [str(seed)])[0]

    second = 8 if name == "llava_onevision" else 4
    return [encode(8, 0, "Where is it?"), encode(second, 1, "Which way did the red cube go in the end?")]


def rollouts_of(model, inputs, prompts, lengths=((5, 1, 9), (7, 3)), temperature=1.0):
    """Completions of random words, the last one of each group cut off."""
    policy = policy_of(model, inputs, temperature)
    generator = torch.Generator().manual_seed(3)
    allowed = torch.tensor(sorted(set(range(len(inputs.tokenizer))) - set(policy.banned) - set(policy.ends)))
    rollouts = []
    for prompt, sizes in zip(prompts, lengths, strict=True):
        tokens = torch.full((len(sizes), max(sizes)), inputs.tokenizer.pad_token_id)
        for row, size in enumerate(sizes):
            tokens[row, :size] = allowed[torch.randint(0, len(allowed), (size,), generator=generator)]
            if row < len(sizes) - 1:
                tokens[row, size - 1] = policy.ends[0]
        count = torch.tensor(sizes)
        truncated = torch.arange(len(sizes)) == len(sizes) - 1
        zeros = torch.zeros(tokens.shape)
        rollouts.append(Rollout(prompt, tokens, count, zeros, truncated, ("",) * len(sizes), policy))
    return rollouts


def by_hand(model, inputs, rollouts):
    """Each completion with its prompt in a plain forward of its own, from all logits: [N, T], and entropies."""
    shape = stack(rollouts).tokens.shape
    log_probs, entropies = torch.zeros(shape), torch.zeros(shape)
    number = 0
    for rollout in rollouts:
        for tokens, length in zip(rollout.tokens, rollout.lengths.tolist(), strict=True):
            ids = {key: value[None] for key, value in extended(rollout.prompt, tokens[:length]).tokens.items()}
            mask = torch.ones_like(ids["input_ids"])
            logits = model(**ids, **rollout.prompt.vision, attention_mask=mask, use_cache=False).logits[0]
            start = len(rollout.prompt.tokens["input_ids"]) - 1
            logits = logits[start : start + length].float() / rollout.policy.temperature
            logits = logits.index_fill(1, torch.tensor(rollout.policy.banned), -torch.inf)
            found = torch.distributions.Categorical(logits=logits.clamp(min=-1e9))
            log_probs[number, :length] = found.log_prob(tokens[:length])
            entropies[number, :length] = found.entropy().detach()
            number += 1
    return log_probs, entropies


def gradients(model, log_probs):
    """Of a weighted sum, so that no completion's gradient is another's."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, log_probs.numel()).reshape(log_probs.shape)
    (weights * log_probs).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert_close(
            found[name], gradient, rtol=0, atol=1e-4 * max(1.0, scale), msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("scorer", [SharedPrefix(chunk=4), Plain(chunk=4)], ids=["shared", "plain"])
def test_log_probs_and_gradients_are_those_of_the_plain_full_forward(name, scorer, folder_of):
    model, inputs = load(folder_of, name)
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, name))
    expected, entropy = by_hand(model, inputs, rollouts)
    assert float(expected.detach().min()) < -8  # logits are not flat
    wanted = gradients(model, expected)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1
    (numbers,) = scorer.split(rollouts)
    scores = scorer.score(model, inputs, rollouts, numbers)
    assert_close(scores.log_probs, expected, rtol=0, atol=1e-5)
    assert_close(scores.entropy, entropy, rtol=0, atol=1e-5)
    assert not scores.entropy.requires_grad
    assert bool((scores.log_probs[~stack(rollouts).mask] == 0).all())
    assert_same_gradients(gradients(model, scores.log_probs), wanted)
    all_at_once = score_all(scorer, model, inputs, rollouts)
    assert_close(all_at_once.log_probs, expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma3", "qwen35"])
def test_models_that_cannot_share_a_row_are_scored_plainly(name, folder_of):
    model, inputs = load(folder_of, name)
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, name))
    expected, _ = by_hand(model, inputs, rollouts)
    scores = score_all(Plain(), model, inputs, rollouts)
    # Qwen3.5's linear attention computes in chunks of tokens, and padding moves them.
    assert_close(scores.log_probs, expected.detach(), rtol=0, atol=3e-5 if name == "qwen35" else 1e-5)
    with pytest.raises(InputError, match="cannot be packed"):
        score_all(SharedPrefix(), model, inputs, rollouts)


@pytest.mark.parametrize("scorer", [SharedPrefix, Plain])
def test_micro_batches_by_a_budget_give_the_same_gradient_as_one(scorer, folder_of):
    """One full batch = accumulated micro-batches; a group spread over rows has its prompt in each."""
    model, inputs = load(folder_of, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, "qwen3"))
    (numbers,) = scorer().split(rollouts)
    assert numbers.tolist() == [0, 1, 2, 3, 4]
    whole = scorer().score(model, inputs, rollouts, numbers).log_probs
    wanted = gradients(model, whole)
    weights = torch.linspace(-1, 1, whole.numel()).reshape(whole.shape)
    longest = len(rollouts[0].prompt.tokens["input_ids"])
    small = scorer(budget=longest + 9)
    batches = small.split(rollouts)
    assert len(batches) >= 3
    assert torch.cat(batches).tolist() == [0, 1, 2, 3, 4]
    model.zero_grad()
    for numbers in batches:
        scores = small.score(model, inputs, rollouts, numbers)
        assert_close(scores.log_probs, whole.detach()[numbers], rtol=0, atol=1e-5)
        (weights[numbers] * scores.log_probs).sum().backward()
    assert_same_gradients({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, wanted)


def test_rows_hold_as_much_as_the_budget_allows_by_hand(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts)
    first, second = (len(prompt.tokens["input_ids"]) for prompt in prompts)
    # Branches are a token shorter than completions: 4, 0, 8 after the first prompt, 6, 2 after the second.
    assert [b.tolist() for b in SharedPrefix(first + 12 + second + 8).split(rollouts)] == [[0, 1, 2, 3, 4]]
    assert [b.tolist() for b in SharedPrefix(first + 12 + second + 7).split(rollouts)] == [[0, 1, 2], [3, 4]]
    assert [b.tolist() for b in SharedPrefix(first + 11).split(rollouts)] == [[0, 1], [2], [3, 4]]
    assert [b.tolist() for b in SharedPrefix(1).split(rollouts)] == [[0], [1], [2], [3], [4]]
    pieces = [Piece(rollouts[0], [1], [0]), Piece(rollouts[1], [1], [1])]
    row, sources = shared_row(model, inputs, pieces)
    assert row["input_ids"].shape == (1, first + second + 2)
    assert sources.tolist() == [first - 1, *(first + second + k for k in (-1, 0, 1))]
    # In padded batches every completion has its whole prompt.
    longest = first + 9
    assert [b.tolist() for b in Plain(longest * 3).split(rollouts)] == [[0, 1, 2], [3, 4]]
    for scorer in (SharedPrefix, Plain):
        with pytest.raises(InputError, match="budget: 0 is below 1"):
            scorer(budget=0)


@pytest.mark.parametrize("scorer", [SharedPrefix(), Plain()], ids=["shared", "plain"])
def test_completions_that_do_not_count_cost_nothing(scorer, folder_of):
    """Groups without variance are skipped."""
    model, inputs = load(folder_of, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, "qwen3"))
    whole = score_all(scorer, model, inputs, rollouts)
    chosen = torch.tensor([3, 4])
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    some = score_all(scorer, model, inputs, rollouts, chosen)
    assert len(seen) == 1
    assert seen[0]["video_grid_thw"][:, 0].unique().tolist() == [2]  # the second clip alone
    assert_close(some.log_probs[3:], whole.log_probs[3:], rtol=0, atol=1e-5)
    assert not some.log_probs[:3].any()
    assert scorer.split(rollouts, torch.tensor([], dtype=torch.long)) == []


def test_several_groups_stand_in_one_row_with_each_video_once(folder_of):
    model, inputs = load(folder_of, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, "qwen3"))
    seen = []
    model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["grid_thw"]), with_kwargs=True
    )
    score_all(SharedPrefix(), model, inputs, rollouts)
    assert [grid[:, 0].tolist() for grid in seen] == [[4, 2]]
    assert model.config.text_config._attn_implementation == BLOCKS


def test_temperature_and_bans_are_in_the_scores_as_in_the_sampler(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs, "qwen3")
    cold = rollouts_of(model, inputs, prompts, temperature=0.7)
    expected, entropy = by_hand(model, inputs, cold)
    for scorer in (SharedPrefix(), Plain()):
        scores = score_all(scorer, model, inputs, cold)
        assert_close(scores.log_probs, expected.detach(), rtol=0, atol=1e-5)
        assert_close(scores.entropy, entropy, rtol=0, atol=1e-5)
    warm = score_all(SharedPrefix(), model, inputs, rollouts_of(model, inputs, prompts))
    assert float((warm.log_probs - expected.detach()).abs().max()) > 0.3  # the temperature is not nothing
    free = [replace(rollout, policy=replace(rollout.policy, banned=())) for rollout in cold]
    assert float((score_all(SharedPrefix(), model, inputs, free).log_probs - expected.detach()).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="different policies"):
        score_all(SharedPrefix(), model, inputs, [cold[0], free[1]])


def test_other_positions_would_be_noticed(folder_of, monkeypatch):
    """1-D positions, and positions counted over the row, give other numbers."""
    model, inputs = load(folder_of, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts_of(inputs, "qwen3"))
    right = score_all(SharedPrefix(), model, inputs, rollouts).log_probs

    def flat(model, inputs, prompt, count):
        return torch.arange(len(prompt.tokens["input_ids"]) + count).expand(4, -1)

    monkeypatch.setattr("mllm4d.models.sharing.positions_after", flat)
    assert float((score_all(SharedPrefix(), model, inputs, rollouts).log_probs - right).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["qwen3", "qwen25", "gemma3"])
def test_positions_of_a_completion_are_those_of_the_whole_text(name, folder_of):
    model, inputs = load(folder_of, name)
    for prompt in prompts_of(inputs, name):
        whole = inputs.family.positions(model, extended(prompt, torch.full((6,), 20)))
        assert torch.equal(positions_after(model, inputs, prompt, 6), whole)


def test_what_generate_leaves_behind_changes_no_score(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompts = prompts_of(inputs, "qwen3")
    rollouts = rollouts_of(model, inputs, prompts)
    before = [score_all(scorer, model, inputs, rollouts).log_probs for scorer in (SharedPrefix(), Plain())]
    model.generate(**inputs.collate(prompts, "left").model_inputs(), max_new_tokens=2, do_sample=False)
    assert model.model.rope_deltas.any()
    after = [score_all(scorer, model, inputs, rollouts).log_probs for scorer in (SharedPrefix(), Plain())]
    assert torch.equal(torch.stack(before), torch.stack(after))


def test_the_reference_is_the_base_bit_for_bit_at_the_first_step_with_dropout_off(folder_of):
    plain, inputs = load(folder_of, "qwen3", train=())
    model, _ = load_adapted(folder_of)
    rollouts = rollouts_of(plain, inputs, prompts_of(inputs, "qwen3"))
    scorer = SharedPrefix()
    base = score_all(scorer, plain.eval(), inputs, rollouts).log_probs
    with reference(model):
        assert torch.equal(score_all(scorer, model, inputs, rollouts).log_probs, base)
    assert model.training
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert float((score_all(scorer, model, inputs, rollouts).log_probs - base).abs().max()) > 1e-2
    with reference(model):
        assert torch.equal(score_all(scorer, model, inputs, rollouts).log_probs, base)


def load_adapted(folder_of, **settings):
    """With adapters that have dropout, on the weights that ``load`` gives."""
    base = BaseModel(str(folder_of("qwen3")), lora=LoRA(r=2, alpha=4, dropout=0.2), **settings)
    model, processor = base.load()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "language_model" in name and ".lora_" not in name:
                parameter.mul_(1.5)
    return model.train(), base.inputs(model, processor, VideoSettings())


def test_gradient_checkpointing_and_adapters_change_nothing(folder_of):
    plain, inputs = load_adapted(folder_of)
    model, _ = load_adapted(folder_of, gradient_checkpointing=True)
    plain.eval()  # no dropout
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.load_state_dict(plain.state_dict())
    rollouts = rollouts_of(plain, inputs, prompts_of(inputs, "qwen3"))
    expected, _ = by_hand(plain, inputs, rollouts)
    wanted = gradients(plain, expected)
    scorer = SharedPrefix()
    scores = scorer.score(model, inputs, rollouts, *scorer.split(rollouts))
    assert_close(scores.log_probs, expected, rtol=0, atol=1e-5)
    assert_same_gradients(gradients(model, scores.log_probs), wanted)


def test_a_missing_placeholder_is_named(folder_of):
    model, inputs = load(folder_of, "qwen3")
    prompt = prompts_of(inputs, "qwen3")[0]
    ids = prompt.tokens["input_ids"].clone()
    ids[(ids == inputs.family.placeholder(inputs.processor)).nonzero()[0]] = 5
    broken = replace(prompt, tokens={**prompt.tokens, "input_ids": ids})
    for scorer in (SharedPrefix(), Plain()):
        with pytest.raises(InputError, match="question '0' has 63 video placeholders, but its clip 64 features"):
            score_all(scorer, model, inputs, rollouts_of(model, inputs, [broken], ((3, 2),)))


def test_stacked_by_hand():
    policy = Policy(1.0, (), (9,))
    first = Rollout(None, torch.tensor([[1, 9], [2, 0]]), torch.tensor([2, 1]), torch.tensor([[-1.0, -2], [-3, 0]]),
                    torch.tensor([False, True]), ("", ""), policy)  # fmt: skip
    second = Rollout(None, torch.tensor([[3, 4, 5]]), torch.tensor([3]), torch.tensor([[-4.0, -5, -6]]),
                     torch.tensor([True]), ("",), policy)  # fmt: skip
    all_of_them = stack([first, second])
    assert all_of_them.tokens.tolist() == [[1, 9, 0], [2, 0, 0], [3, 4, 5]]
    assert all_of_them.mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert all_of_them.log_probs.tolist() == [[-1, -2, 0], [-3, 0, 0], [-4, -5, -6]]
    assert all_of_them.truncated.tolist() == [False, True, True]
    assert all_of_them.groups.tolist() == [0, 0, 1]
