"""The spectra of several subjects, read task by task: a measure whose point is the number of a task.

A survey over Grid(x=arange(tasks)) dispatches the tasks over ranks, records and resumes them. A reading is named arrays
in one group, `tasks/<subject>/<kind>/<name>`, written as it arrives; `SpectrumTasks.spectra` and `SpectrumTasks.layers`
make values of the groups again. Memory: what the arrays of all tasks take; see task_arrays.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, nan
from typing import Any, ClassVar

import numpy as np

from lossmap import accelerators
from lossmap.curvature.build import build_matrix, notes_of
from lossmap.curvature.gradient import refuse_without_loss
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.hvp_plan import ProductCheck
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.batches import largest_to_cut
from lossmap.data.loss_check import check_loss
from lossmap.diagnostics.step_rule import threshold_of
from lossmap.geometry.grid import Field, Point
from lossmap.geometry.parameter_vector import Layout, frozen_entries, movable_parameters
from lossmap.linalg.block_norms import OffDiagonalEnergy, block_leakage, energy_from_leakage
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.eigenpairs import with_rounding_measured
from lossmap.linalg.operator import Rounding
from lossmap.linalg.quadrature import LanczosRun, lanczos_run
from lossmap.linalg.solvers import extremes
from lossmap.linalg.spectral_density import spectral_density
from lossmap.linalg.trace import trace
from lossmap.report.stored import refuse_alike
from lossmap.spectra import task_arrays
from lossmap.spectra.block_groups import indices_of, size_of
from lossmap.spectra.block_spectra import BlockSpectra
from lossmap.spectra.blocks import assemble, block_matrix, exact_problem, read_block
from lossmap.spectra.from_tasks import AboutMatrix, spectrum_of, with_masses
from lossmap.spectra.layer_hessian import layer_hessians
from lossmap.spectra.legacy_rows import ROW, arrays_of_row
from lossmap.spectra.request import FIRST_OF_USE, LONGEST_FIRST, SpectrumRequest, Subject, Task, group_names, tasks_of
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.spectra.task_arrays import Arrays
from lossmap.sums import norm

Readings = Mapping[str, Arrays]  # group of a task -> its arrays; tasks that failed are missing


@dataclass(frozen=True, eq=False)
class SpectrumTasks:
    """The measure. Made by `make_tasks`.

    subjects        the matrices
    request         what is wanted of each
    tasks           what is to be done, numbered as files of version 0.1 number them; `priority` is their order
    expected_bytes  what the arrays of all tasks will take, about
    settings        what the readings depend on, for the file
    total           adds a tensor up over the ranks of a team
    choices         how each subject's products are made (see `autotune.prepare`); none: by double backward
    memory          bytes for kept values, see `autotune.prepare`; give less where ranks share the memory
    checks          of each subject, what is known of its products, or whether to look; none: this rank looks
    made            matrices that this rank has prepared already
    limits          the largest batches that memory allows, the newest last; none until it runs out
    """

    points_cost_alike: ClassVar[bool] = False  # a trace may take a hundred times a density

    subjects: tuple[Subject, ...]
    request: SpectrumRequest
    tasks: tuple[Task, ...]
    expected_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    total: Total = single_rank
    choices: tuple[Mapping[str, Any], ...] = ()
    memory: int | None = None
    checks: tuple[bool | ProductCheck, ...] = ()
    made: dict[tuple[int, str], Any] = field(default_factory=dict, repr=False)
    limits: list[int] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """The prefix of its status in the file."""
        return "spectrum"

    @property
    def fields(self) -> tuple[Field, ...]:
        """None: a reading is a group of arrays, of whatever shapes the task has."""
        return ()

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The group of each task in the file."""
        return group_names(self.subjects, self.tasks)

    @cached_property
    def priority(self) -> tuple[int, ...]:
        """The numbers of the tasks in the order in which they are done, so that what is there first is of use.

        Ends first, then trace, density, and the layers, the largest first; of several subjects one kind after the
        other. In the file the tasks are numbered as they always were.
        """
        return tuple(sorted(range(len(self.tasks)), key=lambda i: self._rank(self.tasks[i])))

    def _rank(self, task: Task) -> tuple[int, int]:
        size = 0
        if task.kind in ("block", "leak"):
            subject = self.subjects[task.subject]
            layout = Layout.of(movable_parameters(subject.problem.model))
            size = size_of(layout, subject.groups(self.request)[task.name])
        return FIRST_OF_USE[task.kind], -size

    def __call__(self, point: Point) -> dict[str, dict[str, np.ndarray]]:
        """Does the task of this number: {its group: {name: array}}."""
        number = int(point[0])
        task = self.tasks[number]
        subject = self._within_limits(self.subjects[task.subject])
        work: Callable[[Subject, str], Arrays] = getattr(self, "_" + task.kind)
        arrays = work(subject, task.name)
        return {self.groups[number]: {name: np.asarray(array) for name, array in arrays.items()}}

    def from_legacy(self, index: int, fields: Arrays) -> dict[str, Arrays]:
        """The reading of a task that version 0.1 kept as a row in the field `spectrum_result`, (length,)."""
        return {self.groups[index]: arrays_of_row(self.tasks[index].kind, fields[ROW])}

    def smaller(self) -> str | None:
        """Halve the batches, after memory ran out; what was done, or None where they are of one sample, or uncut."""
        batches = [s.problem.data.batch_size for s in self.subjects] + [int(c["batch"]) for c in self.choices]
        largest = min(max(batches), largest_to_cut(s.problem.data for s in self.subjects))
        now = self.limits[-1] if self.limits else largest
        self.made.clear()
        accelerators.release_cache()  # held for batches of the former size
        if now <= 1:
            return None
        self.limits.append(now // 2)
        return f"batches of {now // 2} samples at most from here on"

    def _within_limits(self, subject: Subject) -> Subject:
        """The subject with batches that memory allows."""
        data = subject.problem.data
        if not self.limits or data.batch_size <= self.limits[-1]:
            return subject
        return replace(subject, problem=subject.problem.rebatched(self.limits[-1]))

    def spectra(self, readings: Readings) -> dict[str, Spectrum]:
        """The spectra by label, from the arrays of the tasks; what failed is missing in them."""
        return with_masses({s.label: self._spectrum(i, readings) for i, s in enumerate(self.subjects)}, self.request)

    @cached_property
    def about(self) -> tuple[AboutMatrix, ...]:
        """What is known of each subject's matrix before any task is done."""
        return tuple(map(self._about, self.subjects))

    def _about(self, subject: Subject) -> AboutMatrix:
        # for its size, precision and tensors alone: rank 0 reports when the others of its team have left
        alike = "fisher" if subject.matrix == "mc-fisher" else subject.matrix  # without a pass that draws targets
        matrix = build_matrix(subject.problem, alike, self.request.parameters, check=False)
        threshold = threshold_of(subject.problem, subject.matrix)
        return AboutMatrix(
            subject.label,
            subject.matrix,
            matrix.size,
            str(matrix.dtype).removeprefix("torch."),
            subject.samples_of.sample_count,
            subject.problem.unit,
            frozen_entries(subject.problem.model, self.request.parameters),
            (*subject.problem.notes, *notes_of(subject.problem, subject.matrix)),
            matrix.layout,
            threshold if isfinite(threshold) else None,
            subject.groups(self.request) if self.request.layerwise else {},
        )

    def layers(self, readings: Readings) -> dict[str, BlockSpectra]:
        """The layer by layer readings by label. Raises ValueError where no block of a subject could be read."""
        if not self.request.layerwise:
            return {}
        return {s.label: self._layers(i, readings) for i, s in enumerate(self.subjects)}

    def matrix(self, subject: Subject, parameters: str | None = None) -> Any:
        """The subject's matrix; where products are prepared, once for all tasks of this rank."""
        which = parameters or self.request.parameters
        i = next(i for i, s in enumerate(self.subjects) if s.label == subject.label)
        if (i, which) not in self.made:
            choice = None
            if self.choices and which == self.request.parameters:  # the choice was probed for these parameters alone
                choice = self.choices[i]
            if choice is not None and self.limits:
                choice = {**choice, "batch": min(int(choice["batch"]), self.limits[-1])}
            self.made[i, which] = build_matrix(
                subject.problem,
                subject.matrix,
                which,
                self.total,
                plan=choice,
                memory=self.memory,
                check=self.check_of(subject),
            )
        return self.made[i, which]

    def refuse_without_loss(self) -> None:
        """Raises FloatingPointError where a subject's loss is no number, all ranks of a team together."""
        for subject in self.subjects:
            refuse_without_loss(subject.problem, self.total)

    def check_of(self, subject: Subject) -> bool | ProductCheck:
        """What is known of a subject's products, or whether to look."""
        if not self.checks:
            return True
        return next(c for s, c in zip(self.subjects, self.checks, strict=True) if s.label == subject.label)

    def _gradient(self, subject: Subject, name: str) -> Arrays:
        found = measured_gradient(subject.problem, self.request.parameters, self.total)
        errors = {"loss_error": found.loss_error, "gradient_norm_error": found.norm_error}
        return {"loss": found.loss, "gradient_norm": norm(found.gradient), **errors}

    def _whole(self, subject: Subject, name: str) -> Arrays:
        return task_arrays.of_matrix(DenseMatrix.of(self.matrix(subject)))

    def _ends(self, subject: Subject, name: str) -> Arrays:
        request, matrix, arrays = self.request, self.matrix(subject), dict[str, Any]()
        for end, count in (("top", request.top), ("bottom", request.bottom)):
            if not count:
                continue
            pairs = successive_eigenpairs(
                matrix,
                f"{end}:{count}",
                solver=request.solver,
                seed=f"{request.seed}",
                tol=request.tol,
                confidence=request.confidence,
                max_products=request.max_products,
            )
            pairs = with_rounding_measured(matrix, pairs)
            arrays |= task_arrays.of_end(end, pairs, matrix.layout, request.vectors)
        return arrays

    def _trace(self, subject: Subject, name: str) -> Arrays:
        request = self.request
        estimate = trace(
            self.matrix(subject),
            request.trace_method,
            products=request.trace_products,
            error=request.trace_error,
            seed=request.seed,
            diagonal=request.diagonal,
        )
        return task_arrays.of_trace(estimate)

    def _density(self, subject: Subject, name: str) -> Arrays:
        request, matrix = self.request, self.matrix(subject)
        if name:
            steps = request.density_steps or 64
            runs: Sequence[LanczosRun] = [lanczos_run(matrix, steps, seed=request.seed, probe=int(name))]
            return {**task_arrays.of_runs(runs), "rounding": _rounding(matrix, runs)}
        spread = spectral_density(matrix, error=request.density_error, steps=request.density_steps, seed=request.seed)
        return {**task_arrays.of_runs(spread.runs), "rounding": _rounding(matrix, spread.runs)}

    def _block(self, subject: Subject, name: str) -> Arrays:
        request, problem = self.request, subject.problem
        tensors = subject.groups(request)[name]
        if size_of(self.matrix(subject, self.request.block_parameters).layout, tensors) <= request.dense:
            problem, _ = exact_problem(problem, self.total)
        own = block_matrix(problem, subject.matrix, tensors, self.total, check=self.check_of(subject))
        block = read_block(own, name, tensors, dense=request.dense, tol=request.tol, seed=request.seed)
        return task_arrays.of_block(block)

    def _leak(self, subject: Subject, name: str) -> Arrays:
        matrix = self.matrix(subject, self.request.block_parameters)
        indices = indices_of(matrix.layout, subject.groups(self.request)[name])
        inside, outside = block_leakage(matrix, name, indices, self.request.probes, self.request.seed)
        return {"inside": inside, "outside": outside}

    def _block_ends(self, subject: Subject, name: str) -> Arrays:
        matrix, request = self.matrix(subject, self.request.block_parameters), self.request
        pairs = extremes(matrix, "ends", tol=request.tol, seed=f"{request.seed}", certify=True)
        return task_arrays.of_block_ends(with_rounding_measured(matrix, pairs))

    def _done(self, i: int, kind: str, readings: Readings) -> dict[str, Arrays]:
        """The arrays of the finished tasks of one kind of a subject, by the task's name."""
        return {
            task.name: readings[group]
            for task, group in zip(self.tasks, self.groups, strict=True)
            if task.subject == i and task.kind == kind and group in readings
        }

    def _spectrum(self, i: int, readings: Readings) -> Spectrum:
        return spectrum_of(self.about[i], self.request, lambda kind: self._done(i, kind, readings))

    def _layers(self, i: int, readings: Readings) -> BlockSpectra:
        request, subject = self.request, self.subjects[i]
        groups = subject.groups(request)
        blocks = [
            task_arrays.to_block(name, groups[name], arrays)
            for name, arrays in self._done(i, "block", readings).items()
        ]
        if not blocks:
            raise ValueError(f"no block of {subject.label} could be read: see the failures above")
        ends = next((task_arrays.to_block_ends(a) for a in self._done(i, "block_ends", readings).values()), None)
        full = subject.samples_of
        second = tuple(p for at in request.second for p in layer_hessians(full, at, dense=request.dense))
        _, notes = exact_problem(full)
        notes = (*full.notes, *notes, *notes_of(full, subject.matrix))
        if request.layer_limit is not None:
            notes = (*notes, f"the {len(blocks)} largest of {len(groups)} blocks, as many as the budget holds")
        energy = self._off_diagonal_energy(i, len(blocks), readings)
        return assemble(
            blocks,
            full,
            request.cut,
            subject.matrix,
            ends=ends,
            energy=energy,
            hessians=second,
            notes=notes,
            label=subject.label,
        )

    def _off_diagonal_energy(self, i: int, blocks: int, readings: Readings) -> OffDiagonalEnergy | None:
        """What the blocks leave out: an answer only where every one of them was read and asked for it."""
        leaks = self._done(i, "leak", readings)
        if self.request.layer_limit is not None or not len(leaks) == blocks > 1:
            return None
        return energy_from_leakage({name: (a["inside"], a["outside"]) for name, a in leaks.items()})


def _rounding(matrix: Any, runs: Sequence[LanczosRun]) -> float:
    """The measured rounding of a matrix, in the unit of its eigenvalues; NaN where none was measured."""
    scale = max(float(np.abs(run.quadrature[0]).max(initial=0.0)) for run in runs)
    measured = Rounding.of(matrix).stored(scale)
    return nan if measured is None else measured


def make_tasks(
    subjects: Sequence[Subject],
    request: SpectrumRequest,
    *,
    settings: Mapping[str, Any] | None = None,
    total: Total = single_rank,
    choices: Sequence[Mapping[str, Any]] = (),
    memory: int | None = None,
    check: bool = True,
    checks: Sequence[ProductCheck] = (),
) -> SpectrumTasks:
    """The tasks of these subjects, numbered the longest first; the arguments are those of `SpectrumTasks`.

    check   looks whether each problem's loss is a mean over its samples, and its products are right; without, both are
            taken for granted
    checks  what rank 0 found of the subjects' products, so that all ranks come to the same decisions

    Raises ValueError as `spectrum` and `layers` do, before anything long begins.
    """
    subjects = list(subjects)
    refuse_alike([s.label for s in subjects], "two subjects")
    tasks: list[tuple[Task, int]] = []
    each: list[bool | ProductCheck] = []
    for i, subject in enumerate(subjects):
        problem = check_loss(subject.problem, total=total) if check else replace(subject.problem, checked=True)
        subject = subjects[i] = replace(subject, problem=problem)
        known = checks[i] if checks else check
        matrix = build_matrix(subject.problem, subject.matrix, request.parameters, total, check=known)
        each.append(known)
        tasks += tasks_of(subject, i, matrix.size, request)
    tasks.sort(key=lambda task: LONGEST_FIRST[task[0].kind])
    chosen, sizes = tuple(task for task, _ in tasks), sum(size for _, size in tasks)
    return SpectrumTasks(
        tuple(subjects), request, chosen, sizes, settings or {}, total, tuple(choices), memory, tuple(each)
    )
