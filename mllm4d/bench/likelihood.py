"""Answers by comparing the options: which one the model finds likeliest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm4d import prompts
from mllm4d.bench.answering import Answering
from mllm4d.bench.decoding import option_sums
from mllm4d.bench.prefix import Heads
from mllm4d.bench.rows import Answer, Row
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError


class Likelihood(Answering):
    """The option that the model finds likeliest, as lm-evaluation-harness does it with ``multiple_choice``.

    There (EleutherAI/lm-evaluation-harness, ``lm_eval/api/task.py``, ``ConfigurableTask``, as of commit 0004883) an
    option's log-likelihood is the sum over its tokens after the prompt, without the token that would end the answer
    and, with a chat template, without a delimiter; ``acc`` takes the largest sum, ``acc_norm`` the largest sum divided
    by the number of characters of the option. Here it is ``acc_norm``, of equal ones the first. The sums (nats) and the
    characters are kept with every answer, from which ``acc`` can be had as well.
    """

    def describe(self) -> dict[str, Any]:
        """The kind, and what the sums are divided by."""
        return {"kind": self.name, "divided_by": "characters"}

    def check(self, suite: Suite, questions: Sequence[BenchQuestion]) -> None:
        """Every question has options.

        Raises:
            InputError: One asks for a number.
        """
        if bare := [question for question in questions if not question.options]:
            raise InputError(
                f"answering: {len(bare)} of {len(questions)} questions of {suite.title} have no options to compare, "
                f"first {bare[0].id!r}; take mllm4d.bench.answering.Generation"
            )

    def decide(
        self, model: Any, inputs: VideoInputs, rows: Sequence[tuple[int, Row]], heads: Heads | None
    ) -> list[Answer]:
        """Read the prompts, and weigh what may follow."""
        said = [[option.tokens for option in row.options] for _, row in rows]
        sums = option_sums(model, inputs, [(clip, row.prompt) for clip, row in rows], said, heads)
        answers = []
        for (_, row), values in zip(rows, sums, strict=True):
            scores = [value / option.characters for value, option in zip(values, row.options, strict=True)]
            best = row.options[scores.index(max(scores))].key
            kept = {option.key: round(value, 6) for value, option in zip(values, row.options, strict=True)}
            characters = {option.key: option.characters for option in row.options}
            answers.append(Answer(row.number, best, {"log_likelihood": kept, "characters": characters}))
        return answers


class LetterLikelihood(Likelihood):
    """The likeliest letter after the suite's own prompt; letters are all one character long.

    Args:
        batch_size: Most questions that are answered together.
    """

    name = "likelihood of letters"

    def check(self, suite: Suite, questions: Sequence[BenchQuestion]) -> None:
        """Every question has options with letters.

        Raises:
            InputError: One asks for a number, or its options are shown without letters.
        """
        super().check(suite, questions)
        for question in questions:
            if bad := [key for key in question.options if not key.isalpha()]:
                raise InputError(
                    f"answering: question {question.id!r} of {suite.title} shows its options without letters "
                    f"({bad[0]!r} is none); take mllm4d.bench.likelihood.TextLikelihood"
                )

    def targets(self, question: BenchQuestion) -> Mapping[str, str]:
        """The letters."""
        return {key: key for key in question.options}


class TextLikelihood(Likelihood):
    """The option whose text is likeliest, for its length, after our own prompt, which asks for the text.

    Args:
        delimiter: Before the text; it does not count as a character of it. A model that was trained on
            ``mllm4d.prompts.text`` begins with a blank.
        batch_size: Most questions that are answered together.
    """

    name = "likelihood of option texts (per character)"

    def __init__(self, delimiter: str = "", batch_size: int = 16) -> None:
        super().__init__(batch_size)
        self.delimiter = delimiter

    def describe(self) -> dict[str, Any]:
        """Also what goes before the text."""
        return {**super().describe(), "delimiter": self.delimiter}

    def prompt(self, suite: Suite, question: BenchQuestion) -> str:
        """Our prompt, asking for the text."""
        return suite.our_prompt(question).replace(prompts.LETTER_INSTRUCTION, prompts.TEXT_INSTRUCTION)

    def targets(self, question: BenchQuestion) -> Mapping[str, str]:
        """The texts."""
        return {key: self.delimiter + text for key, text in question.options.items()}

    def characters(self, question: BenchQuestion, key: str) -> int:
        """Without the delimiter."""
        return len(question.options[key])
