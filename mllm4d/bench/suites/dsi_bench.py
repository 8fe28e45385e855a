"""DSI-Bench (Zhang et al., arXiv 2510.18873): camera and object both move; every video also mirrored and reversed.

Source: the README of the makers' repository SpatialVision/dsibench (inference and evaluation code), and a census of the
files in another public repository, which counts 1,769 rows in each of four variants. The release is
``metadatas/{std,hflip,reverse,reverse_hflip}.csv`` of the data set ``Viglong/DSI-Bench`` (``cate``, ``relative_path``,
``video_type``, ``question``, ``options``, ``GT``, ``others``) with videos ``videos/VARIANT/…``; row k of every file is
the same question in that variant. How ``options`` looks is known from the prompt's example alone ("A. Above B. Under"
and, by the census, parted by semicolons): both are read.

The official figures are the accuracy over all rows, and over groups: a question is right where at least three of its
four variants are. The official reading takes nothing but ``<answer>X</answer>``; the makers ask up to ten times more
where that is missing, which is not repeated here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import read_table, text_of, truth_of
from mllm4d.bench.suites.records import CHOICE, BenchQuestion, Scored
from mllm4d.bench.suites.summary import mean_by
from mllm4d.data.texts import check_options
from mllm4d.schema import InputError

VARIANTS = ("std", "hflip", "reverse", "reverse_hflip")
CATEGORIES = (
    "object, static camera",
    "object, moving camera",
    "camera, static scene",
    "camera, dynamic scene",
    "object-camera distance",
    "object-camera orientation",
)
"""By the number under ``cate``."""

NEEDED = 3
"""Variants that must be right for a question to be right."""

PROMPT = """You are a vision-language expert.
You are given a clip of video and your task is to answer a question about the video.
You only need to provide *ONE* correct answer selecting from the options listed below. 
For example, if you think the correct answer is 'A' from 'A. Above B. Under C. Front D. Behind', 
your response should **only** be '<answer>A</answer>'.
Please answer the question in this format strictly:
<answer>[A, B, C, or D]</answer>

Question:
{question} {options}"""  # noqa: W291  (the makers' blanks)

_ANSWER = re.compile(r"<answer>\s*([A-D])\s*</answer>", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|[\s;,])([A-Z])\s*[.:)]\s*")


class DSIBench(Suite):
    """DSI-Bench: each question in four variants that must agree with each other."""

    title = "DSI-Bench"
    needs = "fetch the folders metadatas and videos of the data set Viglong/DSI-Bench"

    def entries(self, path: Path) -> Iterable[Mapping[str, Any]]:
        """Rows with their variant (key ``aug``, else the file's name) and their place in it (key ``row``)."""
        seen: dict[str, int] = defaultdict(int)
        for row in read_table(path):
            variant = row.get("aug") or path.stem
            yield {"aug": variant, "row": seen[variant], **row}
            seen[variant] += 1

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released row."""
        variant, row = text_of(entry, "aug"), text_of(entry, "row")
        if variant not in VARIANTS:
            raise InputError(f"its variant (key 'aug', or the file's name) is {variant!r}, not {', '.join(VARIANTS)}")
        options = check_options(read_options(text_of(entry, "options")))
        category = text_of(entry, "cate")
        if category not in map(str, range(len(CATEGORIES))):
            raise InputError(f"key 'cate' is {entry['cate']!r}, expected a number from 0 to {len(CATEGORIES) - 1}")
        return BenchQuestion(
            id=f"{variant}/{row}",
            video=text_of(entry, "relative_path"),
            question=text_of(entry, "question"),
            options=options,
            right=truth_of(entry.get("GT"), options),
            value=None,
            scoring=CHOICE,
            task=CATEGORIES[int(category)],
            slices=(variant,),
            variants=row,
            entry=entry,
        )

    def path(self, question: BenchQuestion) -> str:
        """Its variant's file."""
        return f"{question.slices[0]}/{question.video}"

    def official_prompt(self, question: BenchQuestion) -> str:
        """The prompt of the makers' code."""
        return PROMPT.format(question=question.entry["question"], options=question.entry["options"])

    def official_score(self, question: BenchQuestion, text: str) -> float:
        """The first ``<answer>X</answer>``, and nothing else."""
        match = _ANSWER.search(text)
        return float(match is not None and match[1].upper() in question.right)

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Accuracy over rows and over groups; groups that lack a variant are counted, not scored."""
        groups: dict[str, list[Scored]] = defaultdict(list)
        for answer in scored:
            groups[str(answer.question.variants)].append(answer)
        whole = [answers for answers in groups.values() if {a.question.slices[0] for a in answers} == set(VARIANTS)]
        table: dict[str, Any] = {
            **{f"sample_wise_{k}": v for k, v in mean_by(scored, lambda q: "overall").items()},
            "sample_wise": mean_by(scored, lambda q: q.task),
            "groups": len(whole),
            "groups_incomplete": len(groups) - len(whole),
        }
        if whole:
            right = [sum(a.official or 0.0 for a in answers) >= NEEDED for answers in whole]
            table["group_wise_overall"] = round(sum(right) / len(right), 6)
            by_task: dict[str, list[bool]] = defaultdict(list)
            for answers, good in zip(whole, right, strict=True):
                by_task[answers[0].question.task].append(good)
            table["group_wise"] = {name: round(sum(v) / len(v), 6) for name, v in by_task.items()}
        return table


def read_options(text: str) -> dict[str, str]:
    """``A. left; B. right`` to letter and text; the letters must follow each other.

    Args:
        text: The column ``options``.
    """
    marks: list[re.Match[str]] = []
    for match in _OPTION.finditer(text):
        if match[1] == chr(ord("A") + len(marks)):
            marks.append(match)
    ends = [match.start() for match in marks[1:]] + [len(text)]
    return {m[1]: text[m.end() : end].strip().strip(";,").strip() for m, end in zip(marks, ends, strict=True)}
