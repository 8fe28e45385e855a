"""STI-Bench (Li et al., ICCV 2025, arXiv 2503.23765): distances, speeds and poses in desktop, indoor, outdoor videos.

Source: ``opensource_test.py`` of the makers' repository MINT-SJTU/STI-Bench. The release is ``qa.parquet`` (``Video``,
``ID``, ``time_start``, ``time_end``, ``Question``, ``Candidates`` (JSON text), ``Answer`` (letter), ``Task``,
``Scene``, …) and the folder ``video``. The keys are known from that code; the file itself was not at hand.

The official reading takes the first of six patterns that is found anywhere, else the whole answer, and then looks at
its last character: an answer that merely ends in a capital A counts as A. Kept as it is in ``official``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import number_of, text_of, truth_of
from mllm4d.bench.suites.records import CHOICE, BenchQuestion, Scored
from mllm4d.bench.suites.summary import mean_by
from mllm4d.data.texts import check_options, plain
from mllm4d.schema import InputError

PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"\(([A-E])\)",
        r"Ans\s*=\s*['\"]?([A-E])['\"]?",
        r"Answer\s*[:=]\s*([A-E])",
        r"Option\s+([A-E])",
        r"\b([A-E])\s*(?:is|was)\s*correct",
        r"\b([A-E])[\.\)]\s*$",
    )
)
"""The official patterns, in their order."""


class STIBench(Suite):
    """STI-Bench: five options about a stretch of a video."""

    title = "STI-Bench"
    needs = "fetch qa.parquet and the folder video of the data set MINT-SJTU/STI-Bench"

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released entry."""
        options = check_options(_candidates(entry))
        start, end = entry.get("time_start"), entry.get("time_end")
        scene = next((str(entry[name]) for name in ("Scene", "scene") if entry.get(name)), None)
        return BenchQuestion(
            id="|".join([text_of(entry, "Video"), text_of(entry, "ID"), str(start), str(end)]),
            video=text_of(entry, "Video"),
            question=text_of(entry, "Question"),
            options=options,
            right=truth_of(entry.get("Answer"), options),
            value=None,
            scoring=CHOICE,
            task=text_of(entry, "Task"),
            slices=() if scene is None else (scene,),
            span=(number_of(entry, "time_start"), number_of(entry, "time_end")),
            entry=entry,
        )

    def official_prompt(self, question: BenchQuestion) -> str:
        """The prompt of the makers' code for open models."""
        start, end = question.entry["time_start"], question.entry["time_end"]
        options = "\n".join(f"({letter}) {text}" for letter, text in question.options.items())
        ask = "Please output only the option letter!"
        return f"From {start} s to {end} s. {question.question}\n{options}\n{ask}"

    def our_prompt(self, question: BenchQuestion) -> str:
        """Ours, with the stretch of the video that the question is about."""
        start, end = question.entry["time_start"], question.entry["time_end"]
        return f"From {start} s to {end} s. {super().our_prompt(question)}"

    def official_score(self, question: BenchQuestion, text: str) -> float:
        """The official patterns, else the last character of the answer."""
        found = next((match[1].upper() for match in (p.search(text) for p in PATTERNS) if match), text.strip())
        return float(found[-1:] in question.right)

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Accuracy over all, by task and by scene."""
        tasks, scenes = (mean_by(scored, name) for name in (lambda q: q.task, lambda q: (*q.slices, "")[0]))
        scenes.pop("", None)
        return {**mean_by(scored, lambda q: "overall"), "tasks": tasks, "scenes": scenes}


def _candidates(entry: Mapping[str, Any]) -> dict[str, str]:
    """Letter to text, from a record or from JSON text."""
    value = entry.get("Candidates")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise InputError(f"key 'Candidates' is {entry.get('Candidates')!r}, expected letter to text")
    # Parquet gives every letter that any row has; those that this row lacks are null.
    return {str(letter).strip(): plain(text) for letter, text in value.items() if text is not None}
