"""PyTorch's own modules, one by one: products right, by a formula of ours, or refused; made into a table of the docs.

LOSSMAP_WRITE_TABLES=1 pytest tests/curvature/test_operations.py      writes docs/operations.md anew
"""

import logging
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from lossmap import Problem
from lossmap.curvature.build import build_operator
from lossmap.curvature.product_check import check_product

TABLE = Path(__file__).parents[2] / "docs" / "operations.md"
HEAD = """# Operations of PyTorch

Each row is a small network with that module in it, in float64; its Hessian's products are compared with central
differences of the gradient. `works`: right as PyTorch computes it. `by formula`: PyTorch has no right second derivative
of it by default, and lossmap computes it by its formula or by another kernel. `refused`: a ValueError that says why.
`linearized`: whether the linearized product does it too; where not, another backend is taken. The table is written by
`tests/curvature/test_operations.py`, which holds it to what happens with PyTorch 2.13; PyTorch 2.6 differs in that
`grid_sample` is refused.

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
MODULES |= {
    "AvgPool2d, uneven": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    "MaxPool2d, dilated": (lambda: nn.MaxPool2d(2, 1, 1, dilation=2, ceil_mode=True), IMAGE),
    "MaxUnpool2d": (lambda: Unpooled(), IMAGE),
    "LPPool1d, norm 3": (lambda: nn.Sequential(nn.Softplus(), nn.LPPool1d(3, 2)), SEQUENCE),
    "LPPool3d": (lambda: nn.LPPool3d(2, 2), VOLUME),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, 3, _random_samples=torch.full((12, 4, 2), 0.4)), IMAGE),
    "FractionalMaxPool3d": (lambda: nn.FractionalMaxPool3d(2, 2, _random_samples=torch.full((12, 4, 3), 0.4)), VOLUME),
    "Conv2d, dilated": (lambda: nn.Conv2d(4, 3, 2, 2, dilation=2), IMAGE),
    "Conv2d, circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "ConvTranspose2d, groups": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2), IMAGE),
    "CircularPad1d": (lambda: nn.CircularPad1d(1), SEQUENCE),
    "CircularPad3d": (lambda: nn.CircularPad3d(1), VOLUME),
    "ConstantPad1d": (lambda: nn.ConstantPad1d(1, 0.5), SEQUENCE),
    "ConstantPad3d": (lambda: nn.ConstantPad3d(1, 0.5), VOLUME),
    "ZeroPad1d": (lambda: nn.ZeroPad1d(1), SEQUENCE),
    "ZeroPad3d": (lambda: nn.ZeroPad3d(1), VOLUME),
    "Upsample, linear": (lambda: nn.Upsample(scale_factor=1.5, mode="linear"), SEQUENCE),
    "Upsample, aligned": (lambda: nn.Upsample(9, mode="bilinear", align_corners=True), IMAGE),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), IMAGE),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "Fold, overlapping": (lambda: nn.Fold((3, 4), (2, 2), padding=1, stride=2), SEQUENCE),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 4)), ROW),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), SEQUENCE),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), IMAGE),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), VOLUME),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(2), IMAGE),
    "InstanceNorm1d, running": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), SEQUENCE),
    "GroupNorm, one group": (lambda: nn.GroupNorm(1, 4, affine=False), IMAGE),
    "LayerNorm, images": (lambda: nn.LayerNorm([4, 6, 6]), IMAGE),
    "RNN, relu": (lambda: First(nn.RNN(6, 3, 2, nonlinearity="relu", batch_first=True)), SEQUENCE),
    "GRU, bidirectional": (lambda: First(nn.GRU(6, 3, 2, batch_first=True, bidirectional=True)), SEQUENCE),
    "LSTM, projected": (lambda: First(nn.LSTM(6, 4, proj_size=2, batch_first=True)), SEQUENCE),
    "MultiheadAttention, masked": (
        lambda: Attend(nn.MultiheadAttention(6, 2, batch_first=True), masked=True), SEQUENCE),
    "TransformerEncoderLayer, norm first": (
        lambda: nn.TransformerEncoderLayer(6, 2, 5, batch_first=True, norm_first=True, activation="gelu"), SEQUENCE),
    "weight_norm of a convolution": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3), dim=1), IMAGE),
    "weight_norm, old": (lambda: nn.utils.weight_norm(nn.Linear(8, 4)), ROW),
    "spectral_norm, old": (lambda: nn.utils.spectral_norm(nn.Linear(8, 4)), ROW),
    "a parametrization": (lambda: parametrized(), ROW),
    "prune": (lambda: l1_unstructured(nn.Linear(8, 4), "weight", 0.5), ROW),
    "Embedding, max_norm": (lambda: Looked(nn.Embedding(7, 8, max_norm=1.0)), ROW),
    "Embedding, by frequency": (lambda: Looked(nn.Embedding(7, 8, scale_grad_by_freq=True)), ROW),
    "EmbeddingBag, sum": (lambda: Looked(nn.EmbeddingBag(7, 8, mode="sum", padding_idx=2), bag=True), ROW),
    "EmbeddingBag, weighted": (lambda: Looked(nn.EmbeddingBag(7, 8, mode="sum"), bag=True, weighted=True), ROW),
    "EmbeddingBag, offsets": (lambda: Looked(nn.EmbeddingBag(7, 8, sparse=True), bag=True, offsets=True), ROW),
    "complex numbers as pairs": (lambda: Spectral(), SEQUENCE),
}  # fmt: skip


def halves(y):
    """Two tensors of half the entries."""
    return y.chunk(2, 1)


def positive(y):
    """Symmetric positive definite matrices (N, 2, 2) of the first four entries."""
    a = y[:, :4].reshape(-1, 2, 2)
    return a @ a.mT + torch.eye(2, dtype=y.dtype)


PLACES, HALVES = torch.tensor([0, 0, 5, 1, 1, 2, 3, 3]), torch.tensor([[4, 4]] * 12)
# functions, of F where it has them: (function of the activations, their shape)
FUNCTIONS = {
    "normalize": (lambda y: F.normalize(y), ROW),
    "cosine_similarity": (lambda y: F.cosine_similarity(*halves(y))[:, None], ROW),
    "pairwise_distance, p = 3": (lambda y: F.pairwise_distance(*halves(y), p=3)[:, None], ROW),
    "cdist": (lambda y: torch.cdist(y, y + 1.0), SEQUENCE),
    "pdist": (lambda y: F.pdist(y.reshape(-1, 6)).sum().expand(len(y), 1), SEQUENCE),
    "grid_sample": (lambda y: F.grid_sample(y, y[:, :2].movedim(1, -1) / 2, align_corners=False), IMAGE),
    "grid_sample, bicubic": (
        lambda y: F.grid_sample(y, y[:, :2].movedim(1, -1) / 2, "bicubic", align_corners=True), IMAGE),
    "grid_sample, nearest": (
        lambda y: F.grid_sample(y, y[:, :2].detach().movedim(1, -1), "nearest", "border", align_corners=True), IMAGE),
    "affine_grid": (lambda y: F.affine_grid(y[:, :6].reshape(-1, 2, 3), (len(y), 1, 3, 3), align_corners=False), ROW),
    "interpolate, area": (lambda y: F.interpolate(y, size=4, mode="area"), IMAGE),
    "interpolate, nearest-exact": (lambda y: F.interpolate(y, scale_factor=1.5, mode="nearest-exact"), IMAGE),
    "interpolate, antialiased": (lambda y: F.interpolate(y, size=4, mode="bilinear", antialias=True), IMAGE),
    "scaled_dot_product_attention": (lambda y: F.scaled_dot_product_attention(y, y.flip(1), y), SEQUENCE),
    "scaled_dot_product_attention, causal": (
        lambda y: F.scaled_dot_product_attention(y, y, y, is_causal=True), SEQUENCE),
    "pad, reflect": (lambda y: F.pad(y, (2, 1), "reflect"), SEQUENCE),
    "adaptive_max_pool1d": (lambda y: F.adaptive_max_pool1d(y, 3), SEQUENCE),
    "max_unpool1d": (lambda y: F.max_unpool1d(*F.max_pool1d(y, 2, return_indices=True), 2), SEQUENCE),
    "lp_pool2d": (lambda y: F.lp_pool2d(y.exp(), 3, 2), IMAGE),
    "unfold": (lambda y: F.unfold(y, 3, 2, 1), IMAGE),
    "gelu, tanh": (lambda y: F.gelu(y, approximate="tanh"), ROW),
    "log_softmax": (lambda y: F.log_softmax(y, -1), ROW),
    "logsumexp": (lambda y: torch.logsumexp(y, -1, keepdim=True), ROW),
    "rms_norm": (lambda y: F.rms_norm(y, (6,)), SEQUENCE),
    "native_channel_shuffle": (lambda y: F.channel_shuffle(y, 2), IMAGE),
    "norm, p = 1.5": (lambda y: torch.linalg.vector_norm(y, 1.5, -1, keepdim=True), ROW),
    "std": (lambda y: y.std(-1, keepdim=True), ROW),
    "prod": (lambda y: y.prod(-1, keepdim=True), ROW),
    "cumsum": (lambda y: y.cumsum(-1), ROW),
    "cumprod": (lambda y: y.cumprod(-1), ROW),
    "logcumsumexp": (lambda y: y.logcumsumexp(-1), ROW),
    "sort": (lambda y: y.sort(-1)[0], ROW),
    "topk": (lambda y: y.topk(3)[0], ROW),
    "median": (lambda y: y.median(-1, keepdim=True)[0], ROW),
    "gather": (lambda y: y.gather(1, PLACES[:3].expand(len(y), 3)), ROW),
    "scatter_add": (lambda y: torch.zeros_like(y).scatter_add(1, PLACES.expand(len(y), 8), y), ROW),
    "index_add": (lambda y: torch.zeros_like(y).index_add(1, PLACES, y), ROW),
    "einsum": (lambda y: torch.einsum("nij,nkj->nik", y, y), SEQUENCE),
    "bmm": (lambda y: torch.bmm(y, y.mT), SEQUENCE),
    "linalg.solve": (lambda y: torch.linalg.solve(positive(y), y[:, 4:6]), ROW),
    "linalg.inv": (lambda y: torch.linalg.inv(positive(y)), ROW),
    "linalg.cholesky": (lambda y: torch.linalg.cholesky(positive(y)), ROW),
    "linalg.slogdet": (lambda y: torch.linalg.slogdet(positive(y))[1][:, None], ROW),
    "linalg.eigh": (lambda y: torch.linalg.eigvalsh(positive(y)), ROW),
    "linalg.svd": (lambda y: torch.linalg.svdvals(y), SEQUENCE),
    "linalg.qr": (lambda y: torch.linalg.qr(y.mT)[1], SEQUENCE),
    "matrix_exp": (lambda y: torch.matrix_exp(positive(y) / 4), ROW),
    "fft.rfft": (lambda y: torch.fft.rfft(y).abs().square(), SEQUENCE),
    "fft.irfft2": (lambda y: torch.fft.irfft2(torch.fft.rfft2(y) ** 2), IMAGE),
    "erf": (torch.erf, ROW),
    "lgamma": (lambda y: torch.lgamma(y.square() + 1), ROW),
    "special.i0": (torch.special.i0, ROW),
    "atan2": (lambda y: torch.atan2(*halves(y)), ROW),
    "renorm": (lambda y: y.renorm(2, 0, 1.0), ROW),
    "segment_reduce": (lambda y: torch.segment_reduce(y, "sum", lengths=HALVES[: len(y)], axis=1), ROW),
    "index_reduce": (lambda y: torch.zeros_like(y).index_reduce(1, PLACES, y, "mean"), ROW),
}  # fmt: skip
WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
LOSSES = {
    "MSELoss": ("real", {}), "L1Loss": ("real", {}), "SmoothL1Loss": ("real", {}), "HuberLoss": ("real", {}),
    "CrossEntropyLoss": ("class", {}), "CrossEntropyLoss, smoothed": ("class", {"label_smoothing": 0.1}),
    "BCEWithLogitsLoss": ("binary", {}), "SoftMarginLoss": ("sign", {}), "MultiMarginLoss": ("class", {}),
    "MultiLabelSoftMarginLoss": ("binary", {}), "PoissonNLLLoss": ("binary", {}), "HingeEmbeddingLoss": ("sign", {}),
    "KLDivLoss": ("shares", {"reduction": "batchmean"}), "MultiLabelMarginLoss": ("labels", {}),
    "CrossEntropyLoss, soft": ("shares", {}), "CrossEntropyLoss, weighted": ("class", {"weight": WEIGHT}),
    "HuberLoss, wide": ("real", {"delta": 3.0}), "SmoothL1Loss, narrow": ("real", {"beta": 0.1}),
    "BCEWithLogitsLoss, weighted": ("binary", {"pos_weight": WEIGHT}),
    "MultiMarginLoss, squared": ("class", {"p": 2, "weight": WEIGHT}),
    "PoissonNLLLoss, full": ("binary", {"full": True}), "KLDivLoss, log targets": ("logs", {"log_target": True}),
}  # fmt: skip


def triplet(o, t, loss):
    """A loss of three tensors: the outputs, themselves rolled by one column, and the targets."""
    return loss(o, o.roll(1, 1), t)


SIGN, LENGTHS = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64), torch.tensor([2] * 12)
CALLED = {  # losses of other arguments than outputs and targets: (function of both, kind of the targets)
    "NLLLoss": (lambda o, t: nn.NLLLoss(weight=WEIGHT)(o.log_softmax(1), t), "class"),
    "BCELoss": (lambda o, t: nn.BCELoss()(o.sigmoid(), t.to(o)), "binary"),
    "GaussianNLLLoss": (lambda o, t: nn.GaussianNLLLoss()(o, t.to(o), o.roll(1, 1).square() + 0.1), "real"),
    "CosineEmbeddingLoss": (lambda o, t: nn.CosineEmbeddingLoss(0.2)(o, t.to(o), SIGN[: len(o)].to(o)), "real"),
    "MarginRankingLoss": (lambda o, t: nn.MarginRankingLoss(0.1)(o, o.roll(1, 1), t.to(o)), "sign"),
    "TripletMarginLoss": (lambda o, t: triplet(o, t.to(o), nn.TripletMarginLoss(swap=True)), "real"),
    "TripletMarginWithDistanceLoss": (lambda o, t: triplet(o, t.to(o), nn.TripletMarginWithDistanceLoss()), "real"),
    "CTCLoss": (
        lambda o, t: nn.CTCLoss()(
            torch.stack([o, o.roll(1, 1), -o, o.square()]).log_softmax(-1), 1 + t[:, None] % 2 * torch.tensor([1, 0]),
            torch.full((len(o),), 4), LENGTHS[: len(o)]), "class"),
    "soft_margin_loss": (lambda o, t: F.soft_margin_loss(o, t.to(o)), "sign"),
    "binary_cross_entropy": (lambda o, t: F.binary_cross_entropy(o.softmax(1), t.to(o)), "shares"),
    "nll_loss": (lambda o, t: F.nll_loss(o.softmax(1).log(), t), "class"),
    "kl_div": (lambda o, t: F.kl_div(o.log_softmax(1), t.to(o), reduction="batchmean"), "shares"),
    "poisson_nll_loss": (lambda o, t: F.poisson_nll_loss(o.exp(), t.to(o), log_input=False), "binary"),
}  # fmt: skip


class Unpooled(nn.Module):
    """Maxima put back in their places."""

    def __init__(self):
        super().__init__()
        self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        return self.back(*self.pool(x))


class Spectral(nn.Module):
    """A product of Fourier coefficients with complex weights that are kept as pairs of real numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 2))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.weight), 6)


class Exponential(nn.Module):
    """A parametrization that keeps a weight positive."""

    def forward(self, x):
        return x.exp()


def parametrized():
    layer = nn.Linear(8, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Exponential())
    return layer


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class First(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


class Attend(First):
    def __init__(self, module, masked=False):
        super().__init__(module)
        self.masked = masked

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.masked else None
        return self.module(x, x, x, attn_mask=mask, need_weights=not self.masked)[0]


class Twice(First):
    def __init__(self, module, shifted=False):
        super().__init__(module)
        self.shifted = shifted

    def forward(self, x):
        return self.module(x, x.roll(1, -1) + 0.3 if self.shifted else x)


class Looked(First):
    """A table looked up by the sample's sign pattern, added to the sample."""

    def __init__(self, module, bag=False, weighted=False, offsets=False):
        super().__init__(module)
        self.bag, self.weighted, self.offsets = bag, weighted, offsets
        self.register_buffer("index", torch.randint(0, 7, (16, 3)))

    def forward(self, x):
        rows = self.index[: len(x)]
        if not self.bag:
            return x * self.module(rows[:, 0]).tanh()
        if self.offsets:
            return x * self.module(rows.reshape(-1), torch.arange(0, 3 * len(x), 3)).tanh()
        weights = x[:, :3] if self.weighted else None
        return x * self.module(rows, per_sample_weights=weights).tanh()


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
        "shares": torch.rand(samples, 3).softmax(1),
        "logs": torch.rand(samples, 3).log_softmax(1),
        "labels": torch.tensor([[0, 2, -1]] * samples),
    }[kind]  # fmt: skip


def case(name):
    torch.manual_seed(4)
    if name in MODULES or name in FUNCTIONS:
        make, shape = MODULES.get(name) or FUNCTIONS[name]
        module = make() if name in MODULES else Applied(make)
        model, loss, y = Around(module, shape), "mse", torch.randn(12, 3)
    elif name in CALLED:
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        loss, kind = CALLED[name]
        y = targets(kind, 12)
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
        assert any(t in str(error) for t in ("second derivative", "the loss jumps", "is not that of the loss"))
        return "refused", "no"
    assert agrees(operator @ v, truth), f"{name} is wrong in silence"
    rejected = check_product(problem, "all", backends=("double-backward", "linearized"), distant=False).rejected
    words = "works" if agrees(plain_product(problem, v), truth) else "by formula"
    if "double-backward" in rejected:
        words = "linearized alone"
    return words, "no" if "linearized" in rejected else "yes"


NAMES = [*MODULES, *LOSSES, *CALLED, *FUNCTIONS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in FUNCTIONS)) for n in NAMES])
def test_an_operation_does_what_the_table_says(name, caplog):
    caplog.set_level(logging.ERROR, logger="lossmap")  # as it was again after the test
    words, linearized = outcome(name)
    ROWS[name] = f"| {name} | {words} | {linearized} |"
    if name.startswith("grid_sample") and words == "refused" and torch.__version__ < (2, 13):
        return  # as in 2.6, whose grid_sample has no second derivative that lossmap knows of
    if not os.environ.get("LOSSMAP_WRITE_TABLES"):
        assert ROWS[name] in TABLE.read_text().splitlines()


ROWS: dict[str, str] = {}


def test_the_table_holds_these_operations_and_no_others():
    if os.environ.get("LOSSMAP_WRITE_TABLES"):
        TABLE.write_text(HEAD + "\n".join(ROWS[name] for name in NAMES if name in ROWS) + "\n")
    rows = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == NAMES
