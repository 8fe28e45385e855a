"""Answers by vLLM, as far as they can be tried without it: what it is asked, and what is refused."""

import sys

import pytest
import torch

from mllm4d.bench.answering import Generation
from mllm4d.bench.encoding import text_prompt
from mllm4d.bench.rows import Row
from mllm4d.bench.vllm import VLLMGeneration
from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.inputs import VideoSettings
from mllm4d.schema import InputError
from tests.models import tiny_families


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = tiny_families.build(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return folder_of


def load(folder_of, name="qwen3", **settings):
    base = BaseModel(str(folder_of(name)), **settings)
    model, processor = base.load()
    inputs = base.inputs(model, processor, VideoSettings())
    frames = torch.zeros(8, 56, 56, 3, dtype=torch.uint8)
    return model, inputs, inputs.encode(frames, torch.arange(8) / 4, 4.0, ["Where?"], None, ["q"])[0]


def test_greedy_is_asked_for_as_greedy_and_draws_have_a_seed_of_the_questions_own(folder_of):
    model, inputs, prompt = load(folder_of)
    asked = VLLMGeneration("folder", max_new_tokens=7).settings_of(model, inputs, prompt)
    assert (asked["temperature"], asked["seed"], asked["max_tokens"], asked["n"]) == (0.0, None, 7, 1)
    assert (asked["top_p"], asked["top_k"], asked["repetition_penalty"]) == (1.0, 0, 1.0)
    assert asked["stop_token_ids"] == [inputs.tokenizer.eos_token_id]
    drawn = VLLMGeneration("folder", temperature=0.7, top_p=0.9, top_k=5, seed=3)
    first = drawn.settings_of(model, inputs, prompt)
    other = drawn.settings_of(model, inputs, text_prompt(inputs, "Where?", "other"))
    assert (first["temperature"], first["top_p"], first["top_k"]) == (0.7, 0.9, 5)
    assert 0 <= first["seed"] != other["seed"] >= 0


def test_a_question_without_its_clip_is_asked_by_its_tokens_alone(folder_of):
    _, inputs, _ = load(folder_of)
    prompt = text_prompt(inputs, "Where?", "q")
    request = VLLMGeneration("folder")._request(inputs, prompt)
    assert request == {"prompt_token_ids": prompt.tokens["input_ids"].tolist()}


def test_it_has_a_name_and_a_configuration_of_its_own():
    assert VLLMGeneration("folder").name == "generation (greedy) by vLLM"
    assert VLLMGeneration("folder").describe() != Generation().describe()
    assert VLLMGeneration("a", engine={"max_model_len": 5}).describe() == VLLMGeneration("b").describe()


def test_adapters_other_families_and_a_missing_package_are_refused(folder_of, monkeypatch):
    model, inputs, prompt = load(folder_of, lora=LoRA(r=2, alpha=4))
    with pytest.raises(InputError, match=r"this one has adapters \('base\.lora'\)"):
        next(VLLMGeneration("folder").answer(model, inputs, [Row(0, prompt)]))
    model, inputs, prompt = load(folder_of, "qwen25")
    with pytest.raises(InputError, match="are for Qwen3VL, not Qwen2_5VL"):
        next(VLLMGeneration("folder").answer(model, inputs, [Row(0, prompt)]))
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    model, inputs, prompt = load(folder_of)
    with pytest.raises(InputError, match="needs the package vllm"):
        next(VLLMGeneration("folder").answer(model, inputs, [Row(0, prompt)]))
    assert list(VLLMGeneration("folder").answer(model, inputs, [Row(0, prompt)], done={0})) == []
