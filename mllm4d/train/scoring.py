"""Rewards with weights and time limits: what completions score.

In YAML, with users' own functions (``mllm4d.train.rewards`` shows what one is) beside the paper's::

    rewards:
      - {name: accuracy, weight: 0.6, function: mllm4d.train.rewards.accuracy}
      - {name: mine, weight: 0.4, function: my_file.my_reward, seconds: 2}
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mllm4d.schema import InputError, Question
from mllm4d.train import rewards as paper
from mllm4d.train.time_limit import TimeLimited, number

RewardFunction = Callable[[str, Question], float | None]
"""From what the model said and the question to a number, or to None where it does not apply."""

OVER_TIME, NOT_FINITE = "over_time", "not_finite"
KINDS = (OVER_TIME, NOT_FINITE)
"""Ways in which a reward fails."""


@dataclass(frozen=True)
class Reward:
    """A reward and how much it counts.

    Attributes:
        name: What it is called in TensorBoard; unique.
        function: From what the model said and the question to a number, or to None where it does not apply.
        weight: Its factor in the sum; with 0 it is only shown.
        seconds: Longest time for one completion. With it the function runs in a process of its own, which is killed
            when the time is over; the reward then does not apply, and this is counted. None trusts the function.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    seconds: float | None = None
    _limited: TimeLimited | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InputError(f"reward {self.name!r}: 'weight' is {self.weight}; expected a finite number")
        if self.seconds is not None:
            limited = TimeLimited(self.function, self.seconds, f"reward {self.name!r}")
            object.__setattr__(self, "_limited", limited)

    def __call__(self, completion: str, question: Question) -> float | None:
        """Score a completion.

        Raises:
            TimeoutError: It took too long.
            InputError: The function raised something, or returned neither a number nor None.
        """
        if self._limited is not None:
            return self._limited(completion, question)
        try:
            return number(self.function(completion, question))
        except Exception as error:
            raise InputError(f"reward {self.name!r}: {type(error).__name__}: {error}") from error


class Scores(NamedTuple):
    """What N completions score on R rewards.

    Attributes:
        parts: [N, R] float64; NaN where a reward does not apply, took too long or is not finite.
        total: [N] float64; NaN where no reward with a weight is left.
        failures: How often a reward failed, by ``NAME/over_time`` and ``NAME/not_finite``.
    """

    parts: Tensor
    total: Tensor
    failures: Mapping[str, int]


def score(rewards: Sequence[Reward], completions: Sequence[str], questions: Sequence[Question]) -> Scores:
    """Score completions.

    The total is the weighted sum. Where a reward does not apply, the others' weights grow so that (by magnitude) they
    add up to the same: what does not apply neither costs nor gives anything, and totals keep their scale.

    Args:
        rewards: The rewards, no two of the same name.
        completions: N texts.
        questions: N questions, one for each completion.

    Returns:
        The scores.

    Raises:
        InputError: Two rewards have one name, none has a weight, or a reward's function fails.
    """
    names = [reward.name for reward in rewards]
    if len(set(names)) < len(names):
        raise InputError(f"rewards: names {', '.join(names)}; expected no two the same")
    weights = torch.tensor([reward.weight for reward in rewards], dtype=torch.float64)  # [R]
    if not weights.any():
        raise InputError("rewards: none has a weight; expected at least one")
    failures: Counter[str] = Counter()
    pairs = list(zip(completions, questions, strict=True))
    rows = [[_value(reward, text, question, failures) for reward in rewards] for text, question in pairs]
    parts = torch.tensor(rows, dtype=torch.float64).reshape(len(pairs), len(rewards))  # [N, R]
    return Scores(parts, weighted_sum(parts, weights), dict(failures))


def failure_sums(scores: Scores, rewards: Sequence[Reward]) -> dict[str, Tensor]:
    """How often each reward took too long or was not finite, for the log.

    Args:
        scores: Of N completions.
        rewards: What they were scored by.

    Returns:
        Name to [2] float64: failures and N, the same names on every rank.
    """
    kinds = [(reward.name, kind) for reward in rewards for kind in KINDS]
    counts = {f"reward_{kind}/{name}": scores.failures.get(f"{name}/{kind}", 0) for name, kind in kinds}
    return {name: torch.tensor([count, len(scores.total)], dtype=torch.float64) for name, count in counts.items()}


def weighted_sum(parts: Tensor, weights: Tensor) -> Tensor:
    """Add rewards up, what applies in place of what does not; see ``score``.

    Args:
        parts: [N, R], NaN where a reward does not apply.
        weights: [R].

    Returns:
        [N]; NaN where nothing with a weight applies.
    """
    applies = ~parts.isnan()  # [N, R]
    total = torch.where(applies, parts, 0.0) @ weights  # [N]
    present = applies.to(weights) @ weights.abs()  # [N]
    scale = torch.where(applies.all(1), 1.0, weights.abs().sum() / present)  # [N]
    return torch.where(present > 0, total * scale, torch.nan)  # [N]


def _value(reward: Reward, completion: str, question: Question, failures: Counter[str]) -> float:
    try:
        value = reward(completion, question)
    except TimeoutError as error:
        return _failed(f"{reward.name}/{OVER_TIME}", str(error), question, failures)
    if value is not None and not math.isfinite(value):
        return _failed(f"{reward.name}/{NOT_FINITE}", f"reward {reward.name!r} is {value}", question, failures)
    return math.nan if value is None else value


def _failed(name: str, reason: str, question: Question, failures: Counter[str]) -> float:
    failures[name] += 1
    if failures[name] == 1:  # the rest is in the count
        warnings.warn(f"{reason}, for question {question.id!r}; it does not apply there", stacklevel=4)
    return math.nan


PAPER_REWARDS = (
    Reward("accuracy", paper.accuracy, paper.WEIGHTS["accuracy"]),
    Reward("format", paper.answer_format, paper.WEIGHTS["format"]),
    Reward("camera", paper.camera_center, paper.WEIGHTS["camera"]),
    Reward("object", paper.object_center, paper.WEIGHTS["object"]),
)
"""The paper's reward (``mllm4d.train.rewards.paper_reward``) as rewards with weights."""
