"""Log-probabilities of chosen tokens without the logits of all: hidden states first, then the head in chunks.

For 8 questions of 2,000 tokens and a vocabulary of 150,000, all logits in float32 are 10 GB; those of the answers alone
a thousandth of that, and a chunk of them fits anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from mllm4d.models.checkpointing import pretrained
from mllm4d.schema import InputError

CHUNK = 1024
"""Tokens whose logits are there at once: 0.6 GB in float32 with a vocabulary of 150,000."""

Head = Callable[[Tensor], Tensor]
"""From hidden states [N, D] to logits [N, V]."""


class Hidden(NamedTuple):
    """What a model knows at some positions, just before its head.

    Attributes:
        states: [N, D].
        head: Makes the model's own logits [N, V] of them.
    """

    states: Tensor
    head: Head


# Whether a model scales or caps what its head gives: found once for each head, in ``hidden_at``.
_CHANGED_AFTERWARDS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def hidden_at(model: Any, inputs: Mapping[str, Any], at: Tensor) -> Hidden:
    """Run a model, and keep its hidden states at the positions that are asked for; no logits are computed.

    The model's own forward runs with its head left out, so that adapters, hooks and sharding work as ever. A model that
    does something to its logits after the head (Gemma's soft cap, Granite's scale) cannot leave it out: there the
    states are the logits themselves, at these positions alone (transformers' ``logits_to_keep``), and the head is
    nothing.

    Args:
        model: A Hugging Face model with a language head, with or without adapters.
        inputs: Keyword arguments of its forward.
        at: [B, L] bool, N of them true.

    Returns:
        States and head, in the order of the rows.

    Raises:
        InputError: The model has no head, or changes its logits and cannot compute some of them alone.
    """
    outer, head = head_of(model)
    if not _CHANGED_AFTERWARDS.get(head, False):
        # Should the forward have to run once more, then with the same dropout, as if it were the first.
        restore = _random_state(at.device) if head not in _CHANGED_AFTERWARDS else None
        seen: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            seen.append(hidden)
            return hidden

        with _replaced(head, keep):
            logits = model(**inputs).logits
        (hidden,) = seen
        changed = (logits.data_ptr(), logits.shape, logits.dtype) != (hidden.data_ptr(), hidden.shape, hidden.dtype)
        _CHANGED_AFTERWARDS[head] = changed
        if not changed:
            return Hidden(hidden[at], head)
        if restore is not None:
            restore()
    if "logits_to_keep" not in signature(outer.forward).parameters:
        raise InputError(f"{type(outer).__name__} changes its logits after its head and takes no 'logits_to_keep'")
    columns = at.any(0).nonzero()[:, 0]  # [K]
    logits = model(**inputs, logits_to_keep=columns).logits  # [B, K, V]
    return Hidden(logits[at[:, columns]], _nothing)


def head_of(model: Any) -> tuple[Any, nn.Module]:
    """A model without its adapters around it, and its language head.

    Args:
        model: A Hugging Face model, with or without adapters.

    Raises:
        InputError: It has none.
    """
    outer = pretrained(model)
    head = outer.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(outer).__name__} has no head that makes logits")
    return outer, head


def answer_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where a model has to say something, and what.

    Args:
        labels: [B, L], token ids, -100 everywhere but on the answers.

    Returns:
        [B, L] bool, the positions before those of the answers, whose logits predict them; [N] the tokens, in the order
        of the rows.
    """
    answered = labels[:, 1:] != -100  # [B, L-1]
    at = nn.functional.pad(answered, (0, 1))  # [B, L], the last position predicts nothing that is there
    return at, labels[:, 1:][answered]


def token_log_probs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    chunk: int = CHUNK,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
) -> Tensor:
    """Log-probability of each token, in float32; never more than a chunk's logits are there at once.

    Args:
        hidden: [N, D], hidden states that predict the tokens.
        head: From hidden states to logits.
        targets: [N], token ids.
        chunk: Tokens whose logits are computed together, again in the backward pass (the last chunk's are kept: they
            come first there).
        temperature: Divides the logits, as in sampling.
        banned: Tokens that cannot be said: the others share their probability.

    Returns:
        [N], nats.
    """
    return _in_chunks(hidden, head, targets, chunk, temperature, banned, with_entropy=False)[:, 0]


def token_log_probs_and_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    chunk: int = CHUNK,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """As ``token_log_probs``, and the entropy of the distribution that each token is from.

    Args:
        hidden: [N, D].
        head: From hidden states to logits.
        targets: [N].
        chunk: As there.
        temperature: As there.
        banned: As there.

    Returns:
        [N] and [N], nats.
    """
    both = _in_chunks(hidden, head, targets, chunk, temperature, banned, with_entropy=True)  # [N, 2]
    return both[:, 0], both[:, 1]


def _in_chunks(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    chunk: int,
    temperature: float,
    banned: Sequence[int],
    with_entropy: bool,
) -> Tensor:
    """[N, 1] or [N, 2]."""
    if len(hidden) != len(targets):
        raise ValueError(f"{len(hidden)} hidden states for {len(targets)} tokens")

    def of_chunk(states: Tensor, tokens: Tensor) -> Tensor:
        logits = head(states).float() / temperature  # [C, V]
        if banned:
            logits = logits.index_fill(1, torch.tensor(banned, device=logits.device), -torch.inf)
        log_probs = -cross_entropy(logits, tokens, reduction="none")  # [C]
        if not with_entropy:
            return log_probs[:, None]
        all_log_probs = logits.log_softmax(-1)  # [C, V]
        # A banned token's probability of 0 times its log of -inf would be no number.
        terms = torch.where(all_log_probs.isneginf(), 0.0, all_log_probs.exp() * all_log_probs.clamp(min=-1e30))
        return torch.stack([log_probs, -terms.sum(-1)], dim=1)

    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    again = torch.is_grad_enabled()
    results = [
        checkpoint(of_chunk, *piece, use_reentrant=False) if again and number < len(pieces) - 1 else of_chunk(*piece)
        for number, piece in enumerate(pieces)
    ]
    return torch.cat(results)


def _random_state(device: torch.device) -> Callable[[], None]:
    """What sets the generators of dropout back to where they are now."""
    host, there = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(host)
        if there is not None:
            torch.cuda.set_rng_state(there, device)

    return restore


def _nothing(states: Tensor) -> Tensor:
    return states


@contextmanager
def _replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Another forward for a module, for a while; its hooks go on."""
    there = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if there is None:
            del module.forward
        else:
            module.forward = there
