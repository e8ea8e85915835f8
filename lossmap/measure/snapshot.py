"""The curvature of every checkpoint of a run: a measure whose points are checkpoints.

    point   (step,): the number of a checkpoint; its file is loaded into a copy of the model

Each reading has the r largest eigenvalues with their errors, the smallest, the loss and the gradient's norm; `whole`
adds the trace and the share of negative eigenvalues with its bounds. The eigenvectors go another way, by `keep`, before
the reading is given. Price: that of `spectrum` at each point.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.measure.spectrum import spectrum
from lossmap.space.checkpoints import load_into
from lossmap.space.grid import Field, Point
from lossmap.space.problem import Problem
from lossmap.space.vectors import selected

Keep = Callable[[float, np.ndarray], None]  # (step, vectors (r, n) float32)


class EachCheckpoint:
    """The measure `along`.

    files     checkpoint by step
    problem   the model's architecture, the loss and the data, the same at every checkpoint
    top       r, the largest eigenvalues wanted
    keep      takes the eigenvectors; what it was given is safe when it returns
    whole     measures trace and density too
    settings  beside its own, what the file is to say of it
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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        n = sum(p.numel() for p in selected(problem.model, parameters).values())
        if not 1 <= top <= n:
            raise ValueError(f"--top wants 1 to {n} eigenvalues, as many as there are parameters at most; got {top}")
        self.problem = replace(problem, model=copy.deepcopy(problem.model).eval())
        self.files, self.keep, self.top, self.whole = dict(files), keep, top, whole
        self.told: dict[str, Any] = {"tol": tol, "parameters": parameters, "seed": seed}
        self.unsafe = unsafe
        self.settings = {**(settings or {}), **self.told, "top": top, "whole": whole}
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
            )

    def __call__(self, point: Point) -> dict[str, Any]:
        """The reading of one checkpoint; its eigenvectors have been kept."""
        step = point[0]
        load_into(self.problem.model, self.files[step], unsafe=self.unsafe)
        found = spectrum(
            self.problem,
            top=self.top,
            bottom=1,
            trace_products=60 if self.whole else 0,
            density_error=0.02 if self.whole else None,
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
            "loss": found.loss,
            "gradient_norm": found.gradient_norm,
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
            }
        return reading
