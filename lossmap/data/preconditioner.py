"""The diagonal preconditioner of an optimizer, tensor by tensor: what the preconditioned Hessian is made with.

    M = P^-1/2 (H + W) P^-1/2,  P and W diagonal, by the parameters' names

A tensor that the optimizer does not move has P infinite, and 0 in P^-1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from lossmap.sums import in_float64


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """P of the parameters by name.

    root       entries of P^-1/2, of each parameter's shape, float64
    decay      entries of W, or one number; a parameter that is not named has none
    threshold  the eigenvalue of M above which full-batch steps diverge; NaN where it is not known
    name       of the optimizer; empty where P was given
    unmoved    the parameters that it has taken no step with, or whose gradients were never more than rounding
    """

    root: Mapping[str, Tensor] = field(repr=False)
    decay: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    threshold: float = nan
    name: str = ""
    unmoved: tuple[str, ...] = ()

    @classmethod
    def of_diagonal(
        cls, diagonal: Mapping[str, Tensor] | Tensor, shapes: Mapping[str, Sequence[int]]
    ) -> Preconditioner:
        """From P's diagonal: by name, or (n,) over the parameters of these shapes, in their order.

        Raises ValueError for another shape, a parameter that is missing, and entries that are not above 0.
        """
        if isinstance(diagonal, Tensor):
            sizes = [torch.Size(shape).numel() for shape in shapes.values()]
            if diagonal.shape != (sum(sizes),):
                raise ValueError(
                    f"the diagonal of the preconditioner must have shape ({sum(sizes)},), an entry for each parameter; "
                    f"got {tuple(diagonal.shape)}"
                )
            parts = torch.split(diagonal.detach(), sizes)
            diagonal = {name: t.reshape(tuple(s)) for t, (name, s) in zip(parts, shapes.items(), strict=True)}
        for name, shape in shapes.items():
            if name not in diagonal:
                raise ValueError(
                    f"the preconditioner has no entries for {name}; it has {', '.join(diagonal) or 'none'}"
                )
            if tuple(diagonal[name].shape) != tuple(shape):
                raise ValueError(
                    f"the preconditioner of {name} must have its shape, {tuple(shape)}; got "
                    f"{tuple(diagonal[name].shape)}"
                )
            if not bool((diagonal[name] > 0).all()):
                raise ValueError(
                    f"the preconditioner of {name} must be > 0 everywhere, inf where a weight stands still"
                )
        return cls({name: in_float64(diagonal[name].detach()).rsqrt() for name in shapes})

    def vectors(self, names: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(n,) P^-1/2 and (n,) W over these parameters, in order. Raises ValueError for one that is missing."""
        missing = [name for name in names if name not in self.root]
        if missing:
            raise ValueError(f"the preconditioner has no entries for {', '.join(missing[:4])}")
        roots = [self.root[name].to(device).reshape(-1) for name in names]
        decays = [self.decay[name].to(device).reshape(-1) if name in self.decay else torch.zeros_like(r)
                  for name, r in zip(names, roots, strict=True)]  # fmt: skip
        return torch.cat(roots), torch.cat(decays)
