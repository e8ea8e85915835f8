"""`lossmap spectrum`, hess_vec_prod.py: everything about the Hessian at one checkpoint, with error bars.

The largest and smallest eigenvalues, trace, density, condition number, step limit; --layers tensor for every layer's
own block and a verdict; --weights for singular values; --compare LABEL=FILE for further checkpoints side by side;
--l2 for an L2 path; --split both for training against test samples; --along run/*.pt for the leading eigenpairs at
every checkpoint of a run and what becomes of them. Under mpirun or srun the parts are shared among
the ranks. Killed or stopped, the same command goes on where it was. The report is printed, and stored in the result.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.cli import output
from lossmap.cli.dynamics import run_command
from lossmap.cli.progress import display
from lossmap.cli.setting_groups import DataSettings, DrawSettings, ModelSettings, RunSettings
from lossmap.cli.settings import Settings, UsageError, guarded, parse, setting
from lossmap.geometry.grid import Grid
from lossmap.io.read import SurfaceFile, read
from lossmap.io.spectrum_layout import LAYERS, SPECTRUM, group_of, place_of
from lossmap.io.surface import Group
from lossmap.landscape.run_survey import survey
from lossmap.parallel.shutdown import Stop, job_end
from lossmap.parallel.world import World

LONGEST = 40  # characters of a label in a file name


@dataclass(frozen=True)
class SpectrumSettings:
    """What to know of the Hessian."""

    matrix: str = setting("hessian", "which matrix", choices=("hessian", "gauss-newton", "both"))
    parameters: str = setting("weights", "weights (dimension > 1), all, or a regular expression", metavar="WHICH")
    top: int = setting(5, "so many of the largest eigenvalues, up to 100", metavar="K")
    bottom: int = setting(1, "so many of the smallest", metavar="K")
    abs: int = setting(0, "so many of the largest by magnitude", metavar="K")
    tol: float = setting(1e-3, "accuracy of the ends, relative to max(abs(eigenvalue))", metavar="TOL")
    solver: str = setting("auto", "how they are found", choices=("auto", "lanczos", "eigsh"))
    max_products: int | None = setting(None, "products spent on an end at most", metavar="COUNT")
    trace: str = setting("xtrace", "how the trace is estimated", choices=("xtrace", "hutch++", "hutchinson", "none"))
    trace_products: int = setting(60, "products spent on the trace, to begin with", metavar="COUNT")
    trace_error: float | None = setting(None, "wanted relative standard error of the trace", metavar="ERROR")
    density: bool = setting(True, "the density of all eigenvalues")
    density_error: float = setting(0.01, "wanted error of the density, as a share of the range", metavar="ERROR")
    density_steps: int | None = setting(None, "Lanczos steps of a probe; by default chosen", metavar="STEPS")
    density_probes: int | None = setting(None, "probes, dealt one by one; by default chosen", metavar="PROBES")
    mass_at: tuple[str, ...] = setting((), "tell the share of eigenvalues below -T and above T", metavar="T")
    dense: int = setting(256, "matrices and blocks up to this size are made whole", metavar="SIZE")
    layers: str = setting("none", "layer by layer", choices=("none", "tensor", "module"))
    groups: tuple[str, ...] = setting((), "layer by layer, in groups: label=regex ...", metavar="REGEX")
    second_reading: str = setting(
        "none", "each layer with its activation by itself", choices=("none", "inputs", "weights", "both")
    )
    weights: bool = setting(False, "singular values of each layer's weight")
    vectors: bool = setting(False, "keep the eigenvectors in the result")
    compare: tuple[str, ...] = setting((), "further checkpoints: LABEL=FILE or LABEL=MODEL@FILE ...", metavar="WHAT")
    along: tuple[str, ...] = setting((), "checkpoints of a run, or folders: follow --top eigenpairs", metavar="FILE")
    whole: bool = setting(False, "with --along: trace, negative share and density at every checkpoint too")
    l2: tuple[str, ...] = setting((), "strengths of an L2 path", metavar="STRENGTH")
    l2_retrain: int | None = setting(None, "retrain with each strength for so many epochs", metavar="EPOCHS")
    seed: int = setting(0, "of probes and start vectors", metavar="SEED")
    way: str = setting("auto", "how products are made", choices=("auto", "linear", "graph", "double"))


GROUPS = (ModelSettings, DataSettings, SpectrumSettings, RunSettings, DrawSettings)


@guarded
def main(argv: Sequence[str] | None = None, given: dict[str, Any] | None = None) -> int:
    """Open this door: 0 complete, 2 makes no sense, 3 complete but for failed parts, 75 more to do."""
    settings = parse(GROUPS, argv, prog="lossmap spectrum", about=__doc__ or "", given=given)
    world = World.start()
    return world.leave(run(settings, world))


def run(settings: Settings, world: World, walk: Callable[..., Any] = survey) -> int:
    """Make the subjects, deal their jobs, print, keep and draw what they found.

    walk  `survey`; `lossmap estimate` rehearses the jobs instead
    """
    if settings.spectrum.along:
        s = settings.spectrum
        return run_command(settings, world, s.along, top=s.top, tol=s.tol)
    # from the start: a signal may come, and the clock goes, while all is made ready
    with Stop(after=settings.run.stop_after, until=job_end(os.environ)) as stop:
        return surveyed(settings, world, walk, stop)


def surveyed(settings: Settings, world: World, walk: Callable[..., Any], stop: Stop) -> int:
    """The same, until one is asked to stop."""
    from lossmap.cli import device, load_problem
    from lossmap.spectra.tasks import make_tasks

    asked, say = settings.run, output.rank_0_printer(world, settings.notes)
    if settings.draw.page or settings.draw.vtk:
        raise UsageError("--page and --vtk are for surfaces; a spectrum is drawn by --plot")
    if not settings.spectrum.compare:
        settings = load_problem.at_checkpoint(settings, say)
    wanted, path = world.together(lambda: (asked_of(settings), result_of(settings)))
    team = world.together(lambda: world.team(asked.team, asked.rank_0))
    at = device.machine(asked, world)
    if at.autocast is not None:
        raise UsageError("--precision bfloat16 is for losses; spectra want float32 or float64")
    subjects = subjects_of(settings, world, at, team)
    told = world.once(lambda: told_of(settings, wanted, subjects))
    choices = world.once(lambda: choices_of(settings, subjects, path))
    measure = world.together(
        lambda: make_tasks(
            subjects, wanted, settings=told | {"chosen": {"ways": choices}}, total=team.sum, choices=choices
        )
    )
    if asked.dry_run:
        kinds = ", ".join(dict.fromkeys(f"{t.kind} {t.name}".strip() for t in measure.tasks))
        say(
            f"would do {len(measure.tasks)} parts for {', '.join(s.label for s in subjects)}: {kinds}\n  result  {path}"
        )
        say("nothing was computed, and nothing was written (--dry-run)")
        return 0
    grid = Grid(np.arange(len(measure.tasks)))

    def opened() -> SurfaceFile | None:
        return _file(path, grid, measure, settings, at.describe(), world.size) if world.rank == 0 else None

    store = world.together(opened)
    with display(world, "spectrum") as progress:
        surface = walk(
            measure, grid, store=store, world=world, stop=stop, progress=progress, retry_failed=asked.retry_failed,
            rank_0=asked.rank_0, team=team, point_timeout=asked.point_timeout, share_values=False,
        )  # fmt: skip
    if store is None:
        return output.EXIT[surface.outcome_of(measure.name)]
    if surface.outcome != "unfinished":
        told_all(measure, settings, store, say)
    store.close()
    if surface.outcome != "unfinished" and (settings.draw.plot or settings.draw.show):
        for picture in pictures(path):
            say(f"picture: {picture}")
    return output.finished(path, store.surface(), measure.name, say, asked.overwrite)


def asked_of(settings: Settings) -> Any:
    """What is wanted of every subject, from the flags. Raises Usage for numbers that are none."""
    from lossmap.spectra.request import SpectrumRequest

    s = settings.spectrum
    if numbers(s.l2, "--l2") and not (max(s.top, s.abs) and max(s.bottom, s.abs)):
        raise UsageError("--l2 wants both ends of the spectrum: --top and --bottom 1 or more")
    second = {"none": (), "both": ("inputs", "weights")}.get(s.second_reading, (s.second_reading,))
    by = None if s.layers == "none" and not (s.groups or second) else ("tensor" if s.layers == "none" else s.layers)
    return SpectrumRequest(
        top=max(s.top, s.abs), bottom=max(s.bottom, s.abs), trace_method="xtrace" if s.trace == "none" else s.trace,
        trace_products=0 if s.trace == "none" else s.trace_products, trace_error=s.trace_error, density=s.density,
        density_error=s.density_error, density_steps=s.density_steps, density_probes=s.density_probes,
        mass_at=numbers(s.mass_at, "--mass-at"), tol=s.tol, solver=s.solver, max_products=s.max_products,
        parameters=s.parameters, dense=s.dense, by=by, patterns=tuple(s.groups), second=second, vectors=s.vectors,
        seed=s.seed,
    )  # fmt: skip


def numbers(texts: Sequence[str], flag: str) -> tuple[float, ...]:
    """Numbers of 0 or more, given apart or with commas."""
    try:
        found = tuple(float(t) for text in texts for t in str(text).split(",") if t)
    except ValueError:
        raise UsageError(f"{flag} wants numbers such as 0.001 0.01; got {' '.join(map(str, texts))}") from None
    if any(not 0.0 <= t < np.inf for t in found):
        raise UsageError(f"{flag} wants numbers of 0 or more; got {' '.join(map(str, texts))}")
    return found


def result_of(settings: Settings) -> Path:
    """The file that the result goes to."""
    given = settings.run.surf_file
    if given is None:
        model = Path(settings.model.model_file).stem if settings.model.model_file else settings.model.model
        given = re.sub(r"[^\w.+-]+", "-", f"{settings.data.problem or model}"[:LONGEST]) + "_spectrum.h5"
    path = Path(given)
    return path if path.suffix in (".h5", ".hdf5", ".nc") else path.with_name(path.name + ".h5")


def models_of(settings: Settings) -> dict[str, ModelSettings]:
    """The checkpoints by label: that of the flags first, then those of --compare."""
    m: ModelSettings = settings.model
    own = Path(m.model_file).stem if m.model_file else (settings.data.problem or m.model)
    found = {own if settings.spectrum.compare else "": m}
    for text in settings.spectrum.compare:
        label, equals, what = text.partition("=")
        if not equals:
            label, what = Path(text.rpartition("@")[2]).stem, text
        model, at_sign, file = what.rpartition("@")
        if not label or not file:
            raise UsageError(f"--compare wants LABEL=FILE or LABEL=MODEL@FILE; got {text!r}")
        if label in found:
            raise UsageError(f"--compare: two checkpoints are called {label!r}; give one another label")
        found[label] = replace(m, model=model if at_sign else m.model, model_file=file)
    return found


def subjects_of(settings: Settings, world: World, at: Any, team: Any) -> list[Any]:
    """Every checkpoint, split and matrix that was asked for. Every rank calls it."""
    from lossmap.cli import load_problem
    from lossmap.spectra.request import Subject

    matrix = settings.spectrum.matrix
    kinds = ("hessian", "gauss-newton") if matrix == "both" else (matrix,)
    found = []
    for title, model in models_of(settings).items():
        problems = load_problem.problem_and_files(settings, world, at, model=model)
        for split, problem in problems.items():
            share = problem.share(team.rank, team.size) if team.size > 1 else problem
            for kind in kinds:
                parts = [title, split if len(problems) > 1 or not title else "", kind if len(kinds) > 1 else ""]
                found.append(Subject(" ".join(p for p in parts if p), share, kind, problem))
    return found


def told_of(settings: Settings, wanted: Any, subjects: Sequence[Any]) -> dict[str, Any]:
    """What the measure was told: stored with it, and compared when a run goes on."""
    from dataclasses import asdict

    from lossmap.data import checkpoints, datasets

    files = {label: m.model_file for label, m in models_of(settings).items() if m.model_file}
    return {
        **asdict(wanted),
        "model": settings.data.problem or settings.model.model,
        "files (SHA-256)": {label: checkpoints.file_sha256(f) for label, f in files.items()},
        "dataset": settings.data.problem or settings.data.dataset,
        "data (SHA-256)": {s.label: datasets.digest(s.samples_of.data) for s in subjects},
        "loss": settings.data.loss,
        "matrix": settings.spectrum.matrix,
        "precision": settings.run.precision,
    }


def choices_of(settings: Settings, subjects: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """How each subject's products are made: as an earlier run of this file chose, or as a probe does now."""
    from lossmap.curvature.autotune import prepare
    from lossmap.curvature.build import MATRICES

    s = settings.spectrum
    if s.way == "double":
        return []
    if path.exists() and not settings.run.overwrite:
        earlier = read(path).settings.get("measures", {}).get("spectrum", {}).get("chosen", {}).get("ways")
        if earlier is not None and len(earlier) == len(subjects):
            return list(earlier)
    return [prepare(x.problem, s.parameters, MATRICES[x.matrix], backend=s.way).plan.stored() for x in subjects]


def _file(path: Path, grid: Grid, measure: Any, settings: Settings, device: str, ranks: int) -> SurfaceFile:
    resolved = {"settings": settings.resolved(), "folder": os.getcwd()}
    return SurfaceFile.open(
        path,
        grid,
        identity={"model": settings.data.problem or settings.model.model, "kind": "spectrum"},
        measures={measure.name: (measure.fields, measure.settings)},
        overwrite=settings.run.overwrite,
        command="lossmap spectrum",
        attributes={**output.provenance(device, ranks), "command": "spectrum", "resolved_spectrum": resolved},
        expected_bytes=measure.expected_bytes,
        upgrades={measure.name: measure.from_legacy},
    )


def told_all(measure: Any, settings: Settings, store: SurfaceFile, say: output.Say) -> None:
    """Print every report, and put it into the file."""
    from lossmap.diagnostics.singular_values import singular_values
    from lossmap.spectra.compare import compare, l2_path

    s = settings.spectrum
    spectra, layers = measure.spectra(store.arrays), measure.layers(store.arrays)
    for label, spectrum in spectra.items():
        say(f"\n{spectrum!r}")
        if s.abs:
            from lossmap.report.text import value_with_error

            found = zip(*spectrum.largest_by_magnitude(s.abs), strict=True)
            say(f"  by magnitude: {', '.join(value_with_error(v, e) for v, e in found)}")
        store.put(place_of(SPECTRUM, label), group_of(spectrum))
    for label, reading in layers.items():
        say(f"\n{reading!r}")
        store.put(place_of(LAYERS, label), group_of(reading))
    if len(spectra) > 1:
        say(f"\n{compare(spectra)!r}")
    if s.l2:
        first = measure.subjects[0]
        retrained = retrained_with(first.samples_of, numbers(s.l2, "--l2"), s)
        found_path = l2_path(next(iter(spectra.values())), numbers(s.l2, "--l2"), retrained)
        say(f"\n{found_path!r}")
        arrays: Mapping[str, np.ndarray] = {
            "strength": found_path.strengths, "largest": found_path.largest, "smallest": found_path.smallest,
        }  # fmt: skip
        if retrained:
            arrays = {**arrays, "retrained_largest": np.array([r.largest[0] for r in retrained]),
                      "retrained_smallest": np.array([r.smallest[0] for r in retrained])}  # fmt: skip
        store.put("spectrum/l2_path", Group(dict(arrays), {"report": repr(found_path)}))
    if s.weights:
        table = singular_values(measure.subjects[0].problem.model)
        say(f"\n{table!r}")
        store.put("weights/singular_values", group_of(table))
    say("")


def retrained_with(problem: Any, strengths: Sequence[float], s: SpectrumSettings) -> list[Any]:
    """For each strength, ascending, the spectrum of a copy trained on with it; none where it was not asked for."""
    if s.l2_retrain is None:
        return []
    from lossmap.spectra.spectrum import spectrum
    from lossmap.training import Recipe, train

    found = []
    for strength in sorted(strengths):
        twin = replace(problem, model=copy.deepcopy(problem.model))
        train(twin, Recipe(epochs=s.l2_retrain, rate=0.01, weight_decay=strength, seed=s.seed))
        read_again = spectrum(
            twin, parameters=s.parameters, top=1, trace_products=0, density_error=None, backend="double-backward"
        )
        found.append(with_l2(read_again, strength))
    return found


def with_l2(spectrum: Any, strength: float) -> Any:
    """The ends of a spectrum with the L2 term's own curvature added."""
    ends = {n: replace(p, values=p.values + strength) for n in ("top", "bottom") if (p := getattr(spectrum, n))}
    return replace(spectrum, **ends)


def pictures(path: Path) -> list[Path]:
    """Every spectrum, the comparison where there are several, and the layers, beside the result."""
    from lossmap.plotting.dispatch import figures_of
    from lossmap.plotting.save_next_to import save_next_to

    return save_next_to(path, figures_of(read(path)))
