"""Ways of answering, and the usual one: what the model says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mllm4d.bench.decoding import say
from mllm4d.bench.prefix import Heads, read_heads, read_on, read_whole
from mllm4d.bench.rows import Answer, Row, batches
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.models.completions import policy_of
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.engine import answering, uniforms


class Answering(ABC):
    """A way of answering; a new one is a class in the user's own file, named by its ``class_path``.

    Attributes:
        name: What results call it.
        own_weights: It runs a model from a folder: what a checkpoint changes would not be asked.

    Args:
        batch_size: Most questions that are answered together.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(self, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise InputError(f"answering: batch_size: {batch_size} is below 1")
        self.batch_size = batch_size
        self._shares = True

    name: str
    own_weights: bool = False

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that decides the answers, plain JSON values; ``batch_size`` does not."""

    def check(self, suite: Suite, questions: Sequence[BenchQuestion]) -> None:  # noqa: B027  (most have nothing to say)
        """See that the questions can be answered in this way, before anything slow begins.

        Raises:
            InputError: They cannot.
        """

    def prompt(self, suite: Suite, question: BenchQuestion) -> str:
        """What the user says after the video."""
        return suite.prompt(question)

    def targets(self, question: BenchQuestion) -> Mapping[str, str]:
        """Key and text of everything that may be said, where the options are compared; empty otherwise."""
        return {}

    def characters(self, question: BenchQuestion, key: str) -> int:
        """What the log-likelihood of an option is divided by; see ``Likelihood``."""
        return len(self.targets(question)[key])

    def answer(
        self, model: Any, inputs: VideoInputs, rows: Sequence[Row], done: Collection[int] = ()
    ) -> Iterator[list[Answer]]:
        """Answer questions, batch by batch.

        The questions about a clip stay together, clips of like length come together; which questions those are depends
        on ``rows`` alone, whatever is done already.

        Args:
            model: The model, with or without adapters.
            inputs: Its preprocessing.
            rows: The questions.
            done: Numbers of those that need no answer any more.

        Yields:
            The answers of a batch.
        """
        for groups in batches(rows, self.batch_size):
            left = [[row for row in group if row.number not in done] for group in groups]
            left = [group for group in left if group]
            if left:
                # Only around the work: whoever takes the answers finds everything as it was.
                with answering(model), float32_by_default():
                    answers = self._answer(model, inputs, left)
                yield answers

    def _answer(self, model: Any, inputs: VideoInputs, groups: Sequence[Sequence[Row]]) -> list[Answer]:
        """The answers to the questions about some clips."""
        rows = [(clip, row) for clip, group in enumerate(groups) for row in group]
        heads = None
        if self._shares and len(rows) > len(groups):
            heads = read_heads(model, inputs, [[row.prompt for row in group] for group in groups])
            self._shares = heads is not None
        found: list[Answer] = []
        for start in range(0, len(rows), self.batch_size):
            some = rows[start : start + self.batch_size]
            found += self.decide(model, inputs, some, heads)
        return found

    @abstractmethod
    def decide(
        self, model: Any, inputs: VideoInputs, rows: Sequence[tuple[int, Row]], heads: Heads | None
    ) -> list[Answer]:
        """Answer one batch.

        Args:
            model: The model, in evaluation mode.
            inputs: Its preprocessing.
            rows: Number of the clip in ``heads``, and the question.
            heads: The clips as they have been read; None where each prompt is read by itself.
        """


class Generation(Answering):
    """The model answers in words: always the likeliest token, unless a temperature is set.

    Args:
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token, as transformers' ``generate(do_sample=False)`` does without penalties;
            above 0 tokens are drawn, from seeds of the question's own.
        top_p: Draw only from the likeliest tokens that together have this probability.
        top_k: Draw only from so many likeliest tokens.
        seed: Of the drawing.
        batch_size: Most questions that are answered together.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__(batch_size)
        if max_new_tokens < 1:
            raise InputError(f"answering: max_new_tokens: {max_new_tokens} is below 1")
        if temperature < 0:
            raise InputError(f"answering: temperature: {temperature} is below 0")
        if temperature == 0 and (top_p is not None or top_k is not None):
            raise InputError("answering: top_p and top_k say nothing without a temperature above 0")
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.top_p, self.top_k, self.seed = top_p, top_k, seed
        self.name = f"generation ({f'temperature {temperature:g}' if temperature else 'greedy'})"

    def describe(self) -> dict[str, Any]:
        """The settings of the drawing."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
        drawn = names if self.temperature else names[:2]
        return {"kind": "generation", **{name: getattr(self, name) for name in drawn}}

    def decide(
        self, model: Any, inputs: VideoInputs, rows: Sequence[tuple[int, Row]], heads: Heads | None
    ) -> list[Answer]:
        """Read the prompts, then a token a step until all have ended."""
        ids = [row.prompt.id for _, row in rows]
        noise = None
        if self.temperature:
            noise = torch.cat([uniforms(self.seed, id, [0], self.max_new_tokens) for id in ids])  # [R, T]
        policy = policy_of(model, inputs, self.temperature or 1.0)
        asked = [(clip, row.prompt) for clip, row in rows]
        read = read_on(model, inputs, heads, asked, self.max_new_tokens) if heads else None
        read = read or read_whole(model, inputs, [prompt for _, prompt in asked], self.max_new_tokens)
        tokens = say(model, read, policy, self.max_new_tokens, noise, self.top_p, self.top_k)
        answers = []
        for (_, row), said in zip(rows, tokens.tolist(), strict=True):
            end = next((place for place, token in enumerate(said) if token in policy.ends), None)
            whole = said if end is None else said[: end + 1]
            text = inputs.tokenizer.decode(whole, skip_special_tokens=True)
            answers.append(Answer(row.number, text, {"tokens": len(whole), "truncated": end is None}))
        return answers


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Makes new tensors float32: Lightning's ``bf16-true`` would round the pixels before the model has seen them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
