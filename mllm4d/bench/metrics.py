"""Scores as torchmetrics: states are plain counts, so that any number of ranks adds up to the same result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mllm4d.answers import read_option
from mllm4d.schema import TASKS, Question


class MultipleChoiceAccuracy(Metric):
    """Accuracy per task, with the rate of answers that could not be read (they count as wrong)."""

    higher_is_better = True
    full_state_update = False
    count: Tensor
    right: Tensor
    invalid: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "right", "invalid"):
            self.add_state(name, torch.zeros(len(TASKS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str], questions: Sequence[Question]) -> None:
        """Score answers.

        Args:
            texts: What the model said.
            questions: The questions, in the same order.

        Raises:
            ValueError: The two differ in length.
        """
        if len(texts) != len(questions):
            raise ValueError(f"{len(texts)} answers for {len(questions)} questions")
        for text, question in zip(texts, questions, strict=True):
            task = TASKS.index(question.task)
            letter = read_option(text, question.options)
            self.count[task] += 1
            self.right[task] += letter == question.answer
            self.invalid[task] += letter is None

    def compute(self) -> dict[str, Tensor]:
        """Flat scores: ``accuracy`` and ``invalid`` over all questions and per task, ``accuracy_macro`` over tasks.

        Returns:
            Name to scalar tensor, shares in 0-1, only for tasks that occurred; per task ``accuracy/TASK``,
            ``invalid/TASK`` and ``count/TASK``.
        """
        seen = self.count > 0
        if not bool(seen.any()):
            return {}
        accuracy, invalid = self.right / self.count.clamp(min=1), self.invalid / self.count.clamp(min=1)
        scores = {
            "accuracy": self.right.sum() / self.count.sum(),
            "accuracy_macro": accuracy[seen].mean(),
            "invalid": self.invalid.sum() / self.count.sum(),
        }
        for k, task in enumerate(TASKS):
            if seen[k]:
                scores[f"accuracy/{task}"] = accuracy[k]
                scores[f"invalid/{task}"] = invalid[k]
                scores[f"count/{task}"] = self.count[k].float()
        return scores
