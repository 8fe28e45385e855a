"""Finished clips of all workers to shards: questions are balanced over all clips of a split, then written."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm4d.curate.worker import read_sample, read_staged
from mllm4d.qa.balance import LeakFree
from mllm4d.qa.bins import count_bins
from mllm4d.qa.blind import score_blind
from mllm4d.qa.generate import Candidate
from mllm4d.qa.options import Balanced, OptionMaker
from mllm4d.qa.twins import Kind, balance_twins, twin_key
from mllm4d.schema import Question
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


@dataclass(frozen=True)
class Merge:
    """How questions are chosen and written.

    Attributes:
        staging: Where the finished clips wait.
        options: Makes questions of candidates.
        twins: Split to the symmetric twins that its clips get.
        per_clip: As in ``OptionMaker``.
        ratio: As in ``OptionMaker``.
        seed: Every split and kind of twins has its own from it, see ``seed_of``.
        clips_per_shard: Clips in a shard.
    """

    staging: Path
    options: OptionMaker
    twins: Mapping[str, Sequence[Kind]]
    per_clip: int
    ratio: float
    seed: int
    clips_per_shard: int

    def __call__(self, members: Mapping[str, Sequence[str]], folder: Path) -> Merged:
        """Choose the questions of every split and write its shards.

        Args:
            members: Split to the keys of its finished clips, in the order in which they shall stand.
            folder: Where the shards go; it exists.
        """
        shards: list[Shard] = []
        counts, filters = {}, Counter[str]()
        asked: list[Question] = []
        folds: list[int] = []
        for split, keys in members.items():
            kinds = self.twins.get(split, ())
            made = self._choose(split, keys, kinds, filters)
            questions = [question for balanced in made for question in balanced.questions]
            by_clip: dict[str, list[Question]] = defaultdict(list)
            for question in questions:
                by_clip[question.id.rsplit("/", 1)[0]].append(question)
            filters["clip without a question"] += sum(key not in by_clip for key in keys)
            counts[split] = dict(Counter(question.task for question in questions))
            asked += questions
            folds += [fold for balanced in made for fold in balanced.folds]
            order = [name for key in keys for name in (key, *(twin_key(kind, key) for kind in kinds))]
            samples = (read_sample(self.staging, key, tuple(by_clip[key])) for key in order if key in by_clip)
            shards += write_shards(samples, folder, split, self.clips_per_shard)
        return Merged(shards, counts, count_bins(asked), dict(sorted((+filters).items())), score_blind(asked, folds))

    def _choose(self, split: str, keys: Sequence[str], kinds: Sequence[Kind], filters: Counter[str]) -> list[Balanced]:
        """The questions about the clips themselves, then those about each kind of twin."""
        balanced = self.options(self._read(split, keys, filters), self.per_clip, self.ratio, seed_of(self.seed, split))
        made = [balanced]
        for kind in kinds:
            twins = self._read(split, [twin_key(kind, key) for key in keys], filters)
            # The leak-free maker's caps on tasks and distances were applied to the originals.
            options = None if isinstance(self.options, LeakFree) else self.options
            seed = seed_of(self.seed, split, kind)
            made.append(balance_twins(balanced.questions, twins, self.per_clip, self.ratio, seed, options))
        for one in made:
            filters.update(one.dropped)
        return made

    def _read(self, split: str, keys: Sequence[str], filters: Counter[str]) -> list[Candidate]:
        found: list[Candidate] = []
        for key in keys:
            clip = read_staged(self.staging, key)
            solved = [c for c in clip.candidates if split not in NEED_SOLUTION or _solved(c)]
            filters.update(clip.dropped)
            filters[f"split {split!r}: no solution"] += len(clip.candidates) - len(solved)
            found += solved
        return found


def seed_of(seed: int, *names: str) -> int:
    """A seed for the questions of one split.

    Splits that drew alike would have the same wordings and orders of options beside the same answers: what a solver
    that never sees the video learns from one would help it in another.

    Args:
        seed: Of the run.
        names: The split, and the kind of its twins.
    """
    digest = hashlib.sha256("/".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _solved(candidate: Candidate) -> bool:
    return candidate.object is None or candidate.solution["object_center"] is not None
