"""Losses as pure functions: of supervised training, and of policies (GRPO and its relatives).

A loss of policies goes from ``Tokens`` to ``LossTerms``. One is chosen by import path; ``Configured`` sets its numbers:

===========  =========================================================  ==============================  ================
loss         what it is                                                 divide its sum by               source
===========  =========================================================  ==============================  ================
``grpo``     clipped ratio x advantage, mean over each completion       completions                     arXiv 2402.03300
``dapo``     the same with a higher upper clip, all tokens alike        tokens                          arXiv 2503.14476
``dr_grpo``  clipped ratio x advantage, all tokens alike                completions x ``max_tokens``    arXiv 2503.20783
``gspo``     clipped ratio of a completion as a whole                   completions                     arXiv 2507.18071
``cispo``    clipped ratio as a constant weight on the log-probability  tokens                          arXiv 2506.13585
===========  =========================================================  ==============================  ================

Each gives a sum and what it has to be divided by. Add both over micro-batches and over ranks, and divide once: so one
full batch, its micro-batches and several ranks have the same gradient, whichever loss it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mllm4d.schema import InputError

MOST = 20.0
"""Largest logarithm of a ratio that is looked at: e^20 is past every clip, and e^89 is no float32 any more."""


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answer tokens of a batch.

    Args:
        logits: [B, L, V], position t predicts token t + 1.
        labels: [B, L], token ids, -100 everywhere but on the answers.

    Returns:
        [], nats per answer token; 0 (with a gradient of 0) when no token is an answer.
    """
    targets = labels[:, 1:]  # [B, L-1]
    answered = targets != -100  # [B, L-1]
    chosen = logits[:, :-1][answered].float()  # [N, V], only where there is an answer
    total = cross_entropy(chosen, targets[answered], reduction="sum")  # []
    return total / answered.sum().clamp(min=1)


@dataclass(frozen=True)
class LossTerms:
    """What a batch of completions gives; every field is a sum, so that batches are added with ``+``.

    To train: call backward on ``loss_sum`` of each micro-batch, add the terms of all micro-batches and ranks, and
    divide the gradients by the whole ``normalizer``; or divide the losses, where it is known beforehand. DDP averages
    gradients over its W ranks: times W then. A completion has to lie in one micro-batch as a whole.

    Attributes:
        loss_sum: [], the only one with a gradient.
        normalizer: [], see the table above; a completion of which nothing is left counts nowhere.
        tokens: [], completion tokens.
        kl_sum: [], k3 divergence from the reference summed over the tokens, nats; 0 where it was skipped.
        clipped: [], ratios that were clipped.
        ratios: [], ratios: one a token, for GSPO one a completion.
    """

    loss_sum: Tensor
    normalizer: Tensor
    tokens: Tensor
    kl_sum: Tensor
    clipped: Tensor
    ratios: Tensor

    def __add__(self, other: LossTerms) -> LossTerms:
        return LossTerms(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def stack(self) -> Tensor:
        """[6] float64, all fields in order, without gradient: for the sum over micro-batches and ranks."""
        return torch.stack([getattr(self, f.name).detach().double() for f in fields(self)])

    @classmethod
    def unstack(cls, sums: Tensor) -> LossTerms:
        """The terms that ``stack`` has put together."""
        return cls(*sums.unbind())

    def mean(self) -> Tensor:
        """[], the loss; 0 with a gradient of 0 where nothing is left."""
        return self.loss_sum / self.normalizer.clamp(min=1)

    def kl(self) -> Tensor:
        """[], divergence from the reference, nats a token."""
        return self.kl_sum / self.tokens.clamp(min=1)

    def clip_fraction(self) -> Tensor:
        """[], share of the ratios that were clipped."""
        return self.clipped / self.ratios.clamp(min=1)


@dataclass(frozen=True)
class Tokens:
    """The N tokens of B completions that count, one after the other; ``tokens_of`` makes it of padded or flat tensors.

    Attributes:
        log_probs: [N], of the policy that learns, nats, float32 or more; the only one with a gradient, but for ``kl``.
        log_ratio: [N], minus those of the policy that the ratio is taken to.
        advantages: [N], that of the token's completion.
        rows: [N], the token's completion, 0 to B - 1.
        lengths: [B], tokens of each completion; may be 0.
        weights: [N], ``mllm4d.train.completions.importance_weights``, or None.
        kl: [N], k3 divergence from the reference, nats, or None.
        beta: Weight of ``kl``.
        max_tokens: Longest completion that may be sampled, or None.
    """

    log_probs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    rows: Tensor
    lengths: Tensor
    weights: Tensor | None = None
    kl: Tensor | None = None
    beta: float = 0.0
    max_tokens: int | None = None

    def completions(self) -> Tensor:
        """[], completions with a token left."""
        return (self.lengths > 0).sum()

    def shares(self) -> Tensor:
        """[N], of each token in its completion."""
        return 1 / self.lengths[self.rows].to(self.log_probs)

    def mean(self, values: Tensor) -> Tensor:
        """[B], mean over each completion of values [N]; 0 where it has no token."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.rows, values * self.shares())


LossFunction = Callable[[Tokens], LossTerms]
"""A loss of policies."""


@dataclass(frozen=True)
class Configured:
    """A loss with numbers of its own, for YAML.

    Attributes:
        loss: The loss.
        settings: Its keyword arguments, for example ``{eps_high: 0.3}``.
    """

    loss: Callable[..., LossTerms]
    settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = list(inspect.signature(self.loss).parameters)[1:]
        if unknown := [name for name in self.settings if name not in known]:
            raise InputError(f"loss: unknown setting {unknown[0]!r}; expected {' or '.join(known) or 'none'}")

    def __call__(self, tokens: Tokens) -> LossTerms:
        """Compute the terms."""
        return self.loss(tokens, **self.settings)


def tokens_of(
    log_probs: Tensor,
    old_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    rows: Tensor | None = None,
    weights: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    beta: float = 0.0,
    max_tokens: int | None = None,
) -> Tokens:
    """Take the tokens that count out of padded tensors [B, T], or flat ones [N] with ``rows``.

    What lies outside the mask is never looked at and has no gradient, whatever it is, NaN included. A token whose old
    log-probability is not finite has no ratio, and is left out as if it were masked.

    Args:
        log_probs: [B, T] or [N], of the policy that learns, nats.
        old_log_probs: The same shape, of the policy that the ratio is taken to: the one before the first of several
            updates, or for stale rollouts the one that has sampled. None is the policy itself (one update for each
            rollout): the ratio is exactly 1.
        advantages: [B], one for each completion.
        mask: The same shape as ``log_probs``, true on the tokens that count.
        rows: [N], which completion a token is of; only for flat tensors.
        weights: The same shape, importance weights.
        reference_log_probs: The same shape, of the reference.
        beta: Weight of the divergence from the reference; with 0 it is not even computed.
        max_tokens: Longest completion that may be sampled; only ``dr_grpo`` needs it.

    Returns:
        The tokens.

    Raises:
        InputError: There is ``beta`` and no reference.
    """
    if beta and reference_log_probs is None:
        raise InputError(f"loss: 'beta' is {beta:g}; expected the reference's log-probabilities with it")
    if (log_probs.ndim == 1) != (rows is not None) or mask.shape != log_probs.shape:
        raise ValueError(
            f"log_probs {list(log_probs.shape)}, mask {list(mask.shape)}: flat tensors, and they alone, have rows"
        )
    mask = mask.bool() if old_log_probs is None else mask.bool() & old_log_probs.isfinite()  # [B, T]
    if rows is None:
        rows = torch.arange(len(log_probs), device=mask.device)[:, None].expand_as(mask)  # [B, T]
    chosen = log_probs[mask]  # [N]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))  # [N]
    old = chosen if old_log_probs is None else old_log_probs[mask].to(chosen)  # [N]
    rows = rows[mask]  # [N]
    kl = k3(chosen, reference_log_probs[mask].to(chosen)) if beta and reference_log_probs is not None else None  # [N]
    return Tokens(
        log_probs=chosen,
        log_ratio=chosen - old.detach(),
        advantages=advantages.detach().to(chosen)[rows],
        rows=rows,
        lengths=torch.bincount(rows, minlength=len(advantages)),
        weights=None if weights is None else weights.detach()[mask].to(chosen),
        kl=kl,
        beta=beta,
        max_tokens=max_tokens,
    )


def grpo(tokens: Tokens, eps_low: float = 0.2, eps_high: float = 0.2) -> LossTerms:
    """GRPO (arXiv 2402.03300): the mean over each completion's tokens, then over completions.

    Args:
        tokens: The tokens.
        eps_low: The ratio is clipped under 1 - eps_low.
        eps_high: The ratio is clipped over 1 + eps_high.

    Returns:
        The terms; the normalizer is the number of completions.
    """
    policy, clipped = _surrogate(tokens.log_ratio, tokens.advantages, eps_low, eps_high)  # [N], [N]
    return _terms(tokens, policy, clipped, tokens.completions(), tokens.shares())


def dapo(tokens: Tokens, eps_low: float = 0.2, eps_high: float = 0.28) -> LossTerms:
    """DAPO (arXiv 2503.14476): every token of the whole step weighs the same, and the upper clip is higher.

    Args:
        tokens: The tokens.
        eps_low: As in ``grpo``.
        eps_high: As in ``grpo``.

    Returns:
        The terms; the normalizer is the number of tokens.
    """
    policy, clipped = _surrogate(tokens.log_ratio, tokens.advantages, eps_low, eps_high)  # [N], [N]
    return _terms(tokens, policy, clipped, tokens.lengths.sum())


def dr_grpo(tokens: Tokens, eps_low: float = 0.2, eps_high: float = 0.2) -> LossTerms:
    """Dr. GRPO (arXiv 2503.20783): divided by a constant, so that a long wrong answer is not cheaper than a short one.

    Its advantages are not scaled (``mllm4d.train.advantages.unscaled``).

    Args:
        tokens: The tokens, with ``max_tokens``.
        eps_low: As in ``grpo``.
        eps_high: As in ``grpo``.

    Returns:
        The terms; the normalizer is the number of completions times ``max_tokens``.

    Raises:
        InputError: ``max_tokens`` is not known.
    """
    if not tokens.max_tokens:
        raise InputError("loss dr_grpo: 'max_tokens' is not given; expected the length of the longest completion")
    policy, clipped = _surrogate(tokens.log_ratio, tokens.advantages, eps_low, eps_high)  # [N], [N]
    return _terms(tokens, policy, clipped, tokens.completions() * tokens.max_tokens)


def gspo(tokens: Tokens, eps_low: float = 3e-4, eps_high: float = 4e-4) -> LossTerms:
    """GSPO (arXiv 2507.18071): a completion has one ratio, the geometric mean of those of its tokens.

    Args:
        tokens: The tokens.
        eps_low: As in ``grpo``, of the completion's ratio, which differs less from 1.
        eps_high: Likewise.

    Returns:
        The terms; the normalizer is the number of completions, and so are ``ratios``.
    """
    log_ratio, advantages = tokens.mean(tokens.log_ratio), tokens.mean(tokens.advantages)  # [B], [B]
    policy, clipped = _surrogate(log_ratio, advantages, eps_low, eps_high)  # [B], [B]
    terms = _terms(tokens, policy[tokens.rows], clipped, tokens.completions(), tokens.shares())
    return replace(terms, ratios=tokens.completions())


def cispo(tokens: Tokens, eps_low: float = 1.0, eps_high: float = 4.0) -> LossTerms:
    """CISPO (arXiv 2506.13585): every token keeps its gradient; the ratio is a clipped weight that has none.

    The paper clips from above only (eps_low = 1 is no lower clip) and does not say where; a ratio of 5 is TRL's.

    Args:
        tokens: The tokens.
        eps_low: Weights are clipped under 1 - eps_low, whatever the advantage's sign.
        eps_high: Weights are clipped over 1 + eps_high, likewise.

    Returns:
        The terms; the normalizer is the number of tokens.
    """
    ratio = tokens.log_ratio.detach().clamp(-MOST, MOST).exp()  # [N]
    weight = ratio.clamp(1 - eps_low, 1 + eps_high)  # [N]
    policy = -weight * tokens.advantages * tokens.log_probs  # [N]
    return _terms(tokens, policy, (weight != ratio) & (tokens.advantages != 0), tokens.lengths.sum())


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) on tokens that the policy has sampled: never negative, unbiased.

    It is r - 1 - log r with r = reference / policy (http://joschu.net/blog/kl-approx.html).

    Args:
        log_probs: [...], of the policy, nats.
        reference_log_probs: [...], of the reference, nats; has no gradient.

    Returns:
        [...], nats.
    """
    log_ratio = (reference_log_probs.detach() - log_probs).clamp(max=MOST)  # [...]
    return log_ratio.exp() - log_ratio - 1


def _surrogate(log_ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped loss (arXiv 1707.06347), [N], and where the clip has taken its gradient, [N]."""
    # An infinite ratio would make NaN of the gradient of the branch that is not taken.
    ratio = log_ratio.clamp(-MOST, MOST).exp()  # [N]
    inside = ratio.clamp(1 - eps_low, 1 + eps_high)  # [N]
    loss = -torch.minimum(ratio * advantages, inside * advantages)  # [N]
    low = (ratio < 1 - eps_low) & (advantages < 0)  # [N]
    high = (ratio > 1 + eps_high) & (advantages > 0)  # [N]
    return loss, low | high


def _terms(
    tokens: Tokens, policy: Tensor, clipped: Tensor, normalizer: Tensor, shares: Tensor | None = None
) -> LossTerms:
    """Sum over the tokens, each times its share."""
    losses = policy if tokens.weights is None else policy * tokens.weights  # [N]
    kl_sum = losses.new_zeros(())  # []
    if tokens.kl is not None:
        losses = losses + tokens.beta * tokens.kl  # [N]
        kl_sum = tokens.kl.detach().sum()  # []
    total = losses.sum() if shares is None else (losses * shares).sum()  # []
    count = tokens.lengths.sum()  # []
    return LossTerms(total, normalizer, count, kl_sum, clipped.sum(), count)
