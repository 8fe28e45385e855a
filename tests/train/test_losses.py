"""Losses of policies: by hand, against TRL, and the same however a step is cut into pieces."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mllm4d.schema import InputError
from mllm4d.train.losses import (
    Configured,
    LossFunction,
    LossTerms,
    answer_loss,
    cispo,
    dapo,
    dr_grpo,
    grpo,
    gspo,
    k3,
    tokens_of,
)

ALL = (grpo, dapo, dr_grpo, gspo, cispo)
NAN, INF = math.nan, math.inf


def test_by_hand():
    # Two answer tokens, predicted with probability 1/2 (of 2) and 1/4 (log-odds 0, 0 against log 3).
    logits = torch.zeros(1, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3)])
    labels = torch.tensor([[-100, 1, 0]])
    assert_close(answer_loss(logits, labels), torch.tensor((math.log(2) + math.log(4)) / 2))


def test_what_is_not_an_answer_has_no_gradient():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.full((2, 5), -100)
    labels[0, 3] = 2
    answer_loss(logits, labels).backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 2]]


def test_equals_hugging_face():
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[:, :3] = -100
    assert_close(answer_loss(logits, labels), ForCausalLMLoss(logits, labels, vocab_size=11))


def test_no_answer_at_all_is_zero_and_not_nan():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = answer_loss(logits, torch.full((1, 3), -100))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((logits.grad == 0).all())


# Of policies. Ratios 1.5, 0.5, 1 with advantage 1, and 0.5 with advantage -2; two tokens do not count.
LOG_PROBS = [[-1.0, -2.0, -0.5], [-3.0, -9.0, -9.0]]
RATIOS = [[1.5, 0.5, 1.0], [0.5, 7.0, 0.1]]
ADVANTAGES = [1.0, -2.0]
MASK = [[1, 1, 1], [1, 0, 0]]


def by_hand(loss, **settings):
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    old = log_probs.detach() - torch.tensor(RATIOS).log()
    tokens = tokens_of(log_probs, old, torch.tensor(ADVANTAGES), torch.tensor(MASK), max_tokens=10)
    terms = loss(tokens, **settings)
    terms.loss_sum.backward()
    return terms, log_probs.grad


def check(terms, grad, loss_sum, normalizer, gradient, clipped, ratios):
    assert_close(terms.loss_sum.detach(), torch.tensor(loss_sum), rtol=0, atol=1e-5)
    assert int(terms.normalizer) == normalizer
    assert_close(terms.mean().detach(), torch.tensor(loss_sum / normalizer), rtol=0, atol=1e-6)
    assert_close(grad, torch.tensor(gradient), rtol=0, atol=1e-5)
    assert (int(terms.tokens), int(terms.clipped), int(terms.ratios)) == (4, clipped, ratios)
    assert_close(terms.clip_fraction(), torch.tensor(clipped / ratios))


def test_grpo_by_hand():
    # -min(1.5, 1.2) - min(0.5, 0.8) - min(1, 1), a third of it; and -min(-1, -1.6).
    gradient = [[0, -0.5 / 3, -1 / 3], [0, 0, 0]]
    check(*by_hand(grpo), (-1.2 - 0.5 - 1) / 3 + 1.6, 2, gradient, 2, 4)


def test_dapo_by_hand():
    # Clipped at 1.28 from above.
    check(*by_hand(dapo), -1.28 - 0.5 - 1 + 1.6, 4, [[0, -0.5, -1], [0, 0, 0]], 2, 4)
    # A wider lower clip lets the last token learn: -min(-1, -2 x 0.4).
    check(*by_hand(dapo, eps_low=0.6), -1.28 - 0.5 - 1 + 1, 4, [[0, -0.5, -1], [1, 0, 0]], 1, 4)


def test_dr_grpo_by_hand():
    check(*by_hand(dr_grpo), -1.2 - 0.5 - 1 + 1.6, 20, [[0, -0.5, -1], [0, 0, 0]], 2, 4)


def test_gspo_by_hand():
    # Ratios of completions: (1.5 x 0.5 x 1)^(1/3), not clipped as its advantage is positive; 0.5, clipped at 0.95.
    ratio = 0.75 ** (1 / 3)
    gradient = [[-ratio / 3] * 3, [0, 0, 0]]
    check(*by_hand(gspo, eps_low=0.05, eps_high=0.05), -ratio + 1.9, 2, gradient, 1, 2)


def test_cispo_by_hand():
    # Weights 1.4, 0.5, 1 and 0.5: the clipped token learns too.
    terms, grad = by_hand(cispo, eps_high=0.4)
    check(terms, grad, 1.4 * 1 + 0.5 * 2 + 0.5 - 0.5 * 2 * 3, 4, [[-1.4, -0.5, -1], [1, 0, 0]], 1, 4)


def test_weights_and_divergence_by_hand():
    # Weights count for the advantages alone. The reference gives every token twice the probability: 2 - 1 - log 2.
    log_probs = torch.tensor(LOG_PROBS, requires_grad=True)
    old = log_probs.detach() - torch.tensor(RATIOS).log()
    chosen = tokens_of(
        log_probs,
        old,
        torch.tensor(ADVANTAGES),
        torch.tensor(MASK),
        weights=torch.tensor([[0.5, 2.0, 0.0], [0.5, NAN, NAN]]),
        reference_log_probs=log_probs + math.log(2),
        beta=0.1,
    )
    kl = 1 - math.log(2)
    first, second = -0.5 * 1.2 - 2 * 0.5 - 0 + 0.3 * kl, 0.5 * 1.6 + 0.1 * kl
    terms = grpo(chosen)
    assert_close(terms.mean().detach(), torch.tensor((first / 3 + second) / 2))
    assert_close(terms.kl(), torch.tensor(kl))
    terms.mean().backward()
    # The divergence falls by 0.1 for each nat that a token's log-probability rises.
    gradient = [[-0.1 / 6, (-1 - 0.1) / 6, -0.1 / 6], [-0.1 / 2, 0, 0]]
    assert_close(log_probs.grad, torch.tensor(gradient))
    assert_close(gspo(chosen).kl(), torch.tensor(kl))


def random_step(rows=6, length=7, seed=0, spread=0.4):
    """Log-probabilities, old ones, advantages, mask, reference and weights of a step, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    log_probs = -normal(*shape).abs() - 0.1
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    return SimpleNamespace(
        log_probs=log_probs,
        old=log_probs + spread * normal(*shape),
        advantages=normal(rows),
        mask=torch.arange(length) < lengths[:, None],
        reference=log_probs + 0.5 * normal(*shape),
        weights=torch.rand(*shape, generator=generator, dtype=torch.float64) * 2,
    )


TRL = {
    grpo: {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    dapo: {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
    dr_grpo: {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2},
    gspo: {"loss_type": "grpo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"},
    cispo: {"loss_type": "cispo", "epsilon_low": 1.0, "epsilon_high": 5.0},
}


def trl_loss(settings, log_probs, step, beta, weighted):
    """TRL's own code on the same numbers: its method on a stand-in that has what it asks for."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    metrics = {"train": defaultdict(list)}
    self = SimpleNamespace(
        **{"importance_sampling_level": "token"} | settings,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        beta=beta,
        max_completion_length=10,
        current_gradient_accumulation_steps=1,
        use_vllm=weighted,
        vllm_importance_sampling_correction=weighted,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (log_probs, torch.zeros_like(log_probs), None),
    )
    mask = step.mask.long()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 2, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 2, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": step.advantages,
        "old_per_token_logps": step.old,
        "ref_per_token_logps": step.reference,
        "importance_sampling_ratio": step.weights,
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(self, None, inputs), metrics["train"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss", ALL)
def test_equals_trl_in_loss_gradient_and_figures(loss, beta, weighted):
    for seed, spread in ((0, 0.4), (1, 1.5), (2, 1e-4)):
        step = random_step(seed=seed, spread=spread)
        theirs = step.log_probs.clone().requires_grad_()
        expected, figures = trl_loss(TRL[loss], theirs, step, beta, weighted)
        expected.backward()
        ours = step.log_probs.clone().requires_grad_()
        terms = loss(tokens(step, ours, beta, weighted))
        terms.mean().backward()
        assert_close(terms.mean(), expected)
        assert_close(ours.grad, theirs.grad)
        if loss is not cispo:  # TRL counts the clipped weights of positive advantages only
            assert float(terms.clip_fraction()) == pytest.approx(figures["clip_ratio/region_mean"][0])
        if beta:
            assert float(terms.kl()) == pytest.approx(figures["kl"][0])


def tokens(step, log_probs, beta=0.04, weighted=True, rows=slice(None), **more):
    weights = step.weights[rows] if weighted else None
    return tokens_of(
        log_probs,
        step.old[rows],
        step.advantages[rows],
        step.mask[rows],
        weights=weights,
        reference_log_probs=step.reference[rows],
        beta=beta,
        max_tokens=10,
        **more,
    )


class Policy(nn.Module):
    """Log-probabilities of a token of each [B, T] that a linear layer gives from its features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5, dtype=torch.float64)

    def forward(self, features, chosen):
        return self.layer(features).log_softmax(-1).gather(-1, chosen[..., None])[..., 0]


def policy_and_data(rows=10, length=7):
    torch.manual_seed(0)
    policy = Policy()
    features, chosen = torch.randn(rows, length, 3, dtype=torch.float64), torch.randint(5, (rows, length))
    step = random_step(rows, length, seed=3)
    with torch.no_grad():
        step.old = policy(features, chosen) + 0.3 * torch.randn(rows, length)
        step.reference = policy(features, chosen) + 0.3 * torch.randn(rows, length)
    step.mask[4] = False  # nothing left of it
    return policy, features, chosen, step


PIECES = ((slice(0, 1), slice(1, 6)), (slice(6, 7), slice(7, 10)))
"""Two ranks with two micro-batches each, of 1, 5, 1 and 3 completions."""


def whole(loss):
    policy, features, chosen, step = policy_and_data()
    terms = loss(tokens(step, policy(features, chosen)))
    terms.mean().backward()
    return terms, [parameter.grad for parameter in policy.parameters()]


@pytest.mark.parametrize("loss", ALL)
def test_one_full_batch_is_its_micro_batches_in_gradient(loss):
    expected, gradients = whole(loss)
    policy, features, chosen, step = policy_and_data()
    sums = torch.zeros(6, dtype=torch.float64)
    for rows in (rows for pieces in PIECES for rows in pieces):
        terms = loss(tokens(step, policy(features[rows], chosen[rows]), rows=rows))
        terms.loss_sum.backward()
        sums += terms.stack()
    total = LossTerms.unstack(sums)
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        assert_close(parameter.grad / total.normalizer, gradient)
    for name in LossTerms.__dataclass_fields__:
        assert float(getattr(total, name)) == pytest.approx(float(getattr(expected, name).detach()))
    assert int(total.normalizer) == {grpo: 9, gspo: 9, dr_grpo: 90}.get(loss, int(step.mask.sum()))


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for loss in ALL:
        policy, features, chosen, step = policy_and_data()
        parallel = DistributedDataParallel(policy)
        sums = torch.zeros(6, dtype=torch.float64)
        for number, rows in enumerate(PIECES[rank]):
            with parallel.no_sync() if number == 0 else torch.enable_grad():
                terms = loss(tokens(step, parallel(features[rows], chosen[rows]), rows=rows))
                terms.loss_sum.backward()
            sums += terms.stack()
        dist.all_reduce(sums)
        # DDP has averaged over the ranks.
        scale = 2 / LossTerms.unstack(sums).normalizer
        found.append([parameter.grad * scale for parameter in policy.parameters()])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_full_batch_is_two_ranks_with_micro_batches_in_gradient(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for loss, gradients in zip(ALL, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert_close(gradients, whole(loss)[1])


@pytest.mark.parametrize("loss", ALL)
def test_flat_tokens_are_padded_tokens(loss):
    step = random_step()
    padded, flat = step.log_probs.clone().requires_grad_(), step.log_probs.clone().requires_grad_()
    expected = loss(tokens(step, padded))
    at = step.mask.nonzero()[:, 0]
    terms = loss(
        tokens_of(
            flat[step.mask],
            step.old[step.mask],
            step.advantages,
            torch.ones(len(at), dtype=torch.bool),
            rows=at,
            weights=step.weights[step.mask],
            reference_log_probs=step.reference[step.mask],
            beta=0.04,
            max_tokens=10,
        )
    )
    assert_close(terms.stack(), expected.stack())
    expected.loss_sum.backward()
    terms.loss_sum.backward()
    assert_close(flat.grad, padded.grad)
    with pytest.raises(ValueError, match="flat tensors"):
        tokens_of(flat[step.mask], None, step.advantages, torch.ones(len(at)))


@pytest.mark.parametrize("loss", ALL)
def test_with_one_update_for_a_rollout_the_ratio_is_exactly_one(loss):
    step = random_step()
    results = []
    for old in (None, step.log_probs.clone()):
        log_probs = step.log_probs.clone().requires_grad_()
        chosen = tokens_of(log_probs, old, step.advantages, step.mask, max_tokens=10)
        assert chosen.log_ratio.tolist() == [0.0] * len(chosen.log_ratio)
        terms = loss(chosen)
        terms.loss_sum.backward()
        assert int(terms.clipped) == 0
        results.append((terms.loss_sum.detach(), log_probs.grad))
    assert_close(*results, rtol=0, atol=0)
    # That of REINFORCE: minus advantage, each token with its share.
    share = {grpo: 1 / step.mask.sum(1), gspo: 1 / step.mask.sum(1)}.get(loss, torch.ones(6))
    assert_close(results[0][1], -step.mask.double() * (step.advantages * share)[:, None])


@pytest.mark.parametrize("loss", ALL)
def test_further_updates_and_stale_rollouts_take_the_ratio_to_the_stored_log_probs(loss):
    step = random_step()
    stale, fresh = (
        loss(tokens_of(step.log_probs, old, step.advantages, step.mask, max_tokens=10)) for old in (step.old, None)
    )
    assert abs(float(stale.loss_sum - fresh.loss_sum)) > 1e-3
    # Nothing flows back into what was stored.
    old = step.old.clone().requires_grad_()
    log_probs = step.log_probs.clone().requires_grad_()
    loss(tokens_of(log_probs, old, step.advantages, step.mask, max_tokens=10)).loss_sum.backward()
    assert old.grad is None


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("loss", ALL)
def test_what_is_masked_is_never_looked_at(loss, garbage):
    step = random_step()
    clean = step.log_probs.clone().requires_grad_()
    expected = loss(tokens(step, clean))
    expected.loss_sum.backward()
    for name in ("log_probs", "old", "reference", "weights"):
        setattr(step, name, torch.where(step.mask, getattr(step, name), garbage))
    dirty = step.log_probs.clone().requires_grad_()
    terms = loss(tokens(step, dirty))
    terms.loss_sum.backward()
    assert_close(terms.stack(), expected.stack(), rtol=0, atol=0)
    assert_close(dirty.grad, clean.grad, rtol=0, atol=0)


@pytest.mark.parametrize("loss", ALL)
def test_a_micro_batch_with_nothing_left_is_zero_without_nan(loss):
    step = random_step()
    step.mask[:] = False
    log_probs = torch.full_like(step.log_probs, NAN).requires_grad_()
    terms = loss(tokens(step, log_probs))
    terms.mean().backward()
    assert [float(x.detach()) for x in (terms.mean(), terms.kl(), terms.clip_fraction())] == [0, 0, 0]
    assert bool((log_probs.grad == 0).all())
    # Nor does it change what it is added to.
    other = loss(tokens(random_step(), random_step().log_probs))
    assert_close((terms + other).stack(), other.stack())


@pytest.mark.parametrize("loss", ALL)
def test_a_ratio_past_all_numbers_gives_no_nan(loss):
    log_probs = torch.tensor([[-1.0, -1.0, -200.0, -200.0]] * 2, requires_grad=True)
    old = torch.tensor([[-200.0, -1.0, -1.0, -200.0]] * 2)
    mask = torch.ones(2, 4)
    reference = torch.tensor([[-1.0, -300.0, -1.0, -1.0]] * 2)
    chosen = tokens_of(
        log_probs,
        old,
        torch.tensor([1.0, -1.0]),
        mask,
        reference_log_probs=reference,
        beta=0.1,
        max_tokens=10,
    )
    terms = loss(chosen)
    terms.loss_sum.backward()
    assert bool(terms.stack().isfinite().all())
    assert bool(log_probs.grad.isfinite().all())


@pytest.mark.parametrize("lost", [NAN, INF, -INF])
@pytest.mark.parametrize("loss", ALL)
def test_a_token_whose_old_log_prob_is_not_known_is_left_out(loss, lost):
    step = random_step()
    step.mask[:, :2] = True
    step.old[1, 0] = lost
    terms = loss(tokens(step, step.log_probs))
    assert int(terms.tokens) == int(step.mask.sum()) - 1
    step.old[1, 0], step.mask[1, 0] = 0.0, False
    assert_close(terms.stack(), loss(tokens(step, step.log_probs)).stack(), rtol=0, atol=0)


@pytest.mark.parametrize("loss", ALL)
def test_beta_zero_skips_the_divergence_and_its_gradient(loss):
    step = random_step()
    gradients = []
    for reference in (None, torch.full_like(step.reference, NAN)):
        log_probs = step.log_probs.clone().requires_grad_()
        chosen = tokens_of(
            log_probs, step.old, step.advantages, step.mask, reference_log_probs=reference, beta=0.0, max_tokens=10
        )
        terms = loss(chosen)
        terms.loss_sum.backward()
        assert float(terms.kl_sum) == 0
        gradients.append(log_probs.grad)
    assert_close(*gradients, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"'beta' is 0\.1; expected the reference"):
        tokens_of(step.log_probs, step.old, step.advantages, step.mask, beta=0.1)


def test_k3_by_hand_and_its_expectation():
    log_probs = torch.tensor([0.5, 0.2, 0.3]).log().requires_grad_()
    reference = torch.tensor([0.25, 0.4, 0.35]).log()
    values = k3(log_probs, reference)
    assert_close(
        values.detach(), torch.tensor([0.5 - 1 + math.log(2), 2 - 1 - math.log(2), 7 / 6 - 1 - math.log(7 / 6)])
    )
    # Its mean under the policy is the divergence.
    exact = (log_probs.exp() * (log_probs - reference)).sum()
    assert_close((log_probs.exp() * values).sum(), exact)
    values.sum().backward()
    # 1 - reference / policy.
    assert_close(log_probs.grad, torch.tensor([0.5, -1, -1 / 6]))
    same = torch.tensor([-1.5], requires_grad=True)
    k3(same, same.detach()).sum().backward()
    assert float(same.grad) == 0


@pytest.mark.parametrize("loss", ALL)
def test_a_row_without_advantage_learns_nothing_but_counts(loss):
    step = random_step()
    step.advantages[2] = 0
    log_probs = step.log_probs.clone().requires_grad_()
    terms = loss(tokens(step, log_probs, beta=0.0))
    terms.loss_sum.backward()
    assert not log_probs.grad[2].any()
    assert log_probs.grad.any()
    assert int(terms.tokens) == int(step.mask.sum())


def test_log_probs_in_half_precision_are_summed_in_single():
    log_probs = torch.full((1, 3), -1.0, dtype=torch.bfloat16, requires_grad=True)
    terms = dapo(tokens_of(log_probs, None, torch.ones(1), torch.ones(1, 3)))
    assert terms.loss_sum.dtype == torch.float32
    terms.loss_sum.backward()
    assert log_probs.grad.tolist() == [[-1, -1, -1]]


class Module:
    def __init__(self, loss: LossFunction = grpo) -> None:
        self.loss = loss


def test_yaml_names_a_loss_and_its_numbers():
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(Module, "model")
    here = f"class_path: {__name__}.Module"

    def read(text):
        return parser.instantiate(parser.parse_args([f"--model={text}"])).model.loss

    assert read(here) is grpo
    assert read(f"{here}\ninit_args: {{loss: mllm4d.train.losses.gspo}}") is gspo
    name, wide = "mllm4d.train.losses.Configured", "{loss: mllm4d.train.losses.dapo, settings: {eps_low: 0.6}}"
    loss = read(f"{here}\ninit_args:\n  loss: {{class_path: {name}, init_args: {wide}}}")
    check(*by_hand(loss), -1.28 - 0.5 - 1 + 1, 4, [[0, -0.5, -1], [1, 0, 0]], 1, 4)


def test_one_clear_sentence_for_bad_settings():
    with pytest.raises(InputError, match="unknown setting 'epsilon'; expected eps_low or eps_high"):
        Configured(dapo, {"epsilon": 0.1})
    with pytest.raises(InputError, match="'max_tokens' is not given"):
        dr_grpo(tokens_of(torch.zeros(1, 1), None, torch.ones(1), torch.ones(1, 1)))
