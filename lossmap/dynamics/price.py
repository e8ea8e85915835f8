"""What the curvature along a run is expected to cost, before its first checkpoint: from a few timed products."""

from __future__ import annotations

from lossmap.curvature.product_time import seconds_of_product
from lossmap.dynamics.checkpoint_curvature import DENSE, CheckpointCurvature
from lossmap.linalg.expected_products import SpectrumParts
from lossmap.memory import memory_now
from lossmap.report.price import Price

SEARCH_VECTORS = 50  # of the length of theta, that a search holds beside the eigenvectors, about


def parts_at_a_checkpoint(measure: CheckpointCurvature) -> SpectrumParts:
    """What is computed of the Hessian at a checkpoint."""
    return SpectrumParts(
        measure.factory.size, measure.top, 1, measure.tol, measure.effort.max_products,
        trace=measure.effort.trace_products * measure.whole, density=measure.whole,
        density_error=measure.effort.density_error, density_steps=measure.effort.density_steps,
        density_probes=measure.effort.density_probes, dense=DENSE,
    )  # fmt: skip


def price_of_run(measure: CheckpointCurvature, checkpoints: int, workers: int = 1) -> Price:
    """The price of so many checkpoints. Raises what a product raises."""
    operator = measure.factory.at()
    each = parts_at_a_checkpoint(measure).products + 1  # and a gradient
    seconds = seconds_of_product(operator)
    vectors = (SEARCH_VECTORS + 2 * measure.top) * operator.size * operator.dtype.itemsize
    memory = memory_now(measure.problem.model) + vectors
    return Price(checkpoints * each, checkpoints * each * seconds, memory, workers=workers, longest=each * seconds)
