"""A finished run as the page needs it, read from its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm4d.bench.report.fields import (
    BLIND_KEYS,
    RESULT_KEYS,
    SAMPLE_KEYS,
    SCORE_KEYS,
    SLICE_KEYS,
    TASK_KEYS,
    check,
    parse,
    read_text,
)
from mllm4d.schema import InputError

RESULTS, SAMPLES = "results.json", "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """One answered question, a line of ``samples.jsonl``.

    Attributes:
        id: The question's, unique in the suite.
        task: The group that it is counted in.
        video: What it is about; questions about one video are one cluster.
        question: The wording, without options.
        options: Key to text; empty where a number is asked for.
        right: Keys of the right options, or the true number.
        response: What the model said.
        read: The key or number that was read from it; None where it is invalid.
        score: Ours, 0-1.
        official: By the benchmark's own rule, 0-1, or None.
        invalid: Whether no answer could be read.
        prompt: What the user said after the video.
    """

    id: str
    task: str
    video: str
    question: str
    options: Mapping[str, str]
    right: Sequence[Any]
    response: str
    read: str | float | None
    score: float
    official: float | None
    invalid: bool
    prompt: str


@dataclass(frozen=True)
class Run:
    """A finished run: what ``results.json`` says, under the same names, and its answers.

    Attributes:
        folder: Where it lies.
        name: What the page calls it; unique on the page.
        suite: The benchmark's title.
        answering: The way of answering.
        model: The base model.
        checkpoint: Its checkpoint, or None.
        scores: ``n``, ``correct``, ``accuracy``, ``ci_low``, ``ci_high``, ``invalid``, ``slices``, ``official``, …
        tasks: Task to ``n``, ``accuracy``, ``ci_low``, ``ci_high``, ``invalid``; the task "all" is all of them.
        blind: Task to solver to ``n``, ``accuracy``, ``ci_low``, ``ci_high``, ``leaks``; the task "all" is all of them.
        warnings: Sentences.
        versions: Package to version.
        data_hash: Of the questions.
        settings: The resolved configuration.
        seconds: That answering took.
        samples: One a question.
    """

    folder: Path
    name: str
    suite: str
    answering: str
    model: str
    checkpoint: str | None
    scores: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    blind: Mapping[str, Mapping[str, Mapping[str, Any]]]
    warnings: Sequence[str]
    versions: Mapping[str, Any]
    data_hash: str
    settings: Mapping[str, Any]
    seconds: float
    samples: tuple[Sample, ...]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, in the order given.

    Args:
        folders: Each with ``results.json`` and ``samples.jsonl``.

    Raises:
        InputError: There is none, one is named twice, or a file is missing or is not what the bench writes.
    """
    if not folders:
        raise InputError("report: name at least one folder of a run")
    if twice := [folder for k, folder in enumerate(folders) if folder.resolve() in [f.resolve() for f in folders[:k]]]:
        raise InputError(f"{twice[0]}: named twice; expected different folders")
    ends = Counter(folder.resolve().name for folder in folders)
    return [read_run(f, f.resolve().name if ends[f.resolve().name] == 1 else f.as_posix()) for f in folders]


def read_run(folder: Path, name: str) -> Run:
    """Read one run.

    Args:
        folder: With ``results.json`` and ``samples.jsonl``.
        name: What the page calls it.

    Raises:
        InputError: A file is missing, is not what the bench writes, or the two do not belong together.
    """
    path = folder / RESULTS
    results = parse(read_text(path), str(path))
    check(results, RESULT_KEYS, str(path))
    check(results["scores"], SCORE_KEYS, f"{path}: 'scores'")
    for task, cell in results["tasks"].items():
        check(cell, TASK_KEYS, f"{path}: 'tasks' of {task!r}")
    for name, cell in results["scores"]["slices"].items():
        check(cell, SLICE_KEYS, f"{path}: 'scores.slices' of {name!r}")
    for task, row in results["blind"].items():
        check(row, {}, f"{path}: 'blind' of {task!r}")
        for solver, cell in row.items():
            check(cell, BLIND_KEYS, f"{path}: 'blind' of {solver!r} on {task!r}")
    samples = _samples(folder / SAMPLES)
    scores = results["scores"]
    mean = math.fsum(sample.score for sample in samples) / max(1, len(samples))
    if len(samples) != scores["n"] or abs(mean - scores["accuracy"]) > 1e-5:
        raise InputError(
            f"{folder / SAMPLES}: {len(samples)} questions with accuracy {mean:.6f}, but 'scores' of {path} says "
            f"{scores['n']} with {scores['accuracy']:.6f}: they are not of one run"
        )
    known = {key: results[key] for key in RESULT_KEYS if key != "n"}
    return Run(folder=folder, name=name, samples=samples, **known)


def _samples(path: Path) -> tuple[Sample, ...]:
    found: dict[str, Sample] = {}
    # Not ``splitlines``: what models say may hold other ends of lines, which JSON leaves as they are.
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        entry = parse(line, f"{path}: line {number}")
        check(entry, SAMPLE_KEYS, f"{path}: line {number}")
        if entry["id"] in found:
            raise InputError(f"{path}: line {number}: question {entry['id']!r} is there twice")
        found[entry["id"]] = Sample(**{key: entry[key] for key in SAMPLE_KEYS})
    return tuple(found.values())
