"""Finished clips of all workers to shards: questions are balanced over all clips of a split, then written."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm4d.curate.worker import read_sample, read_staged
from mllm4d.qa.balance import balance
from mllm4d.qa.blind import score_blind
from mllm4d.qa.generate import Candidate
from mllm4d.schema import Question, Sample
from mllm4d.shards import Shard, write_shards

NEED_SOLUTION = ("r1",)
"""Splits whose questions are rewarded for their centres, so that those must be known at both anchors."""


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        shards: Their index entries.
        counts: Questions of each split and task.
        answers: Questions of each task and right label, or half octave of the right distance.
        filters: How much was dropped, and why.
        blind: What solvers score that never see the video, over all splits.
    """

    shards: Sequence[Shard]
    counts: Mapping[str, Mapping[str, int]]
    answers: Mapping[str, Mapping[str, int]]
    filters: Mapping[str, int]
    blind: Mapping[str, Mapping[str, float | int]]


def merge(
    members: Mapping[str, Sequence[str]],
    staging: Path,
    folder: Path,
    per_clip: int,
    ratio: float,
    seed: int,
    clips_per_shard: int,
) -> Merged:
    """Choose the questions of every split and write its shards.

    Args:
        members: Split to the keys of its finished clips, in the order in which they shall stand.
        staging: Where the clips wait.
        folder: Where the shards go; it exists.
        per_clip: As in ``balance``.
        ratio: As in ``balance``.
        seed: As in ``balance``.
        clips_per_shard: Clips in a shard.

    Returns:
        What was written.
    """
    shards: list[Shard] = []
    counts, filters = {}, Counter[str]()
    asked: list[Question] = []
    folds: list[int] = []
    for split, keys in members.items():
        found: list[Candidate] = []
        for key in keys:
            clip = read_staged(staging, key)
            solved = [c for c in clip.candidates if split not in NEED_SOLUTION or _solved(c)]
            filters[f"split {split!r}: no solution"] += len(clip.candidates) - len(solved)
            found += solved
            filters.update(clip.dropped)
        balanced = balance(found, per_clip, ratio, seed)
        filters.update(balanced.dropped)
        by_clip: dict[str, list[Question]] = defaultdict(list)
        for question in balanced.questions:
            by_clip[question.id.rsplit("/", 1)[0]].append(question)
        filters["clip without a question"] += len(keys) - len(by_clip)
        counts[split] = dict(Counter(question.task for question in balanced.questions))
        asked += balanced.questions
        folds += balanced.folds
        shards += write_shards(_samples(keys, by_clip, staging), folder, split, clips_per_shard)
    return Merged(shards, counts, _answers(asked), dict(sorted((+filters).items())), score_blind(asked, folds))


def _solved(candidate: Candidate) -> bool:
    return candidate.object is None or candidate.solution["object_center"] is not None


def _answers(asked: Sequence[Question]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for task in dict.fromkeys(question.task for question in asked):
        values = [question.answer_value for question in asked if question.task == task]
        words = Counter(value for value in values if isinstance(value, str))
        octaves = Counter(math.floor(2 * math.log2(value)) for value in values if not isinstance(value, str) and value)
        lengths = {f"{2 ** (k / 2):.2g} to {2 ** ((k + 1) / 2):.2g} m": octaves[k] for k in sorted(octaves)}
        table[task] = dict(sorted(words.items())) | lengths
    return table


def _samples(keys: Sequence[str], by_clip: Mapping[str, list[Question]], staging: Path) -> Iterator[Sample]:
    for key in keys:
        if key in by_clip:
            yield read_sample(staging, key, tuple(by_clip[key]))
