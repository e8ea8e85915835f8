"""Second reading: a layer with its activation as a function by itself, independently of loss and network.

    f(x, w) = sum over outputs of activation(layer(x; w))        for the inputs x that the data bring to the layer

Its second derivative is taken by the inputs, or by the weights, and averaged over samples. This is not a block of the
loss's Hessian: nothing that lies behind the layer enters. It is what people compute by
`hessian(lambda x: act(layer(x)).sum())`. By construction

    a piecewise-linear activation (ReLU, or none)      gives zero; that does not mean that anything is dead
    one output                                         gives, by the inputs, act''(z) w w^T: rank one at most
    o outputs                                          give, by the inputs of one sample, rank o at most

The activation is the module that is called next, where it is one; functional calls such as F.relu cannot be seen, and
the layer is then read alone. Price: one pass over the data, and n products of a small function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from lossmap.curvature.operators import differentiated
from lossmap.data.problem import Problem
from lossmap.linalg.operator import Rounding
from lossmap.report.definiteness import kind_of
from lossmap.report.layer_hessian import LayerHessianSummary, layer_hessian_text

AT = ("inputs", "weights")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FLAT = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardshrink, nn.Softshrink,
    nn.Identity,
)  # fmt: skip
CURVED = (
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Mish, nn.Softsign,
    nn.Hardswish, nn.Tanhshrink, nn.Hardsigmoid, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
SAMPLES = 256  # of a layer's inputs that are averaged over


@dataclass(frozen=True, eq=False)
class LayerHessian:
    """One layer with its activation, by itself.

    at          inputs or weights: what it is differentiated by
    values      (n,) eigenvalues of the mean second derivative, ascending; none where it was not computed
    entries     (n, n), or None
    outputs     how many it sums over
    samples     inputs that were averaged over
    ranks       the highest rank seen for a single sample
    flat        whether the piece is piecewise linear, so that zero is no finding
    skipped     why it was not computed, or empty
    """

    name: str
    kind: str
    activation: str
    at: str
    size: int
    outputs: int
    values: np.ndarray
    entries: np.ndarray | None
    samples: int
    ranks: int
    flat: bool
    skipped: str = ""

    @property
    def floor(self) -> float:
        """Below it an eigenvalue counts as zero: 1e-6 of the largest, or 64 roundings in float64."""
        scale = float(np.abs(self.values).max(initial=0.0))
        return max(1e-6 * scale, Rounding(float(np.finfo(float).eps)).allowance(max(scale, 1.0)))

    @property
    def kind_of(self) -> str:
        """Its shape in a word or two."""
        p, q = int((self.values > self.floor).sum()), int((self.values < -self.floor).sum())
        z = len(self.values) - p - q
        return kind_of((p, p), (q, q), (z, z), len(self.values))

    @property
    def verdict(self) -> str:
        """What it says, and what it does not."""
        return layer_hessian_text(self.summary())

    def summary(self) -> LayerHessianSummary:
        """What a report says of it, and a file keeps as one row."""
        ends = (nan, nan)
        if len(self.values):
            ends = (float(self.values[0]), float(self.values[-1]))
        return LayerHessianSummary(
            name=self.name,
            layer=self.kind,
            activation=self.activation,
            at=self.at,
            size=self.size,
            outputs=self.outputs,
            rank=self.ranks,
            is_piecewise_linear=self.flat,
            floor=self.floor,
            smallest=ends[0],
            largest=ends[1],
            definiteness=self.kind_of,
            skipped=self.skipped,
        )

    def __repr__(self) -> str:
        return f"LayerHessian({self.name}, with respect to its {self.at}: {self.verdict})"


def layer_hessians(
    problem: Problem, at: str = "inputs", *, dense: int = 256, samples: int = SAMPLES
) -> tuple[LayerHessian, ...]:
    """The second reading of every linear and convolutional layer, in the order in which they are called.

    at       inputs or weights
    dense    larger pieces are named and skipped
    samples  so many of a layer's inputs, the first ones, are averaged over

    Raises ValueError for another `at`.
    """
    if at not in AT:
        raise ValueError(f"a layer is read a second time by its {' or its '.join(AT)}; got {at!r}")
    return tuple(
        _piece(name, module, follower, inputs[:samples], at, dense)
        for name, module, follower, inputs in _met(problem, samples)
    )


def _met(problem: Problem, samples: int) -> list[tuple[str, nn.Module, nn.Module | None, Tensor]]:
    """The layers as called: name, module, the activation behind it, and the inputs that the data bring."""
    model = problem.model
    names: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, LAYERS)}
    came: dict[nn.Module, list[Tensor]] = {}
    behind: dict[nn.Module, nn.Module] = {}
    last: list[nn.Module] = []

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if last and last[0] in names:
            behind.setdefault(last[0], module)
        last[:] = [module]
        if module in names:
            held = came.setdefault(module, [])
            if sum(len(x) for x in held) < samples:
                width = inputs[0].shape[-1] if isinstance(module, nn.Linear) else None
                x = inputs[0].detach()
                held.append(x.reshape(-1, width) if width is not None else x)

    handles = [m.register_forward_hook(seen) for m in model.modules() if not any(True for _ in m.children())]
    try:
        with differentiated(model, []), torch.no_grad():
            for batch in problem.data:
                last.clear()
                problem.total(batch)
    finally:
        for handle in handles:
            handle.remove()
    activations = FLAT + CURVED
    return [
        (names[m], m, behind[m] if isinstance(behind.get(m), activations) else None, torch.cat(held))
        for m, held in came.items()
    ]


def _piece(
    name: str, module: nn.Module, follower: nn.Module | None, inputs: Tensor, at: str, dense: int
) -> LayerHessian:
    layer = copy.deepcopy(module).double().cpu()
    act: Callable[[Tensor], Tensor] = copy.deepcopy(follower).double().cpu() if follower is not None else nn.Identity()
    x = inputs.double().cpu()
    flat = follower is None or isinstance(follower, FLAT)
    with torch.no_grad():
        outputs = layer(x[:1]).numel()
    weight = dict(layer.named_parameters())["weight"].detach()
    size = x[0].numel() if at == "inputs" else weight.numel()
    kind, activation = type(module).__name__, "none seen" if follower is None else type(follower).__name__
    told = (name, kind, activation, at, size, outputs)
    if size > dense:
        text = f"{size:,} numbers, more than the {dense} that are made whole"
        return LayerHessian(*told, np.zeros(0), None, len(x), 0, flat, text)

    def by_inputs(flat_x: Tensor) -> Tensor:
        total: Tensor = act(layer(flat_x.view(x[:1].shape))).sum()
        return total

    def by_weights(flat_w: Tensor, one: Tensor) -> Tensor:
        total: Tensor = act(functional_call(layer, {"weight": flat_w.view(weight.shape)}, (one[None],))).sum()
        return total

    mean, ranks = torch.zeros(size, size, dtype=torch.float64), 0
    for chunk in torch.split(x, max(1, (1 << 21) // (size * size))):
        if at == "inputs":
            each = vmap(jacrev(grad(by_inputs)))(chunk.reshape(len(chunk), -1))
        else:
            each = vmap(jacrev(grad(by_weights)), (None, 0))(weight.reshape(-1), chunk)
        each = each.detach()
        mean += each.sum(0)
        ranks = max(ranks, int(torch.linalg.matrix_rank(each, rtol=1e-9, hermitian=True).max()))
    entries = (0.5 * (mean + mean.T) / len(x)).numpy()
    return LayerHessian(*told, np.linalg.eigvalsh(entries), entries, len(x), ranks, flat)
