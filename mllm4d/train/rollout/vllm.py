"""Rollouts by vLLM, for models with adapters: what is the same in this process and by a server, and the former.

Written against vLLM 0.33, whose own code reads our requests in a test where the package is at hand. It has not run with
a real engine yet: expect to adjust it, and watch the importance weights of the first steps, which should be near 1.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy, Rollout, policy_of
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.engine import check_sampling, finish, numbers_of, prompt_alone
from mllm4d.train.rollout.vllm_request import MODALITY, module_of, processed_items, sampling, visuals_of

ADAPTER = "policy"
"""The name under which vLLM knows what trains."""

Drawn = list[tuple[list[int], list[float]]]
"""Tokens and log-probabilities of each completion of a prompt."""


class VLLMEngine:
    """What both ways of using vLLM share.

    Args:
        max_new_tokens: Longest completion.
        temperature: Divides the logits.
        top_p: As in ``SharedRollout``.
        top_k: As there.
        adapter_folder: Where adapters are written for vLLM to read; a server must see it under the same path. None is
            a temporary folder.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_p: float | None = None,
        top_k: int | None = None,
        adapter_folder: str | None = None,
    ) -> None:
        check_sampling(max_new_tokens, top_p, top_k)
        self.max_new_tokens, self.temperature, self.top_p, self.top_k = max_new_tokens, temperature, top_p, top_k
        self.adapter_folder = adapter_folder
        self._version = 0

    def sync(self, model: Any) -> None:
        """Hand the adapter over, and reset what vLLM remembers of the one before.

        vLLM keeps keys and values of prompts by the adapter's name, and features of clips: both would be those of the
        old weights. Every version has a path of its own as well.

        Args:
            model: A PeftModel.

        Raises:
            InputError: The model has no adapters, or vLLM does not take them.
        """
        if not hasattr(model, "peft_config"):
            raise InputError("base.lora: vLLM is given the adapters after each step, and this model has none")
        if self.adapter_folder is None:
            self.adapter_folder = tempfile.mkdtemp(prefix="adapters-")
        self._version += 1
        path = Path(self.adapter_folder) / f"version-{self._version}"
        if rank_of() == 0:
            model.save_pretrained(str(path))
        _barrier()
        self.load_adapter(model, path)
        self.reset_caches()
        _barrier()
        if rank_of() == 0:
            shutil.rmtree(path.with_name(f"version-{self._version - 1}"), ignore_errors=True)

    def generate(
        self, model: Any, inputs: VideoInputs, prompts: Sequence[Encoded], group: int, seed: int, first: int = 0
    ) -> list[Rollout]:
        """Draw completions; see ``RolloutEngine``. A group's numbers are drawn as one: ``group`` matters too."""
        if not self._version:
            self.sync(model)
        policy = policy_of(model, inputs, self.temperature)
        numbers = numbers_of(prompts, group, first)
        params = [
            sampling(policy, self, group, seed, prompt_alone(prompt).id, own[0])
            for prompt, own in zip(prompts, numbers, strict=True)
        ]
        drawn = self.draw(inputs, prompts, params)
        device = next(model.parameters()).device
        full = self.top_k is None and self.top_p in (None, 1)
        rollouts = []
        for prompt, said in zip(prompts, drawn, strict=True):
            tokens, log_probs = padded(prompt.id, said, policy)
            rollouts.append(finish(inputs, prompt, tokens.to(device), log_probs.to(device), policy, full))
        return rollouts

    def load_adapter(self, model: Any, path: Path) -> None:
        """Let vLLM read the adapter at a path, in place of the one before."""
        raise NotImplementedError

    def reset_caches(self) -> None:
        """Let vLLM forget keys, values and features."""
        raise NotImplementedError

    def draw(self, inputs: VideoInputs, prompts: Sequence[Encoded], params: Sequence[dict[str, Any]]) -> list[Drawn]:
        """Completions of each prompt."""
        raise NotImplementedError


class ColocatedVLLM(VLLMEngine):
    """vLLM in the training process, on the same GPU.

    Args:
        model: Folder or hub name of the base model.
        engine: More arguments of ``vllm.LLM``, such as ``gpu_memory_utilization`` or ``max_model_len``.
        sampling: As in ``VLLMEngine``.
    """

    def __init__(self, model: str, engine: dict[str, Any] | None = None, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.model, self.engine = model, dict(engine or {})
        self._llm: Any = None

    def load_adapter(self, model: Any, path: Path) -> None:
        """Start vLLM where it does not run, and give it the adapter.

        Raises:
            InputError: The package vllm is missing, or the adapter is not taken.
        """
        vllm = module_of("vllm")
        if self._llm is None:
            size = model.peft_config["default"].r
            settings = {"enable_lora": True, "max_lora_rank": size, "limit_mm_per_prompt": {"image": 128, "video": 1}}
            # Log-probabilities after temperature and bans: those of the distribution that is drawn from.
            self._llm = vllm.LLM(self.model, **{**settings, "logprobs_mode": "processed_logprobs", **self.engine})
        if not self._llm.llm_engine.add_lora(self._adapter(path, load_inplace=True)):
            raise InputError(f"rollout engine: vLLM does not take the adapter at {path}")
        self._path = path

    def _adapter(self, path: Path, load_inplace: bool = False) -> Any:
        request = module_of("vllm.lora.request").LoRARequest
        return request(ADAPTER, 1, str(path), load_inplace=load_inplace)

    def reset_caches(self) -> None:
        """As in ``VLLMEngine``.

        Raises:
            InputError: The prefix cache is not reset.
        """
        if not self._llm.reset_prefix_cache():
            raise InputError("rollout engine: vLLM did not reset its prefix cache")
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def draw(self, inputs: VideoInputs, prompts: Sequence[Encoded], params: Sequence[dict[str, Any]]) -> list[Drawn]:
        """As in ``VLLMEngine``."""
        processed, vllm = module_of("vllm.inputs"), module_of("vllm")
        place = module_of("vllm.multimodal.inputs").PlaceholderRange
        engine = self._llm.llm_engine
        for number, (prompt, settings) in enumerate(zip(prompts, params, strict=True)):
            visuals = visuals_of(inputs, prompt)
            ready = processed.mm_input(
                prompt_token_ids=prompt.tokens["input_ids"].tolist(),
                mm_kwargs=processed_items(visuals),
                mm_hashes={MODALITY: list(visuals.hashes)},
                mm_placeholders={MODALITY: [place(offset=a, length=n) for a, n in visuals.ranges]},
            )
            engine.add_request(
                str(number), ready, vllm.SamplingParams(**settings), lora_request=self._adapter(self._path)
            )
        found: dict[str, Drawn] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    found[output.request_id] = [
                        (list(o.token_ids), [step[t].logprob for t, step in zip(o.token_ids, o.logprobs, strict=True)])
                        for o in sorted(output.outputs, key=lambda o: o.index)
                    ]
        return [found[str(number)] for number in range(len(prompts))]


def padded(id: str, drawn: Drawn, policy: Policy) -> tuple[Tensor, Tensor]:
    """Tokens [G, S] and log-probabilities [G, S].

    Raises:
        InputError: A completion is shorter than others, and has not ended.
    """
    longest = max(len(tokens) for tokens, _ in drawn)
    tokens = torch.full((len(drawn), longest), policy.ends[0])
    log_probs = torch.zeros(len(drawn), longest)
    for row, (said, values) in enumerate(drawn):
        if len(said) < longest and said[-1] not in policy.ends:
            raise InputError(
                f"question {id!r}: vLLM stopped a completion after {len(said)} tokens without an end token"
            )
        tokens[row, : len(said)], log_probs[row, : len(said)] = torch.tensor(said), torch.tensor(values)
    return tokens, log_probs


def rank_of() -> int:
    """This process's number; 0 where there is no other."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
