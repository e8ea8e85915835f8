"""`lossmap spectrum`, hess_vec_prod.py: the Hessian at one checkpoint, or at several side by side, with error bars.

Largest and smallest eigenvalues, trace, spectral density, condition number and stability threshold; --layers tensor for
the block of every layer and its definiteness; --singular-values for those of the weights; --compare LABEL=FILE for
further checkpoints; --l2 for an L2 path; --split both for training against test samples. Under mpirun or srun the
tasks are shared among the ranks. Interrupted or killed, the same command resumes. The report is printed, and stored in
the result. A whole run of training is followed by `lossmap dynamics`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.announce import announce
from lossmap.cli.budget import budget_entry, fitted_request
from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.measure_settings import GROUPS, SpectrumSettings
from lossmap.cli.output_path import with_ending
from lossmap.cli.settings import Settings, UsageError
from lossmap.cli.trust import code_files
from lossmap.geometry.grid import Grid
from lossmap.io.provenance import provenance
from lossmap.io.read import SurfaceFile, read
from lossmap.io.spectrum_layout import LAYERS, SPECTRUM, group_name, group_of
from lossmap.io.surface import Group
from lossmap.landscape.progress import display
from lossmap.landscape.run_survey import survey
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World
from lossmap.results import value_groups

if TYPE_CHECKING:
    from lossmap.spectra.request import Subject
    from lossmap.spectra.tasks import SpectrumTasks

MAX_LABEL_LENGTH = 40  # characters of a label in a file name
LAYER_OUTPUT_HESSIANS = {"none": (), "inputs": ("inputs",), "weights": ("weights",), "both": ("inputs", "weights")}


COMMAND = Command(
    "spectrum",
    __doc__ or "",
    GROUPS["spectrum"],
    (
        "lossmap spectrum --model resnet20-w8 --model-file net.pt --plot",
        "lossmap spectrum --model mlp --model-file a.pt --compare second=b.pt --split both",
        "mpirun -n 4 lossmap spectrum --model resnet20-w8 --model-file net.pt --layers module --singular-values",
    ),
    without=frozenset({"model_file2", "model_file3"}),
)


@guarded
def main(argv: Sequence[str] | None = None, defaults: dict[str, Any] | None = None) -> int:
    """Run the command: 0 complete, 2 usage error, 3 completed with failed tasks, 75 interrupted, resumable."""
    settings = COMMAND.parse(argv, defaults)
    world = World.start()
    if settings.spectrum.along:
        from lossmap.cli import dynamics

        return world.leave(dynamics.run(dynamics.from_spectrum(settings), world))
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, survey: Callable[..., Any] = survey, stop: Stop | None = None) -> int:
    """Make the subjects, compute their tasks, print, store and draw the results. Every rank calls it.

    survey  `lossmap estimate` passes a function that rehearses the tasks instead
    stop    of the program that runs this as a part of it; None: one of its own
    """
    if stop is not None:
        return _run(settings, world, survey, stop)
    # from the start: a signal may come, and the clock runs, while everything is prepared
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return _run(settings, world, survey, stop)


def _run(settings: Settings, world: World, survey: Callable[..., Any], stop: Stop) -> int:
    from lossmap.cli import device, load_problem
    from lossmap.cli.spectrum_subjects import backend_choices, identity_of, make_subjects, product_checks
    from lossmap.geometry.parameter_vector import warn_of_frozen
    from lossmap.memory import free_memory
    from lossmap.spectra.price import PriceList, price_of
    from lossmap.spectra.tasks import make_tasks

    began = command_began()
    execution, say = settings.run, output.rank_0_printer(world, settings.notes)
    if settings.draw.page or settings.draw.vtk:
        raise UsageError("--page and --vtk are for surfaces; a spectrum is drawn by --plot")
    if execution.shard:
        raise UsageError("--shard is for surveys of a grid; the tasks of a spectrum are shared by mpirun or srun")
    if not settings.spectrum.compare:
        settings = load_problem.with_default_problem(settings, say)
    request, path = world.together(lambda: (request_of(settings), result_path(settings)))
    team = world.together(lambda: world.team(execution.team, execution.rank_0))
    machine = device.prepare_machine(execution, world)
    device.refuse_bfloat16(machine)
    subjects = make_subjects(settings, world, machine, team)
    world.once(lambda: warn_of_frozen(subjects[0].problem.model, request.parameters, "are counted in the Hessian"))
    memory = free_memory(machine.device, machine.ranks_sharing) // 3
    choices = world.once(lambda: backend_choices(settings, subjects, path, memory))
    checks = world.once(lambda: product_checks(request, subjects, choices, memory))

    def measure_of(request: Any) -> Any:
        """The tasks of a request; every rank calls it."""
        identity = world.once(lambda: identity_of(settings, request, subjects))
        stored = identity | {"chosen": {"ways": choices}} | budget_entry(execution.budget)
        return world.together(
            lambda: make_tasks(
                subjects, request, settings=stored, total=team.sum, choices=choices, memory=memory, checks=checks
            )
        )

    known: dict[tuple[int, str], float] = {}  # seconds of products: the budget and the price line go by the same
    prices = partial(PriceList, known=known, counts_solver=True)
    measure, workers, crowding = measure_of(request), len(team.all_teams) or 1, world.crowding or 1.0
    if execution.budget:
        whole = measure
        request = world.once(lambda: fitted_request(whole, execution, path, began, workers, say, crowding, known))
        measure = replace(measure_of(request), made=whole.made)
    if execution.dry_run:
        _describe(measure, subjects, path, say)
        announce(world, "spectrum", lambda: price_of(measure, workers, prices(measure)))
        return 0
    world.together(measure.refuse_without_loss)
    grid = Grid(np.arange(len(measure.tasks)))
    store = output.on_rank_0(world, lambda: _file(path, grid, measure, settings, machine.describe(), world.size))
    if store is not None:
        left = store.todo(measure.name, execution.retry_failed)
        announce(world, "spectrum", lambda: price_of(measure, workers, prices(measure), numbers=left))
    with display(world, "spectrum", unit="task") as progress:
        surface = survey(
            measure, grid, store=store, world=world, stop=stop, progress=progress, retry_failed=execution.retry_failed,
            rank_0=execution.rank_0, team=team, point_timeout=execution.point_timeout, share_values=False,
        )  # fmt: skip
    if store is None:
        return output.EXIT_CODES[surface.outcome_of(measure.name)]
    if surface.outcome != "unfinished":
        report_all(measure, settings, store, say)
    else:
        report_so_far(measure, store, say)
    store.close()
    if surface.outcome != "unfinished" and (settings.draw.plot or settings.draw.show):
        for picture in draw_pictures(path):
            say(f"picture: {picture}")
    return output.report_end(path, store.surface(), measure.name, say, execution.overwrite)


def _describe(measure: SpectrumTasks, subjects: Sequence[Subject], path: Path, say: output.Printer) -> None:
    """Print what would be done, for --dry-run."""
    kinds = ", ".join(dict.fromkeys(f"{t.kind} {t.name}".strip() for t in measure.tasks))
    say(f"would compute {len(measure.tasks)} tasks for {', '.join(s.label for s in subjects)}: {kinds}")
    say(output.about_data({s.label: s.samples_of for s in subjects}))
    say(f"  result  {path}\nnothing was computed, and nothing was written (--dry-run)")


def request_of(settings: Settings) -> Any:
    """The spectra.request.SpectrumRequest of the flags. Raises UsageError for numbers out of range."""
    from lossmap.spectra.request import SpectrumRequest

    s = settings.spectrum
    top, bottom = max(s.top, s.abs), max(s.bottom, s.abs)
    if numbers(s.l2, "--l2") and not (top and bottom):
        raise UsageError("--l2 needs both ends of the spectrum: --top and --bottom must be >= 1")
    if s.optimizer_state and s.matrix != "preconditioned":
        raise UsageError("--optimizer-state is of one matrix: add --matrix preconditioned, or leave it out")
    trace, trace_products = s.trace, s.trace_products
    if s.trace == "none":
        trace, trace_products = "xtrace", 0  # no products: no trace
    if s.diagonal and not trace_products:
        raise UsageError("--diagonal is made of the trace's products: --trace must not be none")
    return SpectrumRequest(
        top=top,
        bottom=bottom,
        trace_method=trace,
        trace_products=trace_products,
        trace_error=s.trace_error,
        diagonal=s.diagonal,
        density=s.density,
        density_error=s.density_error,
        density_steps=s.density_steps,
        density_probes=s.density_probes,
        mass_at=numbers(s.tail_mass, "--tail-mass"),
        tol=s.tol,
        solver=s.solver,
        max_products=s.max_products,
        parameters=s.parameters,
        dense=s.dense_limit,
        by=_layers_by(s),
        patterns=tuple(s.groups),
        second=LAYER_OUTPUT_HESSIANS[s.layer_output_hessian],
        vectors=s.vectors,
        seed=s.seed,
    )


def _layers_by(options: SpectrumSettings) -> str | None:
    """What a block of the layers' table is: a tensor or a module; None without that table."""
    if options.layers != "none":
        return options.layers
    if options.groups or options.layer_output_hessian != "none":
        return "tensor"
    return None


def numbers(texts: Sequence[str], flag: str) -> tuple[float, ...]:
    """Numbers >= 0, as words or with commas. Raises UsageError, which names the flag."""
    shown = " ".join(map(str, texts))
    try:
        values = tuple(float(t) for text in texts for t in str(text).split(",") if t)
    except ValueError:
        raise UsageError(f"{flag} must be numbers, such as 0.001 0.01; got {shown}") from None
    if any(not 0.0 <= value < np.inf for value in values):
        raise UsageError(f"{flag} must be numbers >= 0; got {shown}")
    return values


def result_path(settings: Settings) -> Path:
    """The file that the result goes to."""
    if settings.run.surf_file is not None:
        return with_ending(Path(settings.run.surf_file))
    if settings.spectrum.along:  # `lossmap dynamics`, as version 0.1 called it
        return Path("along.h5")
    model = settings.model.model
    if settings.model.model_file:
        model = Path(settings.model.model_file).stem
    return Path(
        re.sub(r"[^\w.+-]+", "-", f"{settings.data.problem or model}"[:MAX_LABEL_LENGTH]).lstrip("-") + "_spectrum.h5"
    )


def _file(path: Path, grid: Grid, measure: Any, settings: Settings, device: str, ranks: int) -> SurfaceFile:
    from lossmap.landscape.fingerprint import code_of
    from lossmap.spectra.from_tasks import ABOUT

    resolved = {"settings": settings.resolved(), "folder": os.getcwd()}
    subject = measure.subjects[0]
    files = code_files(settings.resolved(), Path.cwd())
    return SurfaceFile.open(
        path,
        grid,
        identity={"model": settings.data.problem or settings.model.model, "kind": "spectrum"},
        measures={measure.name: (measure.fields, measure.settings)},
        overwrite=settings.run.overwrite,
        command="lossmap spectrum",
        attributes={
            **provenance(device, ranks),
            "command": "spectrum",
            "resolved_spectrum": resolved,
            ABOUT: {about.label: about.stored() for about in measure.about},
        },
        expected_bytes=measure.expected_bytes,
        upgrades={measure.name: measure.from_legacy},
        codes={measure.name: code_of({subject.label: subject.samples_of}, product=True, files=files)},
        accept_change=settings.run.accept_change,
    )


def report_all(measure: Any, settings: Settings, store: SurfaceFile, say: output.Printer) -> None:
    """Print every report, and put it into the file."""
    from lossmap.spectra.compare import compare

    options = settings.spectrum
    spectra = measure.spectra(store.arrays)
    tasks = task_sentences(measure.subjects)
    for label, text in tasks.items():
        say(f"{label}: {text}".removeprefix(": "))
    for label, spectrum in spectra.items():
        say(f"\n{spectrum!r}")
        if options.abs:
            from lossmap.report.text import value_with_error

            pairs = zip(*spectrum.largest_by_magnitude(options.abs), strict=True)
            say(f"  by magnitude: {', '.join(value_with_error(v, e) for v, e in pairs)}")
        _put(store, group_name(SPECTRUM, label), spectrum, {"task": tasks[label]} if label in tasks else {})
    for label, layers in measure.layers(store.arrays).items():
        say(f"\n{layers!r}")
        _put(store, group_name(LAYERS, label), layers)
    if len(spectra) > 1:
        say(f"\n{compare(spectra)!r}")
    if options.l2:
        report_l2_path(next(iter(spectra.values())), measure.subjects[0].samples_of, options, store, say)
    if options.singular_values:
        report_singular_values(measure.subjects[0].problem.model, store, say)
    say("")


def task_sentences(subjects: Any) -> dict[str, str]:
    """By label, whether a network copes with its task, against chance or the targets' mean; none where neither is."""
    from lossmap.diagnostics.label_noise import label_noise
    from lossmap.diagnostics.regression_fit import regression_fit
    from lossmap.report.task import regression_numbers, task_numbers, task_text

    def as_classes(problem: Any) -> dict[str, Any]:
        return task_numbers(label_noise(problem))

    def as_numbers(problem: Any) -> dict[str, Any]:
        return regression_numbers(regression_fit(problem))

    sentences = {}
    for subject in subjects:
        for judged in (as_classes, as_numbers):
            with suppress(ValueError, RuntimeError):  # not of this kind; or what a model raises without its loss
                sentences[subject.label] = task_text(judged(subject.samples_of), None, of_training=False)
                break
    return sentences


def report_so_far(measure: Any, store: SurfaceFile, say: output.Printer) -> None:
    """Print what the tasks that are done say of each spectrum, by this run or an earlier one."""
    for spectrum in measure.spectra(store.arrays).values():
        if any(part is not None for part in (spectrum.top, spectrum.bottom, spectrum.trace, spectrum.density)):
            say(f"\nso far:\n{spectrum!r}")


def _put(store: SurfaceFile, name: str, value: Any, attributes: Mapping[str, str] | None = None) -> None:
    """Store a result: the group that figures are made of, and the value that `lossmap.read` gives back.

    attributes  that the group bears beside its own
    """
    own = group_of(value)
    own = Group(own.arrays, {**own.attributes, **(attributes or {})})
    store.put_all({name: own, **value_groups(value, name)})


def report_l2_path(
    spectrum: Any, problem: Any, options: SpectrumSettings, store: SurfaceFile, say: output.Printer
) -> None:
    """Compute the L2 path of a spectrum, with retraining where it is asked for; print it, and put it into the file."""
    from lossmap.spectra.compare import l2_path
    from lossmap.spectra.l2_path import retrained_spectra

    strengths = numbers(options.l2, "--l2")
    retrained: list[Any] = []
    if options.l2_retrain is not None:
        retrained = retrained_spectra(
            problem, strengths, options.l2_retrain, parameters=options.parameters, seed=options.seed
        )
    path = l2_path(spectrum, strengths, retrained)
    say(f"\n{path!r}")
    arrays: dict[str, np.ndarray] = {
        "strength": path.strengths,
        "largest": path.largest,
        "smallest": path.smallest,
    }
    if retrained:
        arrays["retrained_largest"] = np.array([r.largest[0] for r in retrained])
        arrays["retrained_smallest"] = np.array([r.smallest[0] for r in retrained])
    store.put("spectrum/l2_path", Group(arrays, {"report": repr(path), "unit": spectrum.unit}))


def report_singular_values(model: Any, store: SurfaceFile, say: output.Printer) -> None:
    """Print the singular values of every weight, and put them into the file."""
    from lossmap.diagnostics.singular_values import singular_values

    table = singular_values(model)
    say(f"\n{table!r}")
    _put(store, "weights/singular_values", table)


def draw_pictures(path: Path) -> list[Path]:
    """Every spectrum, the comparison where there are several, and the layers, beside the result."""
    from lossmap.plotting.dispatch import figures_of
    from lossmap.plotting.save_next_to import save_next_to

    return save_next_to(path, figures_of(read(path)))
