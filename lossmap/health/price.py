"""What the examination of a network is expected to cost, before it is made: from a few timed products and gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.per_sample_gradients import cost_of_covariance
from lossmap.curvature.product_time import first_batch, seconds_of_product
from lossmap.data.batches import FixedBatches
from lossmap.data.problem import Problem
from lossmap.linalg.expected_products import SpectrumParts
from lossmap.linalg.product_budget import EXCEEDS, Fit, fit_parts
from lossmap.linalg.solver_time import seconds_by_part, seconds_of_parts, weights_of_parts
from lossmap.memory import memory_now
from lossmap.report.price import Price, span_text
from lossmap.spectra.spectrum import DENSE

PASSES = {"collapse": 2, "signals": 3}  # over the data, each at most at the price of a gradient
MARGIN = 0.8  # of the time that is planned for
FIXED_SECONDS = 0.5  # of an examination beside its products and passes: power laws, what PyTorch loads, the report
SEARCH_VECTORS = 100  # of the length of theta, that searches and the density hold, about


def price_of_examination(
    problem: Problem,
    subset: Problem,
    parts: SpectrumParts,
    examinations: Sequence[str],
    parameters: str,
    held_out: Problem | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Price:
    """The price of an examination, passes counted as products. Raises what a product or a gradient raises.

    problem   all samples; subset: those of gradients and Hessian; held_out: those of no training
    parts     what is computed of the Hessian
    """
    products, seconds, beside, more, more_seconds = 0, 0.0, FIXED_SECONDS, 0, 0.0
    if "hessian" in examinations:
        operator = build_operator(subset, "hessian", parameters)
        products += parts.products
        each = seconds_of_product(operator)
        seconds += parts.products * each
        more = parts.products_left
        more_seconds = more * each
        beside += seconds_of_parts(parts, operator.dtype, operator.device)
    gradient = _seconds_of_gradient(problem, parameters, clock)
    for name in set(examinations) & set(PASSES):
        share = 1.0
        if name == "signals" and held_out is not None:
            share += held_out.data.samples / max(1, problem.data.samples) / PASSES[name]
        products += PASSES[name]
        seconds += PASSES[name] * share * gradient
    itemsize = next(iter(problem.model.parameters())).element_size()
    memory = SEARCH_VECTORS * parts.n * itemsize
    if "gradients" in examinations and not isinstance(subset.data, FixedBatches):  # of which samples have none
        taken, held = cost_of_covariance(subset, parameters, clock)
        beside, memory = beside + taken, max(memory, held)
    memory += memory_now(problem.model)
    return Price(products, seconds + beside, memory, beside=beside, more=more, more_seconds=more_seconds)


def fit_examination(
    problem: Problem,
    subset: Problem,
    parts: SpectrumParts,
    examinations: Sequence[str],
    parameters: str,
    held_out: Problem | None,
    seconds: float,
) -> Fit:
    """What of the Hessian so many seconds hold, beside the other examinations; arguments as above.

    Raises what a product or a gradient raises.
    """
    if "hessian" not in examinations:
        return Fit(parts)
    others = [name for name in examinations if name != "hessian"]
    taken = price_of_examination(problem, subset, parts, others, parameters, held_out).seconds
    operator = build_operator(subset, "hessian", parameters)
    by_part = seconds_by_part(parts, seconds_of_product(operator), operator.dtype, operator.device)
    products = MARGIN * max(0.0, seconds - taken) / by_part["ends"]
    fit = fit_parts(parts, products, weights=weights_of_parts(by_part))
    if taken <= MARGIN * seconds:
        return fit
    return replace(fit, cuts=(*fit.cuts, f"{EXCEEDS}the examinations beside the Hessian alone take {span_text(taken)}"))


def parts_of_examination(n: int, density_error: float | None) -> SpectrumParts:
    """What an examination computes of a Hessian of size n."""
    parts = SpectrumParts(n, min(5, n), 1, dense=DENSE)
    if density_error is None:
        return replace(parts, density=False)
    return replace(parts, density_error=density_error)


def _seconds_of_gradient(problem: Problem, parameters: str, clock: Callable[[], float]) -> float:
    """Seconds of a gradient over all samples, from the second of two over one batch."""
    few = first_batch(problem)
    loss_and_gradient(few, parameters)
    start = clock()
    loss_and_gradient(few, parameters)
    return (clock() - start) * problem.data.samples / max(1, few.data.samples)
