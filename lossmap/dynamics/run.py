"""Curvature along a training run: the leading eigenpairs at every checkpoint, and how their eigenspace rotates.

    run = run_dynamics(files, problem, path="run.h5", top=10)
    print(run.summary)

Checkpoints are dispatched to the ranks of MPI; eigenvectors go to the disk as they come; killed or interrupted, the
same call resumes. When all are there, rank 0 compares them (`eigenspaces`), and stores the result in group `evolution`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.curvature.autotune import prepare
from lossmap.data.borrow import copy_of
from lossmap.data.checkpoint_match import Selection
from lossmap.data.checkpoints import file_sha256, load_into
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.dynamics.checkpoint_curvature import SHARES, CheckpointCurvature, Effort, probed
from lossmap.dynamics.eigenspaces import EigenspaceDynamics, compare_eigenspaces, curvature_along
from lossmap.dynamics.nulls import InformedNull, NullMeasure, null_shares
from lossmap.dynamics.price import fitted_effort, price_of_run, stored_effort
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import Summary, summarize
from lossmap.geometry.grid import Grid
from lossmap.geometry.parameter_vector import warn_of_frozen
from lossmap.interrupt import Interrupted
from lossmap.io.eigenvector_store import RESULTS, VectorFolder, move_into_file, read_vectors
from lossmap.io.read import SurfaceFile, read, read_group
from lossmap.io.surface import DONE, Group, Surface
from lossmap.keywords import checked_keywords
from lossmap.landscape.checkpoint_steps import find_checkpoints
from lossmap.landscape.fingerprint import code_of
from lossmap.landscape.progress import progress_display
from lossmap.landscape.run_survey import as_stop, survey
from lossmap.landscape.survey_file import settings_of
from lossmap.landscape.survey_recorder import Progress
from lossmap.memory import free_memory
from lossmap.parallel.command_clock import command_began
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.world import World
from lossmap.report.text import WIDTH, filled
from lossmap.values import DrawnResult

log = logging.getLogger("lossmap")


@dataclass(frozen=True)
class RunDynamics(DrawnResult):
    """The curvature along a run: what became of the leading eigenspace, on rank 0. Print it for the answers.

    path       of the result file
    outcome    complete, failed (some checkpoints could not be measured) or unfinished
    summary    the answers, with the numbers that they rest on; empty while unfinished
    failures   one sentence each
    evolution  arrays by checkpoint: step, eigenvalue (step, pair), overlap (step, step), ...; None while unfinished
    notes      how the loss is evaluated, a sentence each, where that is not as a mean over any samples
    """

    path: Path = field(compare=False)
    outcome: str
    summary: str
    failures: tuple[str, ...] = ()
    evolution: Group | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of this name, such as `eigenvalue`. Raises KeyError with the names that there are."""
        arrays = {} if self.evolution is None else self.evolution.arrays
        if name not in arrays:
            raise KeyError(f"no array {name!r} here; there are: {', '.join(arrays) or 'none'}")
        return arrays[name]

    def __repr__(self) -> str:
        lines = [f"Curvature along a run, {self.path}: {self.outcome}"]
        if self.notes:
            text = filled("; ".join(self.notes), WIDTH - 12)
            lines += [f"{'' if i else 'evaluation:':<12}{line}" for i, line in enumerate(text)]
        lines += self.summary.splitlines()
        return "\n".join([*lines, *(f"failed: {failure}" for failure in self.failures)])


@checked_keywords
def run_dynamics(
    checkpoints: Iterable[str | Path],
    problem: Problem,
    *,
    path: str | Path,
    top: int = 10,
    whole: bool = False,
    tol: float = 1e-3,
    parameters: str = "weights",
    centre: bool = False,
    seed: int = 0,
    world: World | None = None,
    stop: Stop | Callable[[], bool] | None = None,
    progress: bool | Callable[[Progress], None] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    rank_0: str = "auto",
    backend: str = "auto",
    point_timeout: float | None = None,
    budget: float | None = None,
    null: str = "none",
    other_seed: str | Path | None = None,
    unsafe: bool = False,
    selection: Selection | None = None,
    settings: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    command: str = "lossmap spectrum --along",
    accept_change: bool = False,
) -> RunDynamics:
    """The curvature along a training run: the leading eigenpairs at every checkpoint, and how their eigenspace rotates.

    Every rank that a launcher started calls it alike. Killed or interrupted, the same call resumes.

    Args:
        checkpoints: files, or folders that hold them; a step is the last number in a file's name.
        problem: the architecture, loss and data.
        path: of the result file; an existing one of the same run is continued.
        top: number of largest eigenvalues, with their eigenvectors, at each checkpoint.
        whole: the trace, the share of negative eigenvalues and quantiles of all as well.
        tol: accuracy of the eigenvalues, relative to the largest absolute value.
        parameters: of the Hessian: `weights` (dimension > 1), `all`, `trainable`, or a regular expression.
        centre: principal components about the mean instead of about zero.
        seed: of start vectors and probes.
        world: the ranks; None: those that a launcher started.
        stop: a function that returns whether to stop: asked between checkpoints, and at every product within one.
        progress: as of `survey`.
        overwrite: whether a file that is there is begun anew.
        retry_failed: whether failed checkpoints are measured again.
        rank_0: `computes` too, only `deals`, or `auto`.
        backend: of products: `auto` (by a probe), `linearized`, `retained-graph` or `double-backward`.
        point_timeout: seconds after which a rank that does not answer is reported.
        budget: seconds into which Lanczos steps and probes are fitted, once, so that a continued run does the same.
        null: what overlaps are compared with beside chance: `halves`, those of two disjoint halves of the samples at
            the first and the last checkpoint in three random divisions, at the price of six more checkpoints; or
            `none`.
        other_seed: a checkpoint of the same architecture from another seed, to compare the run with; one more.
        unsafe: whether pickled checkpoints may be read, which can run code of their own.
        selection: which of a checkpoint's tensors are meant, where they do not say so themselves (`Selection` of
            `lossmap.data.checkpoint_match`: key, prefix, allow_unexpected).
        settings: what else the file is to compare when it is continued; None: the data, the loss and the precision.
        attributes: root attributes of the file.
        command: one line for the file's history.
        accept_change: whether a file is continued although the code measures something else than that which began it;
            its history then says so.

    Returns:
        A `RunDynamics`: print it for the answers; `result["eigenvalue"]` (step, pair), `result["overlap"]` (step,
        step), and so on. On other ranks than 0 without summary and arrays.

    Raises:
        ValueError: for files that are not checkpoints, and where the file there belongs to another run.
        FileNotFoundError: for a path that does not exist.

    Example:
        >>> import tempfile, torch, lossmap
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(4, 3)
        >>> for step in range(3):
        ...     torch.save({k: t * (1 + step) for k, t in model.state_dict().items()}, f"{folder}/step{step}.pt")
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
        >>> run = lossmap.run_dynamics([folder], problem, path=f"{folder}/run.h5", top=2, backend="double-backward")
        >>> run.outcome, run["eigenvalue"].shape
        ('complete', (3, 2))

    """
    began = command_began()
    if world is None:
        world = World.start()
    problem = world.together(partial(check_loss, problem, report=world.rank == 0))
    if settings is None:
        settings = settings_of({"train": problem})
    path = Path(path)
    files = world.once(lambda: find_checkpoints(checkpoints))
    other = world.together(lambda: _checked_other_seed(other_seed, null, files, problem, unsafe, selection))
    folder = VectorFolder.beside(path)
    stop = as_stop(stop)
    device = next(problem.model.parameters()).device
    memory = free_memory(device, ranks_sharing=world.node_size) // 3
    plan = world.once(lambda: _stored_plan(path, problem, parameters, overwrite, backend, memory))
    world.once(lambda: warn_of_frozen(problem.model, parameters, "are counted in the Hessian"))
    # rank 0 alone looks at the products, and all follow
    check = world.once(lambda: prepare(problem, parameters, plan=plan, memory=memory).check)

    def measure_with(effort: Effort) -> CheckpointCurvature:
        return CheckpointCurvature(
            problem,
            files,
            store_vectors=folder.keep,
            top=top,
            whole=whole,
            tol=tol,
            parameters=parameters,
            seed=seed,
            unsafe=unsafe,
            selection=selection,
            plan=plan,
            settings=settings if budget is None else {**settings, "budget": budget},
            memory=memory,
            stop=stop,
            check=check,
            effort=effort,
        )

    def measure_beside(part: Problem, named: dict[float, Path], place: VectorFolder) -> CheckpointCurvature:
        # its samples are some of the run's, so that the run's products and what was seen of them hold here too
        batch = min(int(plan["batch"]), part.data.samples)
        made = CheckpointCurvature(
            part, named, store_vectors=place.keep, top=top, tol=tol, parameters=parameters, seed=seed, unsafe=unsafe,
            selection=selection, memory=memory, stop=stop, effort=Effort(max_products=measure.effort.max_products),
            plan={**plan, "batch": batch}, check=check,
        )  # fmt: skip
        made.noted = measure.noted
        return made

    measure = measure_with(Effort())
    if budget is not None:
        full, seconds = measure, budget - (time.monotonic() - began)
        shares = null_shares(problem, len(files), null == "halves", other is not None)
        fitted = world.once(lambda: _effort(full, path, budget, seconds, world, rank_0, overwrite, shares))
        measure = measure_with(fitted)
    grid = Grid(np.array(list(files)))

    def opened() -> SurfaceFile | None:
        if world.rank != 0:
            return None
        about = dict(attributes or {})
        store = _opened(path, problem, measure, files, overwrite, about, command, accept_change)
        if overwrite:
            folder.clear()
        return store

    store = world.together(opened)
    beside = NullMeasure(problem, path, measure_beside, seed, null == "halves" and measure.effort.halves, other)
    try:
        with progress_display(world, "checkpoints", progress, unit="checkpoint") as show:
            if store is not None:
                _announce(measure, beside, store, world, rank_0, show)
            surface = survey(
                measure, grid, store=store, world=world, stop=stop, progress=show, retry_failed=retry_failed,
                rank_0=rank_0, point_timeout=point_timeout, share_values=False,
            )  # fmt: skip
    finally:
        if store is not None:
            store.close()

    return _compared(beside, files, surface, world, folder, centre, tol)


def _compared(
    beside: NullMeasure,
    files: Mapping[float, Path],
    surface: Surface,
    world: World,
    folder: VectorFolder,
    centre: bool,
    tol: float,
) -> RunDynamics:
    """The snapshots compared, with the null where one is to be measured, and the result stored. Every rank calls it."""
    path = beside.path
    try:
        halved = _measure_null(beside, files, surface, world)
        summary = world.once(partial(_compare_and_store, folder, surface, centre, tol, beside, halved))
    except Interrupted:  # all checkpoints are recorded; the same call goes on with the null
        return RunDynamics(path, "unfinished", "")
    finally:
        world.once(beside.folder.clear)
    if world.rank != 0:
        return RunDynamics(path, surface.outcome_of("along"), "")
    return _result(path, surface, files, summary)


def _result(path: Path, surface: Surface, files: Mapping[float, Path], summary: str) -> RunDynamics:
    """The result on rank 0."""
    points = [surface.grid.point(f.index)[0] for f in surface.failures]
    failures = tuple(f"{files[step]}: {f.reason}" for step, f in zip(points, surface.failures, strict=True))
    evolution = read_group(path, RESULTS) if summary else None
    return RunDynamics(path, surface.outcome, summary, failures, evolution, surface.evaluation)


def _checked_other_seed(
    file: str | Path | None,
    null: str,
    files: Mapping[float, Path],
    problem: Problem,
    unsafe: bool,
    selection: Selection | None,
) -> Path | None:
    """The file. Raises ValueError where it is no checkpoint of this architecture, or one of the run's own."""
    if null not in ("halves", "none"):
        raise ValueError(f"null must be halves or none; got {null!r}")
    if file is None:
        return None
    other = Path(file)
    if not other.exists():
        raise ValueError(f"--other-seed: there is no checkpoint {other}")
    digest = file_sha256(other)
    own = next((file for file in files.values() if file_sha256(file) == digest), None)
    if own is not None:
        raise ValueError(f"--other-seed {other} is {own.name} of the run itself; name a network of another seed")
    load_into(copy_of(problem.model), other, unsafe=unsafe, selection=selection)
    return other


def _measure_null(
    beside: NullMeasure, files: Mapping[float, Path], surface: Surface, world: World
) -> tuple[float, ...] | None:
    """Measure the informed null where all checkpoints are done and the file has none yet; None where not."""

    def to_do() -> list[float]:
        if world.rank != 0 or surface.outcome == "unfinished":
            return []
        done: list[float] = surface.grid.x[np.nonzero(surface.status["along"] == DONE)[0]].tolist()
        stored = surface.groups.get(RESULTS)
        if stored is None or stored["step"].tolist() != done:
            return done
        digest = "" if beside.other_seed is None else file_sha256(beside.other_seed)
        is_new = bool(digest) and stored.attributes.get("other_seed", "") != digest
        return done if is_new else []

    steps = world.once(to_do)
    if not steps:
        return None
    return beside.measure({step: files[step] for step in steps}, world)


def _effort(
    measure: CheckpointCurvature,
    path: Path,
    budget: float,
    seconds: float,
    world: World,
    rank_0: str,
    overwrite: bool,
    beside: Sequence[float],
) -> Effort:
    """What is spent at a checkpoint: as an earlier run of the file fitted it, or as it fits into what is left."""
    stored = None if overwrite else stored_effort(path, budget)
    workers = len(world.team_ranks(rank_0=rank_0)) or 1
    return stored or fitted_effort(measure, seconds / (world.crowding or 1.0), workers, beside)


def _opened(
    path: Path,
    problem: Problem,
    measure: CheckpointCurvature,
    files: Mapping[float, Path],
    overwrite: bool,
    attributes: dict[str, Any],
    command: str,
    accept_change: bool,
) -> SurfaceFile:
    """The file of a run, begun or continued."""
    names = {f"{step:g}": str(file) for step, file in files.items()}
    return SurfaceFile.open(
        path,
        Grid(np.array(list(files))),
        identity={"run": {f"{step:g}": file_sha256(file) for step, file in files.items()}},
        measures={measure.name: (measure.fields, measure.settings)},
        overwrite=overwrite,
        attributes={**attributes, "checkpoint_files": json.dumps(names)},
        command=command,
        upgrades={measure.name: measure.upgraded},
        codes={measure.name: code_of({"train": problem}, product=True)},
        accept_change=accept_change,
    )


def _announce(
    measure: CheckpointCurvature,
    beside: NullMeasure,
    store: SurfaceFile,
    world: World,
    rank_0: str,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Report the price of the checkpoints that are left and of the null. Rank 0 alone calls it."""
    left = len(store.todo(measure.name, False))
    if progress is None or not left:
        return
    workers = len(world.team_ranks(rank_0=rank_0)) or 1
    try:
        price = price_of_run(measure, left, workers, beside=beside.shares(len(measure.files)))
        note = str(price.slowed(world.crowding or 1.0))
    except Exception as error:  # a model's own code may raise anything; the checkpoints themselves report it
        note = f"the price could not be measured: {type(error).__name__}: {error}"
    total = len(measure.files)
    progress(Progress(measure.name, total - left, 0, total, 0.0, 0.0, workers, note))


def run_in_file(path: str | Path, surface: Surface) -> RunDynamics:
    """The result in a file of `run_dynamics` or `lossmap dynamics`, read as `surface`."""
    evolution = surface.groups[RESULTS]
    files = json.loads(str(surface.attributes.get("checkpoint_files", "{}")))
    steps = [f"{surface.grid.point(f.index)[0]:g}" for f in surface.failures]
    failures = tuple(
        f"{files.get(step, f'step {step}')}: {f.reason}" for step, f in zip(steps, surface.failures, strict=True)
    )
    verdict = str(evolution.attributes["verdict"])
    return RunDynamics(Path(path), surface.outcome, verdict, failures, evolution, surface.evaluation)


def _stored_plan(
    path: Path, problem: Problem, parameters: str, overwrite: bool, backend: str, memory: int
) -> dict[str, Any]:
    """How products are made: as the file says, where the run goes on, else as a probe finds now."""
    if path.exists() and not overwrite:
        stored = read(path).settings.get("measures", {}).get("along", {}).get("chosen", {})
        if "way" in stored:
            return dict(stored["way"])
    return probed(problem, parameters, backend, memory)


def _compare_and_store(
    folder: VectorFolder,
    surface: Surface,
    centre: bool,
    tol: float,
    beside: NullMeasure,
    halved: tuple[float, ...] | None,
) -> str:
    """Compares the snapshots that are there, and stores the result; the answers in words."""
    path = beside.path
    if surface.outcome == "unfinished":
        return ""
    done = np.nonzero(surface.status["along"] == DONE)[0]
    if not len(done):
        return ""
    steps = surface.grid.x[done].tolist()
    fields = {name: values[done] for name, values in surface.fields.items()}
    if RESULTS in surface.groups and surface.groups[RESULTS]["step"].tolist() == steps and halved is None:
        stored = read_vectors(path)
        snapshots = Snapshots(stored.steps, stored.values, stored.size, stored.blocks, stored.residuals)
        run = compare_eigenspaces(snapshots, centre=centre)
        folder.clear()  # where an earlier run was killed between its last two steps
        return str(summarize(run, null=null_in(surface.groups[RESULTS]), tolerance=tol))
    if RESULTS in surface.groups:  # failed checkpoints were measured again: the others' vectors are in the file
        folder.fill(path)
    missing = [step for step in steps if not folder.holds(step)]
    if missing:
        raise ValueError(
            f"the eigenvectors of step {missing[0]:g} are missing from {folder.path}; --overwrite measures all again"
        )
    values = fields["eigenvalues"]
    size = folder.shape(steps[0])[1]
    snapshots = Snapshots(np.array(steps), values, size, folder.blocks(steps), fields["eigenvalue_errors"])
    run = compare_eigenspaces(snapshots, centre=centre)
    null = beside.compare(halved or (), snapshots)
    answers = summarize(run, null=null, tolerance=tol)
    group = results(run, answers, fields, beside.problem.unit, null)
    if beside.other_seed is not None:
        group = Group(group.arrays, {**group.attributes, "other_seed": file_sha256(beside.other_seed)})
    move_into_file(path, folder, steps, group, values.shape[1])
    folder.clear()
    return str(answers)


def null_in(group: Group) -> InformedNull | None:
    """The informed null that a file's results hold; None in older files."""
    empty = np.zeros(0)
    if not {"null_step", "null_seed"} & set(group.arrays):
        return None
    mean = group.arrays.get("null_halves", empty)
    halves = group.arrays.get("null_divisions", mean[:, None])  # of older files one division
    return InformedNull(group.arrays.get("null_step", empty), halves, group.arrays.get("null_seed", empty))


def results(
    run: EigenspaceDynamics,
    answers: Summary,
    fields: Mapping[str, np.ndarray],
    unit: str = "1",
    null: InformedNull | None = None,
) -> Group:
    """The group of a file that figures are drawn from: what became of the leading eigenspace, and of its curvature.

    fields  by checkpoint, as measured; unit: of the loss. The names of arrays and attributes stand in files, and stay
    """
    curved = curvature_along(run.values)
    if "smallest_eigenvalue" in fields:
        ends = curvature_along(np.column_stack([run.values, fields["smallest_eigenvalue"]]))
        curved |= {name: ends[name] for name in ("negative_mass", "lambda_min")}
    residuals = run.residuals
    if residuals is None:
        residuals = np.full_like(run.values, np.nan)
    arrays: dict[str, np.ndarray] = {
        "step": run.steps,
        "eigenvalue": run.values,
        "residual": residuals,
        "overlap": run.overlaps,
        "principal_cosine": run.cosines,
        "cosine": run.gram.astype(np.float32),
        "owner": run.owner,
        "spread": run.participation,
        "explained": run.pca.explained,
        "projection": run.pca.projection[:, :2],
        "track": run.tracks.member,
        "track_value": run.tracks.values,
        "track_cosine": run.tracks.cosine,
        **{f"curvature_{name}": values for name, values in curved.items()},
        **{name: values for name, values in fields.items() if values.ndim == 1 or name == "quantiles"},
    }
    if null is not None and len(null.steps):
        arrays |= {"null_step": null.steps, "null_halves": null.mean, "null_divisions": null.halves}
    if null is not None and len(null.seed):
        arrays |= {"null_seed": null.seed}
    attributes = {
        "long_name": "eigenvectors along a run, compared",
        "theta": run.size,
        "unit": unit,
        "shares": json.dumps(SHARES),
        "centred": int(run.pca.centred),
        "chance_cosine": run.limit,
        "verdict": str(answers),
        "answers": json.dumps(answers.to_dict()),
    }
    return Group(arrays, attributes)
