"""Log-probabilities without the logits of all: the same values and gradients as from the model's own logits."""

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.logprobs import answer_positions, head_of, hidden_at, token_log_probs, token_log_probs_and_entropy
from mllm4d.schema import InputError


def batch_of(folder, **settings):
    base = BaseModel(str(folder), **settings)
    model, processor = base.load()
    inputs = base.inputs(model, processor, VideoSettings(frames=4))
    frames = torch.randint(0, 256, (4, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompts, targets = ["Where?", "Which way did it go, and how far?"], ["A", " left and then back"]
    return model, inputs.collate(inputs.encode(frames, torch.arange(4) / 4, 4.0, prompts, targets, ["a", "b"]))


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "llava_onevision"])
@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)], ids=["full", "lora"])
def test_hidden_states_and_head_make_the_models_own_logits_and_gradients(folder_of, family, lora):
    model, batch = batch_of(folder_of(family), train=() if lora else ("merger", "language"), lora=lora)
    model.eval()
    if lora:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    at, targets = answer_positions(batch.labels)
    assert len(targets) == int((batch.labels != -100).sum())
    logits = model(**batch.model_inputs()).logits
    expected = logits[at].log_softmax(-1)[torch.arange(len(targets)), targets]
    expected.sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    states, head = hidden_at(model, batch.model_inputs(), at)
    assert states.shape == (len(targets), model.config.get_text_config().hidden_size)
    assert_close(head(states), logits[at], rtol=0, atol=1e-5)
    found = token_log_probs(states, head, targets, chunk=3)
    assert_close(found, expected, rtol=0, atol=1e-5)
    found.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
    # The head is the model's own again.
    assert torch.equal(model(**batch.model_inputs()).logits, logits)


def paligemma():
    text = {"model_type": "gemma2", "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "image_size": 8}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    config = tf.PaliGemmaConfig(text_config={**text, "final_logit_softcapping": 2.0}, vision_config=vision)
    config.text_config.attention_dropout = 0.2
    torch.manual_seed(0)
    return tf.PaliGemmaForConditionalGeneration(config)


def test_logits_that_are_capped_after_the_head_stay_capped_and_dropout_is_that_of_one_forward():
    model = paligemma().train()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (2, 7), generator=generator)
    at = torch.rand(2, 7, generator=generator) < 0.4
    assert 1 < int(at.sum()) < 14
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    assert float(model(**inputs).logits.detach().abs().max()) <= 2
    for _ in range(2):  # what the model does is found out in the first
        torch.manual_seed(1)
        expected = model(**inputs).logits[at]
        torch.manual_seed(1)
        states, head = hidden_at(model, inputs, at)
        assert_close(head(states), expected, rtol=0, atol=1e-6)
    _, own = head_of(model)
    assert float((own(torch.ones(1, 16)) - head(states[:1])).detach().abs().max()) > 0.1


def test_a_model_without_a_head_is_refused():
    with pytest.raises(InputError, match="has no head that makes logits"):
        head_of(tf.SiglipVisionModel(tf.SiglipVisionConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)))
    with pytest.raises(InputError, match="is no Hugging Face model"):
        head_of(torch.nn.Linear(2, 2))


def test_positions_are_those_before_the_answers_by_hand():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]])
    at, targets = answer_positions(labels)
    assert at.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert targets.tolist() == [5, 6, 7]


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_chunks_change_neither_values_nor_gradients(chunk):
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11).double()
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (10,))
    weights = torch.randn(10)
    # In float32, as the values are.
    logits = head(hidden).float()
    wanted = torch.distributions.Categorical(logits=logits / 0.7)
    (weights @ wanted.log_prob(targets) + weights @ wanted.entropy()).backward()
    gradients = [hidden.grad.clone(), head.weight.grad.clone()]
    hidden.grad = head.weight.grad = None
    log_probs, entropy = token_log_probs_and_entropy(hidden, head, targets, chunk, temperature=0.7)
    assert log_probs.dtype == entropy.dtype == torch.float32
    assert_close(log_probs, wanted.log_prob(targets))
    assert_close(entropy, wanted.entropy())
    assert_close(token_log_probs(hidden, head, targets, chunk, temperature=0.7), log_probs)
    (weights @ log_probs + weights @ entropy).backward()
    assert_close([hidden.grad, head.weight.grad], gradients, rtol=1e-5, atol=1e-6)


def test_banned_tokens_have_no_probability():
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 6, requires_grad=True), torch.nn.Linear(6, 4, bias=False)
    targets = torch.tensor([0, 2, 0, 2, 2])
    log_probs, entropy = token_log_probs_and_entropy(hidden, head, targets, chunk=2, banned=(1, 3))
    two = head(hidden)[:, [0, 2]].log_softmax(-1)  # [5, 2]
    assert_close(log_probs, two[torch.arange(5), targets // 2])
    assert_close(entropy, -(two.exp() * two).sum(-1))
    entropy.sum().backward()
    assert bool(hidden.grad.isfinite().all())


def test_no_tokens_at_all_give_an_empty_result_with_a_gradient_of_zero():
    head, hidden = torch.nn.Linear(6, 4), torch.randn(3, 6, requires_grad=True)
    loss = token_log_probs(hidden[:0], head, torch.zeros(0, dtype=torch.long)).sum()
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((hidden.grad == 0).all())


def test_only_the_last_chunks_logits_are_kept_for_the_backward_pass():
    calls, kept = [], []

    class Head(torch.nn.Linear):
        def forward(self, states):
            calls.append(len(states))
            return super().forward(states)

    def save(tensor):
        if tensor.ndim == 2 and tensor.shape[1] == 1000 and len(tensor) != 4:  # the weight, transposed, is [4, 1000]
            kept.append(len(tensor))
        return tensor

    head, hidden = Head(4, 1000, bias=False), torch.randn(61, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        total = token_log_probs(hidden, head, torch.arange(61), chunk=8).sum()
    assert set(kept) == {5}  # and nothing of the seven chunks of 8
    total.backward()
    assert calls[:8] == [8] * 7 + [5]
    assert calls[8:] == [8] * 7
