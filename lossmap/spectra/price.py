"""What the tasks of a spectrum are expected to cost, before any is done: from a few timed products.

The number of products of a task is an expectation (`linalg.expected_products`); the seconds of one are measured on this
rank, over one batch, for each kind of operator that the tasks multiply with: the whole matrix, that of all parameters,
a layer's block, and a small block in float64. What a solver takes beside its products, which is most of the time of a
small network, is measured too (`linalg.solver_time`). `lossmap estimate` rehearses the tasks instead: that is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lossmap.curvature.operators import single_rank
from lossmap.curvature.product_time import seconds_of_product
from lossmap.curvature.team_check import is_alone
from lossmap.geometry.parameter_vector import Layout, movable_parameters, selected
from lossmap.linalg.expected_products import (
    BLOCK_DENSITY_ERROR,
    CERTIFIED_ENDS,
    SpectrumParts,
    block_products,
    density_products,
    density_products_left,
    ends_products,
    trace_products,
)
from lossmap.linalg.solver_time import density_seconds, seconds_of_step, steps_of_basis
from lossmap.memory import memory_now
from lossmap.report.price import Price
from lossmap.spectra.block_groups import size_of
from lossmap.spectra.blocks import block_matrix, exact_problem
from lossmap.spectra.cost import Cost
from lossmap.spectra.request import SpectrumRequest, Subject, Task
from lossmap.spectra.tasks import SpectrumTasks
from lossmap.sums import float64_device

MAX_SEARCH_VECTORS = 200  # of the length of theta, that a search or a Lanczos run holds at most, about
FIXED_SECONDS = 0.2  # of a command beside its tasks: opening the file, the first display, closing
TASK_SECONDS = 0.01  # of each: its record, written to the disk
WITHOUT_BASIS = ("gradient", "whole", "leak")  # kinds of tasks whose products are not orthogonalised
ProductTimer = Callable[[Any], float]  # operator -> seconds of one product


@dataclass(frozen=True, eq=False)
class PriceList:
    """Seconds of a product of each kind of operator, measured when first asked for.

    tasks  the measure, whose prepared matrices are used where this rank is alone in its team
    timer  operator -> seconds of one product, over this rank's share of the samples
    counts_solver  whether what solvers take beside their products is counted
    """

    tasks: SpectrumTasks
    timer: ProductTimer = seconds_of_product
    known: dict[tuple[int, str], float] = field(default_factory=dict)
    counts_solver: bool = False

    @classmethod
    def of(cls, tasks: SpectrumTasks) -> PriceList:
        """The prices of all that these tasks take."""
        return cls(tasks, counts_solver=True)

    def beside_product(self, task: Task) -> float:
        """Of a solver's step, without its product; of the ends, the longer of two searches."""
        is_exact = operator_kind(self.tasks, task) == "exact block" or task.kind in WITHOUT_BASIS
        if not self.counts_solver or is_exact:
            return 0.0
        request, size = self.tasks.request, size_of_task(self.tasks, task)
        products, kind, values = products_expected(task, size, request), "ends", 1
        if task.kind == "ends":
            values = max(request.top, request.bottom)
            products = ends_products(values, 0, size, request.tol, request.max_products)
        elif task.kind in ("trace", "density"):
            kind = task.kind
        elif task.kind == "block":
            kind = "density"
        steps = steps_of_basis(kind, products, values, request.density_steps)
        first = next(iter(self.tasks.subjects[task.subject].problem.model.parameters()))
        return seconds_of_step(size, first.dtype, steps, float64_device(first.device))

    def seconds_with_step(self, task: Task) -> float:
        """Of one product of this task, and of the solver's step that it is part of."""
        return self.seconds(task) + self.beside_product(task)

    def beside_products(self, task: Task) -> float:
        """What a task takes at its end: the band of a density, computed and reported, and its record."""
        if not self.counts_solver:
            return 0.0
        request, size = self.tasks.request, size_of_task(self.tasks, task)
        computed = reported = 0.0
        if task.kind == "density":
            products = products_expected(task, size, request)
            probes = 1 if task.name else request.density_probes
            computed, reported = density_seconds(size, products, request.density_steps, probes)
        elif task.kind == "block" and size > request.dense:
            computed, reported = density_seconds(size, density_products(BLOCK_DENSITY_ERROR, size))
        return computed + reported + TASK_SECONDS

    def seconds(self, task: Task) -> float:
        """Of one product of this task."""
        kind = operator_kind(self.tasks, task)
        if (task.subject, kind) not in self.known:
            self.known[task.subject, kind] = self.timer(self._operator(task, kind))
        return self.known[task.subject, kind]

    def _operator(self, task: Task, kind: str) -> Any:
        tasks, subject = self._alone, self.tasks.subjects[task.subject]
        if kind == "whole":
            return tasks.matrix(subject)
        if kind == "all":
            return tasks.matrix(subject, tasks.request.block_parameters)
        problem = subject.problem
        if kind == "exact block":
            problem, _ = exact_problem(problem)
        tensors = subject.groups(tasks.request)[task.name]
        return block_matrix(problem, subject.matrix, tensors, single_rank, check=tasks.check_of(subject))

    @property
    def _alone(self) -> SpectrumTasks:
        """The measure without its team, none of whose other ranks takes part here."""
        if is_alone(self.tasks.total):
            return self.tasks
        return replace(self.tasks, total=single_rank, made={})


def operator_kind(tasks: SpectrumTasks, task: Task) -> str:
    """Which operator a task multiplies with: whole, all, block, or exact block (in float64)."""
    if task.kind == "block":
        small = block_size(tasks.subjects[task.subject], tasks.request, task.name) <= tasks.request.dense
        return "exact block" if small else "block"
    return "all" if task.kind in ("leak", "block_ends") else "whole"


def block_size(subject: Subject, request: SpectrumRequest, name: str) -> int:
    """The number of parameters of a block."""
    layout = Layout.of(movable_parameters(subject.problem.model))
    return size_of(layout, subject.groups(request)[name])


def parts_of(request: SpectrumRequest, n: int) -> SpectrumParts:
    """What is computed of a subject's whole matrix, of size n."""
    return SpectrumParts(
        n, request.top, request.bottom, request.tol, request.max_products, request.trace_products,
        request.trace_error, request.density, request.density_error, request.density_steps, request.density_probes,
        request.dense,
    )  # fmt: skip


def products_expected(task: Task, n: int, request: SpectrumRequest) -> int:
    """Products of a task of an operator, or block, of size n."""
    if task.kind == "density":
        probes = 1 if task.name else request.density_probes
        return density_products(request.density_error, n, request.density_steps, probes)
    by_kind: dict[str, Callable[[], int]] = {
        "gradient": lambda: 1,
        "whole": lambda: n,
        "ends": lambda: ends_products(request.top, request.bottom, n, request.tol, request.max_products),
        "trace": lambda: trace_products(request.trace_products, n, request.trace_error),
        "block": lambda: block_products(n, request.dense, request.tol),
        "block_ends": lambda: min(n, CERTIFIED_ENDS),
        "leak": lambda: request.probes,
    }
    return by_kind[task.kind]()


def products_left(task: Task, n: int, request: SpectrumRequest) -> int:
    """Products that a task of an operator, or block, of size n may take beyond those expected."""
    if task.kind == "density":
        left = density_products_left(request.density_error, n, request.density_steps, request.density_probes)
        return left // (request.density_probes or 1) if task.name else left
    if task.kind == "block" and n > request.dense:
        return density_products_left(BLOCK_DENSITY_ERROR, n)
    return 0


def size_of_task(tasks: SpectrumTasks, task: Task) -> int:
    """The number of parameters of what a task reads."""
    subject = tasks.subjects[task.subject]
    if task.kind == "block":
        return block_size(subject, tasks.request, task.name)
    request = tasks.request
    parameters = request.block_parameters if task.kind in ("block_ends", "leak") else request.parameters
    return rows_of(subject, parameters)


def rows_of(subject: Subject, parameters: str) -> int:
    """The number of parameters of these that a subject has."""
    return sum(p.numel() for p in selected(subject.problem.model, parameters).values())


def expected_costs(tasks: SpectrumTasks, prices: PriceList | None = None) -> list[Cost]:
    """The cost expected of each task, in their order. Raises what a product raises."""
    prices = prices or PriceList.of(tasks)
    return [cost_of(task, tasks, prices) for task in tasks.tasks]


def cost_of(task: Task, tasks: SpectrumTasks, prices: PriceList) -> Cost:
    """The cost expected of one task. Raises what a product raises."""
    products = products_expected(task, size_of_task(tasks, task), tasks.request)
    return Cost(products, products * prices.seconds_with_step(task) + prices.beside_products(task))


def price_of(
    tasks: SpectrumTasks,
    workers: int = 1,
    prices: PriceList | None = None,
    numbers: Iterable[int] | None = None,
) -> Price:
    """The price of the tasks of these numbers, or of all. Raises what a product raises.

    workers  ranks, or teams of ranks, that share the tasks
    prices   what was timed before
    """
    prices = prices or PriceList.of(tasks)
    chosen = tasks.tasks if numbers is None else [tasks.tasks[i] for i in numbers]
    costs = [cost_of(task, tasks, prices) for task in chosen]
    fixed = 0.0
    if costs and prices.counts_solver:
        fixed = FIXED_SECONDS
    request = tasks.request
    parameters = request.block_parameters if request.layerwise else request.parameters
    sizes = [rows_of(s, parameters) for s in tasks.subjects]
    subject = tasks.subjects[0].problem
    itemsize = next(iter(subject.model.parameters())).element_size()
    most = max((c.products for c in costs), default=0)
    vectors = max(sizes) * itemsize * min(most, MAX_SEARCH_VECTORS)
    seconds = sum(c.seconds for c in costs) + fixed
    left = [products_left(task, size_of_task(tasks, task), request) for task in chosen]
    left_seconds = [n * prices.seconds_with_step(task) for n, task in zip(left, chosen, strict=True)]
    return Price(
        sum(c.products for c in costs),
        seconds,
        memory_now(subject.model) + vectors + tasks.expected_bytes,
        workers=workers,
        longest=max((c.seconds for c in costs), default=0.0),
        beside=seconds - sum(c.products * prices.seconds(t) for c, t in zip(costs, chosen, strict=True)),
        more=sum(left),
        more_seconds=max(sum(left_seconds) / max(1, workers), max(left_seconds, default=0.0)),
    )
