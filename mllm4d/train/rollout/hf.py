"""Rollouts by the training process itself, with the model as it is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mllm4d.models.base import pretrained
from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy, Rollout, policy_of, positions_after
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.cache import make_room
from mllm4d.train.rollout.engine import answering, check_sampling, finish, numbers_of, prompt_alone, uniforms


class SharedRollout:
    """Encodes a video and its prompt once for the whole group, then draws all completions of many prompts together.

    The keys and values of the prompts are computed once, from prompts padded on the left, and repeated for each
    completion; rows that have ended leave the batch. Positions are given explicitly, as in training.

    Args:
        max_new_tokens: Longest completion.
        temperature: Divides the logits; 1 is the model's own distribution.
        top_p: Draw only from the likeliest tokens that together have this probability; biases the ratio.
        top_k: Draw only from so many likeliest tokens; biases the ratio.
        max_rows: Most completions drawn together: prompts are taken so many at once, at least one.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        max_rows: int = 64,
    ) -> None:
        check_sampling(max_new_tokens, top_p, top_k)
        self.max_new_tokens, self.temperature, self.top_p, self.top_k = max_new_tokens, temperature, top_p, top_k
        self.max_rows = max_rows

    def sync(self, model: Any) -> None:
        """Nothing to do: the model itself answers."""

    def generate(
        self, model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], group: int, seed: int, first: int = 0
    ) -> list[Rollout]:
        """Draw completions; see ``RolloutEngine``."""
        policy = policy_of(model, inputs, self.temperature)
        numbers = numbers_of(prompts, group, first)
        at_once = max(1, self.max_rows // group)
        rollouts = []
        with answering(model):
            for start in range(0, len(prompts), at_once):
                some = [prompt_alone(prompt) for prompt in prompts[start : start + at_once]]
                noise = [
                    uniforms(seed, prompt.id, own, self.max_new_tokens)
                    for prompt, own in zip(some, numbers[start : start + at_once], strict=True)
                ]
                tokens, log_probs = self._draw(model, inputs, some, group, policy, torch.cat(noise))
                full = self.top_k is None and self.top_p in (None, 1)
                rollouts += [
                    finish(inputs, prompt, said, values, policy, full)
                    for prompt, said, values in zip(some, tokens.split(group), log_probs.split(group), strict=True)
                ]
        return rollouts

    def _draw(
        self,
        model: Any,
        inputs: VideoInputs,
        prompts: Sequence[Encoded],
        group: int,
        policy: Policy,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [R, S] and their log-probabilities, for R = prompts times group and noise [R, T]."""
        device = next(model.parameters()).device
        noise = noise.to(device)
        cutter = Drawer(policy, self.top_p, self.top_k, device)
        logits, cache, mask, places = prefill(model, inputs, prompts, self.max_new_tokens)
        alive = torch.arange(len(noise), device=device)  # [A], the rows that have not ended
        rows = alive // group
        cache.reorder_cache(rows)
        logits, mask, places = logits[rows], mask[rows], places[..., rows, :]
        # Where nothing is padded, a mask would say nothing, and cost as much as a layer at every step.
        padded = not bool(mask.all())
        tokens = torch.full(noise.shape, policy.ends[0], device=device)
        log_probs = torch.zeros(noise.shape, device=device)
        for step in range(noise.shape[1]):
            said, values = cutter(logits, noise[alive, step])
            tokens[alive, step], log_probs[alive, step] = said, values
            going = ~cutter.ends(said)
            if step + 1 == noise.shape[1] or not going.any():
                return tokens[:, : step + 1], log_probs[:, : step + 1]
            if not going.all():
                kept = going.nonzero()[:, 0]
                cache.reorder_cache(kept)
                alive, said, mask, places = alive[kept], said[kept], mask[kept], places[..., kept, :]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            output = model(
                input_ids=said[:, None],
                attention_mask=mask if padded else None,
                position_ids=places[..., step : step + 1],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
        raise AssertionError  # the last step returns


def prefill(
    model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], count: int
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Run prompts of any lengths once.

    Args:
        model: The model, in evaluation mode.
        inputs: Its preprocessing.
        prompts: The prompts, B of them.
        count: Tokens that may follow.

    Returns:
        Logits [B, V] of what follows; the cache; the attention mask [B, L]; positions [B, count] or [4, B, count] of
        what follows.

    Raises:
        InputError: The model gives no cache whose rows can be repeated.
    """
    device = next(model.parameters()).device
    batch = inputs.collate(prompts, side="left").to(device)
    length = batch.tokens["input_ids"].shape[1]
    lengths = [len(prompt.tokens["input_ids"]) for prompt in prompts]
    whole = [positions_after(model, inputs, prompt, count) for prompt in prompts]
    padded = [torch.nn.functional.pad(p, (length - own, 0)) for p, own in zip(whole, lengths, strict=True)]
    places = torch.stack(padded, dim=-2).to(device)  # [B, L + count] or [4, B, L + count]
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(pretrained(model).forward).parameters:
        options["logits_to_keep"] = 1
    output = model(**batch.model_inputs(), position_ids=places[..., :length], **options)
    cache = output.past_key_values
    if cache is None or not hasattr(cache, "reorder_cache"):
        raise InputError(
            f"{type(pretrained(model)).__name__} gives no cache whose rows can be repeated; name "
            "mllm4d.train.rollout.GenerateRollout"
        )
    return output.logits[:, -1], make_room(cache), batch.tokens["attention_mask"], places[..., length:]


class Drawer:
    """Draws tokens from logits by given random numbers.

    Args:
        policy: Temperature, banned and end tokens.
        top_p: As in ``SharedRollout``.
        top_k: As there.
        device: Of the logits.
    """

    def __init__(self, policy: Policy, top_p: float | None, top_k: int | None, device: torch.device) -> None:
        self.temperature, self.top_p, self.top_k = policy.temperature, top_p, top_k
        self.banned, self.end_ids = (torch.tensor(ids, device=device) for ids in (policy.banned, policy.ends))

    def __call__(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw by the inverse of the distribution function.

        Args:
            logits: [R, V].
            noise: [R] float64 in [0, 1).

        Returns:
            Tokens [R], and their log-probabilities [R] in float32, nats.
        """
        log_probs = self.log_probs(logits)
        sums = log_probs.double().exp().cumsum(-1)  # [R, V]
        # The first token whose sum is above the number; one without probability adds nothing, so it is never first.
        tokens = torch.searchsorted(sums, noise[:, None] * sums[:, -1:], right=True)
        return tokens[:, 0], log_probs.gather(1, tokens)[:, 0]

    def log_probs(self, logits: Tensor) -> Tensor:
        """[R, V] float32, of the distribution that is drawn from."""
        logits = logits.float() / self.temperature
        if len(self.banned):
            logits = logits.index_fill(1, self.banned, -torch.inf)
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            probs, order = logits.softmax(-1).sort(descending=True)
            # Those before which the likelier ones do not reach top_p yet.
            cut = (probs.cumsum(-1) - probs) >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), -torch.inf)
        return logits.log_softmax(-1)

    def ends(self, tokens: Tensor) -> Tensor:
        """[R] bool: whether these end a completion."""
        return torch.isin(tokens, self.end_ids)


class GenerateRollout:
    """Transformers' own ``generate`` with the prompt, and its video, repeated for every completion.

    For models whose cache cannot be repeated; several times the work of ``SharedRollout``.

    Args:
        max_new_tokens: Longest completion.
        temperature: Divides the logits.
        top_p: As in ``SharedRollout``.
        top_k: As there.
        max_rows: Most completions drawn together.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        max_rows: int = 64,
    ) -> None:
        check_sampling(max_new_tokens, top_p, top_k)
        self.max_new_tokens, self.temperature, self.top_p, self.top_k = max_new_tokens, temperature, top_p, top_k
        self.max_rows = max_rows

    def sync(self, model: Any) -> None:
        """Nothing to do: the model itself answers."""

    def generate(
        self, model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], group: int, seed: int, first: int = 0
    ) -> list[Rollout]:
        """Draw completions; see ``RolloutEngine``."""
        policy = policy_of(model, inputs, self.temperature)
        numbers = numbers_of(prompts, group, first)
        rows = [(prompt_alone(prompt), number) for prompt, own in zip(prompts, numbers, strict=True) for number in own]
        parts = []
        with answering(model):
            for start in range(0, len(rows), self.max_rows):
                parts.append(self._draw(model, inputs, rows[start : start + self.max_rows], policy, seed))
        longest = max(tokens.shape[1] for tokens, _ in parts)
        tokens, log_probs = (
            torch.cat([torch.nn.functional.pad(part[k], (0, longest - part[k].shape[1])) for part in parts])
            for k in (0, 1)
        )
        full = self.top_k is None and self.top_p in (None, 1)
        return [
            finish(inputs, prompt, said, values, policy, full)
            for prompt, said, values in zip(prompts, tokens.split(group), log_probs.split(group), strict=True)
        ]

    def _draw(
        self, model: Any, inputs: VideoInputs, rows: Sequence[tuple[Encoded, int]], policy: Policy, seed: int
    ) -> tuple[Tensor, Tensor]:
        from transformers import GenerationConfig, LogitsProcessorList

        device = next(model.parameters()).device
        batch = inputs.collate([prompt for prompt, _ in rows], side="left").to(device).model_inputs()
        noise = torch.cat([uniforms(seed, prompt.id, [number], self.max_new_tokens) for prompt, number in rows])
        choose = _Chosen(Drawer(policy, self.top_p, self.top_k, device), noise.to(device))
        # Greedy over logits that leave one token: what is drawn is decided by our own numbers, as in SharedRollout.
        settings = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(policy.ends),
            pad_token_id=inputs.tokenizer.pad_token_id,
        )
        tokens = model.generate(**batch, generation_config=settings, logits_processor=LogitsProcessorList([choose]))
        return tokens[:, batch["input_ids"].shape[1] :], torch.stack(choose.log_probs, dim=1)


class _Chosen:
    """A logits processor that draws by given numbers, and leaves what was drawn as the only token."""

    def __init__(self, drawer: Drawer, noise: Tensor) -> None:
        self.drawer, self.noise = drawer, noise
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, log_probs = self.drawer(scores, self.noise[:, len(self.log_probs)])
        self.log_probs.append(log_probs)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)
