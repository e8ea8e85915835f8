"""Small networks that the zoo does not hold, for benchmarks: `--problem small_problems.py:NAME`, of functions below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossmap import Problem

SAMPLES, LENGTH, WORDS, CLASSES = 256, 12, 20, 4


class Transformer(nn.Module):
    """A table of words, two encoder layers, the mean over positions and a linear layer: some 14,000 parameters."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, length) -> (B, classes)."""
        result: Tensor = self.head(self.encoder(self.words(x) + self.places).mean(1))
        return result


class Recurrent(nn.Module):
    """A table of words, an LSTM, and a linear layer of its last state: some 5,000 parameters."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words, self.cells = nn.Embedding(WORDS, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, length) -> (B, classes)."""
        result: Tensor = self.head(self.cells(self.words(x))[0][:, -1])
        return result


def transformer() -> Problem:
    """Whether some words come more often than others, by a small transformer."""
    return _of(Transformer)


def lstm() -> Problem:
    """The same by a small recurrent network."""
    return _of(Recurrent)


def in_place() -> Problem:
    """Random images by a small CNN whose ReLUs write into what the convolutions have made."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    network = nn.Sequential(*first, nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 10))
    x, y = torch.randn(SAMPLES, 1, 8, 8), torch.randint(0, 10, (SAMPLES,))
    return Problem.supervised(network.eval(), "crossentropy", (x, y))


def _of(network: type[nn.Module]) -> Problem:
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (SAMPLES, LENGTH))
    y = (x < WORDS // 2).sum(1).mul(CLASSES).div(LENGTH + 1).long()
    return Problem.supervised(network(), "crossentropy", (x, y))
