"""Log-probabilities of completions, with the prompt paid for once.

``SharedPrefix`` puts a prompt and all its completions into one row: the prompt is the prefix, each completion a branch
that sees the prefix and itself (``mllm4d.models.attention``). The video is encoded once, the prompt's keys and values
are computed once, with gradient where it is needed, and they get the gradients of all completions. Several groups may
stand in a row, and a long group may be spread over several rows, each with the prompt again. ``Plain`` repeats the
prompt with each completion in a padded batch, which any model takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mllm4d.models.attention import Group, Layout, attention_inputs, attention_of, use_block_attention
from mllm4d.models.completions import Policy, Rollout, extended, positions_after
from mllm4d.models.inputs import VideoInputs
from mllm4d.models.logprobs import CHUNK, hidden_at, token_log_probs_and_entropy
from mllm4d.models.packing import check_packing
from mllm4d.schema import InputError


class Scores(NamedTuple):
    """What a model gives to completions that were chosen from some rollouts.

    Attributes:
        log_probs: [n, T] float32, nats, 0 where padded; T is that of ``stack``.
        entropy: [n, T] float32, nats, without gradient, 0 where padded.
    """

    log_probs: Tensor
    entropy: Tensor


class Scorer(Protocol):
    """Computes log-probabilities of completions. Completions are numbered group by group, as in ``stack``."""

    def split(self, rollouts: Sequence[Rollout], chosen: Tensor | None = None) -> list[Tensor]:
        """Micro-batches: tensors [n] of numbers of completions, each of one forward.

        Args:
            rollouts: The groups.
            chosen: [m] numbers of the completions that count; None is all.
        """
        ...

    def score(self, model: Any, inputs: VideoInputs, rollouts: Sequence[Rollout], numbers: Tensor) -> Scores:
        """One forward, with gradient unless it is switched off.

        Args:
            model: The model, with or without adapters.
            inputs: Its preprocessing.
            rollouts: The groups, on any device.
            numbers: [n] of the completions.
        """
        ...


class Piece(NamedTuple):
    """Completions of one group in a micro-batch: their rollout, their rows in it, and where they stand in the batch."""

    rollout: Rollout
    rows: list[int]
    places: list[int]


class SharedPrefix:
    """Prompts as prefixes that their completions share, in one row.

    Args:
        budget: Most tokens of a row. A prompt with a single completion may exceed it alone.
        chunk: Completion tokens whose logits are in memory at once.

    Raises:
        InputError: The budget is below 1.
    """

    def __init__(self, budget: int = 16384, chunk: int = CHUNK) -> None:
        self.budget, self.chunk = _positive("budget", budget), chunk

    def split(self, rollouts: Sequence[Rollout], chosen: Tensor | None = None) -> list[Tensor]:
        """Groups one after the other, as many as fit; one that does not fit is spread, each row with its prompt."""
        batches: list[list[int]] = []
        load = 0
        for rollout, rows, first in _chosen(rollouts, chosen):
            prompt = len(rollout.prompt.tokens["input_ids"])
            lengths = (rollout.lengths - 1).tolist()  # the last token predicts nothing
            whole = prompt + sum(lengths[row] for row in rows)
            if not batches or load + whole > self.budget:
                batches, load = [*batches, []], 0
            load += prompt
            for row in rows:
                if batches[-1] and load + lengths[row] > self.budget:
                    batches, load = [*batches, []], prompt
                batches[-1].append(first + row)
                load += lengths[row]
        return [torch.tensor(batch) for batch in batches]

    def score(self, model: Any, inputs: VideoInputs, rollouts: Sequence[Rollout], numbers: Tensor) -> Scores:
        """One row. A model with ``sdpa`` attention is set to ``use_block_attention``, which changes nothing else.

        Raises:
            InputError: Samples of this model cannot be kept apart in a row, or its attention cannot share a prefix;
                name ``Plain``.
        """
        check_packing(model)
        if attention_of(model) == "sdpa":
            use_block_attention(model)
        pieces = _pieces(model, rollouts, numbers)
        row, sources = shared_row(model, inputs, pieces)
        at = torch.zeros_like(row["input_ids"], dtype=torch.bool)
        at[0, sources] = True
        states, head = hidden_at(model, row, at)
        # [L] -> which of the states stands there; a prompt's last one says the first token of all its completions.
        order = at[0].long().cumsum(0) - 1
        return _scores(states[order[sources]], head, rollouts, pieces, len(numbers), self.chunk)


class Plain:
    """Every completion with its prompt, in padded batches: for models whose samples cannot share a row.

    Args:
        budget: Most tokens of a batch, padding included. A single completion may exceed it alone.
        chunk: Completion tokens whose logits are in memory at once.

    Raises:
        InputError: The budget is below 1.
    """

    def __init__(self, budget: int = 16384, chunk: int = CHUNK) -> None:
        self.budget, self.chunk = _positive("budget", budget), chunk

    def split(self, rollouts: Sequence[Rollout], chosen: Tensor | None = None) -> list[Tensor]:
        """Completions in their order, as many as fit."""
        batches: list[list[int]] = []
        longest = 0
        for rollout, rows, first in _chosen(rollouts, chosen):
            for row in rows:
                length = len(rollout.prompt.tokens["input_ids"]) + int(rollout.lengths[row])
                longest = max(longest, length)
                if not batches or (len(batches[-1]) + 1) * longest > self.budget:
                    batches, longest = [*batches, []], length
                batches[-1].append(first + row)
        return [torch.tensor(batch) for batch in batches]

    def score(self, model: Any, inputs: VideoInputs, rollouts: Sequence[Rollout], numbers: Tensor) -> Scores:
        """One padded batch."""
        pieces = _pieces(model, rollouts, numbers)
        records, starts = [], []
        for rollout, rows, _ in pieces:
            for row in rows:
                records.append(extended(rollout.prompt, rollout.tokens[row, : rollout.lengths[row]]))
                starts.append(len(rollout.prompt.tokens["input_ids"]))
        # On the right and padded, also where the preprocessing packs.
        batch = VideoInputs.collate(inputs, records)
        device = records[0].tokens["input_ids"].device
        lengths = torch.tensor([len(record.tokens["input_ids"]) for record in records], device=device)[:, None]
        columns = torch.arange(int(lengths.max()), device=device)
        at = (columns >= torch.tensor(starts, device=device)[:, None] - 1) & (columns < lengths - 1)
        states, head = hidden_at(model, {**batch.to(device).model_inputs(), "use_cache": False}, at)
        return _scores(states, head, rollouts, pieces, len(numbers), self.chunk)


def score_all(
    scorer: Scorer, model: Any, inputs: VideoInputs, rollouts: Sequence[Rollout], chosen: Tensor | None = None
) -> Scores:
    """Scores of all completions without gradient, in as many forwards as the scorer splits them into.

    Args:
        scorer: Computes them.
        model: The model as it is: inside ``mllm4d.models.base.reference`` it is the reference.
        inputs: Its preprocessing.
        rollouts: The groups, N completions in all.
        chosen: [m] numbers of the completions that count; the rest stay 0.

    Returns:
        [N, T] each, on the model's device.
    """
    count = sum(len(rollout.lengths) for rollout in rollouts)
    longest = max(rollout.tokens.shape[1] for rollout in rollouts)
    log_probs = torch.zeros(count, longest, device=next(model.parameters()).device)
    entropy = torch.zeros_like(log_probs)
    with torch.no_grad():
        for numbers in scorer.split(rollouts, chosen):
            log_probs[numbers], entropy[numbers] = scorer.score(model, inputs, rollouts, numbers)
    return Scores(log_probs, entropy)


def shared_row(model: Any, inputs: VideoInputs, pieces: Sequence[Piece]) -> tuple[dict[str, Any], Tensor]:
    """Prompts and their completions as one row.

    A completion's last token is left out: nothing follows it.

    Args:
        model: The model.
        inputs: Its preprocessing.
        pieces: What goes in, in that order.

    Returns:
        Keyword arguments of the forward, and [S] where in the row the hidden states of all completion tokens, one after
        the other, come from: of each completion the prompt's last token, then its own but the last.

    Raises:
        InputError: A prompt's video placeholders are not as many as its features, or its images attend in both
            directions.
    """
    names = pieces[0].rollout.prompt.tokens
    tokens: dict[str, list[Tensor]] = {name: [] for name in names}
    positions, groups, sources = [], [], []
    place = 0
    for rollout, rows, _ in pieces:
        prompt = rollout.prompt
        inputs.check_features(prompt)
        if "token_type_ids" in prompt.tokens:
            raise InputError(
                f"question {prompt.id!r}: the model's images attend in both directions, which cannot share a row; name "
                "mllm4d.models.sharing.Plain"
            )
        length, lengths = len(prompt.tokens["input_ids"]), [int(rollout.lengths[row]) - 1 for row in rows]
        places = positions_after(model, inputs, prompt, max(lengths))
        for name in names:
            said = [rollout.tokens[row, :count] for row, count in zip(rows, lengths, strict=True)]
            tokens[name] += [prompt.tokens[name], *(s if name == "input_ids" else torch.zeros_like(s) for s in said)]
        positions += [places[..., :length], *(places[..., length : length + count] for count in lengths)]
        groups.append(Group(length, tuple(count for count in lengths if count) or (0,)))
        start = place + length
        for count in lengths:
            sources += [place + length - 1, *range(start, start + count)]
            start += count
        place = start
    layout = Layout(tuple(groups))
    device = positions[0].device
    attention = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in attention_inputs(layout, attention_of(model)).items()
    }
    row = {name: torch.cat(values)[None] for name, values in tokens.items()}
    vision = inputs.family.collate([piece.rollout.prompt.vision for piece in pieces])
    whole = torch.cat(positions, dim=-1).unsqueeze(-2)  # [1, L] or [4, 1, L]
    return {**row, "position_ids": whole, **vision, **attention, "use_cache": False}, torch.tensor(
        sources, device=device
    )


def _scores(
    states: Tensor, head: Any, rollouts: Sequence[Rollout], pieces: Sequence[Piece], count: int, chunk: int
) -> Scores:
    """Scores from hidden states [S, D] of the pieces' tokens, one completion after the other."""
    policy = _common_policy(pieces)
    rows = [(rollout, row, place) for rollout, rows, places in pieces for row, place in zip(rows, places, strict=True)]
    targets = torch.cat([rollout.tokens[row, : rollout.lengths[row]] for rollout, row, _ in rows])  # [S]
    found = token_log_probs_and_entropy(states, head, targets, chunk, policy.temperature, policy.banned)
    longest = max(rollout.tokens.shape[1] for rollout in rollouts)
    lengths = torch.tensor([int(rollout.lengths[row]) for rollout, row, _ in rows], device=states.device)
    place = torch.tensor([place for _, _, place in rows], device=states.device).repeat_interleave(lengths)
    column = torch.cat([torch.arange(length, device=states.device) for length in lengths])
    log_probs, entropy = (
        torch.zeros(count, longest, device=states.device).index_put((place, column), values)
        for values in (found[0], found[1].detach())
    )
    return Scores(log_probs, entropy)


def _common_policy(pieces: Sequence[Piece]) -> Policy:
    policies = {piece.rollout.policy for piece in pieces}
    if len(policies) > 1:
        raise ValueError("rollouts of different policies (temperature, banned tokens) cannot be scored together")
    return policies.pop()


def _chosen(rollouts: Sequence[Rollout], chosen: Tensor | None) -> Iterator[tuple[Rollout, list[int], int]]:
    """Each rollout with its chosen rows, in order, and the number of its first completion."""
    first = 0
    wanted = None if chosen is None else set(chosen.tolist())
    for rollout in rollouts:
        rows = [row for row in range(len(rollout.lengths)) if wanted is None or first + row in wanted]
        if rows:
            yield rollout, rows, first
        first += len(rollout.lengths)


def _pieces(model: Any, rollouts: Sequence[Rollout], numbers: Tensor) -> list[Piece]:
    """The numbers by their rollouts, on the model's device."""
    device = next(model.parameters()).device
    pieces: dict[int, Piece] = {}
    starts = [0]
    for rollout in rollouts:
        starts.append(starts[-1] + len(rollout.lengths))
    for place, number in enumerate(numbers.tolist()):
        group = next(n for n, start in enumerate(starts[1:]) if number < start)
        if group not in pieces:
            pieces[group] = Piece(rollouts[group].to(device), [], [])
        piece = pieces[group]
        piece.rows.append(number - starts[group])
        piece.places.append(place)
    return list(pieces.values())


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{name}: {value} is below 1")
    return value
