"""A user's own questions in JSON, JSON lines, CSV or Parquet, with their keys named in YAML.

For ``python -m mllm4d score -c my_suite.yaml answers.jsonl``::

    suite:
      class_path: mllm4d.bench.suites.custom.CustomSuite
      init_args:
        keys: {id: qid, question: prompt, options: choices, answer: gt, task: kind}
        response: output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm4d.answers import alike
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import lettered, number_of, text_of, truth_of
from mllm4d.bench.suites.records import CHOICE, EXACT, RELATIVE, BenchQuestion
from mllm4d.data.texts import BadRow, check_options, plain
from mllm4d.schema import InputError

KEYS: Mapping[str, str] = {
    "id": "id",
    "video": "video",
    "question": "question",
    "options": "options",
    "answer": "answer",
    "task": "task",
    "slice": "slice",
    "variants": "variants",
}
"""What a question needs, and the key under which it is looked for unless the user says otherwise."""


class CustomSuite(Suite):
    """The user's own questions; multiple choice where an entry has options, a number where it has none.

    Options may be letter to text, or a list of texts (with or without their letters); the answer may be the letter,
    the text, both, or the number that is asked for. ``task``, ``slice`` and ``variants`` may be missing.

    Args:
        files: The files of questions.
        videos: Folder of the videos.
        response: Key of the model's answer in answer files.
        own_prompt: Has no effect: there is no other prompt than ours.
        keys: Of ``id``, ``video``, ``question``, ``options``, ``answer``, ``task``, ``slice`` and ``variants`` those
            that the entries call otherwise, to what they call them.
        zero_based: The answer is the position of the right option, from 0, not its letter or text.
        whole_numbers: A number must be right exactly; otherwise it is scored by mean relative accuracy.
        task: Task of the entries that name none.
    """

    title = "the user's suite"
    needs = "see the keys 'files' and 'videos' of its configuration"

    def __init__(
        self,
        files: Sequence[str] = (),
        videos: str | None = None,
        response: str = "response",
        own_prompt: bool = False,
        keys: dict[str, str] | None = None,
        zero_based: bool = False,
        whole_numbers: bool = False,
        task: str = "all",
    ) -> None:
        super().__init__(files, videos, response, own_prompt)
        if unknown := [name for name in keys or {} if name not in KEYS]:
            raise InputError(f"suite: keys: {unknown[0]!r} is not one of {', '.join(KEYS)}")
        self.keys = {**KEYS, **(keys or {})}
        self.zero_based, self.whole_numbers, self.task = zero_based, whole_numbers, task

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One entry of the user's file."""
        keys = self.keys
        options = self._options(entry.get(keys["options"]))
        if keys["answer"] not in entry:
            raise InputError(f"lacks the key {keys['answer']!r}")
        whole = EXACT if self.whole_numbers else RELATIVE
        given = {name: text_of(entry, keys[name]) for name in ("task", "slice", "variants") if _has(entry, keys[name])}
        return BenchQuestion(
            id=text_of(entry, keys["id"]),
            video=text_of(entry, keys["video"]),
            question=text_of(entry, keys["question"]),
            options=options,
            right=self._right(entry[keys["answer"]], options) if options else frozenset(),
            value=None if options else number_of(entry, keys["answer"]),
            scoring=CHOICE if options else whole,
            task=given.get("task", self.task),
            slices=(given["slice"],) if "slice" in given else (),
            variants=given.get("variants"),
            entry=entry,
        )

    def _options(self, value: Any) -> dict[str, str]:
        if value is None or value == [] or value == {}:
            return {}
        if isinstance(value, Mapping):
            return check_options({str(key).strip(): plain(text) for key, text in value.items()})
        if isinstance(value, (list, tuple)):
            return check_options(lettered(value))
        raise InputError(f"key {self.keys['options']!r} is {value!r}, expected letter to text, or a list of texts")

    def _right(self, answer: Any, options: Mapping[str, str]) -> frozenset[str]:
        if not self.zero_based:
            return truth_of(answer, options)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
            raise BadRow("has an answer that is no position among its options")
        return alike(options, [chr(ord("A") + answer)])


def _has(entry: Mapping[str, Any], name: str) -> bool:
    return entry.get(name) not in (None, "")
