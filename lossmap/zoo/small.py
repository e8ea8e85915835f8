"""Small nets for the packaged digits, 1x8x8: quick to train, and small enough for dense second opinions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ValueError(f"no activation is named {name!r}; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def mlp(widths: Sequence[int] = (64, 32, 32, 10), activation: str = "relu") -> nn.Sequential:
    """Fully connected layers 64-32-32-10: 3,392 weights and 74 biases."""
    if len(widths) < 2:
        raise ValueError(f"widths must hold those of the input and the output at least; got {list(widths)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for here, there in pairwise(widths):
        layers += [nn.Linear(here, there), _activation(activation)]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int = 1, width: int = 8, classes: int = 10, activation: str = "relu") -> nn.Sequential:
    """Two convolutions, a pool and a linear layer, without batch norm; for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        _activation(activation),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        _activation(activation),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )
