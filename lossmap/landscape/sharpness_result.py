"""How sharp a minimum is: a value with error bars, and what a file keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np

from lossmap.keywords import checked_init
from lossmap.landscape.batch_sharpness import BatchSharpness
from lossmap.landscape.critical_sharpness import CriticalSharpness
from lossmap.linalg.trace import Trace
from lossmap.report.sharpness import sharpness_report
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.values import DrawnResult


@dataclass(frozen=True, eq=False)
class BallRise:
    """How far the loss rises in one ball, in the unit of the loss; NaN for what was not measured.

    kind           filter, adaptive or absolute
    radius         of the ball, in its own coordinates
    average        mean rise over the ball, with its standard error over `draws` pairs of opposite random points
    rounding       how far a single rise of the average is from that in float64; NaN where not measured
    sam            rise after SAM's step, to the edge of the ball along the gradient
    sam_error      how far rounding may have moved it, of loss and gradient; NaN where not measured
    worst          largest rise that gradient ascent met: a lower bound of the largest in the ball
    worst_error    how far it is from that in float64 at the same point; NaN where not measured
    starts, steps  of that ascent: how many, and steps of each
    movable        number of entries of theta that do not stand still in it; NaN in files of earlier versions
    """

    kind: str
    radius: float
    average: float = nan
    average_error: float = nan
    draws: int = 0
    rounding: float = nan
    sam: float = nan
    sam_error: float = nan
    worst: float = nan
    worst_error: float = nan
    starts: int = 0
    steps: int = 0
    movable: float = nan


@dataclass(frozen=True)
class PreconditionedSharpness:
    """The largest eigenvalue of P^-1/2 (H + W) P^-1/2, which decides on the stability of an adaptive optimizer's steps.

    value      in the loss's unit per squared unit of P^1/2 theta
    error      the matrix has an eigenvalue within this distance of it
    limit      beyond which, with the probability 0.99, no eigenvalue lies
    threshold  above which full-batch steps diverge; NaN where it is not known
    optimizer  of which P is; empty where P was given
    """

    value: float
    error: float
    limit: float = nan
    threshold: float = nan
    optimizer: str = ""


@checked_init
@dataclass(frozen=True, eq=False)
class Sharpness(DrawnResult):
    """How sharp the loss is at one checkpoint, by several measures: the result of `sharpness`. Print it for the report.

    Attributes:
        label: what the report calls it.
        size: n, the parameters that are displaced and that the Hessian is of.
        parameters: which these are.
        precision: of the passes.
        samples: over which the loss is a mean.
        unit: of the loss.
        loss: at the checkpoint.
        loss_error: how far rounding may have moved it, as it was measured; NaN where it was not.
        gradient_norm: there.
        gradient_norm_error: how far rounding may have moved it.
        largest: eigenvalue of the Hessian; NaN where it was not measured.
        largest_error: the Hessian has an eigenvalue within this distance of it.
        largest_limit: beyond which, with the probability 0.99, no eigenvalue lies.
        trace: of the Hessian, with its standard error; None where it was not measured.
        balls: the rises in each ball.
        critical: critical sharpness; None where it was not measured.
        batch: batch sharpness; None where it was not measured.
        preconditioned: largest eigenvalue as an optimizer's step sees it; None where it was not measured.
        seed: of draws, starts and probes.
        rescaled: the factor by which one layer was multiplied, and the next divided, before; 1 of the network itself.
        rescaled_layers: the names of these two; empty of the network itself.
        seconds: spent.
        notes: how the loss is evaluated, a sentence each, where that is not as a mean over any samples.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = lossmap.Problem.supervised(model, "mse", (torch.eye(2), torch.zeros(2, 1)))
        >>> result = lossmap.sharpness(problem, radius={"absolute": 0.1}, trace_products=0)
        >>> round(result.largest, 3), round(result.critical.value, 3)
        (1.0, 1.0)

    """

    label: str
    size: int
    parameters: str
    precision: str
    samples: int = 0
    unit: str = "1"
    loss: float = nan
    loss_error: float = nan
    gradient_norm: float = nan
    gradient_norm_error: float = nan
    largest: float = nan
    largest_error: float = nan
    largest_limit: float = nan
    trace: Trace | None = None
    balls: tuple[BallRise, ...] = ()
    critical: CriticalSharpness | None = None
    batch: BatchSharpness | None = None
    preconditioned: PreconditionedSharpness | None = None
    seed: int = 0
    rescaled: float = 1.0
    rescaled_layers: str = ""
    seconds: float = field(default=nan, compare=False)
    notes: tuple[str, ...] = ()

    def ball(self, kind: str, radius: float | None = None) -> BallRise:
        """The rises in the ball of this kind, and of this radius where there are several. Raises KeyError for none."""
        for ball in self.balls:
            if ball.kind == kind and radius in (None, ball.radius):
                return ball
        known = ", ".join(f"{b.kind} {b.radius:g}" for b in self.balls) or "none"
        raise KeyError(f"no ball {kind!r} here; there are: {known}")

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        report = _report_of(self)
        return dict(report.arrays), {**report.attributes, "report": repr(self)}

    def __repr__(self) -> str:
        return sharpness_report(_report_of(self))


def _report_of(s: Sharpness) -> StoredReport:
    """What the report is rendered from: `ball_*` arrays, one row a ball; the rest as attributes."""
    attributes: dict[str, Any] = {
        "label": s.label, "size": s.size, "parameters": s.parameters, "precision": s.precision, "samples": s.samples,
        "unit": s.unit, "loss": s.loss, "loss_error": s.loss_error, "gradient_norm": s.gradient_norm,
        "gradient_norm_error": s.gradient_norm_error, "largest": s.largest,
        "largest_error": s.largest_error, "largest_limit": s.largest_limit, "seed": s.seed, "rescaled": s.rescaled,
        "seconds": s.seconds, "report_version": REPORT_VERSION,
    }  # fmt: skip
    if s.rescaled_layers:
        attributes["rescaled_layers"] = s.rescaled_layers
    if s.notes:
        attributes["evaluation"] = "; ".join(s.notes)
    if s.trace is not None:
        low, high = s.trace.interval()
        attributes |= {"trace": s.trace.value, "trace_error": s.trace.error, "trace_low": low, "trace_high": high}
        attributes |= {"trace_method": s.trace.method, "trace_products": s.trace.products}
    if s.critical is not None:
        attributes |= {f"critical_{name}": getattr(s.critical, name) for name in ("low", "high", "passes", "reason")}
        attributes["critical"] = s.critical.value
    if s.batch is not None:
        attributes |= {"batch_sharpness": s.batch.value, "batch_sharpness_error": s.batch.error}
        attributes |= {"batch_sharpness_batches": s.batch.batches, "batch_sharpness_size": s.batch.size}
    if s.preconditioned is not None:
        own = s.preconditioned
        attributes |= {"preconditioned": own.value, "preconditioned_error": own.error}
        attributes |= {"preconditioned_limit": own.limit, "threshold": own.threshold, "optimizer": own.optimizer}
    arrays: dict[str, np.ndarray] = {}
    if s.balls:
        arrays["ball"] = np.array([ball.kind for ball in s.balls], dtype=object)
        for name in (
            "radius", "average", "average_error", "rounding", "sam", "sam_error", "worst", "worst_error", "movable",
        ):  # fmt: skip
            arrays[f"ball_{name}"] = np.array([getattr(ball, name) for ball in s.balls], dtype=np.float64)
        for name in ("draws", "starts", "steps"):
            arrays[f"ball_{name}"] = np.array([getattr(ball, name) for ball in s.balls], dtype=np.int64)
    return StoredReport(arrays, attributes)
