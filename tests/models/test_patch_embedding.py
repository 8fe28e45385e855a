"""Patches embedded by products: the numbers of the convolution, in the model as well."""

import pytest
import torch
from torch import nn

from mllm4d.models.patch_embedding import PatchProduct, embed_by_products
from mllm4d.models.tiny import build_model, build_tokenizer


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_forward_and_backward(bias):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 16, (2, 4, 4), stride=(2, 4, 4), bias=bias).double()
    x = torch.randn(5, 3, 2, 4, 4, dtype=torch.double)
    expected = conv(x)
    gradients = torch.autograd.grad(expected.square().sum(), list(conv.parameters()))
    names = list(conv.state_dict())
    assert embed_by_products(nn.Sequential(conv)) == 1
    assert type(conv) is PatchProduct
    assert list(conv.state_dict()) == names
    found = conv(x)
    assert found.shape == expected.shape == (5, 16, 1, 1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    again = torch.autograd.grad(found.square().sum(), list(conv.parameters()))
    torch.testing.assert_close(again, gradients, rtol=0, atol=1e-10)
    # What is larger than the kernel is still convolved.
    wide = torch.randn(1, 3, 4, 8, 8, dtype=torch.double)
    assert conv(wide).shape == (1, 16, 2, 2, 2)


def test_only_what_steps_by_its_kernel_is_taken():
    other = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(3, 4, 2, stride=1), nn.Conv2d(3, 4, 2, stride=2))
    assert embed_by_products(other) == 0
    visual = build_model(build_tokenizer()).model.visual.double()
    pixels, grid = torch.randn(64, 1536, dtype=torch.double), torch.tensor([[1, 8, 8]])
    expected = visual(pixels, grid).last_hidden_state
    assert embed_by_products(visual) == 1
    torch.testing.assert_close(visual(pixels, grid).last_hidden_state, expected, rtol=0, atol=1e-9)
