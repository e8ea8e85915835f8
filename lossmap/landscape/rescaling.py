"""A network rescaled without changing its function: one layer times a, the next one divided by a.

    relu(a x) = a relu(x) for a > 0        so W_2 relu(W_1 x + b_1) = (W_2 / a) relu(a W_1 x + a b_1)

By it any measure of sharpness in absolute units can be made as large as one likes, at the same function: a number that
changes under it says nothing about the function alone. Source: Dinh et al. (2017), arXiv:1703.04933.
"""

from __future__ import annotations

from collections.abc import Iterator
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
LEAST_CHANGE = 0.1  # of the factor from 1: nearer, numbers that follow it differ by no more than those that survive


Pair = tuple[str, str]  # the names of two layers


def rescalable_pairs(model: nn.Module) -> list[Pair]:
    """The layers, two by two, of an `nn.Sequential` with nothing but ReLU and its like between them, in its order.

    Those of an `nn.Sequential` inside it stand in its row. Raises ValueError where there are none.
    """
    pairs: dict[Pair, None] = {}
    for outer, container in model.named_modules():
        if not isinstance(container, nn.Sequential):
            continue
        first: str | None = None
        has_activation = False
        for name, module in _row(container, outer):
            if isinstance(module, LAYERS) and _has_own_weight(module):
                if first is not None and has_activation and _have_none_in_common(model.get_submodule(first), module):
                    pairs[first, name] = None
                first, has_activation = name, False
            elif isinstance(module, HOMOGENEOUS):
                has_activation |= isinstance(module, (nn.ReLU, nn.LeakyReLU))
            else:
                first = None
    if not pairs:
        others = layers_left_out(model)
        raise ValueError(
            "--rescale needs two layers (linear or convolutions) in one nn.Sequential, in those inside it too, with "
            "nothing but ReLU, pooling or dropout between them; this model has none there, and layers that a forward "
            f"calls by itself are not looked at{'; ' if others else ''}{others}"
        )
    return list(pairs)


def layers_left_out(model: nn.Module) -> str:
    """Which layers are not taken for what they hold beside weight and bias, in words; empty where there are none."""
    names = [n for n, m in model.named_modules() if isinstance(m, LAYERS) and not _has_own_weight(m)]
    if not names:
        return ""
    kinds = "layers whose weight is made of other tensors (pruned, weight norm, adapters)"
    return f"{kinds} are not rescaled: {', '.join(names)}"


def _row(container: nn.Sequential, outer: str) -> Iterator[tuple[str, nn.Module]]:
    """The names and modules that a container calls in turn; of one inside it that does no more, its own."""
    for own, module in container._modules.items():  # one may stand there twice, such as a ReLU
        name = f"{outer}.{own}".lstrip(".")
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _row(module, name)
        elif module is not None:
            yield name, module


def _has_own_weight(layer: nn.Module) -> bool:
    """Whether a layer's parameters are its weight and its bias: others would make these anew in every pass."""
    return set(layer._parameters) == {"weight", "bias"}


def _have_none_in_common(first: nn.Module, second: nn.Module) -> bool:
    """Whether no parameter is one of both: it would be multiplied and divided."""
    return {id(p) for p in first.parameters()}.isdisjoint(id(p) for p in second.parameters())


def rescaled_copy(model: nn.Module, factor: float, pair: Pair | None = None) -> nn.Module:
    """A copy of the model, its first layer with a ReLU behind it multiplied by the factor, the next one divided by it.

    pair  the names of the two layers; by default the first that fit

    Raises ValueError for a factor that is not positive, or so near to 1 that no number would show it, and where there
    are no such layers.
    """
    if not 0.0 < factor < inf or abs(factor - 1.0) < LEAST_CHANGE:
        raise ValueError(
            f"--rescale must be > 0, finite, and not within {LEAST_CHANGE:g} of 1, which rescales nothing, or too "
            f"little to be seen, e.g. 4; got {factor:g}"
        )
    pair = pair or rescalable_pairs(model)[0]
    twin = copy_of(model)
    first, second = map(twin.get_submodule, pair)
    with torch.no_grad():
        for tensor in first.parameters(recurse=False):
            tensor.mul_(factor)
        second.weight.div_(factor)  # type: ignore[operator]
    return twin
