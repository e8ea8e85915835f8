"""Fits the tasks of a spectrum into a time: ends first, then trace, density, and as many layers as there is time for.

The seconds of a product are those that were measured (`price.PriceList`), with a margin, since expected numbers of
products are expectations. What fits is resolved once, by rank 0, and stored with the request: a resumed run and the
other ranks take it from there. Of layers the largest are read, each whole; what the blocks leave out goes first.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import Any

from lossmap.linalg.expected_products import SpectrumParts
from lossmap.linalg.product_budget import fit_parts
from lossmap.linalg.solver_time import weights_of_parts
from lossmap.report.price import span_text
from lossmap.spectra.price import PriceList, parts_of, price_of, rows_of
from lossmap.spectra.request import SpectrumRequest, Task, tasks_of
from lossmap.spectra.tasks import SpectrumTasks

MARGIN = 0.8  # of the time that is planned for
# of a request: what a budget may change
FITTED = (
    *("max_products", "trace_products", "trace_error", "density", "density_steps", "density_probes", "dense"),
    *("by", "patterns", "second", "probes", "layer_limit"),
)


@dataclass(frozen=True)
class FittedRequest:
    """What of a request fits, and in words what was cut."""

    request: SpectrumRequest
    cuts: tuple[str, ...] = ()


def with_parts(request: SpectrumRequest, parts: SpectrumParts) -> SpectrumRequest:
    """The request, with what is computed of the whole matrix."""
    return replace(
        request,
        max_products=parts.max_products,
        trace_products=parts.trace,
        trace_error=parts.trace_error,
        density=parts.density,
        density_steps=parts.density_steps,
        density_probes=parts.density_probes,
        dense=parts.dense if not request.layerwise else request.dense,
    )


def fit_request(
    tasks: SpectrumTasks, seconds: float, workers: int = 1, prices: PriceList | None = None
) -> FittedRequest:
    """What of the request so many seconds hold. Raises what a product raises.

    seconds  that are left; a part of them is kept in reserve
    workers  ranks, or teams of ranks, that share the tasks
    """
    prices, seconds = prices or PriceList.of(tasks), MARGIN * max(0.0, seconds)
    planned = seconds
    subjects = range(len(tasks.subjects))
    each = [prices.seconds_with_step(Task(i, "ends")) for i in subjects]
    largest = max(subjects, key=lambda i: rows_of(tasks.subjects[i], tasks.request.parameters))
    n = rows_of(tasks.subjects[largest], tasks.request.parameters)
    parts, no_density = _affordable(prices, parts_of(tasks.request, n), largest, seconds)
    if prices.counts_solver and parts.density and not parts.is_whole:
        seconds -= prices.beside_products(Task(largest, "density"))
    longest = seconds / max(each)
    by_part = {kind: prices.seconds_with_step(Task(largest, kind)) for kind in ("ends", "trace", "density")}
    weights = weights_of_parts(by_part)
    fit = fit_parts(parts, seconds * workers / sum(each), longest, weights)
    fit = replace(fit, cuts=(*no_density, *fit.cuts))
    request = with_parts(tasks.request, fit.parts)
    if request.diagonal and not request.trace_products:  # it is made of them
        request, fit = replace(request, diagonal=False), replace(fit, cuts=(*fit.cuts, "no diagonal"))
    if not request.layerwise:
        return FittedRequest(request, fit.cuts)
    request, cuts = _with_fitting_layers(tasks, request, planned, workers, prices)
    return FittedRequest(request, (*fit.cuts, *cuts))


def _affordable(
    prices: PriceList, parts: SpectrumParts, subject: int, seconds: float
) -> tuple[SpectrumParts, tuple[str, ...]]:
    """The parts without a density whose error band alone would take half of the time, and in words what was cut."""
    if not parts.density or parts.is_whole or prices.beside_products(Task(subject, "density")) <= 0.5 * seconds:
        return parts, ()
    return replace(parts, density=False), ("no density",)


def _with_fitting_layers(
    tasks: SpectrumTasks, request: SpectrumRequest, seconds: float, workers: int, prices: PriceList
) -> tuple[SpectrumRequest, list[str]]:
    """The request with as many layers, the largest first, as so many seconds hold by the price of all its tasks."""

    def wall(candidate: SpectrumRequest) -> float:
        return seconds_of_request(tasks, candidate, workers, prices)

    if wall(request) <= seconds:
        return request, []
    names = {name for subject in tasks.subjects for name in subject.groups(request)}
    has_leak = any(task.kind == "leak" for task in tasks_of_request(tasks, request))
    cuts = ["not what the blocks of layers leave out"] * has_leak
    request = replace(request, probes=0)
    if wall(request) <= seconds:
        return request, cuts
    counts = range(1, len(names))
    fitting = bisect_right(counts, seconds, key=lambda count: wall(replace(request, layer_limit=count)))
    if fitting:
        return replace(request, layer_limit=fitting), [*cuts, f"the {fitting} largest of {len(names)} layers"]
    least = span_text(wall(replace(request, layer_limit=1)))
    none = f"no layer (with the largest alone the work would take about {least})"
    return replace(request, by=None, patterns=(), second=()), [none]


def tasks_of_request(tasks: SpectrumTasks, request: SpectrumRequest) -> tuple[Task, ...]:
    """The tasks that a request of the same subjects has."""
    each = enumerate(tasks.subjects)
    return tuple(t for i, s in each for t, _ in tasks_of(s, i, rows_of(s, request.parameters), request))


def seconds_of_request(tasks: SpectrumTasks, request: SpectrumRequest, workers: int, prices: PriceList) -> float:
    """What the price line says of a request of the same subjects."""
    measure = replace(tasks, request=request, tasks=tasks_of_request(tasks, request))
    return price_of(measure, workers, replace(prices, tasks=measure)).wall


def stored_fit(request: SpectrumRequest, stored: dict[str, Any]) -> SpectrumRequest:
    """The request, with what an earlier run has fitted, as its file's settings hold it."""
    values = {name: stored.get(name, getattr(request, name)) for name in FITTED}
    values["layer_limit"] = stored.get("layer_limit")
    values["diagonal"] = request.diagonal and values["trace_products"] > 0
    return replace(request, **{**values, "patterns": tuple(values["patterns"]), "second": tuple(values["second"])})


def settings_of(request: SpectrumRequest) -> dict[str, Any]:
    """A request as files hold it: what version 0.1 did not know stands there only where it is asked for."""
    values = asdict(request)
    if request.layer_limit is None:
        del values["layer_limit"]
    if not request.diagonal:
        del values["diagonal"]
    return values
