"""MLLM4D-Bench, made by ``python -m mllm4d curate``: the test split of our own shards.

The paper's MLLM4D-Bench (arXiv 2603.00515) was released as videos only, without questions; its six tasks are among our
seven. Its figure is the mean accuracy of the tasks; ``official`` gives it over the paper's six and over all seven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm4d import prompts
from mllm4d.answers import alike
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import CHOICE, BenchQuestion, Media, Scored
from mllm4d.bench.suites.summary import average, mean_by
from mllm4d.bench.suites.vlm4d import read_row
from mllm4d.data.formats import OURS, write_vlm4d
from mllm4d.schema import TASKS, InputError, Question

PAPER_TASKS = tuple(task for task in TASKS if task != "object_relative_direction")
"""The paper's six; the seventh is ours."""


class MLLM4DBench(Suite):
    """Questions of our own shards.

    Answer files hold entries of the VLM4D form, as ``write_released`` and the bench write them; the key ``mllm4d`` says
    the task. With ``shards`` an answer file may hold no more than ``id`` and ``response``.

    Args:
        files: Files of the VLM4D form in place of shards.
        videos: Folder of their videos.
        response: Key of the model's answer in answer files.
        own_prompt: Has no effect: the official prompt is ours.
        shards: Folder of shards with their ``index.json``.
        split: The split that is asked.
    """

    title = "MLLM4D-Bench"
    needs = "make it with `python -m mllm4d curate -c configs/curate/world.yaml`, or name its folder (key 'shards')"

    def __init__(
        self,
        files: Sequence[str] = (),
        videos: str | None = None,
        response: str = "response",
        own_prompt: bool = False,
        shards: str | None = None,
        split: str = "test",
    ) -> None:
        if shards is not None and files:
            raise InputError("suite: name 'shards' or 'files', not both")
        super().__init__(files, videos, response, own_prompt)
        self.shards, self.split = shards, split
        self._places: dict[str, tuple[Any, int]] = {}
        self._folder: Any = None

    def questions(self) -> tuple[BenchQuestion, ...]:
        """All questions of the split, or of the files.

        Raises:
            InputError: There is neither, or the split has no question.
        """
        if self.shards is None:
            return super().questions()
        if self._questions is None:
            # These bring torch along, which answer files do not need.
            from mllm4d.shards import read_index, read_shard

            found: dict[str, BenchQuestion] = {}
            for shard in read_index(Path(self.shards)).split(self.split):
                for number, sample in enumerate(read_shard(Path(self.shards) / shard.path)):
                    self._places[sample.key] = (shard, number)
                    for question in sample.questions:
                        if question.id in found:
                            raise InputError(f"{self.shards}/{shard.path}: question {question.id!r} is there twice")
                        found[question.id] = _record(question, sample.key)
            if not found:
                raise InputError(f"{self.shards}: the split {self.split!r} has no questions; {self.needs}")
            self._questions = tuple(found.values())
        return self._questions

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One entry of the VLM4D form, with our own record in it."""
        row = read_row(entry)
        if row.ours is None or row.id is None or "task" not in row.ours:
            raise InputError(f"lacks the key {OURS!r} (with 'task') or 'id', which our answer files have")
        if row.ours["task"] not in TASKS:
            raise InputError(f"key {OURS!r}: task {row.ours['task']!r} is not one of {', '.join(TASKS)}")
        return BenchQuestion(
            id=row.id,
            video=row.video,
            question=row.question,
            options=row.options,
            right=alike(row.options, row.answers),
            value=None,
            scoring=CHOICE,
            task=row.ours["task"],
            entry=entry,
        )

    def official_prompt(self, question: BenchQuestion) -> str:
        """Ours."""
        return prompts.with_options(question.question, dict(question.options), prompts.LETTER_INSTRUCTION)

    def official_score(self, question: BenchQuestion, text: str) -> float:
        """Ours."""
        return float(self.read_answer(question, text) in question.right)

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Mean accuracy over the paper's six tasks, all seven, and those in words, where all of them were asked."""
        tasks = mean_by(scored, lambda question: question.task)
        means = {
            "mean_of_six": average(tasks, PAPER_TASKS),
            "mean_of_seven": average(tasks, TASKS),
            "mean_in_words": average(tasks, tuple(prompts.LABELS)),
        }
        return {name: value for name, value in means.items() if value is not None}

    def media(self, question: BenchQuestion) -> Media:
        """The clip's video as bytes from its shard, or a file."""
        if self.shards is None:
            return super().media(question)
        from mllm4d.data.access import ShardFolder

        self.questions()
        if self._folder is None:
            self._folder = ShardFolder(self.shards)
        return Media(video=self._folder.read(*self._places[question.video]).video)

    def check(self) -> None:
        """See that the videos are there; shards hold their own."""
        if self.shards is None:
            super().check()
        else:
            self.questions()

    @property
    def released(self) -> bool:
        """Whether the questions themselves are at hand, beside any answer file."""
        return self.shards is not None or super().released


class MismatchedVideos(MLLM4DBench):
    """A control: the questions of our own shards, each shown with the video of another clip.

    Who answers from what is seen is at chance here; who is not has learned something of the questions. Clips are paired
    half the split apart, so that the same question always meets the same wrong video.
    """

    title = "MLLM4D-Bench with the videos of other clips"

    def media(self, question: BenchQuestion) -> Media:
        """The video of the other clip.

        Raises:
            InputError: There are no shards, or they hold one clip only.
        """
        if self.shards is None:
            raise InputError(f"{self.title}: name the folder of shards (key 'shards')")
        self.questions()
        keys = list(self._places)
        if len(keys) < 2:
            raise InputError(f"{self.shards}: the split {self.split!r} has one clip; expected another to show instead")
        other = keys[(keys.index(question.video) + len(keys) // 2) % len(keys)]
        return super().media(replace(question, video=other))


def _record(question: Question, key: str) -> BenchQuestion:
    return BenchQuestion(
        id=question.id,
        video=key,
        question=question.question,
        options=dict(question.options),
        right=alike(question.options, [question.answer]),
        value=None,
        scoring=CHOICE,
        task=question.task,
        entry=write_vlm4d(f"{key}.mp4", question),
    )
