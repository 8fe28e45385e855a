"""Rollouts by vLLM, as far as they can be tried without it: requests, and a stand-in server over real HTTP.

The stand-in is no vLLM, but it answers with a real model: it rebuilds the prompt from the request alone, loads the
adapter from the folder that it is told of, and remembers what it computed until it is told to forget.
"""

import base64
import io
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.batch import Encoded
from mllm4d.models.completions import Policy, policy_of, stack
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.sharing import SharedPrefix, score_all
from mllm4d.schema import InputError
from mllm4d.train.rollout import ColocatedVLLM, SharedRollout, VLLMServer
from mllm4d.train.rollout.vllm import padded
from mllm4d.train.rollout.vllm_request import encoded_items, generate_request, runs, sampling, visuals_of
from mllm4d.train.rollout.vllm_server import read_choices
from tests.models import tiny_families


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = tiny_families.build(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder_of


def load(folder_of, name="qwen3"):
    base = BaseModel(str(folder_of(name)), lora=LoRA(r=4, alpha=8))
    model, processor = base.load()
    return model.train(), base.inputs(model, processor, VideoSettings())


def prompts_of(inputs):
    def encode(count, seed, prompt):
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(0, 256, (count, 56, 56, 3), generator=generator, dtype=torch.uint8)
        return inputs.encode(frames, torch.arange(count) / 4, 4.0, [prompt], None, [str(seed)])[0]

    return [encode(8, 0, "Where is it?"), encode(4, 1, "Which way did the red cube go in the end?")]


def change(model, seed):
    """Another adapter, as after a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def pickled(visuals):
    """In place of vLLM's own way of writing tensors."""
    pieces = visuals.tensors["pixel_values"].split(visuals.patches)
    texts = []
    for piece, row in zip(pieces, visuals.tensors["image_grid_thw"], strict=True):
        torch.save({"pixels": piece, "grid": row}, buffer := io.BytesIO())
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    return texts


class StandIn(ThreadingHTTPServer):
    """Answers the requests that VLLMServer makes."""

    def __init__(self, folder_of):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.inputs = load(folder_of)
        self.calls, self.prefixes, self.busy, self.lock = [], {}, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path, body):
        self.calls.append(path)
        if path == "/v1/load_lora_adapter":
            assert body["load_inplace"] is True
            saved = load_file(f"{body['lora_path']}/adapter_model.safetensors")
            there = {name.replace(".default.", "."): p for name, p in self.model.named_parameters() if ".lora_" in name}
            assert there.keys() == saved.keys()
            for name, tensor in saved.items():
                there[name].data.copy_(tensor)
            return "Success: LoRA adapter 'policy' added successfully."
        if path == "/reset_prefix_cache":
            self.busy -= 1
            if self.busy >= 0:
                return {"success": False}
            self.prefixes.clear()
            return {"success": True}
        if path in ("/reset_mm_cache", "/reset_encoder_cache"):
            return None
        assert path == "/inference/v1/generate"
        # As in vLLM: what was computed under the adapter's name is taken again, whatever its weights are now.
        key = json.dumps([body["model"], body["token_ids"], body["sampling_params"]["seed"]])
        if key not in self.prefixes:
            self.prefixes[key] = self.generate(body)
        return self.prefixes[key]

    def generate(self, body):
        ids, params, features = torch.tensor(body["token_ids"]), body["sampling_params"], body["features"]
        token = self.inputs.family.placeholder(self.inputs.processor)
        assert body["model"] == "policy"
        assert all(bias == -100 for bias in params["logit_bias"].values())
        items = [torch.load(io.BytesIO(base64.b64decode(text))) for text in features["kwargs_data"]["image"]]
        taken = torch.zeros(len(ids), dtype=torch.bool)
        for place, item in zip(features["mm_placeholders"]["image"], items, strict=True):
            taken[place["offset"] : place["offset"] + place["length"]] = True
            assert place["length"] == int(item["grid"].prod()) // 4
        assert torch.equal(taken, ids == token)
        assert len(set(features["mm_hashes"]["image"])) == len(items)
        height, width = items[0]["grid"][1:].tolist()
        vision = {
            "pixel_values_videos": torch.cat([item["pixels"] for item in items]),
            "video_grid_thw": torch.tensor([[len(items), height, width]]),
        }
        kinds = torch.where(ids == token, 2, 0)
        prompt = Encoded("0", {"input_ids": ids, "mm_token_type_ids": kinds}, len(ids), vision)
        policy = policy_of(self.model, self.inputs, params["temperature"])
        assert sorted(map(int, params["logit_bias"])) == list(policy.banned)
        assert sorted(params["stop_token_ids"]) == list(policy.ends)
        engine = SharedRollout(params["max_tokens"], params["temperature"])
        (rollout,) = engine.generate(self.model, self.inputs, [prompt], params["n"], params["seed"])
        choices = []
        for k in range(params["n"] - 1, -1, -1):  # not in order
            length = int(rollout.lengths[k])
            said, values = rollout.tokens[k, :length].tolist(), rollout.log_probs[k, :length].tolist()
            content = [{"token_id": t, "logprob": v} for t, v in zip(said, values, strict=True)]
            choices.append({"index": k, "token_ids": said, "logprobs": {"content": content}, "finish_reason": "stop"})
        return {"request_id": "r", "choices": choices}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            try:
                code, answer = 200, self.server.answer(self.path, body)
            except AssertionError as error:
                code, answer = 400, {"error": repr(error)}
        content = b"" if answer is None else answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder_of, monkeypatch):
    monkeypatch.setattr("mllm4d.train.rollout.vllm_server.encoded_items", pickled)
    with StandIn(folder_of) as server:
        yield server
        server.shutdown()


def test_the_server_answers_with_the_policys_own_log_probs_after_every_sync(server, folder_of, tmp_path):
    model, inputs = load(folder_of)
    prompts = prompts_of(inputs)
    engine = VLLMServer(server.url, max_new_tokens=6, temperature=0.7, adapter_folder=str(tmp_path))
    for step in range(3):
        change(model, step)
        engine.sync(model)
        rollouts = engine.generate(model, inputs, prompts, 3, seed=5)
        found = stack(rollouts)
        assert found.tokens.shape == (6, 6)
        assert_close(score_all(SharedPrefix(), model, inputs, rollouts).log_probs, found.log_probs, rtol=0, atol=1e-5)
        assert [path.name for path in tmp_path.iterdir()] == [f"version-{step + 1}"]
    resets = ["/v1/load_lora_adapter", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
    assert server.calls == [*resets, *["/inference/v1/generate"] * 2] * 3


def test_a_sync_without_resets_would_be_noticed(server, folder_of, tmp_path, monkeypatch):
    """An adapter sync to an inference engine must reset its encoder and prefix caches."""
    model, inputs = load(folder_of)
    prompts = prompts_of(inputs)
    engine = VLLMServer(server.url, max_new_tokens=6, adapter_folder=str(tmp_path))
    change(model, 0)
    engine.generate(model, inputs, prompts, 3, seed=5)  # the first call brings the adapter by itself
    assert server.calls[0] == "/v1/load_lora_adapter"
    monkeypatch.setattr(VLLMServer, "reset_caches", lambda self: None)
    change(model, 1)
    engine.sync(model)
    rollouts = engine.generate(model, inputs, prompts, 3, seed=5)
    scores = score_all(SharedPrefix(), model, inputs, rollouts).log_probs
    assert float((scores - stack(rollouts).log_probs).abs().max()) > 0.01


def test_a_prefix_cache_that_is_in_use_is_reset_again(server, folder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    model, _ = load(folder_of)
    engine = VLLMServer(server.url, adapter_folder=str(tmp_path))
    server.busy = 2
    engine.sync(model)
    assert server.calls.count("/reset_prefix_cache") == 3
    server.busy = 100
    with pytest.raises(InputError, match="did not reset its prefix cache"):
        engine.sync(model)


def test_servers_that_refuse_or_are_not_there_are_named(server, folder_of, tmp_path):
    model, _ = load(folder_of)
    engine = VLLMServer(server.url, adapter_folder=str(tmp_path))
    engine.sync(model)
    with pytest.raises(InputError, match=r"/inference/v1/generate: answers 400: .*assert"):
        engine.post(
            "/inference/v1/generate",
            {"model": "other", "token_ids": [1], "features": {}, "sampling_params": {"seed": 0}},
        )
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="no answer from a vLLM server"):
        VLLMServer(server.url, timeout=1.0, adapter_folder=str(tmp_path)).sync(model)
    plain, _ = BaseModel(str(folder_of("qwen3"))).load()
    with pytest.raises(InputError, match=r"base\.lora: vLLM is given the adapters"):
        engine.sync(plain)


def test_without_the_package_the_message_says_so(folder_of, monkeypatch, tmp_path):
    import sys

    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    model, inputs = load(folder_of)
    with pytest.raises(InputError, match="needs the package vllm"):
        ColocatedVLLM(str(folder_of("qwen3")), adapter_folder=str(tmp_path)).generate(
            model, inputs, prompts_of(inputs), 2, 0
        )
    with pytest.raises(InputError, match="needs the package vllm"):
        encoded_items(visuals_of(inputs, prompts_of(inputs)[0]))


def test_a_clips_items_by_hand_and_steps_as_images_are_the_video(folder_of):
    model, inputs = load(folder_of)
    prompt = prompts_of(inputs)[0]  # 8 frames of 56x56, two a step
    visuals = visuals_of(inputs, prompt)
    token = inputs.family.placeholder(inputs.processor)
    places = [offset + k for offset, length in visuals.ranges for k in range(length)]
    assert places == (prompt.tokens["input_ids"] == token).nonzero()[:, 0].tolist()
    assert visuals.tensors["image_grid_thw"].tolist() == [[1, 8, 8]] * 4
    assert visuals.patches == (64, 64, 64, 64)
    assert [length for _, length in visuals.ranges] == [16] * 4
    assert torch.equal(visuals.tensors["pixel_values"], prompt.vision["pixel_values_videos"])
    video = model.get_video_features(prompt.vision["pixel_values_videos"], prompt.vision["video_grid_thw"])
    images = model.get_image_features(**visuals.tensors)
    assert torch.equal(torch.cat(list(images.pooler_output)), torch.cat(list(video.pooler_output)))
    for ours, theirs in zip(images.deepstack_features, video.deepstack_features, strict=True):
        assert torch.equal(torch.cat(list(ours)), torch.cat(list(theirs)))
    ids = prompt.tokens["input_ids"][None]
    inner = model.base_model.model.model
    rope, _ = inner.get_rope_index(
        ids, torch.where(ids == token, 1, 0), image_grid_thw=visuals.tensors["image_grid_thw"]
    )
    assert torch.equal(rope[:, 0], inputs.family.positions(model, prompt)[1:])
    again = visuals_of(inputs, prompts_of(inputs)[0])
    assert again.hashes == visuals.hashes
    assert not set(visuals_of(inputs, prompts_of(inputs)[1]).hashes) & set(visuals.hashes)


def test_families_that_are_not_known_to_fit_are_refused(folder_of):
    for name, family in (("qwen35", "Qwen3_5"), ("qwen25", "Qwen2_5VL")):
        _, inputs = load(folder_of, name)
        with pytest.raises(InputError, match=f"vLLM rollouts are for Qwen3VL, not {family}"):
            visuals_of(inputs, prompts_of(inputs)[0])
    _, inputs = load(folder_of)
    prompt = prompts_of(inputs)[0]
    ids = prompt.tokens["input_ids"].clone()
    token = inputs.family.placeholder(inputs.processor)
    first = int((ids == token).nonzero()[0])
    moved = torch.cat([ids[: first + 1], torch.tensor([5]), ids[first + 1 :]])
    with pytest.raises(InputError, match="question '0': 5 runs of placeholders for 4 pieces"):
        visuals_of(inputs, replace(prompt, tokens={"input_ids": moved}))


def test_runs_and_settings_by_hand():
    assert runs(torch.tensor([7, 7, 1, 7, 2, 2, 7]), 7) == ((0, 2), (3, 1), (6, 1))
    assert runs(torch.tensor([1, 2]), 7) == ()
    policy = Policy(0.7, (3, 4), (8, 9))
    found = sampling(policy, SharedRollout(20), 12, seed=1, id="q", first=0)
    seed = found.pop("seed")
    assert 0 <= seed < 2**31
    assert found == {
        "n": 12,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 20,
        "stop_token_ids": [8, 9],
        "logit_bias": {3: -100.0, 4: -100.0},
        "logprobs": 0,
        "detokenize": False,
    }
    seeds = {sampling(policy, SharedRollout(20), 12, s, id, f)["seed"] for s in (1, 2) for id in "qr" for f in (0, 12)}
    assert len(seeds) == 8


def test_answers_that_are_none_are_named():
    entry = {"index": 0, "token_ids": [5, 8], "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}}
    assert read_choices({"choices": [entry]}, 1, "w") == [([5, 8], [-1.0, -2.0])]
    for answer in ({}, {"choices": [{**entry, "logprobs": None}]}, {"choices": [{**entry, "token_ids": None}]}):
        with pytest.raises(InputError, match="w: an answer without tokens or their log-probabilities"):
            read_choices(answer, 1, "w")
    for answer in (
        [entry, entry],
        [{**entry, "token_ids": [5]}],
        [{**entry, "token_ids": [], "logprobs": {"content": []}}],
    ):
        with pytest.raises(InputError, match="w: an answer with other than 1 completions"):
            read_choices({"choices": answer}, 1, "w")
    policy = Policy(1.0, (), (8, 9))
    tokens, log_probs = padded("q", [([5, 9], [-1.0, -2.0]), ([5, 6, 7], [-3.0, -4.0, -5.0])], policy)
    assert tokens.tolist() == [[5, 9, 8], [5, 6, 7]]
    assert log_probs.tolist() == [[-1, -2, 0], [-3, -4, -5]]
    with pytest.raises(InputError, match="question 'q': vLLM stopped a completion after 2 tokens without an end token"):
        padded("q", [([5, 6], [-1.0, -2.0]), ([5, 6, 7], [-3.0, -4.0, -5.0])], policy)


def test_vllms_own_code_reads_our_requests(folder_of):
    """Where the package is at hand; no engine runs."""
    vllm_inputs = pytest.importorskip("vllm.multimodal.inputs")
    serde = pytest.importorskip("vllm.entrypoints.scale_out.token_in_token_out.mm_serde")
    protocol = pytest.importorskip("vllm.entrypoints.scale_out.token_in_token_out.protocol")
    model, inputs = load(folder_of)
    prompt = prompts_of(inputs)[0]
    visuals = visuals_of(inputs, prompt)
    items = encoded_items(visuals)
    params = sampling(policy_of(model, inputs, 0.7), SharedRollout(20), 12, 1, "q", 0)
    body = json.loads(json.dumps(generate_request(prompt, visuals, items, "policy", params)))
    request = protocol.GenerateRequest.model_validate(body)
    assert request.token_ids == prompt.tokens["input_ids"].tolist()
    assert request.sampling_params.n == 12
    assert request.sampling_params.logit_bias == params["logit_bias"]
    read = [serde.decode_mm_kwargs_item(item) for item in request.features.kwargs_data["image"]]
    data = vllm_inputs.MultiModalKwargsItems({"image": read}).get_data()
    assert data.keys() == visuals.tensors.keys()
    for key, tensor in visuals.tensors.items():
        assert torch.equal(data[key].reshape(tensor.shape), tensor)
