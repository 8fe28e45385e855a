"""VLM4D (Zhou et al., ICCV 2025, arXiv 2508.02095): what moves where, in real and in synthetic videos.

Source of what is said here: the answer files and the evaluation code in the public repository GVCLab/MLLM-4D
(``evaluation/``), which follows VLM4D's own; the release is ``QA/real_mc.json``, ``QA/synthetic_mc.json`` and the
folders ``videos_real/{davis,ego4d,youtube-vos}`` and ``videos_synthetic`` of the Hugging Face data set
``shijiezhou/VLM4D``. Of those files parts were read, not all.

The official metric is a judge model that is shown the truth (``evaluation/evaluation.py``), which can credit empty
answers and depends on the judge. It is not run: ``official`` repeats our reading of the answers, split by split. The
paper's columns "directional" and "false positive" of the synthetic videos are not in the released files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mllm4d.answers import alike
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import text_of
from mllm4d.bench.suites.records import CHOICE, BenchQuestion, Scored
from mllm4d.data.formats import read_vlm4d
from mllm4d.data.rows import Row
from mllm4d.schema import InputError

PROMPT = """
Question: {question}
{options}

Do not generate any intermediate reasoning process. Answer directly with the option letter from the given choices.
"""
"""The direct-output prompt; how the options are joined is that of the evaluation code (``A: text``, one a line)."""

SPLITS = {"videos_real": "real", "videos_synthetic": "synthetic"}
VIEWS = {"ego4d": "egocentric", "davis": "exocentric", "youtube-vos": "exocentric"}
"""Where the real videos come from, and the paper's name for it."""

OTHER = "other"
"""The split of a video whose path does not tell."""


class VLM4D(Suite):
    """VLM4D, real and synthetic; several options may be right, where they share the right text."""

    title = "VLM4D"
    needs = "fetch QA/*.json and the folders videos_real and videos_synthetic of the data set shijiezhou/VLM4D"

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released entry; ids repeat between the splits, so that ours begin with the split."""
        row = read_row(entry)
        path = _released_path(row.video)
        split, view = split_of(path), VIEWS.get(PurePosixPath(path).parent.name)
        # Where the path does not tell the split, the video's name keeps equal ids apart.
        prefix = split if split != OTHER else PurePosixPath(path).stem
        return BenchQuestion(
            id=f"{prefix}/{row.id}",
            video=path,
            question=row.question,
            options=row.options,
            right=alike(row.options, row.answers),
            value=None,
            scoring=CHOICE,
            task=split,
            slices=(PurePosixPath(path).parent.name, view) if view else (),
            entry=entry,
        )

    def official_prompt(self, question: BenchQuestion) -> str:
        """The direct-output prompt."""
        options = "\n".join(f"{letter}: {text}" for letter, text in question.options.items())
        return PROMPT.format(question=question.question, options=options)

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Accuracy over all and by split, by our reading: the makers' judge is not run."""
        table: dict[str, Any] = {"judge": None}
        for name in ("overall", "real", "synthetic"):
            scores = [answer.score for answer in scored if name in ("overall", answer.question.task)]
            if scores:
                table[name] = round(sum(scores) / len(scores), 6)
        return table


def read_row(entry: Mapping[str, Any]) -> Row:
    """An entry of the VLM4D form.

    Raises:
        InputError: A key is missing, or holds what the form has not.
        BadRow: Its truth cannot be told.
    """
    for name in ("id", "video", "question"):
        text_of(entry, name)
    for name in ("choices", "answer"):
        if name not in entry:
            raise InputError(f"lacks the key {name!r}")
    if not isinstance(entry["choices"], Mapping):
        raise InputError(f"key 'choices' is a {type(entry['choices']).__name__}, expected letter to text")
    kind = entry.get("question_type", "multiple-choice")
    if kind != "multiple-choice":
        raise InputError(f"key 'question_type' is {kind!r}, expected 'multiple-choice'")
    (row,) = read_vlm4d(entry)
    return row


def split_of(path: str) -> str:
    """``real`` or ``synthetic`` by the folder in a video's path, or ``other``."""
    found = {SPLITS[part] for part in PurePosixPath(path).parts if part in SPLITS}
    return found.pop() if len(found) == 1 else OTHER


def _released_path(video: str) -> str:
    """A video's path in the release: what comes before is an address, or somebody's own folders."""
    path = video.strip().replace("\\", "/")
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    first = next((k for k, part in enumerate(parts) if part in SPLITS), None)
    return path if first is None else "/".join(parts[first:])
