"""Answers as rows of numbers, which any number of ranks can put together; each answer counts once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mllm4d.bench.scoring import Asked
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.schema import TASKS, InputError


class AnswerMetric(Metric):
    """Rows of answers, of which those that are there twice count once; its subclasses say what a row holds.

    Distributed samplers repeat questions, and strings do not sync: a row is known by a checksum of what it asks. Rows
    of one id that ask different things stay apart.

    Args:
        tasks: Names that ``question.task`` may have.
        columns: Values of a row.
    """

    higher_is_better = True
    full_state_update = False
    main = "accuracy"
    keys: list[Tensor]
    values: list[Tensor]

    def __init__(self, tasks: Sequence[str] = TASKS, columns: int = 1) -> None:
        super().__init__()
        self.tasks, self.columns = tuple(tasks), columns
        self.add_state("keys", [], dist_reduce_fx="cat")  # [n, 3]: checksums of question and group, task
        self.add_state("values", [], dist_reduce_fx="cat")  # [n, columns]
        self._start()

    def reset(self) -> None:
        """Forget all answers."""
        super().reset()
        self._start()

    def _start(self) -> None:
        # A rank without an answer has to send rows of the same type and width as the others.
        self.keys.append(torch.zeros(0, 3, dtype=torch.long, device=self.device))
        self.values.append(torch.zeros(0, self.columns, device=self.device))

    def add(self, question: Asked, values: Sequence[float], group: str = "") -> None:
        """Add one answer.

        Raises:
            InputError: The question's task has no name here.
        """
        if question.task not in self.tasks:
            raise InputError(f"metric: task {question.task!r} is not one of {', '.join(self.tasks)} (key 'tasks')")
        keys = [_checksum(_identity(question)), _checksum(group), self.tasks.index(question.task)]
        self.keys.append(torch.tensor([keys], device=self.device))
        self.values.append(torch.tensor([list(values)], dtype=torch.float32, device=self.device))

    def rows(self) -> tuple[list[int], list[int], Tensor]:
        """Task numbers, group checksums and values [n, columns] (float64, CPU) of the answers, each once."""
        keys, values = _cat(self.keys).cpu(), _cat(self.values).cpu().double()
        order = torch.argsort(keys[:, 0], stable=True)
        new = torch.ones(len(order), dtype=torch.bool)
        new[1:] = keys[order[1:], 0] != keys[order[:-1], 0]
        first = order[new].sort().values
        return keys[first, 2].tolist(), keys[first, 1].tolist(), values[first]

    def means(self, numbers: Sequence[int], values: Tensor, name: str) -> dict[str, Tensor]:
        """Mean of a column [n] over all answers and by task; NaN does not count.

        Args:
            numbers: Task number of each.
            values: The column.
            name: What it is called; by task ``NAME/TASK``.
        """
        tasks, scores = torch.tensor(numbers, dtype=torch.long), {name: values.nanmean()}
        for number in sorted(set(numbers)):
            scores[f"{name}/{self.tasks[number]}"] = values[tasks == number].nanmean()
        return {key: value for key, value in scores.items() if not bool(value.isnan())}

    def macro(self, scores: Mapping[str, Tensor], name: str) -> Tensor:
        """Mean over tasks of what ``means`` has found."""
        return torch.stack([value for key, value in scores.items() if key.startswith(f"{name}/")]).mean()

    def counts(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """``count/TASK``: how many answers; their sum is the number of all."""
        by_task = self.sums(numbers, torch.ones(len(numbers), dtype=torch.float64), "count")
        return {name: value for name, value in by_task.items() if name != "count"}

    def sums(self, numbers: Sequence[int], values: Tensor, name: str) -> dict[str, Tensor]:
        """Sum of a column over all answers and by task."""
        tasks, scores = torch.tensor(numbers, dtype=torch.long), {name: values.sum()}
        for number in sorted(set(numbers)):
            scores[f"{name}/{self.tasks[number]}"] = values[tasks == number].sum()
        return scores

    def finish(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The flat result: scalars of single precision on the metric's device."""
        return {name: value.float().to(self.device) for name, value in scores.items()}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the main figure over all and by task; needs matplotlib.

        Args:
            val: What ``compute`` or ``forward`` has returned, or several of it; None computes.
            ax: Axes of matplotlib to draw on.

        Returns:
            Figure and axes.
        """
        val = self.compute() if val is None else val
        several = [val] if isinstance(val, Mapping) else list(val)
        chosen = [{k: v for k, v in one.items() if k.split("/")[0] == self.main} for one in several]
        return self._plot(chosen[0] if isinstance(val, Mapping) else chosen, ax)


def pairs(texts: Sequence[str], questions: Sequence[Any]) -> list[tuple[str, Any]]:
    """Texts with their questions.

    Raises:
        ValueError: The two differ in length.
    """
    if len(texts) != len(questions):
        raise ValueError(f"{len(texts)} answers for {len(questions)} questions")
    return list(zip(texts, questions, strict=True))


def _identity(question: Asked) -> str:
    if isinstance(question, BenchQuestion):
        parts: tuple[Any, ...] = (question.video, sorted(question.right), question.value)
    else:
        parts = (question.answer, question.anchors, sorted(question.solution.items()))
    return repr((question.id, question.task, question.question, list(question.options.items()), *parts))


def _checksum(text: str) -> int:
    """64 bits that are the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _cat(parts: list[Tensor] | Tensor) -> Tensor:
    """A state as one tensor; after a sync it is one already."""
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
