"""How sharp the loss is at a network's present weights, by several measures side by side: `sharpness`.

    largest, trace       of the Hessian, with error bars
    average, SAM, worst  rise of the loss in balls of given radius: filter-normalised, adaptive, absolute
    critical             2 / eta_c of a line search along the negative gradient
    preconditioned       largest eigenvalue of P^-1/2 (H + W) P^-1/2, where the problem has a preconditioner

Price: some 80 products, 130 gradients and 130 forward passes with the defaults; see the modules of the parts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossmap.curvature.loss_at_start import LossAtStart
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.problem import Problem
from lossmap.keywords import checked_keywords
from lossmap.landscape.ball import DEFAULT_RADII
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_result import Sharpness
from lossmap.landscape.sharpness_tasks import SharpnessSubject, make_sharpness_tasks


@checked_keywords
def sharpness(
    problem: Problem,
    *,
    radius: Mapping[str, float] = DEFAULT_RADII,
    draws: int = 20,
    ascent_steps: int = 20,
    starts: int = 2,
    critical: bool = True,
    trace_products: int = 60,
    tol: float = 1e-3,
    parameters: str = "weights",
    total: Total = single_rank,
    label: str = "",
    seed: int = 0,
    batch: int = 0,
    batches: int = 30,
) -> Sharpness:
    """How sharp the loss is at a model's weights: largest eigenvalue, trace, rises in balls, critical sharpness.

    Args:
        problem: model, loss and data. The model is read in evaluation mode, and comes back as it was. Where it has a
            `preconditioner`, the largest eigenvalue as that optimizer's step sees it is measured too.
        radius: of each kind of ball: `filter` (relative to the norm of each filter), `adaptive` (relative to each
            weight), `absolute` (in units of theta).
        draws: pairs of opposite random points of each average; 0 for no averages.
        ascent_steps: of each ascent to the worst rise, a lower bound of the largest in the ball; 0 for none.
        starts: of ascents: the first from the middle of the ball, whose first step is SAM's; the others at random.
        critical: whether critical sharpness is searched, in 10 forward passes at most.
        trace_products: products for the trace; 0 for none.
        tol: accuracy of the largest eigenvalue, relative.
        parameters: that are displaced, and that the Hessian is of: `weights` (of dimension > 1), `all`, `trainable`, or
            a regular expression.
        total: adds a tensor up over the ranks of a team, each with its own share of the data.
        label: what the report calls it.
        seed: of draws, starts, probes and batches.
        batch: samples of the batches of batch sharpness, the curvature of a batch's loss along its own gradient; 0 for
            none.
        batches: number of these.

    Returns:
        A `Sharpness`: print it for the report; `largest`, `trace`, `balls`, `critical`. Rises are in the loss's unit,
        the others in that per squared unit of theta.

    Raises:
        ValueError: with one sentence, for an unknown kind of ball, a radius or number out of range, weights in half
            precision, a loss that is no mean, or parameters that match nothing.
        FloatingPointError: where the loss, its gradient or a product is not finite.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> result = lossmap.sharpness(problem, radius={"adaptive": 0.5}, draws=4)
        >>> result.ball("adaptive").worst >= result.ball("adaptive").sam > 0
        True

    """
    began = time.perf_counter()
    if not isinstance(radius, Mapping):
        raise ValueError(f"radius must give one for each kind of ball, such as {{'adaptive': 0.5}}; got {radius!r}")
    request = SharpnessRequest(
        tuple((kind, float(r)) for kind, r in radius.items()), draws, ascent_steps, starts, critical, tol,
        trace_products, parameters, seed, batch, batches,
        problem.preconditioner is not None,
    )  # fmt: skip
    tasks = make_sharpness_tasks([SharpnessSubject(label, problem)], request, total=total)
    at_start = LossAtStart([tasks.subjects[0].problem])
    tasks.refuse_without_loss()
    readings: dict[str, Any] = {}
    for number in range(len(tasks.tasks)):
        readings |= tasks((float(number),))
    at_start.refuse_change(total)
    return replace(tasks.results(readings)[label], seconds=time.perf_counter() - began)
