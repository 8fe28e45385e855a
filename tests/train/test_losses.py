import math

import torch
from torch.testing import assert_close

from mllm4d.train.losses import answer_loss


def test_by_hand():
    # Two answer tokens, predicted with probability 1/2 (of 2) and 1/4 (log-odds 0, 0 against log 3).
    logits = torch.zeros(1, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3)])
    labels = torch.tensor([[-100, 1, 0]])
    assert_close(answer_loss(logits, labels), torch.tensor((math.log(2) + math.log(4)) / 2))


def test_what_is_not_an_answer_has_no_gradient():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.full((2, 5), -100)
    labels[0, 3] = 2
    answer_loss(logits, labels).backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 2]]


def test_equals_hugging_face():
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[:, :3] = -100
    assert_close(answer_loss(logits, labels), ForCausalLMLoss(logits, labels, vocab_size=11))


def test_no_answer_at_all_is_zero_and_not_nan():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    loss = answer_loss(logits, torch.full((1, 3), -100))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((logits.grad == 0).all())
