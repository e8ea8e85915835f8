"""PyTorch's own modules, one by one: products right, by a formula of ours, or refused; made into a table of the docs.

LOSSMAP_WRITE_TABLES=1 pytest tests/curvature/test_operations.py      writes docs/operations.md anew
"""

import logging
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lossmap import Problem
from lossmap.curvature.build import build_operator
from lossmap.curvature.product_check import check_product

TABLE = Path(__file__).parents[2] / "docs" / "operations.md"
HEAD = """# Operations of PyTorch

Each row is a small network with that module in it, in float64; its Hessian's products are compared with central
differences of the gradient. `works`: right as PyTorch computes it. `by formula`: PyTorch has no right second derivative
of it by default, and lossmap computes it by its formula or by another kernel. `refused`: a ValueError that says why.
`linearized`: whether the linearized product does it too; where not, another backend is taken. The table is written by
`tests/curvature/test_operations.py`, which holds it to what happens.

| module | products | linearized |
|---|---|---|
"""

ROW, SEQUENCE, IMAGE, VOLUME = (8,), (4, 6), (4, 6, 6), (4, 4, 4, 4)

ELEMENTWISE = [
    "CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid",
    "LogSoftmax", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmin",
    "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Identity", "Dropout", "AlphaDropout",
    "FeatureAlphaDropout",
]  # fmt: skip
MODULES = {name: (lambda name=name: getattr(nn, name)(), ROW) for name in ELEMENTWISE} | {
    "GLU": (lambda: nn.GLU(-1), ROW),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), ROW),
    "Softmax": (lambda: nn.Softmax(-1), ROW),
    "Softmin": (lambda: nn.Softmin(-1), ROW),
    "Softmax2d": (nn.Softmax2d, IMAGE),
    "Threshold": (lambda: nn.Threshold(0.1, 0.0), ROW),
    "Linear": (lambda: nn.Linear(8, 5), ROW),
    "Bilinear": (lambda: Twice(nn.Bilinear(8, 8, 3)), ROW),
    "CosineSimilarity": (lambda: Twice(nn.CosineSimilarity(-1), shifted=True), SEQUENCE),
    "PairwiseDistance": (lambda: Twice(nn.PairwiseDistance(), shifted=True), ROW),
    "LayerNorm": (lambda: nn.LayerNorm(8), ROW),
    "RMSNorm": (lambda: nn.RMSNorm(8), ROW),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), ROW),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), VOLUME),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4), SEQUENCE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4), VOLUME),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), IMAGE),
    "Conv1d": (lambda: nn.Conv1d(4, 3, 3), SEQUENCE),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=2, padding=1), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(4, 2, 3), VOLUME),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 3, 3), SEQUENCE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 2, 3, 2), IMAGE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 2, 3), VOLUME),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), SEQUENCE),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGE),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), VOLUME),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), SEQUENCE),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGE),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), VOLUME),
    "LPPool1d": (lambda: nn.LPPool1d(2, 2), SEQUENCE),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), IMAGE),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), SEQUENCE),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), VOLUME),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(2), SEQUENCE),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), VOLUME),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d(1), SEQUENCE),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), IMAGE),
    "ReflectionPad3d": (lambda: nn.ReflectionPad3d(1), VOLUME),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(1), SEQUENCE),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), IMAGE),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d(1), VOLUME),
    "CircularPad2d": (lambda: nn.CircularPad2d(1), IMAGE),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, 0.5), IMAGE),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), IMAGE),
    "Upsample, nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "Upsample, bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "Upsample, bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    "Upsample, trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), VOLUME),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), IMAGE),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), IMAGE),
    "Fold": (lambda: nn.Fold((4, 3), (2, 2)), (4, 6)),
    "Unfold": (lambda: nn.Unfold(2), IMAGE),
    "Flatten": (nn.Flatten, IMAGE),
    "RNN": (lambda: First(nn.RNN(6, 3, batch_first=True)), SEQUENCE),
    "GRU": (lambda: First(nn.GRU(6, 3, batch_first=True)), SEQUENCE),
    "LSTM": (lambda: First(nn.LSTM(6, 3, batch_first=True)), SEQUENCE),
    "RNNCell": (lambda: nn.RNNCell(8, 3), ROW),
    "GRUCell": (lambda: nn.GRUCell(8, 3), ROW),
    "LSTMCell": (lambda: First(nn.LSTMCell(8, 3)), ROW),
    "MultiheadAttention": (lambda: Attend(nn.MultiheadAttention(6, 2, batch_first=True)), SEQUENCE),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(6, 2, 5, batch_first=True), SEQUENCE),
    "TransformerDecoderLayer": (lambda: Twice(nn.TransformerDecoderLayer(6, 2, 5, batch_first=True)), SEQUENCE),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), ROW),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)), ROW),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 4)), ROW),
    "Embedding": (lambda: Looked(nn.Embedding(7, 8)), ROW),
    "Embedding, sparse": (lambda: Looked(nn.Embedding(7, 8, sparse=True)), ROW),
    "EmbeddingBag": (lambda: Looked(nn.EmbeddingBag(7, 8), bag=True), ROW),
    "EmbeddingBag, max": (lambda: Looked(nn.EmbeddingBag(7, 8, mode="max"), bag=True), ROW),
}  # fmt: skip
LOSSES = {
    "MSELoss": ("real", {}), "L1Loss": ("real", {}), "SmoothL1Loss": ("real", {}), "HuberLoss": ("real", {}),
    "CrossEntropyLoss": ("class", {}), "CrossEntropyLoss, smoothed": ("class", {"label_smoothing": 0.1}),
    "BCEWithLogitsLoss": ("binary", {}), "SoftMarginLoss": ("sign", {}), "MultiMarginLoss": ("class", {}),
    "MultiLabelSoftMarginLoss": ("binary", {}), "PoissonNLLLoss": ("binary", {}), "HingeEmbeddingLoss": ("sign", {}),
    "KLDivLoss": ("shares", {"reduction": "batchmean"}), "MultiLabelMarginLoss": ("labels", {}),
}  # fmt: skip


class First(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


class Attend(First):
    def forward(self, x):
        return self.module(x, x, x)[0]


class Twice(First):
    def __init__(self, module, shifted=False):
        super().__init__(module)
        self.shifted = shifted

    def forward(self, x):
        return self.module(x, x.roll(1, -1) + 0.3 if self.shifted else x)


class Looked(First):
    """A table looked up by the sample's sign pattern, added to the sample."""

    def __init__(self, module, bag=False):
        super().__init__(module)
        self.bag = bag
        self.register_buffer("index", torch.randint(0, 7, (16, 3)))

    def forward(self, x):
        rows = self.index[: len(x)]
        return x * (self.module(rows) if self.bag else self.module(rows[:, 0])).tanh()


class Around(nn.Module):
    """A linear layer before the module, and a smooth reading of what it gives: 3 numbers a sample."""

    def __init__(self, module, shape):
        super().__init__()
        self.before = nn.Linear(3, torch.Size(shape).numel())
        self.module, self.shape = module, shape

    def forward(self, x):
        y = self.module(self.before(x).tanh().view(len(x), *self.shape) * 1.7).reshape(len(x), -1)
        mix = torch.arange(1.0, 3 * y.shape[1] + 1, dtype=y.dtype).view(y.shape[1], 3).sin()
        return (y @ mix).tanh() + y.square() @ mix.cos() / y.shape[1]


def targets(kind, samples):
    return {
        "real": torch.randn(samples, 3), "class": torch.randint(0, 3, (samples,)),
        "binary": torch.randint(0, 2, (samples, 3)).float(), "sign": torch.randint(0, 2, (samples, 3)).float() * 2 - 1,
        "shares": torch.rand(samples, 3).softmax(1), "labels": torch.tensor([[0, 2, -1]] * samples),
    }[kind]  # fmt: skip


def case(name):
    torch.manual_seed(4)
    if name in MODULES:
        make, shape = MODULES[name]
        model, loss, y = Around(make(), shape), "mse", torch.randn(12, 3)
    else:
        kind, options = LOSSES[name]
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        loss, y = getattr(nn, name.partition(",")[0])(**options), targets(kind, 12)
    x = torch.randn(12, 3)
    problem = Problem.supervised(model.double().eval(), loss, (x, y))
    return problem.to(dtype=torch.float64)


def by_differences(problem, v, step=1e-6):
    """H v by central differences of the gradient, PyTorch as it is."""
    own = list(problem.model.parameters())
    batch = next(iter(problem.rebatched(12).data))

    def gradient(h):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(flat + h * v, own)
        loss = problem.total(batch) / 12
        return torch.cat([g.to_dense().reshape(-1) for g in torch.autograd.grad(loss, own, materialize_grads=True)])

    flat = torch.nn.utils.parameters_to_vector(own).detach().clone()
    try:
        return (gradient(step) - gradient(-step)) / (2 * step)
    finally:
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(flat, own)


def plain_product(problem, v):
    """H v by PyTorch's own double backward; None where it raises."""
    own = list(problem.model.parameters())
    loss = problem.total(next(iter(problem.rebatched(12).data))) / 12
    try:
        g = torch.autograd.grad(loss, own, create_graph=True, materialize_grads=True)
        slope = sum((a * b).sum() for a, b in zip(g, split(v, own), strict=True))
        if not slope.requires_grad:
            return torch.zeros_like(v)
        return torch.cat([p.reshape(-1) for p in torch.autograd.grad(slope, own, materialize_grads=True)])
    except RuntimeError:
        return None


def split(v, own):
    return [part.view(p.shape) for part, p in zip(v.split([p.numel() for p in own]), own, strict=True)]


def agrees(product, truth):
    return product is not None and float((product - truth).norm()) <= 1e-5 * float(truth.norm()) + 1e-9


def outcome(name):
    """(products, linearized) in the words of the table. Nothing may be wrong in silence: that is asserted here."""
    problem = case(name)
    v = torch.randn(sum(p.numel() for p in problem.model.parameters()), dtype=torch.float64)
    v /= v.norm()
    truth = by_differences(problem, v)
    try:
        operator = build_operator(problem, "hessian", "all")
    except ValueError as error:
        assert "second derivative" in str(error) or "the loss jumps" in str(error)
        return "refused", "no"
    assert agrees(operator @ v, truth), f"{name} is wrong in silence"
    rejected = check_product(problem, "all", backends=("double-backward", "linearized"), distant=False).rejected
    words = "works" if agrees(plain_product(problem, v), truth) else "by formula"
    if "double-backward" in rejected:
        words = "linearized alone"
    return words, "no" if "linearized" in rejected else "yes"


NAMES = [*MODULES, *LOSSES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_does_what_the_table_says(name, caplog):
    caplog.set_level(logging.ERROR, logger="lossmap")  # as it was again after the test
    words, linearized = outcome(name)
    ROWS[name] = f"| {name} | {words} | {linearized} |"
    if not os.environ.get("LOSSMAP_WRITE_TABLES"):
        assert ROWS[name] in TABLE.read_text().splitlines()


ROWS: dict[str, str] = {}


def test_the_table_holds_these_operations_and_no_others():
    if os.environ.get("LOSSMAP_WRITE_TABLES"):
        TABLE.write_text(HEAD + "\n".join(ROWS[name] for name in NAMES if name in ROWS) + "\n")
    rows = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == NAMES
