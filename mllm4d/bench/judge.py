"""A language model that is asked which option a text chooses, where rules cannot tell; it never sees the truth.

For the metric of a config, for example::

    metric:
      class_path: mllm4d.bench.metrics.MultipleChoiceAccuracy
      init_args:
        judge:
          class_path: mllm4d.bench.judge.LanguageModelJudge
          init_args: {model: Qwen/Qwen3-0.6B}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROMPT = """\
Somebody was asked a multiple-choice question. Say which option the reply chooses. Do not answer the question yourself.

Question: {question}
{options}

Reply: {said}

Say only the letter of the option that the reply chooses, or "none" if it chooses none of them or several."""

LONGEST = 2000
"""Characters of a reply that are shown: its end, where answers stand."""


class LanguageModelJudge:
    """Any causal language model of transformers, always taking the likeliest token.

    Args:
        model: Its folder, or its name on the Hugging Face hub.
        device: Where it runs.
        max_new_tokens: Longest judgement.
    """

    def __init__(self, model: str, device: str = "cpu", max_new_tokens: int = 8) -> None:
        self.model, self.device, self.max_new_tokens = model, device, max_new_tokens
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, said: str, question: str, options: Mapping[str, str]) -> str:
        """What the model says when asked; ``mllm4d.answers.read_or_judge`` reads it.

        Args:
            said: The reply.
            question: The wording.
            options: Letter to text.
        """
        import torch

        tokenizer, model = self._load()
        prompt = judge_prompt(said, question, options)
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            # Some models reason at length unless they are told not to; other templates pass over the setting.
            prompt = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        with torch.inference_mode():
            found = model.generate(**inputs, **settings)  # [1, T]
        return str(tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _load(self) -> tuple[Any, Any]:
        # Only when it is needed: most runs leave nothing that rules cannot read.
        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto").eval().to(self.device)
            self._loaded = AutoTokenizer.from_pretrained(self.model), model
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: copies of a metric load their own."""
        return {**self.__dict__, "_loaded": None}


def judge_prompt(said: str, question: str, options: Mapping[str, str]) -> str:
    """What the judge is asked."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return PROMPT.format(question=question, options=listed, said=said[-LONGEST:])
