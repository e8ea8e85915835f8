"""The spectra of several subjects, cut into jobs that are dealt over ranks as the points of a survey are.

A subject is one matrix: a checkpoint's Hessian over one split. Its jobs are its ends, its trace, its density (or one
job a probe where their number is stated), its gradient, and in the layer by layer reading one a block and one for what
that block leaves out. `SpectrumTasks` is a measure whose point is the number of the job: a survey over
Grid(x=arange(jobs))
deals, journals and resumes them. A job's reading is a row of numbers, packed arrays; `SpectrumTasks.spectra` and
`SpectrumTasks.layers` make values of the rows again.

Every job is the same whoever does it: its random numbers come from the seed and its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np
import torch

from lossmap.curvature.build import build_operator
from lossmap.curvature.checks import check_mean
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field, Point
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.block_norms import block_leakage, energy_from_leakage
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.lanczos import EigenPairs, Which, check_eigenvalue_request, extremes
from lossmap.linalg.quadrature import LanczosRun, lanczos_run
from lossmap.linalg.spectral_density import Density, check_density_request, density
from lossmap.linalg.trace import METHODS, Trace, check_trace_request, trace
from lossmap.spectra.block import Block
from lossmap.spectra.blocks import (
    BlockSpectra,
    assemble,
    block_matrix,
    exact_problem,
    groups_of,
    indices_of,
    read_block,
)
from lossmap.spectra.layer_hessian import layer_hessians
from lossmap.spectra.spectrum import Spectrum, common_masses, masses_of, shares_of
from lossmap.sums import norm

ROW = "spectrum_result"


@dataclass(frozen=True)
class SpectrumRequest:
    """What is wanted of every subject.

    dense        up to this size the whole matrix, or block, is made
    by           of the layer by layer reading: tensor, module; `patterns` instead; None for no such reading
    second       second readings of the layers: inputs, weights
    vectors      keep the eigenvectors
    """

    top: int = 5
    bottom: int = 1
    trace_method: str = "xtrace"
    trace_products: int = 60
    trace_error: float | None = None
    density: bool = True
    density_error: float = 0.01
    density_steps: int | None = None
    density_probes: int | None = None
    mass_at: tuple[float, ...] = ()
    tol: float = 1e-3
    solver: str = "auto"
    max_products: int | None = None
    confidence: float = 0.99
    parameters: str = "weights"
    dense: int = 256
    by: str | None = None
    patterns: tuple[str, ...] = ()
    probes: int = 4
    second: tuple[str, ...] = ()
    vectors: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Subject:
    """One matrix: its label, the problem (a rank's share of it in a team), and which matrix."""

    label: str
    problem: Problem
    matrix: str = "hessian"
    full: Problem | None = None  # the problem over all samples, where `problem` is a share

    @property
    def samples_of(self) -> Problem:
        """The problem over all samples."""
        return self.problem if self.full is None else self.full


def packed(arrays: Sequence[np.ndarray | Sequence[float] | float]) -> np.ndarray:
    """Arrays as one row of float64: how many, then for each its dimensions, its shape and its numbers."""
    parts = [np.array([float(len(arrays))])]
    for array in arrays:
        a = np.asarray(array, dtype=np.float64)
        parts += [np.array([a.ndim, *a.shape], dtype=np.float64), a.reshape(-1)]
    return np.concatenate(parts)


def unpacked(row: np.ndarray) -> list[np.ndarray]:
    """The arrays of a row made by `packed`; what follows them is padding."""
    found, at = [], 1
    for _ in range(int(row[0])):
        dims = int(row[at])
        shape = tuple(int(d) for d in row[at + 1 : at + 1 + dims])
        at += 1 + dims
        size = int(np.prod(shape))
        found.append(row[at : at + size].reshape(shape))
        at += size
    return found


@dataclass(frozen=True)
class Task:
    """One piece of work: for which subject, of which kind, and which one of that kind."""

    subject: int
    kind: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class SpectrumTasks:
    """The measure. Made by `make_tasks`.

    settings  what it was told, for the file
    total     adds a tensor up over the ranks of a team
    choices   how each subject's products are made (see `autotune.prepare`); none: by double backward
    made      matrices that this rank has prepared already
    limits    the largest batches that memory allows, the newest last; none until it runs out
    """

    subjects: tuple[Subject, ...]
    asked: SpectrumRequest
    jobs: tuple[Task, ...]
    length: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    total: Total = single_rank
    choices: tuple[Mapping[str, Any], ...] = ()
    made: dict[tuple[int, str], Any] = field(default_factory=dict, repr=False)
    limits: list[int] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """The prefix of its status in the file."""
        return "spectrum"

    @property
    def fields(self) -> tuple[Field, ...]:
        """One row of packed arrays a job."""
        return (Field(ROW, "1", "packed reading of each job", ("value", self.length)),)

    def __call__(self, point: Point) -> dict[str, np.ndarray]:
        """Does the job of this number."""
        job = self.jobs[int(point[0])]
        subject = self._within_limits(self.subjects[job.subject])
        work: Callable[[Subject, str], Sequence[Any]] = getattr(self, "_" + job.kind)
        row = np.full(self.length, np.nan)
        found = packed(work(subject, job.name))
        if len(found) > self.length:
            raise ValueError(f"the job {job} has {len(found)} numbers; {self.length} were foreseen")
        row[: len(found)] = found
        return {ROW: row}

    def smaller(self) -> str | None:
        """Halve the batches, after memory ran out; what was done, or None where they are of one sample already."""
        batches = [s.problem.data.batch_size for s in self.subjects] + [int(c["batch"]) for c in self.choices]
        now = self.limits[-1] if self.limits else min(max(batches), max(s.problem.data.samples for s in self.subjects))
        self.made.clear()
        torch.cuda.empty_cache()  # what its allocator holds for batches of the former size; without CUDA nothing
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

    def spectra(self, rows: np.ndarray) -> dict[str, Spectrum]:
        """The spectra by label, from the rows (jobs, length) of a survey; what failed in it is missing in them."""
        found = {s.label: self._spectrum(i, rows) for i, s in enumerate(self.subjects)}
        stated = self.asked.mass_at or common_masses([s.density for s in found.values()])
        return {label: replace(s, masses=masses_of(s.density, stated)) for label, s in found.items()}

    def layers(self, rows: np.ndarray) -> dict[str, BlockSpectra]:
        """The layer by layer readings by label."""
        if self.asked.by is None and not self.asked.patterns:
            return {}
        return {s.label: self._layers(i, rows) for i, s in enumerate(self.subjects)}

    def matrix(self, subject: Subject, parameters: str | None = None) -> Any:
        """The subject's matrix; where products are prepared, once for all jobs of this rank."""
        which = parameters or self.asked.parameters
        i = next(i for i, s in enumerate(self.subjects) if s.label == subject.label)
        if (i, which) not in self.made:
            choice = self.choices[i] if self.choices and which == self.asked.parameters else None
            if choice is not None and self.limits:
                choice = {**choice, "batch": min(int(choice["batch"]), self.limits[-1])}
            self.made[i, which] = build_operator(subject.problem, subject.matrix, which, self.total, plan=choice)
        return self.made[i, which]

    def _gradient(self, subject: Subject, name: str) -> Sequence[Any]:
        loss, slope, _ = loss_and_gradient(subject.problem, self.asked.parameters, self.total)
        return [loss, norm(slope)]

    def _whole(self, subject: Subject, name: str) -> Sequence[Any]:
        whole = DenseMatrix.of(self.matrix(subject))
        return [whole.entries, whole.asymmetry, whole.epsilon]

    def _ends(self, subject: Subject, name: str) -> Sequence[Any]:
        a, found = self.asked, []
        matrix = self.matrix(subject)
        told: dict[str, Any] = {"tol": a.tol, "confidence": a.confidence, "max_products": a.max_products}
        for end, count in (("top", a.top), ("bottom", a.bottom)):
            if not count:
                found += [np.zeros(0)] * 5
                continue
            pairs = successive_eigenpairs(matrix, f"{end}:{count}", solver=a.solver, seed=f"{a.seed}", **told)
            about = [*pairs.limits, pairs.products, pairs.converged, pairs.tolerance, pairs.scale, pairs.confidence]
            about += [pairs.others]
            shares = [list(row.values()) for row in shares_of(((end, pairs),), matrix.layout).values()]
            vectors = pairs.vectors.float().cpu().numpy() if a.vectors else np.zeros((matrix.size, 0))
            found += [pairs.values, pairs.residuals, np.array(about, dtype=np.float64), np.array(shares), vectors]
        return found

    def _trace(self, subject: Subject, name: str) -> Sequence[Any]:
        a = self.asked
        t = trace(self.matrix(subject), a.trace_method, products=a.trace_products, error=a.trace_error, seed=a.seed)
        method = (*METHODS, "unit vectors").index(t.method)
        return [[t.value, t.error, t.terms, t.products, method, t.size, t.target]]

    def _density(self, subject: Subject, name: str) -> Sequence[Any]:
        a, matrix = self.asked, self.matrix(subject)
        if name:
            return _of_runs([lanczos_run(matrix, a.density_steps or 64, seed=a.seed, probe=int(name))])
        return _of_runs(density(matrix, error=a.density_error, steps=a.density_steps, seed=a.seed).runs)

    def _block(self, subject: Subject, name: str) -> Sequence[Any]:
        tensors = self.groups(subject)[name]
        sizes = _sizes(self.matrix(subject, "all").layout)
        problem = subject.problem
        if sum(sizes[t] for t in tensors) <= self.asked.dense:
            problem, _ = exact_problem(problem)
        b = read_block(
            block_matrix(problem, subject.matrix, tensors, self.total),
            name,
            tensors,
            dense=self.asked.dense,
            tol=self.asked.tol,
            seed=self.asked.seed,
        )
        about = [b.size, b.error, b.epsilon, b.products, b.converged]  # no seconds: the same bits on every rank
        entries = np.zeros((0, 0)) if b.entries is None else b.entries
        runs = [] if b.density is None else _of_runs(b.density.runs)
        return [b.values, about, entries, *runs]

    def _leak(self, subject: Subject, name: str) -> Sequence[Any]:
        matrix = self.matrix(subject, "all")
        where = indices_of(matrix.layout, self.groups(subject)[name])
        return list(block_leakage(matrix, name, where, self.asked.probes, self.asked.seed))

    def _block_ends(self, subject: Subject, name: str) -> Sequence[Any]:
        pairs = extremes(
            self.matrix(subject, "all"), "ends", tol=self.asked.tol, seed=f"{self.asked.seed}", certify=True
        )
        return [pairs.values, pairs.residuals, [pairs.products, pairs.converged, pairs.scale, pairs.tolerance]]

    def groups(self, subject: Subject) -> dict[str, tuple[str, ...]]:
        """The tensors of each block of the layer by layer reading."""
        names = [n for n, _ in subject.problem.model.named_parameters()]
        return groups_of(names, self.asked.by or "tensor", self.asked.patterns)

    def _found(self, i: int, kind: str, rows: np.ndarray) -> dict[str, list[np.ndarray]]:
        """The finished jobs of one kind of a subject, unpacked, by name."""
        return {
            job.name: unpacked(row)
            for job, row in zip(self.jobs, rows, strict=True)
            if job.subject == i and job.kind == kind and np.isfinite(row[0])
        }

    def _spectrum(self, i: int, rows: np.ndarray) -> Spectrum:
        a, subject = self.asked, self.subjects[i]
        matrix = self.matrix(subject)
        epsilon, dtype = float(torch.finfo(matrix.dtype).eps), matrix.dtype
        upper = lower = estimate = spread = None
        shares: dict[str, dict[str, float]] = {}
        products = 0
        for entries, lack, eps in self._found(i, "whole", rows).values():
            whole = DenseMatrix(entries, float(lack), float(eps), dtype)
            upper = whole.pairs(f"top:{a.top}") if a.top else None
            lower = whole.pairs(f"bottom:{a.bottom}") if a.bottom else None
            estimate = whole.trace() if a.trace_products else None
            spread = whole.density() if a.density else None
            shares = shares_of((("top", upper), ("bottom", lower)), matrix.layout)
            products = matrix.size
        for found in self._found(i, "ends", rows).values():
            upper, lower = _pairs(found[:5], dtype), _pairs(found[5:], dtype)
            for end, table in (("top", found[3]), ("bottom", found[8])):
                for j, row in enumerate(table):
                    shares[f"{end} {j + 1}"] = dict(zip(matrix.layout.names, row.tolist(), strict=True))
        for (row,) in self._found(i, "trace", rows).values():
            value, error, terms, spent, method, size, wanted = row.tolist()
            name = (*METHODS, "unit vectors")[int(method)]
            estimate = Trace(value, error, int(terms), int(spent), name, int(size), wanted)
        runs = [r for found in self._found(i, "density", rows).values() for r in _to_runs(found)]
        if runs:
            # with stated probes there is no wanted error to miss
            wanted = np.inf if a.density_probes else a.density_error
            spread = Density(tuple(runs), matrix.size, epsilon, 0.95, wanted)
        loss, slope = next(iter(self._found(i, "gradient", rows).values()), [np.array(nan), np.array(nan)])
        parts = (upper, lower, estimate, spread)
        return Spectrum(
            label=subject.label,
            matrix=subject.matrix,
            size=matrix.size,
            precision=str(dtype).removeprefix("torch."),
            top=upper,
            bottom=lower,
            trace=estimate,
            density=spread,
            shares=shares,
            samples=subject.samples_of.samples,
            unit=subject.problem.unit,
            loss=float(loss),
            gradient_norm=float(slope),
            products=products or sum(p.products for p in parts if p is not None),
            keep_vectors=a.vectors,
        )

    def _layers(self, i: int, rows: np.ndarray) -> BlockSpectra:
        subject, groups = self.subjects[i], self.groups(self.subjects[i])
        blocks = []
        for name, (values, about, entries, *runs) in self._found(i, "block", rows).items():
            size, error, epsilon, products, converged = about.tolist()
            spread = Density(tuple(_to_runs(runs)), int(size), epsilon) if runs else None
            given = (name, groups[name], int(size), values, error, entries if entries.size else None, spread, epsilon)
            blocks.append(Block(*given, products=int(products), converged=bool(converged)))
        if not blocks:
            raise ValueError(f"no block of {subject.label} could be read: see the failures above")
        ends = None
        for values, errors, about in self._found(i, "block_ends", rows).values():
            products, converged, scale, tol = about.tolist()
            none = torch.zeros(0, 2)
            ends = EigenPairs(values, none, errors, (nan, nan), int(products), bool(converged), tol, scale)
        leaks = self._found(i, "leak", rows)
        left_out = None
        if len(leaks) == len(blocks) > 1:
            left_out = energy_from_leakage({name: (inside, outside) for name, (inside, outside) in leaks.items()})
        full = subject.samples_of
        readings = tuple(p for at in self.asked.second for p in layer_hessians(full, at, dense=self.asked.dense))
        by = "pattern" if self.asked.patterns else self.asked.by or "tensor"
        _, notes = exact_problem(full)
        return assemble(blocks, full, by, subject.matrix, ends, left_out, readings, notes, label=subject.label)


def make_tasks(
    subjects: Sequence[Subject],
    asked: SpectrumRequest,
    *,
    settings: Mapping[str, Any] | None = None,
    total: Total = single_rank,
    choices: Sequence[Mapping[str, Any]] = (),
    check: bool = True,
) -> SpectrumTasks:
    """The jobs of these subjects, the longest first.

    Raises ValueError as `spectrum` and `layers` do, before anything long begins.
    """
    jobs: list[Task] = []
    lengths: list[int] = []
    labels = [s.label for s in subjects]
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"two subjects are called {twice!r}; each wants a label of its own")
    for i, subject in enumerate(subjects):
        if check:
            check_mean(subject.problem)
        matrix = build_operator(subject.problem, subject.matrix, asked.parameters, total)
        for made, length in [
            *_whole_jobs(i, matrix.size, len(matrix.layout.names), asked),
            *_layer_jobs(i, subject, asked),
        ]:
            jobs.append(made)
            lengths.append(length)
    first = {"density": 0, "trace": 1, "ends": 2, "whole": 2, "block_ends": 3, "block": 4, "leak": 5, "gradient": 6}
    order = sorted(range(len(jobs)), key=lambda j: first[jobs[j].kind])
    chosen = tuple(jobs[j] for j in order)
    return SpectrumTasks(tuple(subjects), asked, chosen, max(lengths), settings or {}, total, tuple(choices))


def _whole_jobs(i: int, n: int, tensors: int, a: SpectrumRequest) -> list[tuple[Task, int]]:
    """A subject's own jobs, with the numbers that each of their rows may need."""
    for end, count in (("top", a.top), ("bottom", a.bottom)):
        if not 0 <= count <= 100:
            raise ValueError(f"--{end} wants 0 to 100 eigenvalues; got {count}")
        if count > n:
            raise ValueError(f"--{end} {count}: the matrix has {n} rows, and no more eigenvalues than that")
    check_eigenvalue_request(Which("top", 1), n, a.tol, a.max_products, a.confidence)
    if a.density:
        check_density_request(a.density_error, a.density_steps, a.density_probes)
    if a.trace_products:
        check_trace_request(a.trace_method, a.trace_products)
    found = [(Task(i, "gradient"), 8)]
    if n <= a.dense:
        return [*found, (Task(i, "whole"), n * n + 16)]
    if a.top or a.bottom:
        kept = n * (a.top + a.bottom) if a.vectors else 0
        found.append((Task(i, "ends"), (a.top + a.bottom) * (tensors + 2) + kept + 80))
    if a.trace_products:
        found.append((Task(i, "trace"), 16))
    if a.density and a.density_probes:
        found += [(Task(i, "density", str(p)), 2 * (a.density_steps or 64) + 16) for p in range(a.density_probes)]
    elif a.density:
        found.append((Task(i, "density"), _DENSITY_ROW))
    return found


_DENSITY_ROW = 8192  # 400 products as alpha and beta, with room for the heads of many short runs


def _layer_jobs(i: int, subject: Subject, a: SpectrumRequest) -> list[tuple[Task, int]]:
    if a.by is None and not a.patterns:
        return []
    layout = Layout.of(dict(subject.problem.model.named_parameters()))
    groups = groups_of(layout.names, a.by or "tensor", a.patterns)
    sizes = _sizes(layout)
    found = [(Task(i, "block_ends"), 32)]
    for name, tensors in groups.items():
        n = sum(sizes[t] for t in tensors)
        found.append((Task(i, "block", name), n * n + n + 32 if n <= a.dense else _DENSITY_ROW))
        if a.probes and len(groups) > 1:
            found.append((Task(i, "leak", name), 2 * a.probes + 8))
    return found


def _sizes(layout: Layout) -> dict[str, int]:
    return dict(zip(layout.names, layout.sizes, strict=True))


def _of_runs(runs: Sequence[LanczosRun]) -> list[Any]:
    return [part for r in runs for part in (r.alpha, r.beta, [r.weight, float(r.exact)])]


def _to_runs(parts: Sequence[np.ndarray]) -> list[LanczosRun]:
    return [
        LanczosRun(alpha, beta, float(about[0]), bool(about[1]))
        for alpha, beta, about in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _pairs(parts: Sequence[np.ndarray], dtype: torch.dtype) -> EigenPairs | None:
    values, residuals, about, _, vectors = parts
    if not values.size:
        return None
    upper, low, products, converged, tolerance, scale, confidence, others = about.tolist()
    held = torch.from_numpy(vectors.copy()).to(dtype)
    return EigenPairs(
        values, held, residuals, (upper, low), int(products), bool(converged), tolerance, scale, confidence, others
    )
