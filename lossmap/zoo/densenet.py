"""DenseNet-121 for 3x32x32 images (Huang et al. 2017, arXiv:1608.06993).

Each layer adds `growth` planes to all that came before it; between stages a 1x1 convolution halves them.
Tensor names as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution, twice; its planes are set before those that came in."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inside, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) -> (B, growth + inside, H, W)."""
        new = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
        return torch.cat([new, x], 1)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution to `outside` planes, a 2x2 mean."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inside)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inside, outside, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) -> (B, outside, H / 2, W / 2)."""
        result: Tensor = self.pool(self.conv(self.relu(self.bn(x))))
        return result


class DenseNet(nn.Module):
    """A stem of 2 `growth` planes, dense stages with transitions between them, a mean, a linear layer."""

    def __init__(self, layers: Sequence[int], growth: int, channels: int, classes: int) -> None:
        super().__init__()
        planes = 2 * growth
        self.stages = len(layers)
        self.conv1 = nn.Conv2d(channels, planes, 3, padding=1, bias=False)
        for stage, count in enumerate(layers, start=1):
            dense = nn.Sequential(*(DenseLayer(planes + i * growth, growth) for i in range(count)))
            setattr(self, f"dense{stage}", dense)
            planes += count * growth
            if stage < self.stages:
                setattr(self, f"trans{stage}", Transition(planes, planes // 2))
                planes //= 2
        self.bn = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(planes, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, classes)."""
        out = self.conv1(x)
        for stage in range(1, self.stages + 1):
            out = getattr(self, f"dense{stage}")(out)
            if stage < self.stages:
                out = getattr(self, f"trans{stage}")(out)
        result: Tensor = self.linear(self.relu(self.bn(out)).mean((2, 3)))
        return result


def densenet121(growth: int = 32, channels: int = 3, classes: int = 10) -> DenseNet:
    """Stages of 6, 12, 24 and 16 layers."""
    return DenseNet((6, 12, 24, 16), growth, channels, classes)
