"""Rollouts by a vLLM server, over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mllm4d.models.batch import Encoded
from mllm4d.models.inputs import VideoInputs
from mllm4d.schema import InputError
from mllm4d.train.rollout.vllm import ADAPTER, Drawn, VLLMEngine, rank_of
from mllm4d.train.rollout.vllm_request import encoded_items, generate_request, visuals_of


class VLLMServer(VLLMEngine):
    """A vLLM server, on other GPUs or machines.

    It has to be started with::

        VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-scale-out --enable-lora \
            --max-lora-rank R --logprobs-mode processed_logprobs --limit-mm-per-prompt '{"image": 128, "video": 1}'

    Such a server takes commands from whoever reaches it: keep it on a private network.

    Args:
        url: Where it is, such as ``http://localhost:8000``.
        timeout: Seconds to wait for an answer.
        parallel: Requests under way at once.
        sampling: As in ``VLLMEngine``.
    """

    def __init__(self, url: str, timeout: float = 600.0, parallel: int = 64, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.url, self.timeout, self.parallel = url.rstrip("/"), timeout, parallel

    def load_adapter(self, model: Any, path: Path) -> None:
        """As in ``VLLMEngine``; one rank does it for all."""
        if rank_of() == 0:
            body = {"lora_name": ADAPTER, "lora_path": str(path.resolve()), "load_inplace": True}
            self.post("/v1/load_lora_adapter", body)

    def reset_caches(self) -> None:
        """As in ``VLLMEngine``; one rank does it for all.

        Raises:
            InputError: The server does not do it.
        """
        if rank_of() != 0:
            return
        # It says no while a request still holds blocks.
        for pause in (0.1, 0.5, 2.0, 5.0, None):
            answer = self.post("/reset_prefix_cache", {})
            if answer.get("success", True):
                break
            if pause is None:
                raise InputError(f"{self.url}/reset_prefix_cache: the server did not reset its prefix cache")
            time.sleep(pause)
        for name in ("/reset_mm_cache", "/reset_encoder_cache"):
            self.post(name, {})

    def draw(self, inputs: VideoInputs, prompts: Sequence[Encoded], params: Sequence[dict[str, Any]]) -> list[Drawn]:
        """As in ``VLLMEngine``; prompts are asked in parallel."""

        def ask(prompt: Encoded, settings: dict[str, Any]) -> Drawn:
            visuals = visuals_of(inputs, prompt)
            body = generate_request(prompt, visuals, encoded_items(visuals), ADAPTER, settings)
            return read_choices(self.post("/inference/v1/generate", body), settings["n"], self.url)

        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(ask, prompts, params))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post JSON, and read JSON where the answer is some.

        Raises:
            InputError: The server is not there, or refuses.
        """
        where = self.url + path
        request = urllib.request.Request(where, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            hint = "; was the server started as VLLMServer says?" if error.code == 404 else ""
            raise InputError(f"{where}: answers {error.code}: {said}{hint}") from error
        except OSError as error:
            raise InputError(f"{where}: no answer from a vLLM server ({error})") from error
        try:
            found = json.loads(content) if content else {}
        except ValueError:
            found = {}  # some answers are a sentence
        return found if isinstance(found, dict) else {}


def read_choices(answer: dict[str, Any], group: int, where: str) -> Drawn:
    """Tokens and log-probabilities from a server's answer, in the order of the completions.

    Raises:
        InputError: It is not what was asked for.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        drawn = [
            ([int(token) for token in c["token_ids"]], [float(entry["logprob"]) for entry in c["logprobs"]["content"]])
            for c in choices
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: an answer without tokens or their log-probabilities ({error!r})") from error
    if len(drawn) != group or any(not tokens or len(tokens) != len(values) for tokens, values in drawn):
        raise InputError(f"{where}: an answer with other than {group} completions, or with an empty one")
    return drawn
