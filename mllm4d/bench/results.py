"""What comes of a run: ``results.json``, ``results.md``, ``samples.jsonl`` and ``answers.jsonl``."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mllm4d.bench.blind import ALL, blind_summary, blind_table
from mllm4d.bench.journal import DETAILS, write_whole
from mllm4d.bench.statistics import interval
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion, Scored
from mllm4d.bench.suites.summary import count
from mllm4d.bench.table import markdown, numbers

PACKAGES = ("mllm4d", "torch", "transformers", "peft", "lightning", "tokenizers", "av", "numpy")
"""Packages whose versions are noted."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        suite: The benchmark.
        questions: Those that were to be asked.
        prompts: What the user said, one a question.
        answers: Question id to the journal's line.
        unseen: Likewise, without the clips; None where that was not asked.
        answering: Name of the way of answering.
        model: Folder or hub name of the base.
        checkpoint: The checkpoint, or None.
        settings: All that decided the answers.
        data_hash: SHA-256 of the questions.
        notes: Sentences that the reader should know.
        seconds: That answering took.
    """

    suite: Suite
    questions: tuple[BenchQuestion, ...]
    prompts: tuple[str, ...]
    answers: Mapping[str, Mapping[str, Any]]
    unseen: Mapping[str, Mapping[str, Any]] | None
    answering: str
    model: str
    checkpoint: str | None
    settings: Mapping[str, Any]
    data_hash: str
    notes: tuple[str, ...]
    seconds: float


def write_results(folder: Path, outcome: Outcome) -> tuple[dict[str, Any], str]:
    """Score a run and write its files, each beside its place and renamed.

    Args:
        folder: Where they go.
        outcome: The run.

    Returns:
        What ``results.json`` holds, and the Markdown of ``results.md``.
    """
    key = outcome.suite.response
    pairs = [(q, p) for q, p in zip(outcome.questions, outcome.prompts, strict=True) if q.id in outcome.answers]
    lines = [outcome.answers[question.id] for question, _ in pairs]
    scored = [outcome.suite.score(q, line[key]) for (q, _), line in zip(pairs, lines, strict=True)]
    results = results_of(outcome, scored)
    samples = [sample_of(answer, prompt, line) for answer, (_, prompt), line in zip(scored, pairs, lines, strict=True)]
    table = markdown(results)
    write_whole(folder / "answers.jsonl", _json_lines(lines))
    write_whole(folder / "samples.jsonl", _json_lines(samples))
    write_whole(folder / "results.md", table)
    write_whole(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, default=str) + "\n")
    return results, table


def results_of(outcome: Outcome, scored: Sequence[Scored]) -> dict[str, Any]:
    """What ``results.json`` holds.

    Args:
        outcome: The run.
        scored: Its answers, in the order of the questions.
    """
    scores, tasks = outcome.suite.summary(scored), task_rows(scored)
    questions = [answer.question for answer in scored]
    blind: dict[str, Any] = {"blind": {}, "warnings": []}
    if questions:
        blind = blind_summary(blind_table(questions, say=_say(outcome, questions)))
    return {
        "suite": outcome.suite.title,
        "model": outcome.model,
        "checkpoint": outcome.checkpoint,
        "answering": outcome.answering,
        "n": len(scored),
        "seconds": round(outcome.seconds, 3),
        "scores": scores,
        "tasks": tasks,
        "flat": flat(scores, tasks),
        "blind": blind["blind"],
        "warnings": [*_missing(outcome, scored), *outcome.notes, *blind["warnings"]],
        "versions": versions(),
        "data_hash": outcome.data_hash,
        "settings": dict(outcome.settings),
    }


def task_rows(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """``n``, ``correct``, ``accuracy``, ``invalid``, ``ci_low``, ``ci_high``, ``ci_method`` of each task, and ``all``.

    Args:
        scored: Answers, each question once.
    """
    tasks: dict[str, list[Scored]] = defaultdict(list)
    for answer in scored:
        tasks[answer.question.task].append(answer)
    rows = {}
    for name, answers in [*tasks.items(), (ALL, list(scored))]:
        low, high, method = interval([a.score for a in answers], [a.question.video for a in answers])
        bounds = {"ci_low": round(low, 6), "ci_high": round(high, 6), "ci_method": method}
        rows[name] = {**count(answers), **bounds}
    return rows


def flat(scores: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """All figures under one name each, for loggers.

    Args:
        scores: Of ``Suite.summary``.
        tasks: Of ``task_rows``.
    """
    names = [name for name in tasks if name != ALL]
    figures = {name: scores[name] for name in ("accuracy", "ci_low", "ci_high", "invalid_rate", "n")}
    if names:
        figures["accuracy_macro"] = round(sum(tasks[name]["accuracy"] for name in names) / len(names), 6)
    for name in names:
        row = tasks[name]
        figures[f"accuracy/{name}"] = row["accuracy"]
        figures[f"invalid/{name}"] = round(row["invalid"] / row["n"], 6)
        figures[f"count/{name}"] = row["n"]
    figures.update({f"official/{name}": value for name, value in numbers(scores["official"])})
    return {name: float(value) for name, value in figures.items()}


def sample_of(answer: Scored, prompt: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``samples.jsonl``: the question, and the answer with what it is worth.

    Args:
        answer: The answer.
        prompt: What the user said after the video.
        line: The journal's.
    """
    question = answer.question
    details = {name: value for name, value in line[DETAILS].items() if name not in ("id", "seconds")}
    return {
        "id": question.id,
        "task": question.task,
        "slices": list(question.slices),
        "video": question.video,
        "question": question.question,
        "options": dict(question.options),
        "right": sorted(question.right) if question.options else [question.value],
        "prompt": prompt,
        "response": answer.text,
        "read": answer.read,
        "score": answer.score,
        "official": answer.official,
        "invalid": answer.invalid,
        **details,
    }


def versions() -> dict[str, str]:
    """Version of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _say(outcome: Outcome, questions: Sequence[BenchQuestion]) -> Any:
    """What the model answered without the clips; None where it was not asked, or not everything."""
    unseen, key = outcome.unseen, outcome.suite.response
    if unseen is None or any(question.id not in unseen for question in questions):
        return None
    # The very prompts that came with the videos, in place of those that are handed over.
    return lambda prompts: [str(unseen[question.id][key]) for question in questions]


def _missing(outcome: Outcome, scored: Sequence[Scored]) -> Iterator[str]:
    if len(scored) < len(outcome.questions):
        yield f"only {len(scored)} of {len(outcome.questions)} questions have an answer"
    if failed := [line[DETAILS] for line in outcome.answers.values() if "error" in line[DETAILS]]:
        yield f"{len(failed)} questions could not be asked and count as invalid, first {failed[0]['error']}"


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
