"""The weights themselves: singular values of every linear, convolutional and embedding layer. No data, no loss.

A layer's weight is read as the matrix W (m, k) that maps what enters one output to it: a linear layer's (out, in), a
convolution's (out, in x kernel), an embedding's (entries, width). Of its singular values s_1 >= s_2 >= ...

    spectral norm   s_1, of W itself (that of W W^T is its square); a convolution's norm as a map of whole images is
                    another number, at most s_1 times the root of the kernel's size
    condition       s_1 / s_min over all min(m, k); inf where s_min is zero in float64
    stable rank     sum s_i^2 / s_1^2, from 1 to the rank (Rudelson and Vershynin 2007)
    effective rank  exp of the entropy of s_i / sum s (Roy and Vetterli 2007)
    near zero       how many lie below `near` = 1e-3 of s_1

Price: one singular value decomposition a layer, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf, nan

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.report.singular_values import WeightSummary, singular_values_report, summaries_text
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.report.text import number

NEAR = 1e-3
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer's weight.

    name    of the parameter, as in the state dict
    kind    of its module
    shape   (m, k) of the matrix it was read as
    values  (min(m, k),) singular values, descending
    near    the share of the largest below which one counts as near zero
    """

    name: str
    kind: str
    shape: tuple[int, int]
    values: np.ndarray
    near: float = NEAR

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
        )

    def __repr__(self) -> str:
        return (
            f"LayerWeights({self.name}, {self.shape[0]} x {self.shape[1]}: norm {self.spectral_norm:.4g}, condition "
            f"{number(self.condition)}, stable rank {self.stable_rank:.3g}, effective rank "
            f"{self.effective_rank:.3g}, {self.near_zero} near zero)"
        )


@dataclass(frozen=True)
class SingularValueTable:
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
        arrays = {layer.name.replace("/", "_"): layer.values for layer in self.layers}
        return arrays, {**self._report().attributes, "report": repr(self)}

    def _report(self) -> StoredReport:
        summaries = [layer.summary() for layer in self.layers]
        return StoredReport({}, {"layers": summaries_text(summaries), "report_version": REPORT_VERSION})

    def __repr__(self) -> str:
        return singular_values_report(self._report())


def singular_values(model: nn.Module, *, near: float = NEAR) -> SingularValueTable:
    """The singular values of every weight of two or more dimensions, in float64.

    near  the share of a weight's largest below which a singular value counts as near zero

    Raises ValueError where the model has none, or one that is not finite.
    """
    layers = []
    for title, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or not parameter.is_floating_point():
                continue
            full = f"{title}.{name}".lstrip(".")
            matrix = as_matrix(module, parameter)
            if not bool(matrix.isfinite().all()):
                raise ValueError(f"{full} holds values that are not finite: it has no singular values")
            values = torch.linalg.svdvals(matrix).cpu().numpy()
            layers.append(LayerWeights(full, type(module).__name__, (matrix.shape[0], matrix.shape[1]), values, near))
    if not layers:
        raise ValueError("the model has no weight of two or more dimensions")
    return SingularValueTable(tuple(layers))


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as the matrix (outputs, what enters one of them), float64."""
    w = weight.detach().double()
    if isinstance(module, TRANSPOSED):
        w = w.transpose(0, 1)
    return w.reshape(w.shape[0], -1)
