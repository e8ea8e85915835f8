"""Residual nets (He et al. 2016, arXiv:1512.03385), with and without their skip connections.

Two families: `thin`, for CIFAR, three stages of width, 2 width and 4 width, depth 6m + 2; `wide_stem`, the
ImageNet nets behind a 3x3 stem, four stages from 64. Wide nets (Zagoruyko and Komodakis 2016,
arXiv:1605.07146) are thin ones of a larger width, as Li et al. (2018) built them. Tensor names are those of
their published checkpoints. Where a shape changes, the skip is a 1x1 convolution with batch norm.

Nothing is done in place, so that traces and second derivatives see plain operations, and the last pool is a
mean over all positions, so that images of other sizes fit too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _shortcut(inside: int, outside: int, stride: int) -> nn.Sequential:
    if stride == 1 and inside == outside:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, `planes` each, around which the input skips."""

    expansion = 1

    def __init__(self, inside: int, planes: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(inside, planes, stride) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) -> (B, planes, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(out if self.shortcut is None else out + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last of 4 `planes`, around which the input skips."""

    expansion = 4

    def __init__(self, inside: int, planes: int, stride: int, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = _shortcut(inside, 4 * planes, stride) if skip else None
        # without the skip the published net ends its block at the batch norm
        self.relu3 = nn.ReLU() if skip else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) -> (B, 4 planes, H / stride, W / stride)."""
        out = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu3(out if self.shortcut is None else out + self.shortcut(x))
        return result


class Residual(nn.Module):
    """A 3x3 stem, stages of blocks that each double the width and halve the image, a mean, a linear layer."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        width: int,
        *,
        skip: bool,
        channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.stages = len(blocks)
        inside = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            layer = nn.Sequential()
            for i in range(count):
                layer.append(block(inside, planes, 2 if stage and not i else 1, skip))
                inside = planes * block.expansion
            setattr(self, f"layer{stage + 1}", layer)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, classes)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            out = getattr(self, f"layer{stage + 1}")(out)
        result: Tensor = self.linear(out.mean((2, 3)))
        return result


def thin(depth: int = 20, width: int = 16, skip: bool = True, channels: int = 3, classes: int = 10) -> Residual:
    """The CIFAR family: depth 6m + 2, stages of width, 2 width, 4 width."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be one of 8, 14, 20, ... (6m + 2); got {depth}")
    blocks = [(depth - 2) // 6] * 3
    return Residual(BasicBlock, blocks, width, skip=skip, channels=channels, classes=classes)


_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def wide_stem(depth: int = 18, width: int = 64, skip: bool = True, channels: int = 3, classes: int = 10) -> Residual:
    """The ImageNet family behind a stem for small images: depths 18, 34, 50, 101, 152."""
    if depth not in _BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}; got {depth}")
    block, blocks = _BLOCKS[depth]
    return Residual(block, blocks, width, skip=skip, channels=channels, classes=classes)
