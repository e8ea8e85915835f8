"""Curvature along a training run: the leading eigenpairs at every checkpoint, and how their eigenspace rotates.

    run = run_dynamics(files, problem, path="run.h5", top=10)
    print(run.summary)

Checkpoints are dispatched to the ranks of MPI; eigenvectors go to the disk as they come; killed or interrupted, the
same call resumes. When all are there, rank 0 compares them (`eigenspaces`), and stores the result in group `evolution`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.data.checkpoints import checkpoints_in, file_sha256, kind_of, sorted_as_people_count
from lossmap.data.problem import Problem
from lossmap.dynamics.checkpoint_curvature import SHARES, CheckpointCurvature, probed
from lossmap.dynamics.eigenspaces import EigenspaceDynamics, compare_eigenspaces, curvature_along
from lossmap.dynamics.snapshots import Snapshots
from lossmap.dynamics.summary import Summary, summarize
from lossmap.geometry.grid import Grid
from lossmap.io.eigenvector_store import RESULTS, VectorFolder, move_into_file, read_vectors
from lossmap.io.read import SurfaceFile, read
from lossmap.io.surface import DONE, Group, Surface
from lossmap.landscape.run_survey import as_stop, survey
from lossmap.landscape.survey_recorder import Progress
from lossmap.memory import free_memory
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.world import World


@dataclass(frozen=True)
class RunDynamics:
    """The result of a run, on rank 0.

    path     of the result file
    outcome  complete, failed (some checkpoints could not be measured) or unfinished
    summary  the answers, with the numbers that they rest on; empty while unfinished
    failures one sentence each
    """

    path: Path
    outcome: str
    summary: str
    failures: tuple[str, ...] = ()


def find_checkpoints(paths: Iterable[str | Path]) -> dict[float, Path]:
    """Checkpoints by step, in the order in which people count; folders stand for the checkpoints in them.

    A step is the last number in a file's name, where all have one and they ascend; else they are numbered from 0.
    Raises FileNotFoundError for a path that does not exist, ValueError for a file that is not a checkpoint, judged by
    its content, and where there is none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += checkpoints_in(path)
            continue
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        if kind_of(path) is None:
            raise ValueError(f"{path} is not a checkpoint (judged by its content); leave it out")
        files.append(path)
    if not files:
        raise ValueError("there are no checkpoints to measure; name files, or folders that hold them")
    files = sorted_as_people_count(dict.fromkeys(files))
    numbers = [re.findall(r"\d+", path.stem) for path in files]
    steps = [float(found[-1]) for found in numbers if found]
    if len(steps) < len(files) or (np.diff(steps) <= 0).any():
        steps = [float(i) for i in range(len(files))]
    return dict(zip(steps, files, strict=True))


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
    progress: Callable[[Progress], None] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    rank_0: str = "auto",
    backend: str = "auto",
    point_timeout: float | None = None,
    unsafe: bool = False,
    settings: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    command: str = "lossmap spectrum --along",
) -> RunDynamics:
    """Measures every checkpoint of a run and compares them. Every rank calls it; rank 0's answer is the whole one.

    checkpoints  files, or folders that hold them
    problem   the architecture, loss and data
    path      of the result file; an existing one of the same run is continued
    top       number of largest eigenvalues, with their eigenvectors, at each checkpoint
    tol       of the eigenvalues, relative to the largest absolute value
    parameters  of the Hessian: weights (dimension > 1), all, or a regular expression
    centre    PCA about the mean instead of about zero
    whole     the trace, the share of negative eigenvalues and quantiles of all as well
    settings  what else the file is to compare when it is continued: data, precision
    backend   of products: auto (by a probe), linearized, retained-graph or double-backward
    stop      asked between checkpoints, and at every product within one, which is then left and begun again later

    Returns the result; on other ranks than 0 without summary and failures. Raises ValueError as `find_checkpoints`
    does, and where the file there belongs to another run.
    """
    if world is None:
        world = World.start()
    path = Path(path)
    files = world.together(lambda: find_checkpoints(checkpoints))
    folder = VectorFolder.beside(path)
    stop = as_stop(stop)
    device = next(problem.model.parameters()).device
    memory = free_memory(device, ranks_sharing=world.node_size) // 3
    plan = world.once(lambda: _stored_plan(path, problem, parameters, overwrite, backend, memory))
    measure = CheckpointCurvature(
        problem,
        files,
        store_vectors=folder.keep,
        top=top,
        whole=whole,
        tol=tol,
        parameters=parameters,
        seed=seed,
        unsafe=unsafe,
        plan=plan,
        settings=settings,
        memory=memory,
        stop=stop,
    )
    grid = Grid(np.array(list(files)))

    def opened() -> SurfaceFile | None:
        if world.rank != 0:
            return None
        identity = {"run": {f"{step:g}": file_sha256(file) for step, file in files.items()}}
        store = SurfaceFile.open(
            path,
            grid,
            identity=identity,
            measures={measure.name: (measure.fields, measure.settings)},
            overwrite=overwrite,
            attributes=dict(attributes or {}),
            command=command,
        )
        if overwrite:
            folder.clear()
        return store

    store = world.together(opened)
    try:
        surface = survey(
            measure, grid, store=store, world=world, stop=stop, progress=progress, retry_failed=retry_failed,
            rank_0=rank_0, point_timeout=point_timeout, share_values=False,
        )  # fmt: skip
    finally:
        if store is not None:
            store.close()

    def compared() -> str:
        if world.rank != 0:
            return ""
        return _compare_and_store(path, folder, surface, centre, problem.unit)

    summary = world.together(compared)
    if world.rank != 0:
        return RunDynamics(path, surface.outcome_of(measure.name), "")
    failures = tuple(f"{files[grid.point(f.index)[0]]}: {f.reason}" for f in surface.failures)
    return RunDynamics(path, surface.outcome, summary, failures)


def _stored_plan(
    path: Path, problem: Problem, parameters: str, overwrite: bool, backend: str, memory: int
) -> dict[str, Any]:
    """How products are made: as the file says, where the run goes on, else as a probe finds now."""
    if path.exists() and not overwrite:
        stored = read(path).settings.get("measures", {}).get("along", {}).get("chosen", {})
        if "way" in stored:
            return dict(stored["way"])
    return probed(problem, parameters, backend, memory)


def _compare_and_store(path: Path, folder: VectorFolder, surface: Surface, centre: bool, unit: str) -> str:
    """Compares the snapshots that are there, and stores the result; the answers in words."""
    if surface.outcome == "unfinished":
        return ""
    done = np.nonzero(surface.status["along"] == DONE)[0]
    if not len(done):
        return ""
    steps = surface.grid.x[done].tolist()
    fields = {name: values[done] for name, values in surface.fields.items()}
    if RESULTS in surface.groups and surface.groups[RESULTS]["step"].tolist() == steps:
        stored = read_vectors(path)
        snapshots = Snapshots(stored.steps, stored.values, stored.size, stored.blocks, stored.residuals)
        run = compare_eigenspaces(snapshots, centre=centre)
        folder.clear()  # where an earlier run was killed between its last two steps
        return str(summarize(run))
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
    answers = summarize(run)
    move_into_file(path, folder, steps, results(run, answers, fields, unit), values.shape[1])
    folder.clear()
    return str(answers)


def results(run: EigenspaceDynamics, answers: Summary, fields: Mapping[str, np.ndarray], unit: str = "1") -> Group:
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
