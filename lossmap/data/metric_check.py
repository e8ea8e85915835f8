"""Which metrics are means over samples, and which are of all samples at once: F1, R^2, perplexity, root mean square.

    m(batch) = 1/n sum_i m(sample i)        for a mean; else the number would depend on how the data are cut

A function's value over some samples is compared with its values over parts of them: with the model's outputs as they
are, and with those of other samples beside the targets, since all metrics agree where nothing is wrong.
Price: one pass over at most 16 samples, and some calls of the function.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lossmap.data.batch_parts import targets_of
from lossmap.data.batches import Batch, FixedBatches, map_tensors, samples_in
from lossmap.data.criteria import MeanMetric, Metric, NoNumber
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.seeding import same_random_state

TOLERANCE = 1e-4  # relative to the summed sizes of the parts; metrics are computed in the model's precision


def with_metrics_told(problem: Problem, batch: Batch) -> Problem:
    """The problem with its metrics as they are to be evaluated, and a note on those that are no means over samples.

    batch  some samples

    Raises NoNumber, a ValueError, where a metric is none.
    """
    if isinstance(problem.data, FixedBatches):
        return problem  # never cut: a metric is the mean over the batches as given
    own = {
        name: (m, m.total.function)
        for name, m in problem.metrics.items()
        if isinstance(m.total, MeanMetric) and m.whole is None
    }
    n = samples_in(batch)
    if not own or n < 2:
        return problem
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(0):
        outputs = map_tensors(lambda t: t.detach(), problem.forward(problem.model, batch))
    targets, metrics, notes = targets_of(batch), dict(problem.metrics), list(problem.notes)
    if not (_are_rows(outputs, n) and _are_rows(targets, n)):
        return problem  # outputs that are not those of single samples
    for name, (metric, function) in own.items():
        try:
            found = _whole_and_cut(metric, outputs, targets, n)
        except NoNumber as error:
            raise NoNumber(f"{name}: {error}") from None
        if found is not None:
            metrics[name] = replace(metric, whole=function)
            notes.append(f"the metric {name} is no mean over samples ({found}): it is taken over all samples at once")
    return replace(problem, metrics=metrics, notes=tuple(notes))


def _are_rows(value: Any, n: int) -> bool:
    """Whether a tensor, or each in a container of them, has a row for each sample."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == n
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, (tuple, list)) and bool(value) and all(_are_rows(v, n) for v in value)


def _whole_and_cut(metric: Metric, outputs: Any, targets: Any, n: int) -> str | None:
    """How a metric's value over samples differs from that over their parts; None where it does not."""

    def value(rows: list[int], order: list[int]) -> float:
        own = [order[i] for i in rows]
        part = (map_tensors(lambda t: t[own], outputs), (None, map_tensors(lambda t: t[rows], targets)))
        return float(torch.as_tensor(metric.total(*part)))

    every, half = list(range(n)), n // 2
    for order in (every, [*range(1, n), 0]):
        try:
            whole = value(every, order)
            singles = [value([i], order) for i in every]
            halves = [value(every[:half], order), value(every[half:], order)]
        except NoNumber:
            raise
        except Exception as error:  # user code may raise any exception, as on samples of one class
            return f"on a few of them it fails: {type(error).__name__}"
        for parts in (singles, halves):
            if not abs(whole - sum(parts)) <= TOLERANCE * max(abs(whole), sum(abs(p) for p in parts)):
                return f"over {n} samples {whole / n:.6g}, as the mean over parts of them {sum(parts) / n:.6g}"
    return None
