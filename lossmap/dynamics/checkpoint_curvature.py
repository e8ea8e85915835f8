"""The curvature of every checkpoint of a run: a measure whose points are checkpoints.

    point   (step,): the number of a checkpoint; its file is loaded into a copy of the model

Each reading has the r largest eigenvalues with their errors, the smallest, the loss and the gradient's norm; `whole`
adds the trace, the share of negative eigenvalues with its bounds, and quantiles of all eigenvalues. The eigenvectors
are stored apart, by `store_vectors`, before the reading is returned. What products have in common is prepared once for
all checkpoints (`curvature.autotune`), by a plan that a probe made once for the run. Units: those of the loss, per
squared unit of theta. Price: the products of `spectrum_of` at each point, and one gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from lossmap import accelerators
from lossmap.curvature.autotune import OperatorFactory, prepare
from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck, backend_of
from lossmap.curvature.same_function import over_a_copy
from lossmap.data.batches import largest_to_cut
from lossmap.data.checkpoint_match import Selection
from lossmap.data.checkpoints import load_into
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field, Point
from lossmap.geometry.parameter_vector import selected
from lossmap.io.memory_store import with_unknown_fields
from lossmap.linalg.operator import interruptible
from lossmap.linalg.spectral_density import Density
from lossmap.spectra.spectrum import spectrum_of
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.sums import norm

logger = logging.getLogger("lossmap")

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of the eigenvalues, that lie below the quantiles
WHOLE_FIELDS = (
    "trace",
    "trace_error",
    "negative_below",
    "negative_share",
    "negative_share_low",
    "negative_share_high",
    "density_error",
)
DENSE = 300  # up to this number of parameters the matrix is computed in full, and no probe pays


def check_top(top: int, n: int) -> None:
    """Raise ValueError for more eigenvalues than there are parameters, or none."""
    if not 1 <= top <= n:
        raise ValueError(f"--top must be 1 to {n}, the number of parameters; got {top}")


@dataclass(frozen=True)
class Effort:
    """How much is spent at a checkpoint: what a budget of time may lower.

    max_products  at each end; None: until it has converged
    trace_products, density_error, density_steps, density_probes  of the whole spectrum, see `spectrum_of`; no trace
                  with 0 products, no density without `density`
    halves        whether there is time for the null of halves, of a run that asks for one
    """

    max_products: int | None = None
    trace_products: int = 60
    density: bool = True
    density_error: float = 0.02
    density_steps: int | None = None
    density_probes: int | None = None
    halves: bool = True


StoreVectors = Callable[[float, np.ndarray], None]  # (step, vectors (r, n) float32)


def probed(
    problem: Problem, parameters: str = "weights", backend: str = "auto", memory: int | None = None
) -> dict[str, Any]:
    """How products are made best here: the plan of `curvature.autotune.prepare`, JSON-able, the same for all ranks.

    parameters  of the Hessian; backend: auto (by a probe), linearized, retained-graph or double-backward
    memory      bytes for kept values, see `autotune.prepare`
    """
    small = sum(p.numel() for p in selected(problem.model, parameters).values()) <= DENSE
    if small or backend_of(backend) == "double-backward":
        return HvpPlan("double-backward", problem.data.batch_size).stored()
    return prepare(problem, parameters, backend=backend, memory=memory).plan.stored()


def quantiles(spread: Density | None, shares: Sequence[float] = SHARES) -> np.ndarray:
    """Eigenvalues below which these shares of all lie, (shares,); NaN where no density was measured."""
    if spread is None:
        return np.full(len(shares), nan)
    nodes, weights = spread.nodes
    reached = np.searchsorted(np.cumsum(weights), np.asarray(shares) - 1e-12)
    values: np.ndarray = nodes[np.minimum(reached, len(nodes) - 1)]
    return values


class CheckpointCurvature:
    """The measure named `along` in files.

    problem   the model's architecture, the loss and the data, the same at every checkpoint
    files     checkpoint by step
    store_vectors  takes the eigenvectors (step, (r, n) float32); they are safe on the disk when it returns
    top       r, number of largest eigenvalues
    whole     measures trace and density too
    tol       of the eigenvalues, relative to the largest absolute value
    parameters  of the Hessian: weights (dimension > 1), all, trainable, or a regular expression
    unsafe    loads pickled checkpoints that may run code
    selection  which of a checkpoint's tensors are meant, where they do not say so themselves
    plan      how products are made, as `probed` chose
    settings  stored beside its own
    memory    bytes for kept values, see `autotune.prepare`; give less where ranks share the memory
    stop      asked at every product: where it returns True the checkpoint is left, and measured again on resuming
    effort    how much is spent at a checkpoint; stored in the settings where it is not the default
    check     compares products with differences of the gradient; or what rank 0 found, for the other ranks

    Raises ValueError for more eigenvalues than parameters, a loss that is not a mean over samples, or a model that
    cannot be differentiated twice.
    """

    name = "along"

    def __init__(
        self,
        problem: Problem,
        files: Mapping[float, Path],
        *,
        store_vectors: StoreVectors,
        top: int = 10,
        whole: bool = False,
        tol: float = 1e-3,
        parameters: str = "weights",
        seed: int = 0,
        unsafe: bool = False,
        selection: Selection | None = None,
        plan: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        memory: int | None = None,
        stop: Callable[[], bool] = lambda: False,
        check: bool | ProductCheck = True,
        effort: Effort = Effort(),
    ) -> None:
        n = sum(p.numel() for p in selected(problem.model, parameters).values())
        check_top(top, n)
        self.problem = check_loss(over_a_copy(problem))
        build_operator(self.problem, "hessian", parameters, check=check)  # says what cannot be differentiated twice
        self.check, self.effort = check, effort
        self.plan: dict[str, Any] | None = None
        if plan is not None:
            self.plan = dict(plan)
        self.files, self.store_vectors, self.top, self.whole = dict(files), store_vectors, top, whole
        self.parameters, self.unsafe, self.stop, self.selection = parameters, unsafe, stop, selection
        self.noted: set[str] = set()  # what was said of checkpoints, which measures beside this one may share
        self.tol, self.seed, self.memory = tol, seed, memory
        self.limit: int | None = None  # of a batch, after memory ran out
        self.settings = {
            **(settings or {}),
            "tol": tol,
            "seed": seed,
            "parameters": parameters,
            "top": top,
            "whole": whole,
        }
        if effort != Effort():
            self.settings["effort"] = asdict(effort)
            if effort.halves:  # older files, which have the null, do not name it
                del self.settings["effort"]["halves"]
        if self.plan is not None:
            self.settings["chosen"] = {"way": self.plan}
        curved = f"{problem.unit} per squared unit of theta"
        self.fields: tuple[Field, ...] = (
            Field("eigenvalues", curved, "largest eigenvalues of the Hessian", ("pair", top)),
            Field("eigenvalue_errors", curved, "an eigenvalue lies within this distance", ("pair", top)),
            Field("smallest_eigenvalue", curved, "smallest eigenvalue of the Hessian"),
            Field("smallest_eigenvalue_error", curved, "an eigenvalue lies within this distance"),
            Field("loss", problem.unit, "mean loss over the samples"),
            Field("loss_error", problem.unit, "how far rounding may have moved the loss"),
            Field("gradient_norm", f"{problem.unit} per unit of theta", "norm of the mean gradient"),
            Field("gradient_norm_error", f"{problem.unit} per unit of theta", "how far rounding may have moved it"),
            Field("products", "1", "Hessian-vector products spent"),
        )
        if whole:
            self.fields += (
                Field("trace", curved, "trace of the Hessian"),
                Field("trace_error", curved, "standard error of the trace"),
                Field("negative_below", curved, "eigenvalues below minus this count as negative"),
                Field("negative_share", "1", "share of negative eigenvalues"),
                Field("negative_share_low", "1", "smallest share of negative eigenvalues, 95 %"),
                Field("negative_share_high", "1", "largest share of negative eigenvalues, 95 %"),
                Field("quantiles", curved, f"shares {SHARES} of the eigenvalues lie below", ("share", len(SHARES))),
                Field("density_error", "1", "error of the density of eigenvalues, as a share of its range"),
            )

    @cached_property
    def factory(self) -> OperatorFactory:
        """What products at all checkpoints have in common."""
        plan = self.plan
        if plan is None:
            plan = probed(self.problem, self.parameters, memory=self.memory)
        return prepare(self.problem, self.parameters, plan=plan, memory=self.memory, check=self.check)

    def smaller(self) -> str | None:
        """Halve the batches and the kept values, after memory ran out; what was done, or None where that is no use."""
        made = self.__dict__.get("factory")
        samples = largest_to_cut([self.problem.data])
        largest = max(self.problem.data.batch_size, 0 if made is None else made.batch)
        now = self.limit or min(largest, samples)
        accelerators.release_cache()  # held for batches of the former size
        fewer = None if made is None else made.smaller()
        if now <= 1 and fewer is None:
            return None
        if samples == 1 and fewer is not None:
            self.__dict__["factory"] = fewer
            return "no values of products are kept from here on"
        self.limit = max(1, now // 2)
        self.problem = self.problem.rebatched(min(self.limit, self.problem.data.batch_size))
        if fewer is not None:
            self.__dict__["factory"] = fewer
        elif self.plan is not None:  # memory ran out before there was one
            self.plan = {**self.plan, "batch": min(self.limit, int(self.plan["batch"]))}
        return f"batches of {self.limit} samples at most from here on"

    def upgraded(self, index: int, fields: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The reading of a checkpoint as an earlier version kept it: what it did not have is NaN."""
        return with_unknown_fields(self.fields, fields)

    def __call__(self, point: Point) -> dict[str, Any]:
        """The reading of one checkpoint, whose eigenvectors have been stored by then.

        Raises FloatingPointError where the loss is not finite, Interrupted where `stop` says so.
        """
        step = point[0]
        file = self.files[step]
        notes = load_into(self.problem.model, file, unsafe=self.unsafe, selection=self.selection)
        new = {note.replace(str(file), "the run's checkpoints", 1) for note in notes} - self.noted
        self.noted |= new
        for note in new:  # once for all checkpoints that are alike
            logger.warning("%s", note)
        found = measured_gradient(self.problem, self.parameters)
        if not isfinite(found.loss):
            raise FloatingPointError(
                f"the loss is {found.loss} at {self.files[step].name}: no curvature can be measured there"
            )
        trace_products: int = 0
        density: dict[str, Any] = {"density_error": None}
        if self.whole:
            trace_products = self.effort.trace_products
        if self.whole and self.effort.density:
            density = {
                name: getattr(self.effort, name) for name in ("density_error", "density_steps", "density_probes")
            }
        spectrum = spectrum_of(
            interruptible(self.factory.at(measured=True), self.stop),
            top=self.top,
            bottom=1,
            trace_products=trace_products,
            **density,
            max_products=self.effort.max_products,
            dense=DENSE,
            tol=self.tol,
            seed=self.seed,
        )
        if spectrum.top is None:  # pragma: no cover
            raise ValueError("no eigenvalue was computed")
        self.store_vectors(step, spectrum.top.vectors.T.float().cpu().numpy())
        reading: dict[str, Any] = {
            "eigenvalues": spectrum.top.values,
            "eigenvalue_errors": spectrum.top.residuals,
            "smallest_eigenvalue": spectrum.smallest[0],
            "smallest_eigenvalue_error": spectrum.smallest[1],
            "loss": found.loss,
            "loss_error": found.loss_error,
            "gradient_norm": norm(found.gradient),
            "gradient_norm_error": found.norm_error,
            "products": spectrum.products,
        }
        if self.whole:
            reading |= _whole_spectrum(spectrum)
        return reading


def _whole_spectrum(spectrum: Spectrum) -> dict[str, Any]:
    """Trace, share of negative eigenvalues and quantiles; NaN is stored for what was not computed."""
    reading: dict[str, Any] = dict.fromkeys(WHOLE_FIELDS, nan)
    reading["quantiles"] = quantiles(spectrum.density)
    if spectrum.trace is not None:
        reading |= {"trace": spectrum.trace.value, "trace_error": spectrum.trace.error}
    if spectrum.density is None:
        return reading
    t, below, _ = spectrum.masses[0]
    return reading | {
        "negative_below": t,
        "negative_share": below.value,
        "negative_share_low": below.low,
        "negative_share_high": below.high,
        "density_error": spectrum.density.error,
    }
