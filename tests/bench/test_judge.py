"""The judge: what it is told, and a real language model as one."""

import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mllm4d.answers import read_or_judge
from mllm4d.bench.judge import LONGEST, LanguageModelJudge, judge_prompt
from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.models.tiny import CHAT_TEMPLATE, build_tokenizer
from tests.bench.ranks import CAMERA, choice

OPTIONS = {"A": "left", "B": "right"}


def test_it_is_told_the_question_the_options_and_the_end_of_the_reply_and_nothing_else():
    prompt = judge_prompt("to port", "Which way?", OPTIONS)
    assert "Question: Which way?\nA. left\nB. right\n\nReply: to port\n" in prompt
    long = judge_prompt("x" * LONGEST + "the end", "Which way?", OPTIONS)
    assert long.count("x") == LONGEST - len("the end") + prompt.count("x")
    assert "xthe end" in long


def test_a_reply_with_braces_is_no_template():
    assert "Reply: {options} {0}" in judge_prompt("{options} {0}", "Which way?", OPTIONS)


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
def test_a_language_model_judges(tmp_path, template):
    """A real model of transformers, whose weights make it say B whatever it is asked."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    (letter,) = tokenizer("B", add_special_tokens=False)["input_ids"]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=1))
    with torch.no_grad():
        words, last = model.transformer.wte.weight, model.transformer.ln_f
        words.copy_(torch.nn.functional.normalize(words, dim=1))
        last.weight.zero_()
        last.bias.copy_(words[letter])
    model.save_pretrained(tmp_path)
    judge = LanguageModelJudge(str(tmp_path), max_new_tokens=1)
    assert read_or_judge("to port", "Which way?", OPTIONS, judge) == ("B", True)
    # Rules come first.
    assert read_or_judge("A", "Which way?", OPTIONS, judge) == ("A", False)
    metric = MultipleChoiceAccuracy(judge=judge)
    metric.update(["to port", "to port"], [choice(1, CAMERA, "B"), choice(2, CAMERA, "C")])
    scores = {name: float(value) for name, value in metric.compute().items()}
    assert (scores["accuracy"], scores["invalid"], scores["judged"]) == (0.5, 1, 1)
    assert pickle.loads(pickle.dumps(judge))._loaded is None
