"""What PyTorch cannot differentiate twice by default, and the way round it: attention and recurrent nets.

The fused kernels of `scaled_dot_product_attention`, and with them `MultiheadAttention` and the transformer layers,
have no second derivative; the plain formula has. The encoder layers' fast path, taken where no gradient is asked
for, is no traceable function either; nor are cuDNN's recurrent nets twice differentiable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, what the model computes has second derivatives; the switches are put back afterwards."""
    fast = torch.backends.mha.get_fastpath_enabled()
    cudnn = torch.backends.cudnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        torch.backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn
