"""Which tokens of completions count, and the weights of those that something else has sampled."""

import math

import torch
from torch.testing import assert_close

from mllm4d.train.completions import completion_mask, importance_weights, masked_sum, truncated

END, PAD = 7, 8
"""Both end tokens of a chat model, of which the second is its padding too."""
TOKENS = torch.tensor(
    [
        [1, 2, END, PAD, PAD],
        [1, PAD, PAD, PAD, PAD],
        [1, END, 2, END, 3],
        [1, 2, 3, 4, 5],
        [END, 1, 1, 1, 1],
        [1, 2, 3, 4, END],
    ]
)
COUNTS = [3, 2, 2, 5, 1, 5]


def prefixes(counts, length=5):
    return torch.arange(length) < torch.tensor(counts)[:, None]


def test_tokens_count_up_to_the_first_end_token_and_that_itself_whichever_it_is():
    assert_close(completion_mask(TOKENS, [END, PAD]), prefixes(COUNTS))
    # Of one end token alone, the second row would go on.
    assert_close(completion_mask(TOKENS, [END]), prefixes([3, 5, 2, 5, 1, 5]))


def test_truncated_rows_can_be_left_out():
    assert truncated(TOKENS, [END, PAD]).tolist() == [False, False, False, True, False, False]
    assert_close(completion_mask(TOKENS, [END, PAD], drop_truncated=True), prefixes([3, 2, 2, 0, 1, 5]))


def test_padding_of_a_truncated_row_is_no_end_token():
    tokens = torch.tensor([[1, 2, 3, PAD, PAD], [1, 2, PAD, PAD, PAD]])
    lengths = torch.tensor([3, 3])  # the second has said its end, the first was cut
    assert_close(completion_mask(tokens, [END, PAD], lengths), prefixes([3, 3]))
    assert truncated(tokens, [END, PAD], lengths).tolist() == [True, False]
    assert_close(completion_mask(tokens, [END, PAD], lengths, drop_truncated=True), prefixes([0, 3]))


def test_importance_weights_by_hand():
    ratios = torch.tensor([[0.5, 1.0, 1.9, 3.0, 9.0]])
    sampler = torch.full((1, 5), -1.0)
    policy = (sampler + ratios.log()).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    weights = importance_weights(policy, sampler, mask)
    assert_close(weights, torch.tensor([[0.5, 1, 1.9, 2, 0]]))
    assert not weights.requires_grad
    assert_close(importance_weights(policy, sampler, mask, cap=4.0)[0, 3], torch.tensor(3.0))
    # The same numbers are a weight of exactly 1.
    assert importance_weights(sampler, sampler, mask).tolist() == [[1, 1, 1, 1, 0]]


def test_importance_weights_are_masked_where_a_log_prob_is_not_finite():
    lost = [math.nan, math.inf, -math.inf]
    policy, sampler = torch.tensor([*lost, -1.0, -1.0, -1.0, -1.0]), torch.tensor([-1.0, -1, -1, *lost, -300.0])
    assert importance_weights(policy, sampler, torch.ones(7)).tolist() == [0, 0, 0, 0, 0, 0, 2]


def test_the_mean_entropy_of_a_step_is_a_sum_over_its_batches():
    entropies = torch.tensor([[1.0, 2.0], [4.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    total, count = masked_sum(entropies, mask)
    assert (float(total), float(count)) == (7, 3)
    assert not total.requires_grad
    parts = [masked_sum(entropies[k], mask[k]) for k in range(2)]
    assert float(sum(part[0] for part in parts) / sum(part[1] for part in parts)) == float(total / count)
