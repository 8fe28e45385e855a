"""The words of a question as a model's own chat template puts them, and where its answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mllm4d.schema import InputError


class Texts(NamedTuple):
    """One question as text.

    Attributes:
        head: What stands before the question's own text; the same for all questions of a clip.
        prompt: The question's own text, up to where the answer begins.
        answer: The answer with what the template writes after it; empty without a target.
    """

    head: str
    prompt: str
    answer: str


class Chat:
    """Renders and tokenises questions about one video.

    Args:
        processor: A Hugging Face processor with a chat template that knows videos.
        system: What the system says first; None leaves that to the template.
    """

    def __init__(self, processor: Any, system: str | None = None) -> None:
        self.processor, self.system = processor, system
        added = processor.tokenizer.added_tokens_decoder
        self.boundaries = {token.content for token in added.values()}
        self.controls = {number: token.content for number, token in added.items() if token.special}

    def texts(self, prompts: Sequence[str], targets: Sequence[str] | None, ids: Sequence[str]) -> list[Texts]:
        """Render questions.

        Args:
            prompts: What the user says after the video.
            targets: What the model should say, or None.
            ids: The questions' ids, for messages.

        Raises:
            InputError: A text holds a control token such as ``<|im_end|>``, or the template does not put the video
                first and then the question and the answer, each the same whatever follows.
        """
        texts = []
        answers: Sequence[str | None] = [None] * len(prompts) if targets is None else targets
        for prompt, target, id in zip(prompts, answers, ids, strict=True):
            # They would end a turn, or ask for a second video, in the middle of what is only text.
            if found := [token for token in self.controls.values() if token in f"{prompt}\0{target}"]:
                raise InputError(f"question {id!r}: its text holds the control token {found[0]!r}")
            text = self._render(prompt, None)
            full = text if target is None else self._render(prompt, target)
            if not full.startswith(text):
                raise InputError("the chat template renders a prompt differently when an answer follows it")
            cut = self._cut(text, prompt)
            texts.append(Texts(text[:cut], text[cut:], full[len(text) :]))
        if len({text.head for text in texts}) > 1:
            raise InputError("the chat template puts something of the question before the video")
        return texts

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of an answer with its end token; what a template writes after that is not the model's to say.

        Raises:
            InputError: The template ends the answer with no special token.
        """
        ids = self.tokens(answer)
        ends = [place for place, token in enumerate(ids) if token in self.controls]
        if not ends:
            raise InputError("the chat template ends an answer with no special token")
        return ids[: ends[0] + 1]

    def _render(self, prompt: str, target: str | None) -> str:
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        messages.append({"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]})
        if target is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None)

    def _cut(self, text: str, prompt: str) -> int:
        """Where the question's own text begins: after the last token before it that tokenisers split at anyway."""
        video = text.find(self.processor.video_token)
        start = text.find(prompt, video)
        before = [token for token in self.boundaries if token in text[:start]]
        cut = max((text.rfind(token, 0, start) + len(token) for token in before), default=0)
        if video < 0 or start < 0 or cut <= video:
            raise InputError("the chat template must put the video, and after it the question as it is")
        return cut
