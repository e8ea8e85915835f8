"""The curvature of every checkpoint of a run: a measure whose points are checkpoints.

    point   (step,): the number of a checkpoint; its file is loaded into a copy of the model

Each reading has the r largest eigenvalues with their errors, the smallest, the loss and the gradient's norm; `whole`
adds the trace, the share of negative eigenvalues with its bounds, and quantiles of all eigenvalues. The eigenvectors go
another way, by `keep`, before the reading is given. What products have in common is prepared once for all checkpoints
(`linearize`), by a choice that a probe made once for the run. Price: the products of `spectrum_of` at each point, and
one gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.autotune import OperatorFactory, prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.checks import check_mean
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.hvp_plan import HvpPlan, backend_of
from lossmap.data.checkpoints import load_into
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field, Point
from lossmap.geometry.parameter_vector import selected
from lossmap.interrupt import Interrupted
from lossmap.linalg.krylov_space import SymmetricOperator
from lossmap.linalg.spectral_density import Density
from lossmap.spectra.spectrum import spectrum_of
from lossmap.sums import norm

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of the eigenvalues, that lie below the quantiles told
DENSE = 300  # up to so many parameters the matrix is made whole, and no probe pays
Keep = Callable[[float, np.ndarray], None]  # (step, vectors (r, n) float32)


def probed(problem: Problem, parameters: str = "weights", backend: str = "auto") -> dict[str, Any]:
    """How products are made best here: the choice of `linearize.prepare`, JSON-able, the same for all ranks."""
    small = sum(p.numel() for p in selected(problem.model, parameters).values()) <= DENSE
    if small or backend_of(backend) == "double-backward":
        return HvpPlan("double-backward", problem.data.batch_size).stored()
    return prepare(problem, parameters, backend=backend).plan.stored()


def quantiles(spread: Density | None, shares: Sequence[float] = SHARES) -> np.ndarray:
    """Eigenvalues below which these shares of all lie, (shares,); NaN where no density was measured."""
    if spread is None:
        return np.full(len(shares), nan)
    nodes, weights = spread.nodes
    reached = np.searchsorted(np.cumsum(weights), np.asarray(shares) - 1e-12)
    found: np.ndarray = nodes[np.minimum(reached, len(nodes) - 1)]
    return found


@dataclass(frozen=True, eq=False)
class Leavable:
    """A matrix that asks before every product whether the point must be left, and then raises Unfinished."""

    matrix: SymmetricOperator
    stop: Callable[[], bool]

    @property
    def size(self) -> int:
        """Its rows."""
        return self.matrix.size

    @property
    def dtype(self) -> torch.dtype:
        """Of its products."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where they are made."""
        return self.matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) or (n, b)."""
        if self.stop():
            raise Interrupted
        return self.matrix @ v


class CheckpointCurvature:
    """The measure `along`.

    files     checkpoint by step
    problem   the model's architecture, the loss and the data, the same at every checkpoint
    top       r, the largest eigenvalues wanted
    keep      takes the eigenvectors; what it was given is safe when it returns
    whole     measures trace and density too
    choice    how products are made, as `probed` chose
    settings  beside its own, what the file is to say of it
    stop      asked at every product: where it says so the checkpoint is left, and begun again when the run goes on
    """

    name = "along"

    def __init__(
        self,
        problem: Problem,
        files: Mapping[float, Path],
        *,
        keep: Keep,
        top: int = 10,
        whole: bool = False,
        tol: float = 1e-3,
        parameters: str = "weights",
        seed: int = 0,
        unsafe: bool = False,
        choice: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        n = sum(p.numel() for p in selected(problem.model, parameters).values())
        if not 1 <= top <= n:
            raise ValueError(f"--top wants 1 to {n} eigenvalues, as many as there are parameters at most; got {top}")
        self.problem = replace(problem, model=copy.deepcopy(problem.model).eval())
        build_operator(self.problem, "hessian", parameters)  # says what cannot be differentiated twice
        check_mean(self.problem)
        self.choice = dict(choice) if choice is not None else None
        self.files, self.keep, self.top, self.whole = dict(files), keep, top, whole
        self.parameters, self.unsafe, self.stop = parameters, unsafe, stop
        self.told: dict[str, Any] = {"tol": tol, "seed": seed}
        self.settings = {**(settings or {}), **self.told, "parameters": parameters, "top": top, "whole": whole}
        if self.choice is not None:
            self.settings["chosen"] = {"way": self.choice}
        curved = f"{problem.unit} per squared unit of theta"
        self.fields: tuple[Field, ...] = (
            Field("eigenvalues", curved, "largest eigenvalues of the Hessian", ("pair", top)),
            Field("eigenvalue_errors", curved, "an eigenvalue lies within this distance", ("pair", top)),
            Field("smallest_eigenvalue", curved, "smallest eigenvalue of the Hessian"),
            Field("smallest_eigenvalue_error", curved, "an eigenvalue lies within this distance"),
            Field("loss", problem.unit, "mean loss over the samples"),
            Field("gradient_norm", f"{problem.unit} per unit of theta", "norm of the mean gradient"),
            Field("products", "1", "Hessian-vector products spent"),
        )
        if whole:
            self.fields += (
                Field("trace", curved, "trace of the Hessian"),
                Field("trace_error", curved, "standard error of the trace"),
                Field("negative_below", curved, "eigenvalues below minus this count as negative"),
                Field("negative_share", "1", "share of negative eigenvalues"),
                Field("negative_share_low", "1", "least share of negative eigenvalues, 95 %"),
                Field("negative_share_high", "1", "largest share of negative eigenvalues, 95 %"),
                Field("quantiles", curved, f"shares {SHARES} of the eigenvalues lie below", ("share", len(SHARES))),
                Field("density_error", "1", "error of the density of eigenvalues, as a share of its range"),
            )

    @cached_property
    def prepared(self) -> OperatorFactory:
        """What products at all checkpoints have in common."""
        choice = probed(self.problem, self.parameters) if self.choice is None else self.choice
        return prepare(self.problem, self.parameters, plan=choice)

    def __call__(self, point: Point) -> dict[str, Any]:
        """The reading of one checkpoint; its eigenvectors have been kept."""
        step = point[0]
        load_into(self.problem.model, self.files[step], unsafe=self.unsafe)
        loss, slope, _ = loss_and_gradient(self.problem, self.parameters)
        if not isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at {self.files[step].name}: there is no curvature to read here"
            )
        found = spectrum_of(
            Leavable(self.prepared.at(), self.stop),
            top=self.top,
            bottom=1,
            trace_products=60 if self.whole else 0,
            density_error=0.02 if self.whole else None,
            dense=DENSE,
            **self.told,
        )
        if found.top is None:  # pragma: no cover
            raise ValueError("no eigenvalue was found")
        self.keep(step, found.top.vectors.T.float().cpu().numpy())
        reading: dict[str, Any] = {
            "eigenvalues": found.top.values,
            "eigenvalue_errors": found.top.residuals,
            "smallest_eigenvalue": found.smallest[0],
            "smallest_eigenvalue_error": found.smallest[1],
            "loss": loss,
            "gradient_norm": norm(slope),
            "products": found.products,
        }
        if self.whole and found.trace is not None:
            t, below, _ = found.masses[0]
            reading |= {
                "trace": found.trace.value,
                "trace_error": found.trace.error,
                "negative_below": t,
                "negative_share": below.value,
                "negative_share_low": below.low,
                "negative_share_high": below.high,
                "quantiles": quantiles(found.density),
                "density_error": found.density.error if found.density is not None else nan,
            }
        return reading
