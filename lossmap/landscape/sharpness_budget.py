"""Fits the tasks of sharpness into a time: the largest eigenvalue first, fewer points, steps and probes of the others.

Random points, ascent steps and products of the trace go down together, by one share, as far as each still says
something; where that is not enough, whole measures are left out, the least telling first. Seconds are those of a timed
pass, gradient and product (`sharpness_cost`), with a margin, since numbers of products are expectations. What fits is
resolved once, by rank 0, and stored with the request: a resumed run and the other ranks take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lossmap.landscape.fitted_share import MARGIN, largest_share
from lossmap.landscape.sharpness_cost import expected_costs, seconds_of_subjects
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_tasks import SharpnessTasks, tasks_of
from lossmap.report.price import span_text
from lossmap.report.text import count

MIN_DRAWS = 4  # pairs of points, of which there is a standard error to speak of
MIN_STEPS = 2  # of an ascent: the first is SAM's
MIN_TRACE_PRODUCTS = 6
FITTED = ("draws", "steps", "starts", "critical", "trace_products")  # of a request: what a budget may change
LEFT_OUT = (  # one after the other, until the rest fits: of a request, to what, and in words
    ("starts", 1, ""),  # said with what else is cut
    ("draws", 0, "no average rises"),
    ("critical", False, "no critical sharpness"),
    ("steps", 0, "no worst-case rises, and none after SAM's step"),
    ("trace_products", 0, "no trace"),
)
WORDS = (
    ("draws", "pair of random points", "pairs of random points"),
    ("steps", "ascent step", "ascent steps"),
    ("starts", "start of ascents", "starts of ascents"),
    ("trace_products", "product of the trace", "products of the trace"),
)


@dataclass(frozen=True)
class FittedSharpness:
    """What of a request fits, and in words what was cut."""

    request: SharpnessRequest
    cuts: tuple[str, ...] = ()


def fit_request(
    tasks: SharpnessTasks, seconds: float, workers: int = 1, each: Mapping[int, Mapping[str, float]] | None = None
) -> FittedSharpness:
    """What of the request so many seconds hold. Raises what a pass, a gradient or a product raises.

    seconds  that are left; a part of them is kept in reserve
    workers  ranks, or teams of ranks, that share the tasks
    each     seconds of a pass, a gradient and a product, by subject and kind; by default timed
    """
    prices = seconds_of_subjects(tasks) if each is None else each
    allowed = MARGIN * max(0.0, seconds)

    def fits(request: SharpnessRequest) -> bool:
        return _wall(tasks, request, workers, prices) <= allowed

    request, left_out = tasks.request, list[str]()
    if fits(request):
        return FittedSharpness(request)
    for name, least, words in LEFT_OUT:
        if fits(_reduced(request, 0.0)):
            break
        is_asked_for = bool(getattr(request, name)) and (bool(request.balls) or name in ("critical", "trace_products"))
        if is_asked_for:
            request = replace(request, **{name: min(getattr(request, name), least)})
            left_out += [words] if words else []
    fitted = _largest_that_fits(request, fits)
    cuts = [*left_out, *_changes(tasks.request, fitted)]
    if not fits(fitted):
        alone = span_text(_wall(tasks, fitted, workers, prices))
        cuts.append(f"the largest eigenvalue alone takes about {alone}, longer than what is left")
    return FittedSharpness(fitted, tuple(cuts))


def stored_fit(request: SharpnessRequest, stored: Mapping[str, object]) -> SharpnessRequest:
    """The request, with what an earlier run has fitted, as its file's settings hold it."""
    return replace(request, **{name: stored.get(name, getattr(request, name)) for name in FITTED})  # type: ignore[arg-type]


def with_request(tasks: SharpnessTasks, request: SharpnessRequest) -> SharpnessTasks:
    """The same subjects, with the tasks of another request."""
    each = tuple(task for i in range(len(tasks.subjects)) for task in tasks_of(i, request))
    return replace(tasks, request=request, tasks=each)


def _wall(
    tasks: SharpnessTasks, request: SharpnessRequest, workers: int, prices: Mapping[int, Mapping[str, float]]
) -> float:
    """Seconds of all tasks of a request, shared among ranks."""
    costs = [cost.seconds for cost in expected_costs(with_request(tasks, request), seconds=prices)]
    return max(sum(costs) / workers, max(costs))


def _reduced(request: SharpnessRequest, share: float) -> SharpnessRequest:
    """The request with a share of its points, steps and probes; what is not asked for stays so."""

    def part(whole: int, least: int) -> int:
        return min(whole, max(least, int(share * whole)))

    return replace(
        request,
        draws=part(request.draws, MIN_DRAWS),
        steps=part(request.steps, MIN_STEPS),
        trace_products=part(request.trace_products, MIN_TRACE_PRODUCTS),
    )


def _largest_that_fits(request: SharpnessRequest, fits: Callable[[SharpnessRequest], bool]) -> SharpnessRequest:
    """The request with the largest share of points, steps and probes that fits; the smallest, where none does."""
    if fits(request):
        return request
    return _reduced(request, largest_share(lambda share: fits(_reduced(request, share))))


def _changes(before: SharpnessRequest, after: SharpnessRequest) -> Sequence[str]:
    """In words what there is less of, and not left out."""
    changes = []
    for name, one, many in WORDS:
        old, new = getattr(before, name), getattr(after, name)
        if new and new < old and not (name == "starts" and not after.steps):
            changes.append(f"{count(new, one, many)} in place of {old}")
    return changes
