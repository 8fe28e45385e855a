"""Scores of finished answer files, one JSON object a file, and the paired tests between them.

Beside every score stands what solvers make of the same questions that never see a video (``mllm4d.bench.blind``): under
``blind``, task to solver to its accuracy; what they score above chance is said under ``warnings``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mllm4d.bench.blind import blind_summary, blind_table
from mllm4d.bench.guesses import Say
from mllm4d.bench.suites import load_suite
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.paired import paired
from mllm4d.bench.suites.records import Answers, Scored
from mllm4d.schema import InputError

NAMED = 5
"""Unusable rows that are named, and warnings that are printed."""


@dataclass
class Score:
    """Score finished answer files: accuracy with its interval, invalid answers, groups, blind baselines, paired tests.

    Every answer is read by the same rules; what cannot be read is invalid and counts as wrong. No model judges.

    Attributes:
        files: Answer files in a released form, with the model's answer under ``response``: a list of JSON objects or
            JSON lines.
        suite: The benchmark: a short name (``vlm4d``, ``vsi_bench``, ``sti_bench``, ``dsi_bench``, ``ost_bench``,
            ``mllm4d``, ``custom``), or a class_path, with init_args where it needs settings.
        text_only: Answer file of a model that was shown no video, in the same form: a blind baseline beside the others.
    """

    files: list[str]
    suite: Suite | str = "vlm4d"
    text_only: str | None = None

    def run(self) -> list[dict[str, Any]]:
        """Print one JSON object a file, and with two files or more one with the paired tests, each on its own line.

        Returns:
            The same objects.

        Raises:
            InputError: A file is unusable or is named twice, the text-only answers lack one of its questions, or there
                is no such suite.
        """
        if twice := [file for k, file in enumerate(self.files) if file in self.files[:k]]:
            raise InputError(f"{twice[0]}: named twice; expected different answer files")
        suite = load_suite(self.suite) if isinstance(self.suite, str) else self.suite
        blindly = None if self.text_only is None else suite.answers(Path(self.text_only))
        runs, tables = {}, []
        for file in self.files:
            answers = suite.answers(Path(file))
            runs[file] = [suite.score(q, text) for q, text in zip(answers.questions, answers.texts, strict=True)]
            say = None if blindly is None else _recall(blindly, str(self.text_only), answers, file)
            blind = blind_summary(blind_table(answers.questions, say=say))
            table = {"file": file, "suite": suite.title, **suite.summary(runs[file]), **_rest(answers), **blind}
            tables.append(table)
            _warn(file, answers, blind["warnings"])
        if len(runs) > 1:
            tables.append({"paired": compare(runs)})
            for pair in tables[-1]["paired"]:
                if pair["n"] == 0:
                    print(f"note: {pair['a']} and {pair['b']} have no question in common", file=sys.stderr)
        # Only now: a bad last file leaves no half of a table behind.
        for table in tables:
            print(json.dumps(table, ensure_ascii=False))
        return tables


def compare(runs: Mapping[str, Sequence[Scored]]) -> list[dict[str, Any]]:
    """Every two runs on the questions that both answered, matched by id.

    Args:
        runs: File to scored answers.

    Returns:
        For each pair the figures of ``paired``, with ``a`` and ``b``, the files.

    Raises:
        InputError: Two files ask different things under one id.
    """
    return [{"a": a, "b": b, **_compare(a, runs[a], b, runs[b])} for a, b in combinations(runs, 2)]


def _compare(a: str, first: Sequence[Scored], b: str, second: Sequence[Scored]) -> dict[str, Any]:
    by_id = {answer.question.id: answer for answer in second}
    both = [(answer, by_id[answer.question.id]) for answer in first if answer.question.id in by_id]
    for one, other in both:
        if one.question.question != other.question.question:
            raise InputError(
                f"{b}: question {one.question.id!r} is {other.question.question!r}, in {a} it is "
                f"{one.question.question!r}: they are not answers to the same questions"
            )
    return {"only_a": len(first) - len(both), "only_b": len(second) - len(both), **paired(both)}


def _recall(blindly: Answers, where: str, answers: Answers, file: str) -> Say:
    """A model that has answered already."""
    said = {question.id: text for question, text in zip(blindly.questions, blindly.texts, strict=True)}
    if lacking := [question.id for question in answers.questions if question.id not in said]:
        raise InputError(
            f"{where}: has no answer to question {lacking[0]!r}; {len(lacking)} of {len(answers.questions)} questions "
            f"of {file} are not in it"
        )
    return lambda prompts: [said[question.id] for question in answers.questions]


def _rest(answers: Answers) -> dict[str, int]:
    """What was not counted."""
    return {"repeated": answers.repeated, "unusable": len(answers.unusable), "missing": answers.missing}


def _warn(file: str, answers: Answers, leaks: Sequence[str]) -> None:
    for row in answers.unusable[:NAMED]:
        print(f"note: left out: {row}", file=sys.stderr)
    for leak in leaks[:NAMED]:
        print(f"warning: {file}: {leak}", file=sys.stderr)
    if answers.missing:
        print(f"note: {file}: {answers.missing} questions of the release have no answer", file=sys.stderr)
