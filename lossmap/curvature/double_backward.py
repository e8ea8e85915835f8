"""What PyTorch cannot differentiate twice by default, or only with cancellation, and the way round it.

The fused kernels of `scaled_dot_product_attention`, and with them `MultiheadAttention` and the transformer layers,
have no second derivative; the plain formula has. The encoder layers' fast path, taken where no gradient is asked
for, is no traceable function either; nor are cuDNN's and oneDNN's recurrent nets twice differentiable. Other operations
are computed by their formulas (`formulas`), and functions that saturate in forms that do not cancel
(`lossmap.stable.losses`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossmap.curvature.formulas import ByFormula
from lossmap.data.borrow import is_recurrent
from lossmap.stable.forms import stable_forms


@contextmanager
def twice_differentiable(model: nn.Module, forms: str = "all") -> Iterator[None]:
    """Inside, what the model computes has second derivatives; the switches are put back afterwards.

    forms  which functions do not cancel, see `stable_forms`; in a trace `logistic`, whose rules see to the others
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    cudnn = torch.backends.cudnn.enabled
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if is_recurrent(model):
        torch.backends.cudnn.enabled = False
        torch._C._set_mkldnn_enabled(False)  # the public `flags` warns about another switch
    try:
        with sdpa_kernel(SDPBackend.MATH), stable_forms(forms), ByFormula():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.cudnn.enabled = cudnn
        torch._C._set_mkldnn_enabled(onednn)
