"""The Hessian as an optimizer's step sees it: M = D (H + W) D, symmetric, with D and W diagonal.

Its eigenvalues are those of P^-1 (H + W), which a step multiplies with (`diagnostics.step_rule`). Rounding in the
products with H is multiplied by entries of D, which differ by many orders of magnitude: so none is stated, and error
bars are residuals of products in float64 (`in_float64`).

Symbols: n the dimension. Price of a product: one with H, and three multiplications of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossmap.linalg.operator import SymmetricOperator
from lossmap.sums import in_float64


@dataclass(frozen=True, eq=False)
class PreconditionedOperator:
    """D (H + W) D as an operator.

    inner  H (n, n)
    scale  the diagonal of D, (n,) float64
    decay  the diagonal of W, (n,) float64 or one number
    """

    inner: SymmetricOperator
    scale: Tensor
    decay: Tensor | float = 0.0

    @property
    def size(self) -> int:
        """The dimension n."""
        return self.inner.size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products."""
        return self.inner.dtype

    @property
    def device(self) -> torch.device:
        """The inner operator's device."""
        return self.inner.device

    @property
    def layout(self) -> Any:
        """The tensors that theta is made of, where the inner operator says which; else None."""
        return getattr(self.inner, "layout", None)

    @property
    def kinks(self) -> float:
        """The inner operator's, see `linalg.Rounding`: of H, whose two sides differ; taken for M as well."""
        share: float = getattr(self.inner, "kinks", 0.0)
        return share

    def in_float64(self) -> PreconditionedOperator:
        """The same with float64 products. Raises what the inner operator raises."""
        inner: SymmetricOperator = self.inner.in_float64()  # type: ignore[attr-defined]
        return PreconditionedOperator(inner, self.scale, self.decay)

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,), or with the columns of (n, b), in v's precision; D and W in float64."""
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], 1)
        scaled = in_float64(v)
        scale = self.scale.to(scaled.device)
        scaled = scale * scaled
        # H is multiplied with a vector of length about one: in float32 a tiny one would lose digits to underflow
        length = float(scaled.norm()) or 1.0
        image = in_float64(self.inner @ (scaled / length).to(self.inner.dtype)) * length
        decay = self.decay.to(scaled.device) if isinstance(self.decay, Tensor) else self.decay
        return (scale * (image + decay * scaled)).to(v.dtype).to(v.device)
