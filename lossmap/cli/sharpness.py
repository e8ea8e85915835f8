"""`lossmap sharpness`: how sharp the minimum is at one checkpoint, or at several side by side, with error bars.

Largest Hessian eigenvalue and trace; average and worst-case rise of the loss in balls of given radius
(filter-normalised, adaptive, absolute), and the rise after SAM's step; critical sharpness by a line search; the largest
eigenvalue as a step of Adam or RMSprop sees it (--optimizer-state). --compare LABEL=FILE for further checkpoints, in
one table; --rescale A for the reparametrisation test: which of the numbers survive where one layer is multiplied and
the next divided by A, which leaves the function alone. Under mpirun or srun the tasks are shared among the ranks.
Interrupted or killed, the same command resumes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import budget_entry, budget_seconds, fitted_sharpness
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.measure_settings import GROUPS
from lossmap.cli.output_path import with_ending
from lossmap.cli.settings import Settings, UsageError
from lossmap.cli.trust import code_files
from lossmap.geometry.grid import Grid
from lossmap.io.provenance import provenance
from lossmap.io.read import SurfaceFile, read
from lossmap.io.spectrum_layout import group_name, group_of
from lossmap.landscape.progress import display
from lossmap.landscape.run_survey import survey
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World
from lossmap.report.sharpness import sharpness_table, survival_table
from lossmap.report.stored import StoredReport
from lossmap.results import value_groups

if TYPE_CHECKING:
    from lossmap.cli.device import Machine
    from lossmap.landscape.sharpness_request import SharpnessRequest
    from lossmap.landscape.sharpness_tasks import SharpnessSubject
    from lossmap.parallel.team import Team

MAX_LABEL_LENGTH = 40  # characters of a label in a file name
STATE_FLAG = "--optimizer-state"
FEW = 256  # samples over which two models are compared in float64
SAME_FUNCTION = 1e-4  # of the loss, relative, by which that of a rescaled copy may differ


COMMAND = Command(
    "sharpness",
    __doc__ or "",
    GROUPS["sharpness"],
    (
        "lossmap sharpness --model resnet20-w8 --model-file net.pt --plot",
        "lossmap sharpness --model mlp --model-file a.pt --compare second=b.pt --radius filter:0.5 adaptive:1",
        "lossmap sharpness --model mlp --model-file net.ckpt --optimizer-state net.ckpt --rescale 4",
    ),
    without=frozenset({"model_file2", "model_file3"}),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed tasks, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv, defaults)
    world = World.start()
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, survey: Callable[..., Any] = survey, stop: Stop | None = None) -> int:
    """Make the subjects, compute their tasks, print, store and draw the results. Every rank calls it.

    survey  `lossmap estimate` passes a function that looks at the tasks instead
    stop    of the program that runs this as a part of it; None: one of its own
    """
    if stop is not None:
        return _run(settings, world, survey, stop)
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return _run(settings, world, survey, stop)


def _run(settings: Settings, world: World, survey: Callable[..., Any], stop: Stop) -> int:
    from lossmap.cli import device, load_problem
    from lossmap.geometry.parameter_vector import warn_of_frozen
    from lossmap.landscape.sharpness_budget import with_request
    from lossmap.landscape.sharpness_cost import price_of_sharpness
    from lossmap.landscape.sharpness_tasks import make_sharpness_tasks

    execution, say = settings.run, output.rank_0_printer(world, settings.notes)
    began = command_began()
    refuse_unused(settings)
    if not settings.sharpness.compare:
        settings = load_problem.with_default_problem(settings, say)
    request, path = world.together(lambda: (request_of(settings), result_path(settings)))
    team = world.together(lambda: world.team(execution.team, execution.rank_0))
    machine = device.prepare_machine(execution, world)
    device.refuse_bfloat16(machine)
    subjects = make_subjects(settings, world, machine, team)
    world.once(lambda: warn_of_frozen(subjects[0].problem.model, request.parameters, "are displaced"))
    whole = world.together(lambda: make_sharpness_tasks(subjects, request, total=team.sum))
    workers, crowding = len(team.all_teams) or 1, world.crowding or 1.0
    if execution.budget:
        request = world.once(lambda: fitted_sharpness(whole, execution, path, began, workers, say, crowding))
    identity = world.once(lambda: identity_of(settings, request, subjects)) | budget_entry(execution.budget)
    measure = replace(with_request(whole, request), settings=identity)
    if execution.dry_run:
        kinds = ", ".join(dict.fromkeys(t.kind if t.ball is None else f"{t.kind} {t.ball[0]}" for t in measure.tasks))
        say(f"would compute {len(measure.tasks)} tasks for {', '.join(s.label for s in subjects)}: {kinds}")
        say(output.about_data({s.label: s.samples_of for s in subjects}))
        say(f"  result  {path}\nnothing was computed, and nothing was written (--dry-run)")
        announce(world, "sharpness", lambda: price_of_sharpness(measure, workers))
        return 0
    world.together(measure.refuse_without_loss)
    grid = Grid(np.arange(len(measure.tasks)))
    store = output.on_rank_0(world, lambda: _file(path, grid, measure, settings, machine.describe(), world.size))
    if store is not None:
        left = store.todo(measure.name, execution.retry_failed)
        announce(world, "sharpness", lambda: price_of_sharpness(measure, workers, left))
    with display(world, "sharpness", unit="task") as progress:
        surface = survey(
            measure, grid, store=store, world=world, stop=stop, progress=progress, retry_failed=execution.retry_failed,
            rank_0=execution.rank_0, team=team, point_timeout=execution.point_timeout, share_values=False,
        )  # fmt: skip
    if store is None:
        return output.EXIT_CODES[surface.outcome_of(measure.name)]
    if surface.outcome != "unfinished":
        report_all(measure, store, say)
    store.close()
    if surface.outcome != "unfinished" and (settings.draw.plot or settings.draw.show):
        for picture in draw_pictures(path):
            say(f"picture: {picture}")
    return output.report_end(path, store.surface(), measure.name, say, execution.overwrite)


def refuse_unused(settings: Settings) -> None:
    """Raise UsageError for options that this command shares with others, and that would change nothing of it."""
    if settings.draw.page or settings.draw.vtk:
        raise UsageError("--page and --vtk are for surfaces; sharpness is drawn by --plot")
    budget_seconds(settings.run.budget)
    if settings.run.shard:
        raise UsageError("--shard is for surveys of a grid; the tasks of sharpness are shared by mpirun or srun")


def request_of(settings: Settings) -> SharpnessRequest:
    """What the flags request. Raises UsageError for balls that are none; the rest is checked where tasks are made."""
    from lossmap.landscape.sharpness_request import SharpnessRequest

    s = settings.sharpness
    return SharpnessRequest(
        balls_of(s.radius),
        s.draws,
        s.ascent_steps,
        s.starts,
        s.critical,
        s.tol,
        s.trace_products,
        s.parameters,
        s.seed,
        s.batch_sharpness,
        s.batches,
        s.optimizer_state is not None,
    )


def balls_of(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Kind and radius of each ball of --radius, words or with commas; a number alone is one ball of each kind."""
    from lossmap.landscape.ball import KINDS, check_ball

    balls: list[tuple[str, float]] = []
    for text in (part for word in texts for part in str(word).split(",") if part):
        kind, colon, number = text.rpartition(":")
        try:
            radius = float(number)
            kinds = (kind,) if colon else KINDS
            for one in kinds:
                check_ball(one, radius)
        except ValueError:
            raise UsageError(
                f"--radius must be KIND:R, KIND one of {', '.join(KINDS)} and R > 0, or R alone; got {text}"
            ) from None
        balls += [(one, radius) for one in kinds]
    return tuple(dict.fromkeys(balls))


def make_subjects(settings: Settings, world: World, machine: Machine, team: Team) -> list[SharpnessSubject]:
    """Every checkpoint and split of the settings, each followed by its rescaled copy. Every rank calls it."""
    from lossmap.cli import load_problem
    from lossmap.cli.load_preconditioner import preconditioner_from
    from lossmap.cli.spectrum_subjects import models_of
    from lossmap.landscape.sharpness_tasks import SharpnessSubject

    factor, subjects = settings.sharpness.rescale, []
    for title, model in models_of(settings, settings.sharpness.compare).items():
        problems = load_problem.problem_and_files(settings, world, machine, model=model)
        if settings.run.batch_size:
            problems = {split: p.rebatched(settings.run.batch_size) for split, p in problems.items()}
        shares = load_problem.team_shares(problems, team, world)
        state = optimizer_state_of(settings, model)
        own = None
        if state:
            first, unsafe = next(iter(problems.values())), settings.model.unsafe_load
            flag = STATE_FLAG if model is settings.model else f"{STATE_FLAG}, of {state} for --compare"
            own = world.together(partial(preconditioner_from, state, first, unsafe, flag))
        twin: Any = None
        if factor is not None:
            problem = next(iter(problems.values()))
            which = settings.sharpness.parameters
            twin, pair = world.together(partial(same_function_rescaled, problem, factor, which))
        for split in problems:
            problem, share = (replace(p[split], preconditioner=own) for p in (problems, shares))
            parts = [title]
            if len(problems) > 1 or not title:
                parts.append(split)
            label = " ".join(filter(None, parts))
            subjects.append(SharpnessSubject(label, share, problem))
            if factor is not None:
                copy, full = share.over(twin), problem.over(twin)
                unsafe = settings.model.unsafe_load
                its = rescaled_preconditioner(state, full, factor, pair, unsafe) if state else None
                copy, full = (replace(p, preconditioner=its) for p in (copy, full))
                named = f"{label} rescaled {factor:g}"
                subjects.append(SharpnessSubject(named, copy, full, factor, " and ".join(pair)))
    return subjects


def optimizer_state_of(settings: Settings, model: Any) -> str:
    """FILE[:KEY] of the optimizer's state of a checkpoint; empty where none is asked for.

    Raises UsageError for a checkpoint of --compare without a file.
    """
    named = settings.sharpness.optimizer_state
    if not named or model is settings.model:
        return named or ""
    if not model.model_file:
        raise UsageError(f"{STATE_FLAG}: a checkpoint of --compare has no file, and so no optimizer's state")
    return str(model.model_file)


def rescaled_preconditioner(state: str, problem: Any, factor: float, pair: tuple[str, str], unsafe: bool) -> Any:
    """P of the optimizer at a rescaled copy, whose gradients are those of the network divided by what was multiplied.

    problem  of the copy
    pair     the names of the layers that were rescaled

    Raises UsageError where the state is none of this model.
    """
    from lossmap.cli.load_preconditioner import preconditioner_from
    from lossmap.diagnostics.step_rule import scale_gradients

    first, second = map(problem.model.get_submodule, pair)
    factors: dict[Any, float] = dict.fromkeys(first.parameters(recurse=False), 1 / factor)
    factors[second.weight] = factor
    return preconditioner_from(
        state, problem, unsafe, STATE_FLAG, lambda optimizer: scale_gradients(optimizer, factors)
    )


def same_function_rescaled(problem: Any, factor: float, parameters: str) -> tuple[Any, tuple[str, str]]:
    """A rescaled copy of a problem's model, and the names of the two layers: the first that the numbers could show.

    Raises UsageError where there are none: where the loss changes, follows neither layer, or they do not move.
    """
    from lossmap.curvature.gradient import loss_and_gradient, mean_loss, refuse_no_number
    from lossmap.data.held_model import refuse_held
    from lossmap.geometry.parameter_vector import selected
    from lossmap.landscape.rescaling import layers_left_out, rescalable_pairs, rescaled_copy

    try:
        pairs, moving = rescalable_pairs(problem.model), selected(problem.model, parameters)
        refuse_held(problem.over(rescaled_copy(problem.model, factor)), problem.model)
    except ValueError as error:
        raise UsageError(str(error)) from None
    before, gradient, layout = loss_and_gradient(problem, "all")
    refuse_no_number(before)
    named = dict(problem.model.named_parameters())
    followed = {id(named[name]) for name, part in layout.unflatten(gradient).items() if part.any()}
    moved = {id(named[name]) for name in moving}  # also under another name of a tensor that layers share
    reasons = []
    for pair in pairs:
        layers = [problem.model.get_submodule(name) for name in pair]
        if not all(any(id(p) in moved for p in layer.parameters(recurse=False)) for layer in layers):
            reasons.append(f"--parameters {parameters} does not move both of {' and '.join(pair)}")
            continue
        first, second = map(problem.model.get_submodule, pair)
        # not the loss of a layer alone rescaled: an output that is normalised follows its direction, and no scale
        if followed.isdisjoint(map(id, [*first.parameters(recurse=False), second.weight])):
            reasons.append(f"the loss does not follow {' and '.join(pair)}, in which its gradient is 0")
            continue
        twin = rescaled_copy(problem.model, factor, pair)
        after = mean_loss(problem.over(twin))
        if not abs(after - before) <= SAME_FUNCTION * abs(before):
            why = "by rounding of their weights alone: a power of two has none, nor has --precision float64"
            if not _is_same_in_float64(problem, factor, pair):
                why = "as where their weights are used elsewhere too"
            reasons.append(f"rescaling {' and '.join(pair)} changed the loss from {before:.6g} to {after:.6g}, {why}")
            continue
        return twin, pair
    reasons += filter(None, [layers_left_out(problem.model)])
    raise UsageError(f"--rescale {factor:g}: no two layers can be rescaled so that it shows: {'; '.join(reasons)}")


def _is_same_in_float64(problem: Any, factor: float, pair: tuple[str, str]) -> bool:
    """Whether a copy that is rescaled in float64 has the same loss over a few samples; one of 1e-11 may be rounding."""
    from lossmap.curvature.differences import FewSamples
    from lossmap.curvature.operators import hessian
    from lossmap.data.problem import temporary_parameters
    from lossmap.device_errors import raise_if_of_device
    from lossmap.landscape.rescaling import rescaled_copy

    try:
        few = FewSamples.of(problem, [next(iter(dict(problem.model.named_parameters())))], hessian, FEW)
        twin = few.problem.over(rescaled_copy(few.problem.model, factor, pair))
        with temporary_parameters(twin.model, {}):
            after = float(twin.total(few.batch).detach())
        before = few.repeated(1)[0]
    except Exception as error:  # it does not run in float64, where user code may raise any exception
        raise_if_of_device(error)
        return False
    return abs(after - before) <= SAME_FUNCTION * abs(before)


def identity_of(settings: Settings, request: SharpnessRequest, subjects: Sequence[SharpnessSubject]) -> dict[str, Any]:
    """What the tasks depend on: stored with them, and compared when a run resumes."""
    from lossmap.cli.load_preconditioner import optimizer_file
    from lossmap.cli.spectrum_subjects import identity_of_models, models_of
    from lossmap.data import datasets

    named = settings.sharpness.optimizer_state
    return {
        **request.stored(),
        "balls": [f"{kind}:{radius:g}" for kind, radius in request.balls],
        **identity_of_models(settings, models_of(settings, settings.sharpness.compare)),
        "data (SHA-256)": {s.label: datasets.digest(s.samples_of.data) for s in subjects},
        "rescale": settings.sharpness.rescale,
        **(optimizer_file(named) if named else {}),
    }


def result_path(settings: Settings) -> Path:
    """The file that the result goes to."""
    if settings.run.surf_file is not None:
        return with_ending(Path(settings.run.surf_file))
    model = settings.model.model
    if settings.model.model_file:
        model = Path(settings.model.model_file).stem
    name = f"{settings.data.problem or model}"[:MAX_LABEL_LENGTH]
    return Path(re.sub(r"[^\w.+-]+", "-", name).lstrip("-") + "_sharpness.h5")


def _file(path: Path, grid: Grid, measure: Any, settings: Settings, device: str, ranks: int) -> SurfaceFile:
    from lossmap.landscape.fingerprint import code_of
    from lossmap.landscape.sharpness_from_tasks import ABOUT

    resolved = {"settings": settings.resolved(), "folder": os.getcwd()}
    subject = measure.subjects[0]
    files = code_files(settings.resolved(), Path.cwd())
    return SurfaceFile.open(
        path,
        grid,
        identity={"model": settings.data.problem or settings.model.model, "kind": "sharpness"},
        measures={measure.name: (measure.fields, measure.settings)},
        overwrite=settings.run.overwrite,
        command="lossmap sharpness",
        attributes={
            **provenance(device, ranks),
            "command": "sharpness",
            "resolved_sharpness": resolved,
            ABOUT: {about.label: about.stored() for about in measure.about},
        },
        expected_bytes=measure.expected_bytes,
        codes={measure.name: code_of({subject.label: subject.samples_of}, product=True, files=files)},
        accept_change=settings.run.accept_change,
    )


def report_all(measure: Any, store: SurfaceFile, say: output.Printer) -> None:
    """Print every report, the table of several and what survives a rescaling, and put them into the file."""
    reports: dict[str, StoredReport] = {}
    for label, result in measure.results(store.arrays).items():
        say(f"\n{result!r}")
        name, group = group_name("sharpness", label), group_of(result)
        store.put_all({name: group, **value_groups(result, name)})
        reports[label] = StoredReport(group.arrays, group.attributes)
    if len(reports) > 1:
        say(f"\n{sharpness_table(reports)}")
    for before, after in rescaled_pairs(reports):
        say(f"\n{survival_table(before, after)}")
    say("")


def rescaled_pairs(reports: Mapping[str, StoredReport]) -> list[tuple[StoredReport, StoredReport]]:
    """Each checkpoint with its rescaled copy, which follows it."""
    each = list(reports.values())
    return [(a, b) for a, b in pairwise(each) if b.number("rescaled", 1.0) != 1.0]


def draw_pictures(path: Path) -> list[Path]:
    """The sharpness of all checkpoints, beside the result."""
    from lossmap.plotting.dispatch import figures_of
    from lossmap.plotting.save_next_to import save_next_to

    return save_next_to(path, figures_of(read(path)))
