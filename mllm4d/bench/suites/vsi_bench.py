"""VSI-Bench (Yang et al., "Thinking in Space", CVPR 2025, arXiv 2412.14171): rooms seen by walking through them.

Source: ``lmms_eval/tasks/vsibench/utils.py`` of the makers' repository vision-x-nyu/thinking-in-space and of
EvolvingLMMs-Lab/lmms-eval. The release is ``test.jsonl`` or ``test-00000-of-00001.parquet`` of the data set
``nyu-visionx/VSI-Bench`` (``id``, ``dataset``, ``scene_name``, ``question_type``, ``question``, ``options``,
``ground_truth``) with videos ``DATASET/SCENE.mp4``. The keys are known from its card and that code; the files
themselves were not at hand.

The official reading is the first word of an answer without its full stop; a number takes the mean relative accuracy
with ``<=`` at the thresholds 0.5, 0.55, …, 0.95, where the paper (section 3) writes ``<``; ours takes ``<``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import lettered, number_of, text_of, truth_of
from mllm4d.bench.suites.numbers import mean_relative_accuracy_inclusive
from mllm4d.bench.suites.records import CHOICE, RELATIVE, BenchQuestion, Scored
from mllm4d.bench.suites.summary import average, mean_by
from mllm4d.data.texts import check_options
from mllm4d.schema import InputError

DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
CHOICES = (*DIRECTIONS, "object_rel_distance", "route_planning", "obj_appearance_order")
NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")

FRAMES = "These are frames of a video."
ASK_NUMBER = "Please answer the question using a single word or phrase."
ASK_LETTER = "Answer with the option's letter from the given choices directly."


class VSIBench(Suite):
    """VSI-Bench: six kinds of multiple-choice questions and four that ask for a number."""

    title = "VSI-Bench"
    needs = "fetch test.jsonl and unpack arkitscenes.zip, scannet.zip and scannetpp.zip of nyu-visionx/VSI-Bench"

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released entry."""
        kind = text_of(entry, "question_type")
        if kind not in (*CHOICES, *NUMBERS):
            raise InputError(f"key 'question_type' is {kind!r}, expected one of {', '.join((*CHOICES, *NUMBERS))}")
        options: dict[str, str] = {}
        if kind in CHOICES:
            texts = entry.get("options")
            if not isinstance(texts, (list, tuple)):
                raise InputError(f"key 'options' is {texts!r}, expected a list of texts")
            options = check_options(lettered(texts))
        truth = text_of(entry, "ground_truth")
        return BenchQuestion(
            id=text_of(entry, "id"),
            video=f"{text_of(entry, 'dataset')}/{text_of(entry, 'scene_name')}.mp4",
            question=text_of(entry, "question"),
            options=options,
            right=truth_of(truth, options) if options else frozenset(),
            value=None if options else number_of(entry, "ground_truth"),
            scoring=CHOICE if options else RELATIVE,
            task=kind,
            slices=("multiple_choice" if options else "number", text_of(entry, "dataset")),
            entry=entry,
        )

    def official_prompt(self, question: BenchQuestion) -> str:
        """The prompt of the makers' code."""
        if not question.options:
            return "\n".join([FRAMES, question.question, ASK_NUMBER])
        options = [f"{letter}. {text}" for letter, text in question.options.items()]
        return "\n".join([FRAMES, question.question, "Options:", *options, ASK_LETTER])

    def official_score(self, question: BenchQuestion, text: str) -> float:
        """The first word: the letter, or the number's mean relative accuracy with ``<=``."""
        word = text.split(" ")[0].rstrip(".").strip()
        if question.options:
            return float(word.upper() in question.right)
        try:
            return mean_relative_accuracy_inclusive(float(word), question.value or 0.0)
        except ValueError:
            return 0.0

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Mean by question type, the three directions as one type, and ``overall``, the mean of the eight."""
        kinds = mean_by(scored, lambda question: question.task)
        direction = average(kinds, DIRECTIONS)
        if direction is not None:
            kinds = {name: value for name, value in kinds.items() if name not in DIRECTIONS}
            kinds["object_rel_direction"] = direction
        overall = average(kinds, ("object_rel_direction", *CHOICES[3:], *NUMBERS))
        return kinds if overall is None else {**kinds, "overall": overall}
