"""The Hessian of a layer's output, of the layer with its activation as a function without loss and network.

    f(x, w) = sum over outputs of activation(layer(x; w))        for the inputs x that the data bring to the layer

Its second derivative is taken by the inputs, or by the weights, and averaged over samples. This is not a block of the
loss's Hessian: nothing that lies behind the layer enters. It is what people compute by
`hessian(lambda x: act(layer(x)).sum())`. By construction

    a piecewise-linear activation (ReLU, or none)      gives zero; that does not mean that anything is dead
    one output                                         gives, by the inputs, act''(z) w w^T: rank one at most
    o outputs                                          give, by the inputs of one sample, rank o at most

The activation is the module that is called next, where it is one and takes the layer's output; functional calls such as
F.relu cannot be seen, and the layer is then read alone. Price: one pass over the data, and n products of a small
function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import prune
from torch.nn.utils.parametrize import remove_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from lossmap.curvature.operators import differentiated
from lossmap.data.borrow import copy_of, set_evaluation_mode
from lossmap.data.problem import Problem
from lossmap.diagnostics.activations import first_argument, version_of
from lossmap.linalg.operator import Rounding
from lossmap.report.definiteness import kind_of
from lossmap.report.layer_hessian import LayerHessianSummary, layer_hessian_text
from lossmap.sums import in_float64

AT = ("inputs", "weights")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PIECEWISE_LINEAR = (
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
    ranks       the highest rank for a single sample
    flat        whether the layer with its activation is piecewise linear, so that zero is no finding
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
    """The per-layer output Hessian of every linear and convolutional layer, in the order in which they are called.

    at       inputs or weights
    dense    larger ones are named and skipped
    samples  number of a layer's inputs, the first ones, that are averaged over

    Raises ValueError for another `at`.
    """
    if at not in AT:
        raise ValueError(f"a per-layer output Hessian is taken by {' or '.join(AT)}; got {at!r}")
    return tuple(_layer_hessian(layer, at, dense, samples) for layer in _layers_as_called(problem, samples))


@dataclass(frozen=True, eq=False)
class _CalledLayer:
    """A layer, the activation behind it (None where there is none), and the inputs that the data bring."""

    name: str
    module: nn.Module
    activation: nn.Module | None
    inputs: Tensor


def _layers_as_called(problem: Problem, samples: int) -> list[_CalledLayer]:
    """The layers in the order in which they are called, each with at least so many samples of its inputs."""
    model = problem.model
    names: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, LAYERS)}
    inputs_of: dict[nn.Module, list[Tensor]] = {}
    behind: dict[nn.Module, nn.Module | None] = {}
    # the module that was called before, its output, and the version of that; none in a new batch
    last: list[tuple[nn.Module, Any, int | None]] = []

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        last[:] = [(module, output, version_of(output))]

    def enter(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        entering = first_argument(inputs, keywords)
        if last and last[0][0] in names:
            layer, left, version = last[0]
            is_same = entering is left and version_of(entering) == version  # nothing was written into it meanwhile
            behind.setdefault(layer, module if is_same and _is_of_each_sample(module, layer, entering) else None)
        if module in names:
            parts = inputs_of.setdefault(module, [])
            if sum(len(part) for part in parts) < samples:
                x = _in_rows(module, entering)
                if not parts or x.shape[1:] == parts[0].shape[1:]:  # of other sizes the entries are others
                    parts.append(x)

    # Modules without children alone: of a container and its last member only the latter is called "behind".
    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in leaves]
    handles += [m.register_forward_hook(leave) for m in leaves]
    try:
        with differentiated(model, []):  # with gradients: a loss may differentiate by its inputs
            for batch in problem.data:
                last.clear()
                problem.total(batch)
    finally:
        for handle in handles:
            handle.remove()
    layers = []
    for module, parts in inputs_of.items():
        activation = behind.get(module)
        if not isinstance(activation, PIECEWISE_LINEAR + CURVED):
            activation = None
        layers.append(_CalledLayer(names[module], module, activation, torch.cat(parts)))
    return layers


def _in_rows(layer: nn.Module, entering: Tensor) -> Tensor:
    """A copy of a layer's input, which it or what follows may write into, the samples along the first dimension."""
    x = entering.detach().clone()
    if isinstance(layer, nn.Linear):  # all dimensions before the last count as samples
        return x.reshape(-1, x.shape[-1])
    if x.dim() < cast(Tensor, layer.weight).dim():  # a convolution of one sample without a batch
        return x[None]
    return x


def _is_of_each_sample(activation: nn.Module, layer: nn.Module, entering: Tensor) -> bool:
    """Whether an activation takes each of a layer's samples by itself: a softmax may go over others."""
    if not isinstance(activation, (nn.Softmax, nn.LogSoftmax)):
        return True
    along = activation.dim
    if along is None:  # PyTorch's own choice
        along = 0 if entering.dim() in (1, 3) else 1
    along %= entering.dim()
    return along == entering.dim() - 1 if isinstance(layer, nn.Linear) else along > 0


def _plain(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, in evaluation mode: with the weight as it is applied, and no backward hooks."""
    layer = copy_of(module, torch.float64).cpu()
    set_evaluation_mode(layer)
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)  # type: ignore[no-untyped-call]
    for name in list(getattr(layer, "parametrizations", ())):
        remove_parametrizations(layer, name, leave_parametrized=True)
    layer._backward_hooks.clear()  # functorch does not take them
    layer._backward_pre_hooks.clear()
    return layer


def _layer_hessian(called: _CalledLayer, at: str, dense: int, samples: int) -> LayerHessian:
    """Computed on the host in float64, over copies of the layer and its activation."""
    layer = _plain(called.module)
    activation: nn.Module = nn.Identity()
    if called.activation is not None:
        activation = _plain(called.activation)
        if isinstance(activation, (nn.Softmax, nn.LogSoftmax)) and isinstance(layer, nn.Linear):
            activation.dim = -1  # of inputs in rows
    x = in_float64(called.inputs[:samples]).cpu()
    weight = cast(Tensor, layer.weight).detach()
    size = {"inputs": x[0].numel(), "weights": weight.numel()}[at]
    with torch.no_grad():
        outputs = layer(x[:1]).numel()
    result = LayerHessian(
        name=called.name,
        kind=type(called.module).__name__,
        activation="none seen" if called.activation is None else type(called.activation).__name__,
        at=at,
        size=size,
        outputs=outputs,
        values=np.zeros(0),
        entries=None,
        samples=len(x),
        ranks=0,
        flat=called.activation is None or isinstance(called.activation, PIECEWISE_LINEAR),
    )
    if size > dense:
        return replace(result, skipped=f"{size:,} numbers, more than the {dense} that are made whole")
    if at == "weights" and "weight" not in layer._parameters:
        return replace(result, skipped="its weight is made anew in every call, by a hook")

    def by_inputs(flat_x: Tensor) -> Tensor:
        total: Tensor = activation(layer(flat_x.view(x[:1].shape))).sum()
        return total

    def by_weights(flat_w: Tensor, one: Tensor) -> Tensor:
        total: Tensor = activation(functional_call(layer, {"weight": flat_w.view(weight.shape)}, (one[None],))).sum()
        return total

    mean, ranks = torch.zeros(size, size, dtype=torch.float64), 0
    # 2^21 numbers at a time: 16 MB of second derivatives
    for chunk in torch.split(x, max(1, (1 << 21) // (size * size))):
        if at == "inputs":
            each = vmap(jacrev(grad(by_inputs)))(chunk.reshape(len(chunk), -1))
        else:
            each = vmap(jacrev(grad(by_weights)), (None, 0))(weight.reshape(-1), chunk)
        each = each.detach()
        mean += each.sum(0)
        ranks = max(ranks, int(torch.linalg.matrix_rank(each, rtol=1e-9, hermitian=True).max()))
    entries = (0.5 * (mean + mean.T) / len(x)).numpy()
    return replace(result, values=np.linalg.eigvalsh(entries), entries=entries, ranks=ranks)
