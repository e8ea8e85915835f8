"""What is to be read of which matrices, and the tasks that this is cut into. Nothing here multiplies with a matrix.

A subject is one matrix: a checkpoint's Hessian over one split. Its tasks are

    gradient     the mean loss and the length of its gradient: one gradient
    whole        all of a matrix of up to `dense` rows: n products
    ends         the largest and the smallest eigenvalues
    trace        an estimate of the trace
    density      the spectral density; one task a probe where their number is stated
    block        the spectrum of one diagonal block, of the reading layer by layer
    block_ends   the ends of the whole matrix, beside which the blocks are set
    leak         what a block leaves out: products of the matrix with vectors of that block

A task is the same whoever does it: its random numbers come from the seed and its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import Layout, movable_parameters, selected
from lossmap.linalg.eigenpairs import Which, check_eigenvalue_request
from lossmap.linalg.spectral_density import check_density_request
from lossmap.linalg.trace import check_trace_request
from lossmap.spectra.block_groups import groups_of, size_of
from lossmap.spectra.spectrum import DEFAULT_TOP, MAX_EIGENVALUES

# The order in which tasks are numbered in a file, by kind: in version 0.1 the longest came first, so it stays as it is.
# A subject has either "ends" or "whole".
LONGEST_FIRST = {"density": 0, "trace": 1, "ends": 2, "whole": 2, "block_ends": 3, "block": 4, "leak": 5, "gradient": 6}
# The order in which they are dispatched, by kind: what is there when time runs out is to be of use.
FIRST_OF_USE = {"whole": 0, "ends": 0, "gradient": 1, "trace": 2, "density": 3, "block_ends": 4, "block": 5, "leak": 6}
SMALL = 4_000  # bytes: the numbers of a task that has no arrays of a matrix's size
LANCZOS_BYTES = 64_000  # of the recurrences of a density whose number of steps is chosen while it is computed


@dataclass(frozen=True)
class SpectrumRequest:
    """What is wanted of every subject.

    dense        up to this size the whole matrix, or block, is made
    by           of the layer by layer reading: tensor, module; `patterns` instead; None for no such reading
    diagonal     each entry of the diagonal, from the products of the trace
    second       per-layer output Hessians: by inputs, weights
    vectors      keep the eigenvectors
    layer_limit  of the layer by layer reading the largest blocks alone, so many; None: all
    """

    top: int = DEFAULT_TOP
    bottom: int = 1
    trace_method: str = "xtrace"
    trace_products: int = 60
    trace_error: float | None = None
    diagonal: bool = False
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
    layer_limit: int | None = None

    @property
    def layerwise(self) -> bool:
        """Whether the reading layer by layer is wanted."""
        return self.by is not None or bool(self.patterns)

    @property
    def block_parameters(self) -> str:
        """The parameters that blocks are cut from: all, biases too, unless some others than the weights were chosen."""
        return "all" if self.parameters == "weights" else self.parameters

    @property
    def cut(self) -> str:
        """How the blocks are cut: tensor, module or pattern."""
        return "pattern" if self.patterns else self.by or "tensor"


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

    def groups(self, request: SpectrumRequest) -> dict[str, tuple[str, ...]]:
        """The tensors of each block of the layer by layer reading, by the block's name.

        Raises ValueError where a pattern matches no parameter.
        """
        chosen = selected(self.problem.model, request.block_parameters)
        names = [name for name, p in chosen.items() if p.numel()]
        return groups_of(names, request.by or "tensor", request.patterns)


@dataclass(frozen=True)
class Task:
    """One piece of work: for which subject (its number), of which kind, and which one of that kind."""

    subject: int
    kind: str
    name: str = ""


def tasks_of(subject: Subject, i: int, size: int, request: SpectrumRequest) -> list[tuple[Task, int]]:
    """The tasks of the subject number i, with the bytes that the arrays of each will take, about.

    size  rows of the subject's matrix

    Raises ValueError where the request cannot be met.
    """
    return [*_whole_tasks(i, size, request), *_layer_tasks(i, subject, request)]


def group_names(subjects: Sequence[Subject], tasks: Sequence[Task]) -> tuple[str, ...]:
    """The group of each task in the result file: `tasks/<subject>/<kind>/<name>`, no two alike.

    A slash within a name would open a further level of groups: it becomes an underscore.
    """
    names, taken = [], Counter[str]()
    for task in tasks:
        parts = ["tasks", subjects[task.subject].label or "whole", task.kind, task.name]
        name = "/".join(part.replace("/", "_") for part in parts if part)
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}~{taken[name]}")
    return tuple(names)


def _check(n: int, request: SpectrumRequest) -> None:
    for end, count in (("top", request.top), ("bottom", request.bottom)):
        if not 0 <= count <= MAX_EIGENVALUES:
            raise ValueError(f"--{end} must be 0 to {MAX_EIGENVALUES}; got {count}")
        is_cut = end == "top" and count == DEFAULT_TOP and n <= request.dense  # which nobody has chosen
        if count > n and not is_cut:
            raise ValueError(f"--{end} {count}: the matrix has {n} rows, and no more eigenvalues than that")
    check_eigenvalue_request(Which("top", 1), n, request.tol, request.max_products, request.confidence)
    if request.density:
        check_density_request(request.density_error, request.density_steps, request.density_probes)
    if request.trace_products:
        check_trace_request(request.trace_method, request.trace_products)


def _whole_tasks(i: int, n: int, request: SpectrumRequest) -> Iterator[tuple[Task, int]]:
    """The tasks that read the subject's matrix as one."""
    _check(n, request)
    yield Task(i, "gradient"), SMALL
    if n <= request.dense:
        yield Task(i, "whole"), 8 * n * n + SMALL
        return
    if request.top or request.bottom:
        count = request.top + request.bottom
        yield Task(i, "ends"), count * (4 * n * request.vectors + SMALL)
    if request.trace_products:
        yield Task(i, "trace"), 16 * n * request.diagonal + SMALL
    if not request.density:
        return
    if not request.density_probes:
        yield Task(i, "density"), LANCZOS_BYTES
        return
    for probe in range(request.density_probes):
        yield Task(i, "density", str(probe)), 16 * (request.density_steps or 64) + SMALL


def _layer_tasks(i: int, subject: Subject, request: SpectrumRequest) -> Iterator[tuple[Task, int]]:
    """The tasks of the reading layer by layer."""
    if not request.layerwise:
        return
    layout = Layout.of(movable_parameters(subject.problem.model))
    groups = subject.groups(request)
    yield Task(i, "block_ends"), SMALL
    sizes = {name: size_of(layout, tensors) for name, tensors in groups.items()}
    read = sorted(sizes, key=lambda name: -sizes[name])[: request.layer_limit]
    for name, n in sizes.items():
        if name not in read:
            continue
        yield Task(i, "block", name), 8 * n * n + SMALL if n <= request.dense else LANCZOS_BYTES
        if request.probes and len(groups) > 1:
            yield Task(i, "leak", name), SMALL
