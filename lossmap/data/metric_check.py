"""Which metrics are means over samples, and which are of all samples at once: F1, R^2, perplexity, root mean square.

    m(batch) = 1/n sum_i m(sample i)        for a mean; else the number would depend on how the data are cut

A function's value over some samples is compared with its values over parts of them: with the model's outputs as they
are, and with those of other samples beside the targets, since all metrics agree where nothing is wrong.
A metric that fails on these samples, as one that wants both classes, is tried on all; where it fails there too, it is
named before the first point. Price: one pass over at most 16 samples, and some calls of the function.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.data.batch_parts import targets_of
from lossmap.data.batches import Batch, FixedBatches, join_batches, map_tensors
from lossmap.data.criteria import CorrectClasses, Criterion, MeanMetric, Metric, NoNumber
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import same_random_state

TOLERANCE = 1e-4  # relative to the summed sizes of the parts; metrics are computed in the model's precision


def with_metrics_told(problem: Problem, batch: Batch) -> Problem:
    """The problem with its metrics as they are to be evaluated, and a note on those that are no means over samples.

    batch  some samples

    Raises ValueError where a metric fails, which it would do at every point, or changes the outputs that it is given;
    NoNumber, one of these, where it is none.
    """
    own = {n: m for n, m in problem.metrics.items() if not isinstance(m.total, CorrectClasses) and m.whole is None}
    if not own:
        return problem
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(0):
        outputs = _detached(problem.forward(problem.model, batch))
    targets, n = targets_of(batch, outputs), samples_in(batch)
    can_be_cut = not isinstance(problem.data, FixedBatches) and n > 1
    can_be_cut = can_be_cut and _are_rows(outputs, n) and _are_rows(targets, n)
    metrics, notes = dict(problem.metrics), list(problem.notes)
    for name, metric in own.items():
        failure = _failure(name, metric, outputs, batch)
        if not (can_be_cut and isinstance(metric.total, MeanMetric)):
            if failure is not None:
                raise _named(name, failure)
            continue  # a mean over the samples, or over the batches as given
        found = None
        if failure is None:
            found = _whole_and_cut(metric, outputs, targets, n)
        else:
            found = f"on a few of them it fails: {type(failure).__name__}"
            _evaluate_over_all(problem, name, metric.total.function)
        if found is not None:
            metrics[name] = replace(metric, whole=metric.total.function)
            notes.append(f"the metric {name} is no mean over samples ({found}): it is taken over all samples at once")
    return replace(problem, metrics=metrics, notes=tuple(notes))


def _detached(outputs: Any) -> Any:
    return map_tensors(lambda t: t.detach(), outputs)


def _named(name: str, failure: Exception) -> ValueError:
    """What is raised for a metric that fails at every point."""
    return ValueError(f"the metric {name} fails: {type(failure).__name__}: {failure}")


def _failure(name: str, metric: Metric, outputs: Any, batch: Batch) -> Exception | None:
    """What a metric raises for these outputs. Raises ValueError where it changes them, NoNumber where it is none."""
    given = map_tensors(lambda t: t.clone(), outputs)
    try:
        with torch.no_grad():
            float(torch.as_tensor(metric.total(given, batch)))
    except NoNumber as error:
        raise NoNumber(f"{name}: {error}") from None
    except Exception as error:  # user code may raise any exception, as on samples of one class
        raise_if_of_device(error)
        return error
    pairs = zip(pytree.tree_leaves(given), pytree.tree_leaves(outputs), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs if isinstance(a, Tensor)):
        raise ValueError(
            f"the metric {name} changes the outputs in place, which other metrics read too: let it work on a copy "
            "(outputs.clone())"
        )
    return None


def _evaluate_over_all(problem: Problem, name: str, function: Criterion) -> None:
    """Raises ValueError where a metric fails also on all samples at once."""
    parts = []
    with temporary_parameters(problem.model, {}), torch.no_grad(), same_random_state(0):
        for batch in problem.data:
            outputs = _detached(problem.forward(problem.model, batch))
            parts.append((outputs, targets_of(batch, outputs)))
        outputs, targets = join_batches(parts)
        try:
            float(function(outputs, targets))
        except Exception as error:  # user code may raise any exception
            raise_if_of_device(error)
            raise _named(name, error) from error


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
        except Exception as error:  # user code may raise any exception, as on samples of one class
            raise_if_of_device(error)
            return f"on a few of them it fails: {type(error).__name__}"
        for parts in (singles, halves):
            if not abs(whole - sum(parts)) <= TOLERANCE * max(abs(whole), sum(abs(p) for p in parts)):
                return f"over {n} samples {whole / n:.6g}, as the mean over parts of them {sum(parts) / n:.6g}"
    return None
