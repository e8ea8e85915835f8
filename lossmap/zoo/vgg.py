"""VGG-9 with batch norm, for 3x32x32 images: the plain convolutional net of Li et al. (2018).

After Simonyan and Zisserman (2015, arXiv:1409.1556); tensor names as in the published checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by a 2x2 maximum, and two linear layers."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], size: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for stage in stages:
            for planes in stage:
                layers += [nn.Conv2d(inside, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU()]
                inside = planes
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            size = -(-size // 2)
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(inside * size * size, inside), nn.BatchNorm1d(inside), nn.ReLU())
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, size, size) -> (B, classes)."""
        result: Tensor = self.classifier(self.fc(self.features(x).flatten(1)))
        return result


def vgg9(size: int = 32, channels: int = 3, classes: int = 10) -> VGG:
    """Seven convolutions and two linear layers; `size` is the width of the images in pixels."""
    return VGG(((64, 64), (128, 128), (256, 256, 256)), size, channels, classes)
