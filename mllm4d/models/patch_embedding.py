"""A vision tower's patch embedding as the matrix product that it is.

The processor cuts videos into patches, and Qwen-VL's towers then convolve each patch with a kernel of its own size. As
a general convolution that takes about three times as long on a CPU as the product of patch and kernel.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class PatchProduct(nn.Conv3d):
    """A ``Conv3d`` whose inputs are exactly as large as its kernel; parameters and results are those of ``Conv3d``."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, *kernel_size] to [N, out_channels, 1, 1, 1]; larger inputs are convolved."""
        if tuple(input.shape[2:]) != self.kernel_size:
            return super().forward(input)
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


def embed_by_products(model: nn.Module) -> int:
    """Let the 3-D convolutions of a model that step by their kernel's size be ``PatchProduct``, in place.

    Args:
        model: A multimodal LLM.

    Returns:
        How many there are; a model whose tower does not see patches of several frames has none.
    """
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Conv3d
        and module.stride == module.kernel_size
        and (module.groups, module.dilation, module.padding) == (1, (1, 1, 1), (0, 0, 0))
    ]
    for module in found:
        module.__class__ = PatchProduct
    return len(found)
