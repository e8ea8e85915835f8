"""How often a number, its bar or a sentence is wrong: random small networks against dense float64 truth.

    python benchmarks/trust.py [--nets 40] [--seed 0] [--only SEED] [--quiet] [--device cuda]

Each network is made from one seed: layers, activation, normalisation, wrapper, loss, reduction, precision, batch size,
and, where the loss has none at its minimum, a saturation: the last layer is scaled, or the targets are moved, until the
loss is between 1 and 1e-12; one map in five has its centre at 1e-8 and its rim near 10.

truth    central differences of the float64 gradient at two steps, h and h/2, extrapolated; the loss is written here in
         forms that do not cancel, and shares nothing with the package. Its error is twice the disagreement of the two
         steps (Frobenius norm), which bounds the error of each eigenvalue; where a third step, a fiftieth, shows that
         the second derivative jumps within them, by as much more
read     the spectrum as a dense matrix, the same by Lanczos through the products that a map prepares, the eigenmap
         (ends, trace) at the origin and at the rim

broken   values with no true eigenvalue within bar and truth's error; exact traces off by more    must be 0
limits   true ends beyond their limit (stated: 1 % each)
traces   estimated traces outside of their interval (stated: 5 %)
wide     bars over 30 times the true error; of these also over twice the tolerance of the search: useless
claims   sentences on signs that are false of the true eigenvalues                                must be 0
silent   numbers without a word for a loss or a gradient that is not what it seems                must be 0
refused  networks that PyTorch differentiates rightly, of which something was refused             at most 5 %
crashed  errors that are no sentence (IndexError, KeyError, ...)                                  must be 0

With --device the package computes there; networks and truth stay the same, made on the CPU.
Deterministic by seed. Price: about 4 s a network on one core. INT or TERM ends it with the table of what was run.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations

from lossmap.curvature.autotune import prepare
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane, random_plane
from lossmap.geometry.parameter_vector import selected
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.spectra.spectrum import spectrum, spectrum_of

STEP = 2e-5  # of the truth's differences; half of it is the second
JUMP = 1e-6  # of the Hessian: what a third, far smaller step may differ by
MAX_TRUTH_ERROR = 1e-2  # relative to the largest eigenvalue, above which a point has no truth: a kink lies between
TOL = 1e-3  # of the searches
WIDE = 30.0  # a bar over this many true errors is wide
SENTENCES = (ValueError, FloatingPointError)  # refusals; all else is a crash


# networks


class Cube(torch.autograd.Function):
    """x + x^3 / 9, differentiable any number of times."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x**3 / 9

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 + x**2 / 3)


class KeptOnContext(torch.autograd.Function):
    """The same, but with an intermediate kept on `ctx`: its second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 + x.detach() ** 2 / 3
        return x + x**3 / 9

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class OnceDifferentiable(torch.autograd.Function):
    """The same, but declared to have no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x**3 / 9

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 + x**2 / 3)


class StraightThrough(torch.autograd.Function):
    """Rounded forward, the identity backward: a gradient that is not the loss's."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


class Residual(nn.Module):
    """x + net(x)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Recurrent(nn.Module):
    """The mean of a recurrent layer's outputs over time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0].mean(1)


class Attention(nn.Module):
    """Self-attention by PyTorch's module, averaged over the sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0].mean(1)


class OwnAttention(nn.Module):
    """Self-attention by the functional form."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=self.causal).mean(1)


class Prefix(nn.Module):
    """A wrapper as data parallelism and compilers put around a net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net

    def forward(self, *x: Tensor) -> Tensor:
        return self.module(*x)


class Parts(nn.Module):
    """Body and head in a ModuleDict."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"body": net[:-1], "head": net[-1]})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["head"](self.parts["body"](x))


class Functional(nn.Module):
    """A net called with its own parameters by `functional_call`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.net, dict(self.net.named_parameters()), (x,))


SMOOTH = (
    nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Mish, nn.LogSigmoid, nn.Tanhshrink,
    lambda: nn.GELU("tanh"), lambda: nn.Softmax(-1), lambda: Call(torch.sin), lambda: Call(Cube.apply),
)  # fmt: skip
KINKED = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish, nn.Hardtanh, nn.Softsign, nn.PReLU, nn.ReLU6,
    nn.Hardshrink, nn.Softshrink, nn.RReLU,
)  # fmt: skip
NOT_TWICE = (nn.Hardsigmoid, lambda: Call(KeptOnContext.apply), lambda: Call(OnceDifferentiable.apply))
WRONG_GRADIENT = (lambda: Call(StraightThrough.apply),)
BODIES = (
    "linear", "deep", "residual", "conv1d", "conv2d", "transposed", "embedding", "bag", "attention", "sdpa",
    "encoder", "lstm", "gru", "rnn", "weight_norm", "old_weight_norm", "spectral_norm", "bilinear", "shallow",
)  # fmt: skip
LOSSES = (
    "ce", "ce", "ce", "ce_weights", "ce_ignore", "ce_smooth", "ce_soft", "ce_tokens", "ce_function_weights", "ce_sum",
    "mse", "mse_sum_function", "bce", "bce", "bce_weights", "nll", "huber", "poisson", "custom", "custom_sum",
    "quartic",
)  # fmt: skip
SATURABLE = ("ce", "ce_weights", "ce_ignore", "ce_sum", "ce_function_weights", "bce", "bce_weights", "nll")
COUPLED = ("ce_function_weights", "mse_sum_function")  # a function whose value depends on the batch


@dataclass
class Case:
    """One network with its problem, and what is true of it."""

    seed: int
    words: list[str]
    model: nn.Module
    problem: Callable[[torch.device], Problem]  # moves the model there
    truth: Callable[[nn.Module], Tensor]  # of the model in float64
    twice: bool = True  # whether PyTorch differentiates it rightly, twice
    honest: bool = True  # whether its gradient is the loss's
    coupled: bool = False  # whether the loss of a batch is no mean over samples
    convex: bool = False
    rim: float = 1.0

    @property
    def name(self) -> str:
        return " ".join(self.words)


class Dice:
    """Random choices of one seed, the same everywhere."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


def normalisation(kind: str, width: int, dim: int) -> nn.Module:
    """A normalisation of `width` channels of inputs with `dim` dimensions."""
    if kind == "batch":
        return {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[dim](width)
    if kind == "group":
        return nn.GroupNorm(2 if width % 2 == 0 else 1, width)
    if kind == "instance" and dim > 2:
        return {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}[dim](width, affine=True)
    if kind == "layer" and dim == 2:
        return nn.LayerNorm(width)
    if kind == "rms" and dim == 2:
        return nn.RMSNorm(width)
    return nn.Identity()


def body(dice: Dice, kind: str, act: Callable[[], nn.Module], norm: str) -> tuple[list[nn.Module], int, str]:
    """(layers, features that come out, kind of input)."""
    act1 = act()
    if kind == "shallow":
        return [nn.Identity()], 4, "vector"
    if kind in ("linear", "weight_norm", "old_weight_norm", "spectral_norm"):
        wrap = {
            "linear": lambda m: m,
            "weight_norm": parametrizations.weight_norm,
            "old_weight_norm": nn.utils.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
        }[kind]
        return [wrap(nn.Linear(4, 6)), normalisation(norm, 6, 2), act1], 6, "vector"
    if kind == "deep":
        return (
            [nn.Linear(4, 5), normalisation(norm, 5, 2), act1, nn.Linear(5, 5), act(), nn.Linear(5, 4), act()],
            4,
            "vector",
        )
    if kind == "residual":
        block = nn.Sequential(nn.Linear(4, 5), normalisation(norm, 5, 2), act1, nn.Linear(5, 4))
        return [Residual(block), act()], 4, "vector"
    if kind == "conv1d":
        groups = dice.one((1, 2))
        return (
            [nn.Conv1d(2, 4, 3, groups=groups), normalisation(norm, 4, 3), act1, nn.AvgPool1d(2), nn.Flatten()],
            12,
            "line",
        )
    if kind == "conv2d":
        layers = [
            nn.Conv2d(2, 4, 3, groups=dice.one((1, 2)), padding=dice.one((0, 1))),
            normalisation(norm, 4, 4),
            act1,
        ]
        pool = dice.one((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        return [*layers, pool(1), nn.Flatten()], 4, "image"
    if kind == "transposed":
        layer = nn.ConvTranspose1d(2, 4, 3, stride=2, groups=dice.one((1, 2)))
        return [layer, normalisation(norm, 4, 3), act1, nn.AdaptiveAvgPool1d(1), nn.Flatten()], 4, "line"
    if kind == "bilinear":
        return [BilinearOfItself(nn.Bilinear(4, 4, 3)), normalisation(norm, 3, 2), act1], 3, "vector"
    return sequence_body(dice, kind, act1, norm)


def sequence_body(dice: Dice, kind: str, act: nn.Module, norm: str) -> tuple[list[nn.Module], int, str]:
    """The same for tokens and sequences of vectors."""
    if kind == "embedding":
        return (
            [nn.Embedding(7, 4), Call(lambda x: x.mean(1)), nn.Linear(4, 5), normalisation(norm, 5, 2), act],
            5,
            "tokens",
        )
    if kind == "bag":
        return [nn.EmbeddingBag(7, 4), nn.Linear(4, 5), normalisation(norm, 5, 2), act], 5, "tokens"
    if kind == "attention":
        return [Attention(4), normalisation(norm, 4, 2), act], 4, "sequence"
    if kind == "sdpa":
        return [OwnAttention(4, dice.chance(0.5)), normalisation(norm, 4, 2), act], 4, "sequence"
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(
            4, 2, 4, dropout=0.1, batch_first=True, activation=dice.one(("relu", "gelu"))
        )
        return [layer, Call(lambda x: x.mean(1))], 4, "sequence"
    layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](4, 3, batch_first=True)
    return [Recurrent(layer), normalisation(norm, 3, 2), act], 3, "sequence"


class BilinearOfItself(nn.Module):
    """x^T W x."""

    def __init__(self, layer: nn.Bilinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


def inputs(kind: str, samples: int) -> Tensor:
    """Random inputs of a kind."""
    shapes = {"vector": (4,), "line": (2, 8), "image": (2, 5, 5), "sequence": (3, 4)}
    if kind == "tokens":
        return torch.randint(0, 7, (samples, 3))
    return torch.randn(samples, *shapes[kind])


# losses in forms that do not cancel, written for the truth alone


def logs_of(x: Tensor) -> Tensor:
    """log softmax over the classes (dimension 1) relative to the largest logit, a constant 0 where that leads."""
    k = x.detach().argmax(1, keepdim=True)
    lead = torch.zeros_like(x, dtype=torch.bool).scatter(1, k, True)
    d = (x - x.gather(1, k)).masked_fill(lead, 0.0)
    e = torch.where(lead, torch.zeros_like(d), d.exp())
    return d - torch.log1p(e.sum(1, keepdim=True))


def soft_plus(z: Tensor) -> Tensor:
    """log(1 + exp z)."""
    small = torch.exp(-torch.where(z > 0, z, -z))
    return torch.where(z > 0, z, torch.zeros_like(z)) + torch.log1p(small)


def weighted(logs: Tensor, y: Tensor, weight: Tensor | None = None, ignored: int = -100, smooth: float = 0.0) -> Tensor:
    """Cross entropy over all targets that count, divided by their weights."""
    counts = y != ignored
    y = y.masked_fill(~counts, 0)
    w = (
        torch.ones_like(logs[:1]).expand_as(logs)
        if weight is None
        else weight.to(logs).view(1, -1, *[1] * (logs.dim() - 2)).expand_as(logs)
    )
    own = w.gather(1, y.unsqueeze(1))[:, 0] * counts
    picked = -(own * logs.gather(1, y.unsqueeze(1))[:, 0]).sum()
    even = -((w * logs).sum(1) * counts).sum() / logs.shape[1]
    return ((1 - smooth) * picked + smooth * even) / own.sum()


@dataclass
class Loss:
    """A loss as the package gets it, the targets, and the truth."""

    criterion: Any
    targets: Callable[[Tensor], Tensor]  # from the outputs
    truth: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets), over all samples
    convex: bool = True


def loss_of(kind: str, classes: int) -> Loss:
    """A loss by name; the truth of a sum in a function is that of one batch of all samples."""
    w = torch.linspace(0.5, 2.0, classes)

    def labels(o: Tensor) -> Tensor:
        return o.argmax(1)

    def signs(o: Tensor) -> Tensor:
        return (o > 0).to(o.dtype)

    def near(o: Tensor) -> Tensor:
        return torch.randn_like(o)

    def ignoring(o: Tensor) -> Tensor:
        y = o.argmax(1)
        y[::5] = -1
        return y

    def soft(o: Tensor) -> Tensor:
        return torch.softmax(torch.randn_like(o), 1)

    def bce(o: Tensor, y: Tensor, p: Tensor | float = 1.0) -> Tensor:
        return ((1 - y) * soft_plus(o) + p * y * soft_plus(-o)).mean()

    def huber(o: Tensor, y: Tensor) -> Tensor:
        d = (o - y).abs()
        return torch.where(d < 1, 0.5 * d**2, d - 0.5).mean()

    table = {
        "ce": lambda: Loss(nn.CrossEntropyLoss(), labels, lambda o, y: weighted(logs_of(o), y)),
        "ce_weights": lambda: Loss(nn.CrossEntropyLoss(w), labels, lambda o, y: weighted(logs_of(o), y, w)),
        "ce_ignore": lambda: Loss(
            nn.CrossEntropyLoss(ignore_index=-1), ignoring, lambda o, y: weighted(logs_of(o), y, ignored=-1)
        ),
        "ce_smooth": lambda: Loss(
            nn.CrossEntropyLoss(label_smoothing=0.1), labels, lambda o, y: weighted(logs_of(o), y, smooth=0.1)
        ),
        "ce_soft": lambda: Loss(nn.CrossEntropyLoss(), soft, lambda o, y: -(logs_of(o) * y).sum(1).mean()),
        "ce_tokens": lambda: Loss(nn.CrossEntropyLoss(), labels, lambda o, y: weighted(logs_of(o), y)),
        "ce_sum": lambda: Loss(nn.CrossEntropyLoss(reduction="sum"), labels, lambda o, y: weighted(logs_of(o), y)),
        "ce_function_weights": lambda: Loss(
            lambda o, y: F.cross_entropy(o, y, w.to(o)), labels, lambda o, y: weighted(logs_of(o), y, w)
        ),
        "mse": lambda: Loss("mse", near, lambda o, y: ((o - y) ** 2).mean()),
        "mse_sum_function": lambda: Loss(
            lambda o, y: F.mse_loss(o, y, reduction="sum"), near, lambda o, y: ((o - y) ** 2).sum() / len(o)
        ),
        "bce": lambda: Loss(nn.BCEWithLogitsLoss(), signs, bce),
        "bce_weights": lambda: Loss(nn.BCEWithLogitsLoss(pos_weight=w), signs, lambda o, y: bce(o, y, w.to(o))),
        "nll": lambda: Loss(nn.NLLLoss(), labels, lambda o, y: weighted(logs_of(o), y)),
        "huber": lambda: Loss(nn.HuberLoss(), near, huber),
        "poisson": lambda: Loss(
            nn.PoissonNLLLoss(), lambda o: torch.poisson(torch.ones_like(o)), lambda o, y: (o.exp() - y * o).mean()
        ),
        "custom": lambda: Loss("custom", near, lambda o, y: torch.log1p((o - y) ** 2).sum(1).mean(), False),
        "custom_sum": lambda: Loss("custom_sum", near, lambda o, y: torch.cosh(0.3 * (o - y)).sum(1).mean()),
        "quartic": lambda: Loss(lambda o, y: ((o - y) ** 4).mean(), near, lambda o, y: ((o - y) ** 4).mean()),
    }
    return table[kind]()


def custom_problem(kind: str, model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Problem:
    """A loss of model and batch: a mean, or a sum."""
    if kind == "custom":
        return Problem.custom(
            model, lambda m, b: torch.log1p((m(b[0]) - b[1]) ** 2).sum(1).mean(), (x, y), batch_size=batch
        )
    return Problem.custom(
        model, lambda m, b: torch.cosh(0.3 * (m(b[0]) - b[1])).sum(), (x, y), reduction="sum", batch_size=batch
    )


def saturation(dice: Dice, loss_kind: str) -> tuple[float, float]:
    """(loss that is aimed at, 1 for as it comes; the coordinate of the rim)."""
    target, rim = 1.0, dice.one((0.5, 1.0))
    if loss_kind in SATURABLE and dice.chance(0.75):
        target = 10.0 ** -dice.rng.uniform(0, 12)
        if dice.chance(0.2):
            target, rim = 1e-8, 1.0
    return target, rim


def case_of(seed: int) -> Case:
    """The network of a seed."""
    dice = Dice(seed)
    torch.manual_seed(seed)
    kind, norm = dice.one(BODIES), dice.one(("batch", "layer", "group", "instance", "rms", "none", "none"))
    roll = dice.rng.random()
    acts = SMOOTH if roll < 0.5 else KINKED if roll < 0.88 else NOT_TWICE if roll < 0.96 else WRONG_GRADIENT
    act = dice.one(acts)
    loss_kind = dice.one(LOSSES)
    dtype = dice.one((torch.float32, torch.float32, torch.float64))
    wrapper = dice.one(("plain", "plain", "prefix", "parts", "functional"))
    samples, classes = dice.one((24, 37, 48)), dice.one((2, 3, 4))
    batch = dice.one((1, 2, 7, 16, samples))
    layers, features, given = body(dice, kind, act, norm)
    uses_act = kind not in ("shallow", "encoder")
    head: nn.Module = nn.Linear(features, classes)
    if loss_kind == "ce_tokens":
        head = nn.Linear(features, classes * 3)
    net = nn.Sequential(*layers, head).to(dtype)
    x = inputs(given, samples)
    x = x.to(dtype) if x.is_floating_point() else x
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(x)  # for the running statistics
    net.eval()
    words = [
        f"{kind}/{norm}",
        activation_name(act) if uses_act else "-",
        loss_kind,
        str(dtype)[6:],
        wrapper,
        f"batch {batch}",
    ]
    target, rim = saturation(dice, loss_kind)
    if target < 1.0:
        words.append(f"loss {target:.0e}")
    loss = loss_of(loss_kind, classes)
    if target < 1.0:
        x = saturate(net, head, x, loss, target, given)
    extra: list[nn.Module] = []
    if loss_kind == "ce_tokens":
        extra = [nn.Unflatten(1, (classes, 3))]
    with torch.no_grad():
        out = nn.Sequential(net, *extra)(x)
        y = loss.targets(out)
        if target == 1.0 and loss_kind in (*SATURABLE, "ce_tokens", "ce_smooth") and loss_kind != "ce_ignore":
            flip = torch.rand(y.shape) < 0.3
            y = torch.where(flip, y.flip(0), y)  # some labels wrong
    y = y.detach()
    model = wrapped(net, wrapper)
    last = [*extra, nn.LogSoftmax(1)] if loss_kind == "nll" else extra
    if last:
        model = nn.Sequential(model, *last)
    in_training = norm == "none" and kind != "encoder" and act is not nn.RReLU and dice.chance(0.2)
    model.train(in_training)  # only where it makes no difference
    words += ["training mode"] * in_training

    def problem(device: torch.device) -> Problem:
        model.to(device)
        if isinstance(loss.criterion, str) and loss.criterion.startswith("custom"):
            return custom_problem(loss_kind, model, x.to(device), y.to(device), batch)
        criterion = loss.criterion
        if isinstance(criterion, nn.Module):
            criterion = criterion.to(device, dtype)
        return Problem.supervised(model, criterion, (x.to(device), y.to(device)), batch_size=batch)

    return Case(
        seed, words, model, problem, partial(true_loss, loss_kind, loss, x, y, batch),
        twice=not (uses_act and acts in (NOT_TWICE, WRONG_GRADIENT)),
        honest=not (uses_act and acts is WRONG_GRADIENT),
        coupled=loss_kind in COUPLED and batch != samples and not is_the_same(loss.truth, out.double(), y, batch),
        convex=kind == "shallow" and loss.convex,
        rim=rim,
    )  # fmt: skip


def true_loss(kind: str, loss: Loss, x: Tensor, y: Tensor, batch: int, m: nn.Module) -> Tensor:
    """The mean loss of a model in float64, over all samples."""
    inner: Any = m
    if kind == "nll":  # without its log softmax
        inner = m[:-1]  # type: ignore[index]
    o = inner(x.double() if x.is_floating_point() else x)
    if kind == "ce_function_weights":  # of a function that weighs, the loader's batches, by their samples
        return by_batches(loss.truth, o, y, batch)
    return loss.truth(o, y.double() if y.is_floating_point() else y)


def by_batches(truth: Callable[[Tensor, Tensor], Tensor], o: Tensor, y: Tensor, batch: int) -> Tensor:
    """The mean over samples of the losses of batches in order, each counted by its samples."""
    parts = [truth(p, t) * len(p) for p, t in zip(o.split(batch), y.split(batch), strict=True)]
    return torch.stack(parts).sum() / len(o)


def is_the_same(truth: Callable[[Tensor, Tensor], Tensor], o: Tensor, y: Tensor, batch: int) -> bool:
    """Whether a weighted mean does not depend on the batches, as where all targets are of one class."""
    if y.is_floating_point():
        return False
    whole = truth(o, y)
    return bool((by_batches(truth, o, y, batch) - whole).abs() <= 1e-9 * whole.abs())


def activation_name(act: Callable[[], nn.Module]) -> str:
    """What is written of an activation."""
    module = act()
    function = getattr(module, "function", None)
    if function is None:
        return type(module).__name__
    owner = getattr(function, "__self__", None)
    return getattr(owner, "__name__", None) or str(function.__name__)


def wrapped(net: nn.Sequential, wrapper: str) -> nn.Module:
    """The net in a wrapper."""
    return {"plain": lambda n: n, "prefix": Prefix, "parts": Parts, "functional": Functional}[wrapper](net)


def saturate(net: nn.Sequential, head: nn.Linear, x: Tensor, loss: Loss, target: float, given: str) -> Tensor:
    """Inputs with clear labels, the last layer scaled until the loss of the net's own labels is the target."""
    many = inputs(given, 6 * len(x))
    many = many.to(x.dtype) if x.is_floating_point() else many
    with torch.no_grad():
        head.bias.zero_()
        out = net(many)
        if isinstance(loss.criterion, nn.BCEWithLogitsLoss):
            margin = out.abs().min(1).values
        else:
            two = out.topk(2, 1).values
            margin = two[:, 0] - two[:, 1]
        clear = margin.argsort(descending=True)[: 3 * len(x)]
        x = many[clear[torch.randperm(len(clear))[: len(x)]]]
        start = head.weight.clone()
        low, high = -6.0, 14.0
        for _ in range(50):
            middle = (low + high) / 2
            head.weight.copy_(start * math.exp(middle))
            exact = copy.deepcopy(net).double()(x.double() if x.is_floating_point() else x)
            y = loss.targets(exact)
            low, high = (middle, high) if float(loss.truth(exact, y)) > target else (low, middle)
    return x


# truth


@dataclass
class Truth:
    """The dense Hessian's eigenvalues at a point, and their error."""

    values: np.ndarray  # ascending
    trace: float
    error: float  # of each eigenvalue
    trace_error: float
    loss: float

    @property
    def scale(self) -> float:
        return float(np.abs(self.values).max())

    @property
    def known(self) -> bool:
        return math.isfinite(self.error) and self.error <= MAX_TRUTH_ERROR * self.scale


def hard_sigmoid(x: Tensor) -> Tensor:
    """By its formula: PyTorch's gradient multiplies by 1/6 as float32 rounds it, in float64 too."""
    return F.relu6(x + 3) / 6


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of the model in float64 that is the same function.

    What depends on the precision is taken as it was: the epsilon of an RMSNorm that was given none.
    """
    own = next(p.dtype for p in model.parameters())
    twin = copy.deepcopy(model).double().eval()
    for module in list(twin.modules()):
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            module.eps = torch.finfo(own).eps
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, Call(hard_sigmoid))
    return twin


def truth_at(case: Case, tensors: dict[str, Tensor] | None = None) -> Truth:
    """By differences of the gradient in float64, n columns of four gradients."""
    model = in_float64(case.model)
    for p in model.parameters():
        p.requires_grad_(True)
    if tensors is not None:
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in tensors.items():
            own[name].data = value.detach().double().clone() if value.is_floating_point() else value.detach().clone()
    params = list(selected(model, "weights").values())
    size = float(case.truth(model).detach())

    def gradient() -> Tensor:
        parts = torch.autograd.grad(case.truth(model), params, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(params, parts, strict=True)]
        )

    coarse, fine, finest = [], [], []
    for p in params:
        flat = p.data.view(-1)
        for i in range(len(flat)):
            before = float(flat[i])
            for step, columns in ((STEP, coarse), (STEP / 2, fine), (STEP / 50, finest)):
                flat[i] = before + step
                up, high = gradient(), float(flat[i])
                flat[i] = before - step
                columns.append((up - gradient()) / (high - float(flat[i])))
            flat[i] = before
    a, b = torch.stack(coarse), torch.stack(fine)
    h = (4 * b - a) / 3
    gap = a - b
    error = 2 * float(gap.norm() + (h - h.T).norm()) + 1e-300  # rounding is now and then 1.5 times that alone
    # Where the second derivative jumps within both steps, as that of ELU at 0, they agree on a number in between.
    jump = float((b - torch.stack(finest)).norm())
    error += jump if jump > JUMP * float(h.norm()) else 0.0
    values = torch.linalg.eigvalsh((h + h.T) / 2).numpy()
    error += 1e-14 * float(np.abs(values).max())
    return Truth(values, float(h.trace()), error, float(gap.diagonal().abs().sum()) + error, size)


# judging


@dataclass
class Tally:
    """What was counted, and each failure in words with its seed."""

    nets: int = 0
    points: int = 0
    unknown: int = 0
    values: int = 0
    broken: int = 0
    limits: int = 0
    limits_broken: int = 0
    traces: int = 0
    traces_outside: int = 0
    wide: int = 0
    useless: int = 0
    claims: int = 0
    silent: int = 0
    crashed: int = 0
    right_nets: int = 0
    refused_nets: int = 0
    others: int = 0
    others_refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fail(self, case: Case, what: str) -> None:
        self.failures.append(f"seed {case.seed} [{case.name}]: {what}")

    def value(self, case: Case, where: str, value: float, bar: float, truth: Truth, place: int | None) -> None:
        """One eigenvalue; with its place (index from below) where it must be that one."""
        self.values += 1
        near = float(np.abs(truth.values - value).min())
        if not near <= bar + truth.error:
            self.broken += 1
            ends = f"truth {truth.values[0]:.6g} .. {truth.values[-1]:.6g} +- {truth.error:.1g}, loss {truth.loss:.1e}"
            self.fail(case, f"broken bar, {where}: {value:.6g} +- {bar:.2g}, nearest off by {near:.2g} ({ends})")
        if place is not None:
            off = abs(float(truth.values[place]) - value)
            if off > bar + truth.error + 10 * TOL * truth.scale:
                self.fail(case, f"missed, {where}: {value:.6g} +- {bar:.2g}, truth {truth.values[place]:.6g}")
            near = off
        if bar > WIDE * max(near, truth.error):
            self.wide += 1
            if bar > 2 * TOL * truth.scale:
                self.useless += 1
                scale = f"scale {truth.scale:.2g}, loss {truth.loss:.1e}"
                self.fail(case, f"useless bar, {where}: {value:.6g} +- {bar:.2g}, off by {near:.1g}, {scale}")

    def limit(self, case: Case, where: str, upper: float, lower: float, truth: Truth) -> None:
        """Limits beyond which no eigenvalue lies."""
        for limit, beyond in ((upper, truth.values[-1] - upper), (lower, lower - truth.values[0])):
            if not math.isfinite(limit):
                continue
            self.limits += 1
            if beyond > truth.error:
                self.limits_broken += 1
                self.fail(case, f"limit broken, {where}: {limit:.6g}, beyond by {beyond:.2g}, scale {truth.scale:.2g}")

    def trace(self, case: Case, where: str, low: float, high: float, exact: bool, truth: Truth) -> None:
        """A trace's interval."""
        outside = not low - truth.trace_error <= truth.trace <= high + truth.trace_error
        if exact:
            self.values += 1
            self.broken += outside
        else:
            self.traces += 1
            self.traces_outside += outside
        if outside and exact:
            self.fail(
                case,
                f"broken trace, {where}: {low:.8g} .. {high:.8g}, truth {truth.trace:.8g} +- {truth.trace_error:.1g}",
            )

    def words(self, case: Case, where: str, text: str, truth: Truth) -> None:
        """Claims on signs."""
        said, low = " ".join(text.split()), float(truth.values[0])
        bends = any(w in said for w in ("indefinite", "no minimum", "negative curvature:", "is a saddle"))
        if bends and (case.convex or low > truth.error):
            self.claims += 1
            self.fail(case, f"wrong claim, {where}: {said[:160]!r}, smallest {low:.3g} +- {truth.error:.1g}")
        if "positive definite" in said and "semi" not in said and low < -truth.error:
            self.claims += 1
            self.fail(case, f"wrong claim, {where}: {said[:160]!r}, smallest {low:.3g}")


def judged_spectrum(tally: Tally, case: Case, s: Any, where: str, truth: Truth, *, dense: bool) -> None:
    """One spectrum against the truth at the origin."""
    for end, pairs in (("top", s.top), ("bottom", s.bottom)):
        for i, (value, bar) in enumerate(zip(pairs.values, pairs.residuals, strict=True)):
            place = i if end == "bottom" else len(truth.values) - 1 - i
            tally.value(case, f"{where} {end} {i}", float(value), float(bar), truth, place if dense or i == 0 else None)
        tally.limit(case, where, *pairs.limits, truth)
    if s.trace is not None:
        tally.trace(case, where, *s.trace.interval(), s.trace.exact, truth)
    tally.words(case, where, s.verdict, truth)


class Readings:
    """What the package gives of one network, and what it refuses."""

    def __init__(self, tally: Tally, case: Case, device: torch.device) -> None:
        self.tally, self.case, self.device = tally, case, device
        self.refused: list[str] = []
        self.warned: list[str] = []  # what was said besides numbers
        self.spectra: list[tuple[str, Any]] = []
        self.points: list[tuple[float, dict[str, float]]] = []
        self.problem: Any = None

    def attempt(self, where: str, f: Callable[[], Any]) -> Any:
        """What f gives; None where it refuses or crashes, which is counted."""
        try:
            return f()
        except SENTENCES as error:
            self.refuse(where, " ".join(str(error).split()))
        except Exception as error:
            self.refused.append(where)
            self.tally.crashed += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            line = " ".join(str(error).split())[:160]
            source = f"{last.filename.split('/')[-1]}:{last.lineno}"
            self.tally.fail(self.case, f"crash, {where}: {type(error).__name__}: {line} ({source})")
        return None

    def refuse(self, where: str, sentence: str) -> None:
        """Keep a refusal's sentence, its numbers left out, with one example."""
        self.refused.append(where)
        key = f"{where.split(' at ')[0]}: {re.sub(r'[0-9][0-9.e+-]*', '#', sentence)[:90]}"
        self.tally.refusals[key] += 1
        self.tally.examples.setdefault(key, f"seed {self.case.seed} [{self.case.name}] {sentence}")

    def read(self, plane: Plane, points: list[float]) -> None:
        """Both spectra and the map."""
        case = self.case
        self.problem = problem = self.attempt("problem", partial(case.problem, self.device))
        if problem is None:
            return
        options: dict[str, Any] = {"top": 3, "bottom": 2, "density_error": None, "tol": TOL}
        s = self.attempt("dense", partial(spectrum, problem, **options))
        if s is not None:
            self.spectra.append(("dense", s))
        factory = self.attempt("prepare", lambda: prepare(problem, "weights"))
        if factory is None:
            return
        s = self.attempt("lanczos", lambda: spectrum_of(factory.at(measured=True), dense=1, **options))
        if s is not None:
            self.spectra.append(("lanczos", s))
        measure = self.attempt("map", lambda: EigenvalueMap({"train": factory}, plane, "ends,trace", tol=TOL))
        for p in points:
            reading = measure and self.attempt(f"map at {p:g}", partial(measure, (p,)))
            if reading:
                self.points.append((p, reading))


def judge(tally: Tally, case: Case, device: torch.device) -> None:
    """Everything read of one network."""
    points = [0.0, case.rim]
    if case.seed % 4 == 0:
        points.append(-0.3)
    plane = random_plane(case.model, axes=1, seed=case.seed)
    truths = {p: truth_at(case, plane.at((p,)) if p else None) for p in points}
    tally.nets += 1
    tally.points += len(points)
    readings = Readings(tally, case, device)
    handler, logger = Listener(readings.warned), logging.getLogger("lossmap")
    logger.addHandler(handler)
    try:
        readings.read(plane.to(device), points)
    finally:
        logger.removeHandler(handler)
    if case.twice and case.honest and not case.coupled:
        tally.right_nets += 1
        tally.refused_nets += bool(readings.refused)
    else:
        tally.others += 1
        tally.others_refused += bool(readings.refused)
    count_numbers(tally, case, truths, readings.spectra, readings.points)
    needs_word = (not case.honest or case.coupled) and bool(readings.spectra or readings.points)
    if needs_word and not readings.warned and not noted(readings.problem, readings.spectra):
        tally.silent += 1
        tally.fail(case, f"numbers without a word (refused: {', '.join(readings.refused) or 'nothing'})")


def count_numbers(
    tally: Tally,
    case: Case,
    truths: dict[float, Truth],
    spectra: list[tuple[str, Any]],
    readings: list[tuple[float, dict[str, float]]],
) -> None:
    """All values with their bars, where the truth is known."""
    if not case.honest:
        return
    tally.unknown += sum(not t.known for t in truths.values())
    truth = truths[0.0]
    if truth.known:
        for where, s in spectra:
            judged_spectrum(tally, case, s, where, truth, dense=where == "dense")
            if where == "dense" and abs(s.loss - truth.loss) > 1e-4 * abs(truth.loss) + 1e-12:
                tally.fail(case, f"loss, {where}: {s.loss:.8g}, truth {truth.loss:.8g}")
    for p, reading in readings:
        if not truths[p].known:
            continue
        where = f"map at {p:g}"
        for end, place in (("max", -1), ("min", 0)):
            tally.value(case, f"{where} {end}", reading[f"{end}_eig"], reading[f"{end}_eig_error"], truths[p], place)
        tally.limit(case, where, reading["max_eig_limit"], reading["min_eig_limit"], truths[p])
        t, error = reading["trace"], reading["trace_error"]
        size = len(truths[p].values)
        tally.trace(case, where, t - 2.1 * error, t + 2.1 * error, size <= 60, truths[p])


def noted(problem: Any, spectra: list[tuple[str, Any]]) -> bool:
    """Whether the package said something of the loss in its notes."""
    holders = [problem, *(s for _, s in spectra)]
    return any(getattr(holder, "notes", ()) for holder in holders)


class Listener(logging.Handler):
    """Keeps what is logged as warnings."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith("products are not linearized"):
            self.lines.append(record.getMessage())


def run(seeds: list[int], *, quiet: bool = False, device: str = "cpu") -> Tally:
    """Judge the networks of these seeds."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lossmap").propagate = False
    tally = Tally()
    for i, seed in enumerate(seeds):
        before = len(tally.failures)
        try:
            judge(tally, case_of(seed), torch.device(device))
        except KeyboardInterrupt:
            print(f"interrupted in seed {seed}", flush=True)
            break
        except Exception:
            tally.failures.append(f"seed {seed}: the benchmark itself: {traceback.format_exc(limit=-3)}")
        if not quiet:
            for line in tally.failures[before:]:
                print(line, flush=True)
            if (i + 1) % 20 == 0:
                print(f"... {i + 1} of {len(seeds)}, {time.process_time():.0f} s", flush=True)
    return tally


def share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / max(whole, 1):.1f} %)"


def table(t: Tally) -> str:
    """The counts as rows of benchmarks/RESULTS.md."""
    rows = (
        ("networks", t.nets, ""),
        ("points", t.points, f"of which {t.unknown} without a truth (a kink within its step)"),
        ("residual bars and exact traces broken", share(t.broken, t.values), "0"),
        ("limits broken", share(t.limits_broken, t.limits), "1 %"),
        ("estimated traces outside of their interval", share(t.traces_outside, t.traces), "5 %"),
        ("bars over 30 times the true error", share(t.wide, t.values), "counted"),
        ("of these over twice the tolerance", share(t.useless, t.values), "counted"),
        ("wrong claims on signs", t.claims, "0"),
        ("numbers without a word, loss or gradient unsound", t.silent, "0"),
        ("crashes", t.crashed, "0"),
        ("rightly differentiated networks refused in part", share(t.refused_nets, t.right_nets), "5 %"),
        ("other networks refused in part", share(t.others_refused, t.others), ""),
    )
    lines = ["| what | counted | at most |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    for key, count in t.refusals.most_common():
        lines.append(f"refused {count} times: {key}\n    e.g. {t.examples[key]}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=40, help="number of networks; the goal is stated for 400")
    parser.add_argument("--seed", type=int, default=0, help="of the first network; the others follow")
    parser.add_argument("--only", type=int, help="the seed of one network")
    parser.add_argument("--quiet", action="store_true", help="no failure as it comes")
    parser.add_argument("--quick", action="store_true", help="eight networks")
    parser.add_argument("--device", default="cpu", help="where the package computes, such as cuda")
    args = parser.parse_args()
    count = 8 if args.quick else args.nets
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the table of what was run comes first
    seeds = [args.only] if args.only is not None else list(range(args.seed, args.seed + count))
    began = time.perf_counter()
    tally = run(seeds, quiet=args.quiet, device=args.device)
    print(table(tally))
    print(f"{time.perf_counter() - began:.0f} s, {len(tally.failures)} failures")
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
