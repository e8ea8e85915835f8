"""A network rescaled without changing its function: one layer times a, the next one divided by a.

    relu(a x) = a relu(x) for a > 0        so W_2 relu(W_1 x + b_1) = (W_2 / a) relu(a W_1 x + a b_1)

By it any measure of sharpness in absolute units can be made as large as one likes, at the same function: a number that
changes under it says nothing about the function alone. Source: Dinh et al. (2017), arXiv:1703.04933.
"""

from __future__ import annotations

from math import inf

import torch
from torch import nn

from lossmap.data.borrow import copy_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# f(a x) = a f(x) for a > 0
HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


def rescalable_layers(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The first two layers of an `nn.Sequential` with nothing but ReLU and its like between them.

    Raises ValueError where there are none.
    """
    for container in model.modules():
        if not isinstance(container, nn.Sequential):
            continue
        first: nn.Module | None = None
        has_activation = False
        for module in container:
            if isinstance(module, LAYERS):
                if first is not None and has_activation:
                    return first, module
                first, has_activation = module, False
            elif isinstance(module, HOMOGENEOUS):
                has_activation |= isinstance(module, (nn.ReLU, nn.LeakyReLU))
            else:
                first = None
    raise ValueError(
        "--rescale needs two layers (linear or convolutions) of one nn.Sequential with nothing but ReLU, pooling or "
        "dropout between them; this model has none that can be rescaled without changing its function"
    )


def rescaled_copy(model: nn.Module, factor: float) -> nn.Module:
    """A copy of the model, its first layer with a ReLU behind it multiplied by the factor, the next one divided by it.

    Raises ValueError for a factor that is not positive, and where there are no such layers.
    """
    if not 0.0 < factor < inf:
        raise ValueError(f"--rescale must be > 0 and finite; got {factor:g}")
    rescalable_layers(model)
    twin = copy_of(model)
    first, second = rescalable_layers(twin)
    with torch.no_grad():
        for tensor in first.parameters(recurse=False):
            tensor.mul_(factor)
        second.weight.div_(factor)  # type: ignore[operator]
    return twin
