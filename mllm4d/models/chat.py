"""The words of a question as a model's own chat template puts them, and where its answer begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import TemplateError
from torch import Tensor

from mllm4d.models.families import Family
from mllm4d.models.families.family import alike
from mllm4d.schema import InputError


class Texts(NamedTuple):
    """One question as text.

    Attributes:
        rendered: The whole prompt as the template puts it, with the video's marker.
        prompt: The question's own text, from after the last special token before it to where the answer begins.
        answer: The answer with what the template writes after it; empty without a target.
    """

    rendered: str
    prompt: str
    answer: str


class Chat:
    """Renders and tokenises questions about one video.

    Args:
        processor: A Hugging Face processor with a chat template.
        family: The model's family.
        system: What the system says first; None leaves that to the template.

    Raises:
        InputError: The processor takes no videos.
    """

    def __init__(self, processor: Any, family: Family, system: str | None = None) -> None:
        self.processor, self.family, self.system = processor, family, system
        self.marker = family.marker(processor)
        added = processor.tokenizer.added_tokens_decoder
        # Tokenisers split at these anyway.
        self.boundaries = {token.content for token in added.values()} | {self.marker}
        self.controls = {number: token.content for number, token in added.items() if token.special}

    def texts(
        self, prompts: Sequence[str], targets: Sequence[str] | None, ids: Sequence[str], times: Tensor
    ) -> list[Texts]:
        """Render questions about one clip.

        Args:
            prompts: What the user says after the video.
            targets: What the model should say, or None.
            ids: The questions' ids, for messages.
            times: [T] seconds, of the frames that are used.

        Raises:
            InputError: A text holds a control token such as ``<|im_end|>``, there is no template, it refuses the chat,
                or it does not put the video first and then the question and the answer, each the same whatever follows.
        """
        texts, heads = [], set()
        note, content = self.family.note(times), self.family.content(times)
        answers: Sequence[str | None] = [None] * len(prompts) if targets is None else targets
        other = cache(lambda sign: self._render(content, sign, None))
        for prompt, target, id in zip(prompts, answers, ids, strict=True):
            # They would end a turn, or ask for a second video, in the middle of what is only text.
            if found := [token for token in (*self.controls.values(), self.marker) if token in f"{prompt}\0{target}"]:
                raise InputError(f"question {id!r}: its text holds the control token {found[0]!r}")
            words = f"{note}\n{prompt}" if note else prompt
            text = self._render(content, words, None)
            answer = "" if target is None else self.family.answer(text, self._render(content, words, target), target)
            cut = self._cut(text, words, sum(item["type"] != "text" for item in content), other)
            after = self.family.after_video if text[:cut].endswith(self.marker) else ""
            texts.append(Texts(text, after + text[cut:], answer))
            heads.add(text[:cut])
        if len(heads) > 1:
            raise InputError("the chat template puts something of the question before the video")
        return texts

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        return self.tokens_of([text])[0]

    def tokens_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of pieces of text, each by itself; together they are quicker."""
        full = [text for text in texts if text]
        ids = iter(self.processor.tokenizer(full, add_special_tokens=False)["input_ids"] if full else ())
        return [next(ids) if text else [] for text in texts]

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of an answer with its end token; see ``until_end``."""
        return self.until_end(self.tokens(answer))

    def until_end(self, answer: Sequence[int]) -> list[int]:
        """An answer's token ids with its end token; what a template writes after that is not the model's to say.

        Raises:
            InputError: The template ends the answer with no special token.
        """
        ends = [place for place, token in enumerate(answer) if token in self.controls]
        if not ends:
            raise InputError("the chat template ends an answer with no special token")
        return list(answer[: ends[0] + 1])

    def _render(self, content: list[dict[str, Any]], words: str, target: str | None) -> str:
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": words}]})
        if target is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
        try:
            return self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=target is None, **self.family.template_options
            )
        except (ValueError, TemplateError) as error:
            raise InputError(f"the chat template of {type(self.processor).__name__}: {error}") from error

    def _cut(self, text: str, words: str, markers: int, other: Callable[[str], str]) -> int:
        """Where the question's own text begins: after the last token before it that tokenisers split at anyway."""
        if text.count(self.marker) != markers:
            raise InputError(
                f"the chat template writes {self.marker!r} {text.count(self.marker)} times for {markers} of them"
            )
        # Not by looking for the words: "a" is also in "<|video_pad|>". Where a question that begins with another sign
        # makes a difference, this one begins.
        start = alike(text, other("1" if words.strip().startswith("0") else "0"))
        # Some templates take blanks off both ends.
        there = text.startswith((words, words.strip()), start) and text.rfind(self.marker) + len(self.marker) <= start
        before = [token for token in self.boundaries if token in text[:start]]
        cut = max((text.rfind(token, 0, start) + len(token) for token in before), default=0)
        if not there or cut <= text.rfind(self.marker):
            raise InputError("the chat template must put the video, and after it the question as it is")
        return cut
