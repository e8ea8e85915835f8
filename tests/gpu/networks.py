"""Small networks of several kinds, each with data, for the tests on a GPU."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap import zoo
from lossmap.geometry.parameter_vector import selected


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0].mean(1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.table, self.head = nn.EmbeddingBag(11, 4), nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.bag(x) + self.table(x).mean(1)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(20, 3),
    )  # fmt: skip


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)), (4,)),
    "conv": (conv, (2, 6, 6)),
    "lstm": (Recurrent, (6, 3)),
    "gru": (lambda: Recurrent(nn.GRU), (6, 3)),
    "words": (Words, None),
    "attention": (Attention, (5, 4)),
}


def network(name: str, samples: int = 96) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A net in evaluation mode on the CPU, its inputs and labels."""
    torch.manual_seed(3)
    make, shape = NETWORKS[name]
    net = make()
    x = torch.randint(11, (samples, 5)) if shape is None else torch.randn(samples, *shape)
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x, torch.randint(3, (samples,))


def problem_on(device: torch.device | str, name: str, dtype: torch.dtype = torch.float32) -> lossmap.Problem:
    """Its problem over a copy on a device."""
    net, x, y = network(name)
    net = copy.deepcopy(net).to(device, dtype)
    x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
    return lossmap.Problem.supervised(net, "crossentropy", (x, y.to(device)), batch_size=32)


def true_eigenvalues(name: str, state: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    """Of the dense Hessian by the weights, in float64 on the CPU, by differences of PyTorch's gradient; ascending."""
    net, x, y = network(name)
    if state is not None:
        net.load_state_dict(state, strict=False)
    net = net.double()
    x = x.double() if x.is_floating_point() else x
    weights = list(selected(net, "weights").values())

    def gradient() -> torch.Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(F.cross_entropy(net(x), y), weights)])

    rows, h = [], 1e-4
    for w in weights:
        flat = w.data.view(-1)
        for i in range(len(flat)):
            at = float(flat[i])
            parts = []
            for step in (h, -h, h / 2, -h / 2):
                flat[i] = at + step
                parts.append(gradient())
            flat[i] = at
            rows.append((8 * (parts[2] - parts[3]) - (parts[0] - parts[1])) / (6 * h))
    matrix = torch.stack(rows)
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()


def resnet(device: torch.device | str, samples: int = 512) -> lossmap.Problem:
    """A ResNet-20 of eight channels over random images."""
    net = zoo.build("resnet20-w8", seed=0).eval()
    torch.manual_seed(1)
    x, y = torch.randn(samples, 1, 8, 8), torch.randint(10, (samples,))
    return lossmap.Problem.supervised(net.to(device), "crossentropy", (x.to(device), y.to(device)), batch_size=128)
