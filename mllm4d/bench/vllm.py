"""Answers by vLLM, from the same tokens and pixels as ours.

It has not run with a real engine yet: the requests are those of ``mllm4d.train.rollout.vllm_request``, written against
vLLM 0.33. Expect to adjust it, and compare some answers with ``mllm4d.bench.answering.Generation`` first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mllm4d.bench.answering import Generation
from mllm4d.bench.prefix import Heads
from mllm4d.bench.rows import Answer, Row
from mllm4d.models.batch import Encoded
from mllm4d.models.completions import policy_of
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.engine import stream_seed
from mllm4d.train.rollout.vllm_request import MODALITY, module_of, processed_items, visuals_of


class VLLMGeneration(Generation):
    """As ``Generation``, by vLLM in this process, with weights of its own from a folder or hub name.

    vLLM computes a clip that several questions share once by itself, as long as its caches hold it. It is for Qwen3-VL,
    the only family whose requests are known to say the same to vLLM. The bench loads the model as well, so that both
    have to fit (``engine: {gpu_memory_utilization: 0.5}``).

    Args:
        model: Folder or hub name of the very model that ``model.base`` names; checkpoints and adapters have to be
            exported first.
        engine: More arguments of ``vllm.LLM``, such as ``max_model_len``.
        generation: As in ``Generation``.
    """

    own_weights = True

    def __init__(self, model: str, engine: dict[str, Any] | None = None, **generation: Any) -> None:
        super().__init__(**generation)
        self.model, self.engine = model, dict(engine or {})
        self.name = f"{self.name} by vLLM"
        self._llm: Any = None

    def describe(self) -> dict[str, Any]:
        """Also the engine: its answers may differ from ours where two tokens are nearly as likely."""
        return {**super().describe(), "engine": "vllm"}

    def answer(
        self, model: Any, inputs: VideoInputs, rows: Sequence[Row], done: Collection[int] = ()
    ) -> Iterator[list[Answer]]:
        """Hand all questions over at once, and give the answers as they come.

        Raises:
            InputError: The package vllm is missing, the model is of another family, or has adapters.
        """
        if hasattr(model, "peft_config"):
            raise InputError("answering: vLLM runs the exported model, and this one has adapters ('base.lora')")
        left = [row for row in rows if row.number not in done]
        # Before the engine starts, which takes a minute.
        settings = [self.settings_of(model, inputs, row.prompt) for row in left]
        engine: Any = self._start().llm_engine if left else None
        for row, params in zip(left, settings, strict=True):
            params_class = module_of("vllm").SamplingParams
            engine.add_request(str(row.number), self._request(inputs, row.prompt), params_class(**params))
        while engine is not None and engine.has_unfinished_requests():
            ended = [output for output in engine.step() if output.finished]
            if ended:
                yield [self._answer_of(inputs, int(output.request_id), output.outputs[0]) for output in ended]

    def decide(
        self, model: Any, inputs: VideoInputs, rows: Sequence[tuple[int, Row]], heads: Heads | None
    ) -> list[Answer]:
        """Batches are vLLM's own."""
        raise NotImplementedError

    def settings_of(self, model: Any, inputs: VideoInputs, prompt: Encoded) -> dict[str, Any]:
        """Arguments of vLLM's ``SamplingParams`` for a prompt.

        Raises:
            InputError: The model is of another family.
        """
        if prompt.vision:
            visuals_of(inputs, prompt)
        return {
            "n": 1,
            "temperature": self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": 0 if self.top_k is None else self.top_k,
            "seed": stream_seed(self.seed, prompt.id, 0) % 2**31 if self.temperature else None,
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": list(policy_of(model, inputs).ends),
            "repetition_penalty": 1.0,
            "detokenize": False,
        }

    def _start(self) -> Any:
        if self._llm is None:
            limits = {"limit_mm_per_prompt": {"image": 128, "video": 1}}
            # Otherwise vLLM takes penalties from the model's folder.
            self._llm = module_of("vllm").LLM(self.model, **{**limits, "generation_config": "vllm", **self.engine})
        return self._llm

    def _request(self, inputs: VideoInputs, prompt: Encoded) -> Any:
        tokens = prompt.tokens["input_ids"].tolist()
        if not prompt.vision:
            return {"prompt_token_ids": tokens}
        visuals = visuals_of(inputs, prompt)
        place = module_of("vllm.multimodal.inputs").PlaceholderRange
        return module_of("vllm.inputs").mm_input(
            prompt_token_ids=tokens,
            mm_kwargs=processed_items(visuals),
            mm_hashes={MODALITY: list(visuals.hashes)},
            mm_placeholders={MODALITY: [place(offset=start, length=length) for start, length in visuals.ranges]},
        )

    def _answer_of(self, inputs: VideoInputs, number: int, output: Any) -> Answer:
        said = list(output.token_ids)
        text = inputs.tokenizer.decode(said, skip_special_tokens=True)
        return Answer(number, text, {"tokens": len(said), "truncated": output.finish_reason == "length"})
