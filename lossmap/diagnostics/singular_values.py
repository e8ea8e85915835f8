"""The weights themselves: singular values of every linear, convolutional and embedding layer. No data, no loss.

A layer's weight is read as the matrix W (m, k) that maps what enters one output to it: a linear layer's is (out, in), a
convolution's (out, in x kernel), an embedding's (entries, width). A convolution with g groups connects channels within
a group only: its W is block diagonal, g blocks of (out/g, in/g x kernel), and its singular values are those of all
blocks together. Transposed convolutions, whose weight is stored as (in, out/g, kernel), are read as (out, in x kernel)
too; a reparametrized weight (weight or spectral normalization) as the weight that the layer applies.
Of the singular values s_1 >= s_2 >= ...

    spectral norm   s_1, of W itself (that of W W^T is its square); a convolution's norm as a map of whole images is
                    another number, at most s_1 times the root of the kernel's size
    condition       s_1 / s_min over all min(m, k); inf where s_min is zero in float64
    stable rank     sum s_i^2 / s_1^2, from 1 to the rank (Rudelson and Vershynin 2007)
    effective rank  exp of the entropy of s_i / sum s (Roy and Vetterli 2007)
    near zero       how many lie below `near` = 1e-3 of s_1

Price: one singular value decomposition a layer, or block, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf, nan

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lossmap.keywords import checked_keywords
from lossmap.report.singular_values import (
    WeightSummary,
    matrix_text,
    singular_values_report,
    summaries_text,
)
from lossmap.report.stored import REPORT_VERSION, StoredReport, names_in_file
from lossmap.report.text import number
from lossmap.sums import in_float64
from lossmap.values import Result

NEAR = 1e-3


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer's weight.

    name    of the parameter, as in the state dict
    kind    of its module
    shape   (m, k) of the matrix it was read as
    values  (min(m, k),) singular values, descending
    near    the share of the largest below which one counts as near zero
    blocks  number of equal diagonal blocks that W consists of: a convolution's groups
    """

    name: str
    kind: str
    shape: tuple[int, int]
    values: np.ndarray
    near: float = NEAR
    blocks: int = 1

    @property
    def spectral_norm(self) -> float:
        """The largest singular value."""
        return float(self.values[0])

    @property
    def frobenius_norm(self) -> float:
        """The root of the sum of squares."""
        return float(np.sqrt((self.values**2).sum()))

    @property
    def condition(self) -> float:
        """Largest over smallest of all min(m, k)."""
        floor = float(np.finfo(float).eps) * max(self.shape) * self.spectral_norm
        if not self.values[-1] > floor:
            return inf
        return self.spectral_norm / float(self.values[-1])

    @property
    def stable_rank(self) -> float:
        """sum s^2 / s_1^2; NaN for a zero matrix."""
        if not self.values[0] > 0.0:
            return nan
        return float((self.values**2).sum() / self.values[0] ** 2)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values; NaN for a zero matrix."""
        if not self.values[0] > 0.0:
            return nan
        p = self.values / self.values.sum()
        p = p[p > 0.0]
        return exp(-float((p * np.log(p)).sum()))

    @property
    def near_zero(self) -> int:
        """How many lie below `near` of the largest; all of a zero matrix."""
        return int((self.values <= self.near * self.values[0]).sum())

    def summary(self) -> WeightSummary:
        """What the table says of it."""
        return WeightSummary(
            name=self.name,
            layer=self.kind,
            rows=self.shape[0],
            columns=self.shape[1],
            norm=self.spectral_norm,
            smallest=float(self.values[-1]),
            condition=self.condition,
            stable_rank=self.stable_rank,
            effective_rank=self.effective_rank,
            near_zero=self.near_zero,
            count=len(self.values),
            blocks=self.blocks,
        )

    def __repr__(self) -> str:
        return (
            f"LayerWeights({self.name}, {matrix_text(*self.shape, self.blocks)}: norm {self.spectral_norm:.4g}, "
            f"condition {number(self.condition)}, stable rank {self.stable_rank:.3g}, effective rank "
            f"{self.effective_rank:.3g}, {self.near_zero} near zero)"
        )


@dataclass(frozen=True)
class SingularValueTable(Result):
    """All layers' weights. Print it for the table."""

    layers: tuple[LayerWeights, ...]

    def __getitem__(self, name: str) -> LayerWeights:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"there is no weight {name!r}; there are {', '.join(w.name for w in self.layers)}")

    def __iter__(self) -> Iterator[LayerWeights]:
        return iter(self.layers)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it: the singular values of each weight, by its name, and the report's attributes."""
        own = names_in_file(layer.name for layer in self.layers)
        arrays = {own[layer.name]: layer.values for layer in self.layers}
        return arrays, {**self._report().attributes, "report": repr(self)}

    def _report(self) -> StoredReport:
        summaries = [layer.summary() for layer in self.layers]
        return StoredReport({}, {"layers": summaries_text(summaries), "report_version": REPORT_VERSION})

    def __repr__(self) -> str:
        return singular_values_report(self._report())


@checked_keywords
def singular_values(model: nn.Module, *, near: float = NEAR) -> SingularValueTable:
    """The singular values of every weight of two or more dimensions, in float64. No data and no loss are needed.

    Args:
        model: the network; it is not changed.
        near: the share of a weight's largest below which a singular value counts as near zero.

    Returns:
        A `SingularValueTable`: print it for the table; `table[name].values` (min(m, k),), descending.

    Raises:
        ValueError: where the model has no such weight, or one that is not finite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.diag(torch.tensor([3.0, 2.0]))
        >>> lossmap.singular_values(model)["weight"].values.round(6).tolist()
        [3.0, 2.0]

    """
    layers = []
    for title, module in model.named_modules():
        for name, weight in applied_weights(module):
            if weight.dim() < 2 or not weight.is_floating_point() or not weight.numel():
                continue
            full = f"{title}.{name}".lstrip(".")
            blocks = as_blocks(module, weight)
            if not bool(blocks.isfinite().all()):
                raise ValueError(f"{full} holds values that are not finite: it has no singular values")
            values = torch.linalg.svdvals(blocks).flatten().sort(descending=True).values.cpu().numpy()
            count, rows, columns = blocks.shape
            shape = (count * rows, count * columns)
            layers.append(LayerWeights(full, type(module).__name__, shape, values, near, count))
    if not layers:
        raise ValueError("the model has no weight of two or more dimensions")
    return SingularValueTable(tuple(layers))


def applied_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own weights by name, as its forward pass applies them.

    Of a reparametrized weight, such as W = g v / ||v||, it is W and not the tensors that it is made of.
    """
    if isinstance(module, ParametrizationList):
        return  # its tensors stand for a weight of the module that holds it
    replaced: set[str] = set()
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            # torch.nn.utils.weight_norm and spectral_norm write the weight in such a hook before each forward pass.
            if isinstance(hook, WeightNorm):
                replaced |= {f"{hook.name}_g", f"{hook.name}_v"}
                yield hook.name, hook.compute_weight(module)
            elif isinstance(hook, SpectralNorm):
                replaced.add(f"{hook.name}_orig")
                yield hook.name, hook.compute_weight(module, do_power_iteration=False)
        for name in getattr(module, "parametrizations", {}):
            yield name, _parametrized(module, name)
    for name, parameter in module.named_parameters(recurse=False):
        if name not in replaced:
            yield name, parameter


def _parametrized(module: nn.Module, name: str) -> Tensor:
    """The weight that a parametrization makes in evaluation mode: in training, spectral ones update themselves."""
    parametrizations = module.get_submodule("parametrizations")
    modes = {m: m.training for m in parametrizations.modules()}
    try:
        for m in modes:
            m.training = False
        weight: Tensor = getattr(module, name)
    finally:
        for m, mode in modes.items():
            m.training = mode
    return weight


def as_blocks(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as its diagonal blocks (blocks, outputs of one, what enters one of these), float64."""
    w = in_float64(weight.detach())
    groups = 1
    if isinstance(module, _ConvNd) and w.dim() > 2:
        groups = module.groups
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    if isinstance(module, _ConvTransposeNd):
        w = w.transpose(1, 2)  # stored as (in, out/g, kernel)
    return w.flatten(2)
