"""Scores as torchmetrics over plain functions; any number of ranks gives the same result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mllm4d.answers import Judge, read_option, read_or_judge, read_states
from mllm4d.bench.answer_rows import AnswerMetric, pairs
from mllm4d.bench.scoring import Asked, center_errors, right_in_groups, right_options, variant_group
from mllm4d.bench.suites.numbers import mean_relative_accuracy, mean_relative_accuracy_inclusive, read_number
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.schema import TASKS, InputError, Question


class MultipleChoiceAccuracy(AnswerMetric):
    """Accuracy per task, with the rate of answers that could not be read (they count as wrong).

    Args:
        tasks: Names that ``question.task`` may have.
        judge: Asked about answers that rules cannot read; ``invalid`` still says how many those were.
    """

    def __init__(self, tasks: Sequence[str] = TASKS, judge: Judge | None = None) -> None:
        super().__init__(tasks, columns=3)
        self.judge = judge

    def update(self, texts: Sequence[str], questions: Sequence[Asked]) -> None:
        """Score answers.

        Args:
            texts: What the model said.
            questions: The questions, in the same order.

        Raises:
            ValueError: The two differ in length.
            InputError: A question's task has no name here.
        """
        for text, question in pairs(texts, questions):
            reading = read_or_judge(text, question.question, question.options, self.judge)
            right = reading.letter in right_options(question)
            self.add(question, [right, reading.letter is None or reading.judged, reading.judged])

    def compute(self) -> dict[str, Tensor]:
        """Flat scores: ``accuracy`` and ``invalid`` over all questions and per task, ``accuracy_macro`` over tasks.

        Returns:
            Name to scalar tensor, shares in 0-1, only for tasks that occurred; per task ``accuracy/TASK``,
            ``invalid/TASK`` and ``count/TASK`` (answers; they add up); with a judge also ``judged``, the share that it
            has read.
        """
        tasks, _, values = self.rows()
        if not tasks:
            return {}
        accuracy, invalid = self.means(tasks, values[:, 0], "accuracy"), self.means(tasks, values[:, 1], "invalid")
        scores = {**accuracy, "accuracy_macro": self.macro(accuracy, "accuracy"), **invalid, **self.counts(tasks)}
        if self.judge is not None:
            scores["judged"] = values[:, 2].mean()
        return self.finish(scores)


class GroupedAccuracy(AnswerMetric):
    """Accuracy over groups of variants of one question, such as turned options or symmetric videos.

    A group is right only if it is right in all its variants, or in ``needed`` of them.

    Args:
        needed: How many variants have to be right; None is all of them.
        tasks: Names that ``question.task`` may have.
    """

    main = "accuracy_grouped"

    def __init__(self, needed: int | None = None, tasks: Sequence[str] = TASKS) -> None:
        super().__init__(tasks)
        if needed is not None and needed < 1:
            raise InputError(f"GroupedAccuracy: needed is {needed}, expected 1 or more, or null for all")
        self.needed = needed

    def update(self, texts: Sequence[str], questions: Sequence[Asked], groups: Sequence[str] | None = None) -> None:
        """Score answers.

        Args:
            texts: What the model said.
            questions: The questions, in the same order; the variants of one question have ids of their own.
            groups: A name that the variants of one question share, likewise; None is ``variant_group``.

        Raises:
            ValueError: They differ in length.
            InputError: A question's task has no name here.
        """
        groups = [variant_group(question) for question in questions] if groups is None else groups
        if len(groups) != len(questions):
            raise ValueError(f"{len(groups)} groups for {len(questions)} questions")
        for (text, question), group in zip(pairs(texts, questions), groups, strict=True):
            self.add(question, [read_option(text, question.options) in right_options(question)], group)

    def compute(self) -> dict[str, Tensor]:
        """Flat scores over all and per task.

        Returns:
            ``accuracy_grouped``, ``accuracy`` (of single variants) and ``groups`` (how many count); ``groups_small``:
            groups of fewer variants than are needed, which do not count.
        """
        tasks, groups, values = self.rows()
        scores: dict[str, Tensor] = {}
        for name, chosen in [("", range(len(tasks))), *_by_task(tasks, self.tasks)]:
            if not chosen:
                continue
            right = values[list(chosen), 0].bool().tolist()
            share, count, small = right_in_groups(right, [groups[k] for k in chosen], self.needed)
            found = {"accuracy_grouped": share, "accuracy": sum(right) / len(right), "groups": count}
            for key, value in {**found, "groups_small": small}.items():
                if not math.isnan(value):
                    scores[key + name] = torch.tensor(float(value))
        return self.finish(scores)


class MeanRelativeAccuracy(AnswerMetric):
    """Mean relative accuracy of numeric answers, VSI-Bench's (Yang et al., arXiv 2412.14171, section 3).

    The share of the thresholds t = 0.5, 0.55, …, 0.95 with ``|value - truth| / |truth| < 1 - t``. A truth of 0 has no
    relative error: the value is right (1) where it is 0 as well, and else wrong (0).

    Args:
        tasks: Names that ``question.task`` may have.
        inclusive: Take ``<=`` in place of ``<``, as VSI-Bench's own code does in place of its paper's.
    """

    main = "mean_relative_accuracy"

    def __init__(self, tasks: Sequence[str], inclusive: bool = False) -> None:
        super().__init__(tasks, columns=2)
        self.inclusive = inclusive

    def update(self, texts: Sequence[str], questions: Sequence[BenchQuestion]) -> None:
        """Score answers.

        Args:
            texts: What the model said.
            questions: The questions, in the same order, each with a ``value``.

        Raises:
            ValueError: The two differ in length, or a question asks for no number.
            InputError: A question's task has no name here.
        """
        score = mean_relative_accuracy_inclusive if self.inclusive else mean_relative_accuracy
        for text, question in pairs(texts, questions):
            if question.value is None:
                raise ValueError(f"question {question.id!r} asks for no number")
            value = read_number(text)
            self.add(question, [0.0 if value is None else score(value, question.value), value is None])

    def compute(self) -> dict[str, Tensor]:
        """Flat scores over all and per task, ``mean_relative_accuracy_macro`` over tasks.

        Returns:
            ``mean_relative_accuracy`` and ``invalid``, each also as ``NAME/TASK``; ``count/TASK``.
        """
        tasks, _, values = self.rows()
        if not tasks:
            return {}
        scores = self.means(tasks, values[:, 0], self.main)
        macro = {f"{self.main}_macro": self.macro(scores, self.main)}
        return self.finish({**scores, **macro, **self.means(tasks, values[:, 1], "invalid"), **self.counts(tasks)})


class CenterError(AnswerMetric):
    """Distance of the camera's and the object's centres in the reasoning from the true ones, metres.

    A centre counts for the anchor that it is given for: a null never moves one to another anchor.

    Args:
        tasks: Names that ``question.task`` may have.
    """

    higher_is_better = False
    main = "center_error"

    def __init__(self, tasks: Sequence[str] = TASKS) -> None:
        super().__init__(tasks, columns=6)

    def update(self, texts: Sequence[str], questions: Sequence[Question]) -> None:
        """Score answers.

        Args:
            texts: What the model said.
            questions: The questions, in the same order, with their ``solution``.

        Raises:
            ValueError: The two differ in length.
            InputError: A question's task has no name here.
        """
        for text, question in pairs(texts, questions):
            states, row = read_states(text), []
            for kind in ("camera_center", "object_center"):
                errors = center_errors(getattr(states, kind, None), question.solution.get(kind))
                given = [error for error in errors if error is not None]
                row += [math.fsum(given), len(given), len(errors)]
            self.add(question, row)

    def compute(self) -> dict[str, Tensor]:
        """Flat scores over all and per task.

        Returns:
            ``center_error``, ``center_error_camera`` and ``center_error_object``: mean over the centres that are said,
            metres; ``center_missing``: share of the true centres for which none is said; ``count/TASK``: answers.
        """
        tasks, _, values = self.rows()
        if not tasks:
            return {}
        scores = self.counts(tasks)
        for name, columns in (("", (0, 3)), ("_camera", (0,)), ("_object", (3,))):
            total, given, wanted = (
                self.sums(tasks, values[:, [c + k for c in columns]].sum(1), f"center_error{name}") for k in range(3)
            )
            scores.update({key: total[key] / given[key] for key in total if given[key] > 0})
            if not name:
                missing = {key: 1 - given[key] / wanted[key] for key in wanted if wanted[key] > 0}
                scores.update({key.replace("center_error", "center_missing"): v for key, v in missing.items()})
        return self.finish(scores)


def _by_task(numbers: Sequence[int], names: Sequence[str]) -> list[tuple[str, list[int]]]:
    return [(f"/{names[t]}", [k for k, n in enumerate(numbers) if n == t]) for t in sorted(set(numbers))]
