"""What the curvature along a run is expected to cost, before its first checkpoint: from a few timed products."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from lossmap.curvature.product_time import seconds_of_first, seconds_of_product, seconds_of_rounding
from lossmap.dynamics.checkpoint_curvature import DENSE, CheckpointCurvature, Effort
from lossmap.io.read import read
from lossmap.linalg.expected_products import SpectrumParts
from lossmap.linalg.product_budget import Fit, fit_parts
from lossmap.linalg.solver_time import seconds_by_part, seconds_of_parts, weights_of_parts
from lossmap.memory import memory_now
from lossmap.report.price import Price

logger = logging.getLogger("lossmap")

MARGIN = 0.8  # of the time that is planned for
CHECKPOINT_SECONDS = 0.1  # of each: reading it, its loss, its eigenvectors on the disk
ROUNDINGS = 2  # that are measured at each: of the products before the search, of the eigenpairs after it
SEARCH_VECTORS = 50  # of the length of theta, that a search holds beside the eigenvectors, about


def parts_at_a_checkpoint(measure: CheckpointCurvature) -> SpectrumParts:
    """What is computed of the Hessian at a checkpoint."""
    return SpectrumParts(
        measure.factory.size, measure.top, 1, measure.tol, measure.effort.max_products,
        trace=measure.effort.trace_products * measure.whole, density=measure.whole,
        density_error=measure.effort.density_error, density_steps=measure.effort.density_steps,
        density_probes=measure.effort.density_probes, dense=DENSE,
    )  # fmt: skip


def price_of_run(
    measure: CheckpointCurvature, checkpoints: int, workers: int = 1, beside: Sequence[float] = ()
) -> Price:
    """The price of so many checkpoints. Raises what a product raises.

    beside  of each search for the null the share of the samples over which it is; it is of eigenpairs alone
    """
    operator, parts = measure.factory.at(), parts_at_a_checkpoint(measure)
    products = parts.products + 1  # and a gradient
    each = seconds_of_product(operator)
    first = seconds_of_first(operator, each)
    rounding = ROUNDINGS * seconds_of_rounding(lambda: measure.factory.at(measured=True))
    other = CHECKPOINT_SECONDS + first + rounding + seconds_of_parts(parts, operator.dtype, operator.device)
    seconds = products * each + other
    nulls = len(beside)
    searched = replace(parts, trace=0, density=False).products + 1
    searches = searched * each * sum(beside) + nulls * other  # other is of the whole spectrum where there is one
    vectors = (SEARCH_VECTORS + 2 * measure.top) * operator.size * operator.dtype.itemsize
    memory = memory_now(measure.problem.model) + vectors
    return Price(
        checkpoints * products + searched * nulls, checkpoints * seconds + searches, memory,
        workers=workers, longest=seconds, beside=(checkpoints + nulls) * other,
        more=checkpoints * parts.products_left,
        more_seconds=ceil(checkpoints / max(1, workers)) * parts.products_left * each,
    )  # fmt: skip


def fitted_effort(
    measure: CheckpointCurvature, seconds: float, workers: int = 1, beside: Sequence[float] = ()
) -> Effort:
    """The effort at a checkpoint with which all of them fit into so many seconds; the log says what was cut.

    workers  ranks that share the checkpoints
    beside   of each search for the null the share of the samples over which it is

    Raises what a product raises.
    """
    began, rounds = time.monotonic(), ceil(len(measure.files) / workers)
    operator, parts = measure.factory.at(), parts_at_a_checkpoint(measure)
    each = seconds_of_product(operator)
    rounding = ROUNDINGS * seconds_of_rounding(lambda: measure.factory.at(measured=True))
    first = seconds_of_first(operator, each) + rounding
    by_part = seconds_by_part(parts, each, operator.dtype, operator.device)
    seconds -= time.monotonic() - began

    def fit_beside(shares: Sequence[float]) -> Fit:
        nulls, searches = sum(shares) / workers, ceil((len(measure.files) + len(shares)) / workers)
        left = MARGIN * max(0.0, seconds) - searches * (first + CHECKPOINT_SECONDS)
        whole = nulls * by_part["ends"] * (replace(parts, trace=0, density=False).products + 1)
        # a null is of eigenpairs alone: it takes its whole before the rest is shared, or is cut as checkpoints are
        products = max((left - whole) / rounds, left / (rounds + nulls)) / by_part["ends"] - 1
        return fit_parts(parts, products, weights=weights_of_parts(by_part))

    fit, others = fit_beside(beside), [share for share in beside if share == 1.0]
    halves = len(others) == len(beside) or fit.parts.max_products == parts.max_products
    if not halves:  # the run's own eigenpairs come first
        logger.warning("the budget holds no null of halves: --null halves needs a longer one")
        fit = fit_beside(others)
    if seconds <= 0:
        logger.warning("the budget was over before the first checkpoint, by start and preparation alone")
    if fit.cuts:
        logger.warning("the budget holds at each checkpoint: %s", "; ".join(fit.cuts))
    parts, effort = fit.parts, measure.effort
    if measure.whole:
        effort = replace(
            effort,
            trace_products=parts.trace,
            density=parts.density,
            density_steps=parts.density_steps,
            density_probes=parts.density_probes,
        )
    return replace(effort, max_products=parts.max_products, halves=halves)


def stored_effort(path: Path, budget: float) -> Effort | None:
    """The effort that an earlier run of the file was fitted to by this budget; None where there is none."""
    if not path.exists():
        return None
    stored = read(path).settings.get("measures", {}).get("along", {})
    if stored.get("budget") != budget:
        return None
    return Effort(**stored.get("effort", {}))
