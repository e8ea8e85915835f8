"""What --budget makes of a command: the work that fits, resolved once, and stored with the result.

Of a spectrum, a run or an examination probes, Lanczos steps and layers are fitted into the time that is left, of
sharpness random points and ascent steps, of a line between networks its points and the steps of a curve's training; a
map cannot drop points, so that one which takes longer is refused, with what would fit. Rank 0 decides, and all follow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmap.cli.announce import announce
from lossmap.cli.setting_groups import RunSettings
from lossmap.cli.settings import UsageError
from lossmap.io.read import read
from lossmap.parallel.world import World
from lossmap.report.price import Price, seconds_of, span_text

if TYPE_CHECKING:
    from lossmap.landscape.sharpness_request import SharpnessRequest
    from lossmap.landscape.sharpness_tasks import SharpnessTasks
    from lossmap.spectra.request import SpectrumRequest
    from lossmap.spectra.tasks import SpectrumTasks


def budget_seconds(text: str | None) -> float | None:
    """The seconds of --budget; None where there is none. Raises UsageError."""
    if text is None:
        return None
    try:
        return seconds_of(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def left_of(text: str | None, began: float) -> float | None:
    """The seconds that are left of --budget since the command began, by time.monotonic; None where there is none."""
    seconds = budget_seconds(text)
    if seconds is None:
        return None
    return max(0.0, seconds - (time.monotonic() - began))


def budget_entry(text: str | None) -> dict[str, float]:
    """What the settings of a measure say of the budget that it was fitted into; nothing without one."""
    seconds = budget_seconds(text)
    return {} if seconds is None else {"budget": seconds}


def stored_settings(path: Path, measure: str, run: RunSettings) -> dict[str, Any]:
    """The settings of a measure that an earlier run with this budget has left in the file; empty without one."""
    if run.overwrite or not path.exists():
        return {}
    stored: dict[str, Any] = dict(read(path).settings.get("measures", {}).get(measure, {}))
    if stored.get("budget") != budget_seconds(run.budget):
        return {}  # the file is refused when it is opened, with both budgets
    return stored


def time_sentence(budget: str | None, left: float | None) -> str:
    """What the start and the preparation of a command have left of its budget."""
    whole, rest = budget_seconds(budget) or 0.0, left or 0.0
    if not rest:
        return "over before the work, by start and preparation alone; the least of it is done nevertheless"
    return (
        f"start and preparation took {span_text(whole - rest)}, so that {span_text(rest)} are left, a fifth in reserve"
    )


def report_cuts(cuts: tuple[str, ...], budget: str | None, left: float, say: Callable[[str], None]) -> None:
    """Print what was left by the preparation, and what was cut to fit."""
    say(f"--budget {budget}: {time_sentence(budget, left)}: {'; '.join(cuts) or 'all of it fits'}")


def fitted_request(
    measure: SpectrumTasks,
    run: RunSettings,
    path: Path,
    began: float,
    workers: int,
    say: Callable[[str], None],
    crowding: float = 1.0,
    known: dict[tuple[int, str], float] | None = None,
) -> SpectrumRequest:
    """The request of a spectrum as it fits: as an earlier run of this file fitted it, or as it does now. For rank 0.

    began     when the command began, by time.monotonic
    crowding  how many times longer a rank takes while all compute
    known     filled with the seconds of products, from which the price line is made, too
    """
    from lossmap.spectra.budget import fit_request, stored_fit
    from lossmap.spectra.price import PriceList, price_of

    stored = stored_settings(path, measure.name, run)
    if stored:
        return stored_fit(measure.request, stored)
    prices = PriceList(measure, known={} if known is None else known, counts_solver=True)
    price_of(measure, workers, prices)  # products are timed before what is left is asked for: that takes time, too
    left = left_of(run.budget, began) or 0.0
    fit = fit_request(measure, left / crowding, workers, prices)
    report_cuts(fit.cuts, run.budget, left, say)
    return fit.request


def fitted_sharpness(
    tasks: SharpnessTasks,
    run: RunSettings,
    path: Path,
    began: float,
    workers: int,
    say: Callable[[str], None],
    crowding: float = 1.0,
) -> SharpnessRequest:
    """The same of the tasks of sharpness. For rank 0."""
    from lossmap.landscape.sharpness_budget import fit_request, stored_fit
    from lossmap.landscape.sharpness_cost import seconds_of_subjects

    stored = stored_settings(path, tasks.name, run)
    if stored:
        return stored_fit(tasks.request, stored)
    each = seconds_of_subjects(tasks)
    left = left_of(run.budget, began) or 0.0
    fit = fit_request(tasks, left / crowding, workers, each)
    report_cuts(fit.cuts, run.budget, left, say)
    return fit.request


def within_budget(
    world: World, title: str, price: Callable[[], Price], budget: str | None, points: int, began: float, allowed: bool
) -> None:
    """Where there is a --budget, print the price of a map, and refuse what takes longer; every rank calls it.

    title, price  as of `announce`; the others as of `check_map_budget`
    """
    if budget is None:
        return
    budget_seconds(budget)
    expected = announce(world, title, price)
    world.once(lambda: check_map_budget(expected, budget, points, began, allowed))


def announce_once(world: World, title: str, price: Callable[[], Price], budget: str | None) -> None:
    """Print the price of a map, unless `within_budget` has done so before its file was opened."""
    if budget is None:
        announce(world, title, price)


def check_map_budget(price: Price | None, budget: str | None, points: int, began: float, allowed: bool) -> None:
    """Raise UsageError where a map takes longer than its budget but for a reserve, with what would fit. For rank 0.

    price    of the points that are left; None where it could not be measured
    points   how many these are
    began    when the command began, by time.monotonic
    allowed  by --yes
    """
    from lossmap.landscape.fitted_share import MARGIN

    left = left_of(budget, began)
    if left is None or price is None or allowed or price.wall <= MARGIN * left:
        return
    if not left:
        raise UsageError(f"--budget {budget} is over before the first point; the points take {span_text(price.wall)}")
    share = MARGIN * left / price.wall
    ranks = math.ceil(price.workers / share)
    raise UsageError(
        f"{points:,} points take about {span_text(price.wall)}; of --budget {budget} {span_text(left)} are left, a "
        f"fifth of it in reserve; about {int(points * share):,} points would fit, or {ranks} ranks, or --samples with "
        f"{100 * share:.2g} % of the samples; --yes computes all of them nevertheless"
    )
