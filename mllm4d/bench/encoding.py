"""A clip's questions, or a question without its clip, to rows that are ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from mllm4d.bench.answering import Answering
from mllm4d.bench.clips import Clip, read_frames
from mllm4d.bench.rows import Option, Row
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.records import BenchQuestion
from mllm4d.models.batch import Batch, Encoded
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError


@dataclass(frozen=True)
class Encoding:
    """What came of some questions.

    Attributes:
        rows: Those that can be asked.
        faults: Number of each that cannot, and why.
    """

    rows: tuple[Row, ...]
    faults: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Encoder:
    """Encodes the questions of a suite for one model.

    Attributes:
        suite: The suite.
        questions: All of its questions.
        inputs: The model's preprocessing.
        answering: How they are answered.
        seconds_per_image: Time between the images of an image list.
    """

    suite: Suite
    questions: Sequence[BenchQuestion] = field(repr=False)
    inputs: VideoInputs
    answering: Answering
    seconds_per_image: float

    def clip(self, clip: Clip) -> Encoding:
        """Decode a clip once, and encode its questions.

        Args:
            clip: The clip.
        """
        inputs = self.inputs
        video = getattr(inputs.processor, "video_processor", None)
        fewest = 1 if inputs.family.as_images else getattr(video, "temporal_patch_size", 1)
        try:
            shown = read_frames(self.suite, self.questions, clip, inputs.sample, self.seconds_per_image, fewest)
        except InputError as error:
            return Encoding((), tuple((number, str(error)) for number in clip.questions))

        def encode(numbers: Sequence[int]) -> list[Row]:
            words, ids = [self._prompt(number) for number in numbers], [self.questions[n].id for n in numbers]
            records = inputs.encode(shown.pixels, shown.times, shown.fps, words, None, ids)
            return [self._row(number, record) for number, record in zip(numbers, records, strict=True)]

        try:
            return Encoding(tuple(encode(clip.questions)))
        except InputError as error:
            if len(clip.questions) == 1:
                return Encoding((), ((clip.questions[0], str(error)),))
        # One of them spoils the rest: each by itself.
        good: list[int] = []
        faults: list[tuple[int, str]] = []
        for number in clip.questions:
            try:
                encode([number])
                good.append(number)
            except InputError as error:
                faults.append((number, str(error)))
        return Encoding(tuple(encode(good)) if good else (), tuple(faults))

    def blind(self, number: int) -> Encoding:
        """Encode a question without its clip: the same words, and nothing to see.

        Args:
            number: Of the question.
        """
        try:
            prompt = text_prompt(self.inputs, self._prompt(number), self.questions[number].id)
            return Encoding((self._row(number, prompt),))
        except InputError as error:
            return Encoding((), ((number, str(error)),))

    def _prompt(self, number: int) -> str:
        return self.answering.prompt(self.suite, self.questions[number])

    def _row(self, number: int, prompt: Encoded) -> Row:
        question = self.questions[number]
        targets = self.answering.targets(question)
        if not targets:
            return Row(number, prompt)
        tokens = answer_tokens(self.inputs, self._prompt(number), list(targets.values()), question.id)
        options = [
            Option(key, said, max(1, self.answering.characters(question, key)))
            for key, said in zip(targets, tokens, strict=True)
        ]
        return Row(number, prompt, tuple(options))


class TextInputs(VideoInputs):
    """The same preprocessing for prompts without clips (``text_prompt``), of which families expect none.

    Args:
        inputs: The preprocessing.
    """

    def __init__(self, inputs: VideoInputs) -> None:
        super().__init__(inputs.processor, inputs.settings, inputs.family)

    def collate(self, encoded: Sequence[Encoded], side: str = "left") -> Batch:
        """Pad prompts on the left."""
        length = max(len(record.tokens["input_ids"]) for record in encoded)
        rows: dict[str, list[Tensor]] = {}
        for record in encoded:
            ids = record.tokens["input_ids"]
            for name, row in {**record.tokens, "attention_mask": torch.ones_like(ids)}.items():
                fill = self.tokenizer.pad_token_id if name == "input_ids" else 0
                rows.setdefault(name, []).append(torch.nn.functional.pad(row, (length - len(row), 0), value=fill))
        tokens = {name: torch.stack(found) for name, found in rows.items()}
        labels = torch.full_like(tokens["input_ids"], -100)
        return Batch(tuple(record.id for record in encoded), tokens, labels, {})


def answer_tokens(inputs: VideoInputs, prompt: str, targets: Sequence[str], id: str) -> list[Tensor]:
    """Tokens [n] of what may be said after a prompt, as in training, without what ends an answer.

    Args:
        inputs: The preprocessing.
        prompt: What the user says.
        targets: What the model may say.
        id: The question's, for messages.

    Raises:
        InputError: A text has no token.
    """
    chat = inputs.chat
    texts = chat.texts([prompt] * len(targets), targets, [id] * len(targets), torch.zeros(1, dtype=torch.float64))
    found = [torch.tensor(chat.until_end(ids)[:-1]) for ids in chat.tokens_of([text.answer for text in texts])]
    if not all(map(len, found)):
        raise InputError(f"question {id!r}: an option has no text")
    return found


def text_prompt(inputs: VideoInputs, prompt: str, id: str) -> Encoded:
    """A prompt as the model's chat template puts it, without any video.

    Args:
        inputs: The preprocessing.
        prompt: What the user says.
        id: The question's.

    Raises:
        InputError: The text holds a control token, or there is no template for it.
    """
    # Through the same check and template as with a video, of which a chat without one is a part.
    inputs.chat.texts([prompt], None, [id], torch.zeros(1, dtype=torch.float64))
    turns: list[dict[str, Any]] = []
    if inputs.settings.system is not None:
        turns.append({"role": "system", "content": [{"type": "text", "text": inputs.settings.system}]})
    turns.append({"role": "user", "content": [{"type": "text", "text": prompt}]})
    options = inputs.family.template_options
    try:
        rendered = inputs.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except (ValueError, TemplateError) as error:
        raise InputError(f"{error} (for a question without its video; 'model.text_only' asks for them)") from error
    ids = torch.tensor(inputs.chat.tokens(rendered))
    # The other tensors of a token are 0 on all text.
    names = getattr(inputs.processor, "model_input_names", ())
    more = {name: torch.zeros_like(ids) for name in ("mm_token_type_ids", "token_type_ids") if name in names}
    return Encoded(id, {"input_ids": ids, **more}, len(ids), {})
