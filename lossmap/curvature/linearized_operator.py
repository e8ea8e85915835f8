"""The curvature at one point as an operator, and the factory that makes one for each point of a map.

    factory = autotune.prepare(problem)              # what all points have in common, made once
    operator = factory.at(plane.at(point))           # computes the values that products read, when first asked
    operator @ v, operator.loss()

The factory holds the problem, how products are computed (`HvpPlan`), and the traces so far; the operator holds what its
backend (see `backends`) keeps of the point. Before linearized products are trusted, `disagreement` compares one with
double backward in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.utils import _pytree as pytree

from lossmap.copies import lazy_copy
from lossmap.curvature.backends import (
    LINEARIZATIONS,
    DoubleBackwardProducts,
    FallbackProducts,
    LinearizedProducts,
    PointProducts,
    RetainedGraphProducts,
)
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck
from lossmap.curvature.linearized_program import LinearizedProgram
from lossmap.curvature.operators import (
    MAX_HELD_ENTRIES,
    Product,
    RoundingResult,
    Total,
    hessian,
    made_by_all,
    mean_product,
    scipy_operator,
    single_rank,
)
from lossmap.curvature.rounding import MAX_RELATIVE, SAFETY, MeasuredRounding, RoundingProbe, problem_in
from lossmap.data.batches import Batch, Batches, FixedBatches, Resident, largest_to_cut, move_batch
from lossmap.data.criteria import NoWeight
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.linalg.operator import SymmetricOperator
from lossmap.module_walks import named_tensors
from lossmap.seeding import generator
from lossmap.sums import alike, float64_device, for_float64, has_float64, in_float64, norm

CHECKED_SAMPLES = 4  # on which linearized products are compared with double backward
MAX_TWIN_BYTES = 1 << 26  # of a copy of model and data in float64 that is kept from point to point
MIN_ROUNDING_SAMPLES = 256  # over which rounding is measured where a plan is made
MIN_FEW, MAX_FEW, FEW_SHARE = 16, 128, 16  # samples over which it is looked for at a point: a share of all
CHEAP_SIZE = 10_000  # entries of theta up to which it is looked for over all samples, where these are `MAX_FEW` at most
MAX_TWIN_BATCH = 256  # samples of its batches, whose graphs are kept in memory
MAX_DISAGREEMENT = 1e-9  # the relative difference between them that float64 explains


@dataclass(frozen=True, eq=False)
class FirstSamples:
    """A problem over a few samples of its data, and the same in float64, over a copy of the model.

    kept  by precision: the tensors of the point where a plan was chosen, and the operator there. A survey looks there
          again, the only point of some; let go of at the first look elsewhere
    """

    data: Batches
    problem: Problem
    kept: dict[torch.dtype, tuple[Mapping[str, Tensor], LinearizedOperator]] = field(default_factory=dict)

    def at(
        self, state: Mapping[str, Tensor], dtype: torch.dtype, plan: HvpPlan, make: Callable[[], LinearizedOperator]
    ) -> LinearizedOperator:
        """The operator at these tensors in a precision, by this plan: the one that is kept, or a new one."""
        if not all(_are_equal(there, state) for there, _ in self.kept.values()):
            self.kept.clear()
        known = self.kept.get(dtype)
        former = None if known is None else known[1].factory
        if former is not None and replace(former.plan, rounding=None) == replace(plan, rounding=None):
            return known[1]  # type: ignore[index]
        operator = make()
        if self.kept:
            self.kept[dtype] = (state, operator)
        return operator

    @cached_property
    def double(self) -> Problem:
        """Raises what the model raises there, see `problem_in`."""
        return problem_in(self.problem, torch.float64)


@dataclass(frozen=True, eq=False)
class LinearizedOperator:
    """The curvature at one point: `operator @ v` and `operator.loss()`, until the tensors of that point change.

    layout    theta's
    dtype     of theta and of the products
    place     the device of theta, on which the products are made
    problem   whose samples this rank holds
    total     adds a tensor up over the ranks of a team
    products  the backend at this point
    probe     measures the rounding here
    given     the rounding as measured elsewhere; it is measured here where `measured_here`, else assumed
    factory   what made it, and keeps what points share
    kinks     by how much the matrix differs on the two sides of a kink, see `linalg.Rounding`
    """

    layout: Layout
    dtype: torch.dtype
    place: torch.device
    problem: Problem
    total: Total
    products: PointProducts
    probe: RoundingProbe
    given: RoundingResult | None = None
    measured_here: bool = False
    factory: OperatorFactory | None = None
    kinks: float = 0.0

    @property
    def size(self) -> int:
        """The entries n of theta."""
        return self.layout.size

    @property
    def device(self) -> torch.device:
        """Where vectors are kept: where the products are made, or on the CPU where that device has no float64."""
        return float64_device(self.place)

    @cached_property
    def measured(self) -> RoundingResult | None:
        """The rounding of the products; measured here, when first asked for, by all ranks of a team together."""
        return self.probe() if self.measured_here else self.given

    @property
    def rounding(self) -> float | None:
        """How far rounding may move an eigenvalue, in their unit; None where it is assumed."""
        return None if self.measured is None else self.measured.rounding

    @property
    def rounding_ratio(self) -> float | None:
        """The same relative to the largest absolute eigenvalue, at least; None where it is assumed."""
        return None if self.measured is None else self.measured.ratio

    def in_float64(self) -> SymmetricOperator:
        """The same curvature in float64 over a copy of model and data: by double backward where that is right.

        Raises what the model raises there, and RuntimeError on the other ranks of a team.
        """
        state = self.probe.state
        if self.factory is not None and state is not None and self.factory.keeps_twin:
            factory = self.factory
            made_by_all(self.total, self.device, lambda: factory.twin)
            return factory.twin_at(state)
        return self.probe.in_float64(self.kinks)

    def rounding_of(self, vectors: Tensor) -> tuple[float, float]:
        """|(H - H64) v| and |H64 v|, v = v_1 + ... + v_b of b vectors of length one, (n, b), over a few samples.

        The rounding errors of the vectors are hardly correlated, so that the norm of their sum is about the root of the
        sum of their squares, above the largest. H64 is the same in float64. Where the plan was made the first is what
        was seen there over the same samples, by other vectors, and the second is |H v|. Raises what the model raises.
        """
        if self.factory is None or self.probe.state is None:
            raise ValueError("this operator stands alone: its rounding is measured by `measured`")
        is_linearized = isinstance(getattr(self.products, "current", self.products), LinearizedProducts)
        few = self.factory.few_at(self.factory.traces_few and is_linearized, self.probe.state)
        length = math.sqrt(vectors.shape[1])  # of the sum, where they are at right angles
        v = ((vectors / torch.linalg.vector_norm(vectors, dim=0)).sum(1) / length).to(self.dtype)
        known: RoundingResult | None = vars(few).get("measured") if few.measured_here else None  # it is kept there
        if known is not None:
            return known.rounding / SAFETY, length * norm(in_float64(few @ v))
        exact = in_float64(few.in_float64() @ in_float64(v))
        difference = exact - in_float64(few @ v)
        return length * float(torch.linalg.vector_norm(difference)), length * float(torch.linalg.vector_norm(exact))

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,), or with the columns of a block, (n, b) -> (n, b).

        Raises as `CurvatureOperator` does: ValueError for another length of v, FloatingPointError where the product
        is not finite.
        """
        local_sum = self.products.local_sum
        return mean_product(self.layout, v, self.dtype, self.place, local_sum, self._samples, self.total)

    def loss(self) -> float:
        """The mean loss here, over all samples of all ranks; it may be NaN or infinite, which is no error.

        Raises what the model raises, and RuntimeError on the other ranks of a team.
        """
        message = torch.zeros(2, dtype=torch.float64, device=self.device)
        failure: Exception | None = None
        with torch.inference_mode(False):
            try:
                message[0] = self.products.local_loss()
                message[1] = self.problem.weight
            except Exception as error:
                failure = error
                message[1] = -torch.inf  # no sum of samples is negative: the sign that some rank failed
            message = self.total(message)
        if failure is not None:
            raise failure
        if float(message[1]) < 0:
            raise RuntimeError("the loss failed on another rank of the team, whose report names the reason")
        if float(message[1]) == 0:
            raise NoWeight
        return float(message[0]) / float(message[1])

    def _samples(self) -> float:
        return self.problem.weight

    def to_scipy(self) -> LinearOperator:
        """The matrix for SciPy: NumPy vectors in, NumPy vectors out."""
        return scipy_operator(self, self.size, self.dtype, self.device)


@dataclass(frozen=True, eq=False)
class OperatorFactory:
    """What does not depend on the point. Make one by `autotune.prepare`; `at` gives the operator at a point.

    parameters  what theta is made of
    product     one batch's product: hessian, gauss_newton or fisher
    total       adds a tensor up over the ranks of a team
    plan        how products are computed; given to `prepare` on another rank, or on resuming, it is taken as it is
    memory      bytes that kept values may take
    programs    the traces so far, by the shape of a batch
    twin_programs  the same of operators in other precisions, by product and precision
    few_samples  those over which rounding is looked for at a point, by their number
    alone       of the factory over them alone these; else None
    check       what is known of the backends: other ranks are given it, and do not look themselves
    fallback    whether double backward may take over at a point where the trace fails
    compared    whether at every point the loss of a trace or a graph is compared with the model's
    """

    problem: Problem
    parameters: str
    product: Product
    total: Total
    plan: HvpPlan
    memory: int
    programs: dict[Any, LinearizedProgram] = field(default_factory=dict, repr=False)
    fallback: bool = False
    twin_programs: dict[Any, dict[Any, LinearizedProgram]] = field(default_factory=dict, repr=False)
    few_samples: dict[int, FirstSamples] = field(default_factory=dict, repr=False)
    alone: FirstSamples | None = field(default=None, repr=False)
    check: ProductCheck = field(default_factory=ProductCheck)
    compared: bool = True

    def __getstate__(self) -> dict[str, Any]:
        """Without the traces: in another process they are made anew."""
        return {**self.__dict__, "programs": {}, "twin_programs": {}, "few_samples": {}}

    @cached_property
    def layout(self) -> Layout:
        """How theta is made."""
        return Layout.of(selected(self.problem.model, self.parameters))

    @property
    def size(self) -> int:
        """The entries n of theta."""
        return self.layout.size

    @cached_property
    def batched(self) -> Problem:
        """The problem in batches of the chosen size."""
        return self.problem.rebatched(self.plan.batch_size)

    @property
    def batch(self) -> int:
        """Samples of the largest batch."""
        return min(self.plan.batch_size, max(1, self.problem.data.samples))

    def smaller(self) -> OperatorFactory | None:
        """For less memory: half the batch and half the bytes for kept values, no bytes where batches cannot be halved.

        None where there is nothing left to give up.
        """
        can_halve = min(self.batch, largest_to_cut([self.problem.data])) > 1
        if not can_halve:
            return replace(self, memory=0) if self.memory else None
        return replace(self, plan=replace(self.plan, batch_size=self.batch // 2), memory=self.memory // 2)

    def at(self, tensors: Mapping[str, Tensor] | None = None, *, measured: bool = False) -> LinearizedOperator:
        """The curvature where the model has these tensors; all others, or without any all, as they are.

        tensors   parameters and buffers by their names in the state dict; the model itself is not changed
        measured  whether its rounding is measured here; else it is that of the plan, at another point, unless that
                  is more than `MAX_RELATIVE`

        The values that products read are computed at the first product or loss. Raises KeyError for a name that the
        model has not.
        """
        own: dict[str, Tensor] = named_tensors(self.problem.model)
        for name in tensors or ():
            if name not in own:
                raise KeyError(f"the model has no tensor named {name!r}")
        state = {k: t.detach() for k, t in own.items()}
        state |= {k: alike(t.detach(), own[k]) for k, t in (tensors or {}).items()}
        state = {k: lazy_copy(t) for k, t in state.items()}  # a forward pass may write into its weights and buffers
        return self.by(self.products(state), state, measured=measured)

    def by(self, products: PointProducts, state: Mapping[str, Tensor], *, measured: bool) -> LinearizedOperator:
        """The curvature at these tensors by products that were made of them with this plan; see `at`."""
        first = state[self.layout.names[0]]
        return LinearizedOperator(
            self.layout,
            first.dtype,
            first.device,
            self.problem,
            self.total,
            products,
            self._rounding_probe(products, {k: t.detach() for k, t in state.items()}),
            self._rounding(first.dtype),
            measured or self._cancels,
            self,
            self.check.disagreement,
        )

    def _rounding_probe(self, products: PointProducts, state: Mapping[str, Tensor]) -> RoundingProbe:
        """What measures rounding at these tensors, over batches of the plan's size: others would need traces anew.

        Where `traces_few`, over batches of the size of `few`, whose traces serve at all points.

        products  of the operator whose rounding it is, which serve where rounding is looked for over all samples
        """
        batch, samples = self.batch, max(MIN_ROUNDING_SAMPLES, self.batch)
        if self.traces_few:
            batch = self._few_samples
            samples = batch * math.ceil(min(samples, 2 * MIN_ROUNDING_SAMPLES) / batch)
            samples = min(samples, batch * (self.problem.data.samples // (2 * batch)))  # of all the last one is smaller
        return RoundingProbe(
            self.problem,
            self.parameters,
            self.product,
            self.total,
            partial(self._over, products, state, batch),
            state,
            samples,
            batch,
            partial(self._twin, state) if self._has_own_twin else None,
        )

    @property
    def _is_double_backward_right(self) -> bool:
        """Whether double backward may serve as a reference."""
        return self.fallback or self.plan.backend == "double-backward"

    @property
    def _has_own_twin(self) -> bool:
        """Whether products in another precision are made otherwise than by double backward that keeps no graph."""
        return self.traces_few or not self.compared or self._keeps_graphs or not self._is_double_backward_right

    @property
    def _keeps_graphs(self) -> bool:
        """Whether products are those of double backward, whose graph is kept: then its twin's is kept too."""
        return self.plan.backend == "retained-graph" and self.size <= MAX_HELD_ENTRIES

    def _reference_plan(self, batch_size: int) -> HvpPlan:
        """Double backward, which needs no trace, by graphs that are kept where its own are; else the backend that is
        used here.
        """
        if self._keeps_graphs:  # in float64 of twice the bytes
            return HvpPlan("retained-graph", batch_size, graph_bytes=2 * self.plan.graph_bytes)
        if self._is_double_backward_right:
            return HvpPlan("double-backward", batch_size)
        return HvpPlan(self.plan.backend, batch_size, graph_bytes=self.plan.graph_bytes)

    @cached_property
    def keeps_twin(self) -> bool:
        """Whether model and data in float64 are few enough bytes to be kept from point to point."""
        entries = sum(t.numel() for t in named_tensors(self.problem.model).values())
        if not isinstance(self.problem.data, (Resident, FixedBatches)):
            return False  # read from a disk
        first = next(iter(self.problem.rebatched(1).data))
        per_batch = sum(t.numel() for t in pytree.tree_leaves(first) if isinstance(t, Tensor))
        entries += per_batch * self.problem.data.samples // max(1, samples_in(first))
        return 8 * entries <= MAX_TWIN_BYTES

    @cached_property
    def traces_few(self) -> bool:
        """Whether rounding is measured by linearized products, traced once in either precision for batches of `few`.

        Double backward is dearer by far, but needs no trace: so it is where there are few samples, or where little can
        be kept.
        """
        is_large = self.problem.data.samples >= 2 * MIN_ROUNDING_SAMPLES
        is_cut = not isinstance(self.problem.data, FixedBatches)
        return self.plan.backend == "linearized" and is_large and is_cut and self.keeps_twin

    @property
    def _few_samples(self) -> int:
        samples = int(self.problem.data.samples)
        if samples <= MAX_FEW and self.size <= CHEAP_SIZE:
            return max(1, samples)
        return min(max(samples // FEW_SHARE, MIN_FEW), MAX_FEW)

    @property
    def _traced_plan(self) -> HvpPlan:
        """That of float64 products where `traces_few`: without tiles, in the memory format that is the faster here."""
        return HvpPlan("linearized", self._few_samples, self.plan.memory_format)

    def few(self, traced: bool) -> OperatorFactory:
        """The factory over a few samples, of which the rounding of single vectors is cheap; made once.

        traced  whether by linearized products, as the plan's own. The loss of their traces is not compared with the
                model's: at a point where the plan's own trace gave another loss, double backward is to be asked for
        """
        if traced not in self._few:
            few = self._few_of_data
            plan, programs = self._reference_plan(self._few_samples), dict[Any, LinearizedProgram]()
            if traced:
                plan, programs = replace(self.plan, batch_size=self._few_samples, vectorized=False), self.programs
            memory = min(self.memory, MAX_TWIN_BYTES)
            self._few[traced] = replace(
                self, problem=few.problem, plan=plan, memory=memory, programs=programs, alone=few,
                compared=not traced,
            )  # fmt: skip
        return self._few[traced]

    @cached_property
    def _few(self) -> dict[bool, OperatorFactory]:
        return {}

    def few_at(self, traced: bool, state: Mapping[str, Tensor]) -> LinearizedOperator:
        """The operator over a few samples at these tensors, see `few`."""
        few = self.few(traced)
        return self._few_of_data.at(state, state[self.layout.names[0]].dtype, few.plan, lambda: few.at(state))

    def twin_at(self, state: Mapping[str, Tensor]) -> LinearizedOperator:
        """The operator of `twin` at these tensors, which are in the model's own precision."""
        twin = self.twin
        if self.alone is None:
            return twin.at(state)
        return self.alone.at(state, torch.float64, twin.plan, lambda: twin.at(state))

    @property
    def _few_of_data(self) -> FirstSamples:
        """The first samples, as other factories over the same data have them, too."""
        size, data = self._few_samples, self.problem.data
        known = self.few_samples.get(size)
        if known is None or known.data is not data:
            batch = self.problem.first_that_counts(self.problem.rebatched(size).data)
            known = FirstSamples(data, self.problem.with_data(FixedBatches((batch,))))
            self.few_samples[size] = known
        return known

    def over_few(self, products: RetainedGraphProducts | None = None) -> LinearizedOperator:
        """The operator at the model's own tensors, whose rounding is measured over those samples over which points are
        looked at; over a batch where its products would be others there.

        products  over those samples, where they were made before
        """
        if self.plan.backend == "linearized" and not self.traces_few:
            operator = self.at(measured=True)
            return replace(operator, probe=replace(operator.probe, samples=self.batch))
        few = self.few(self.traces_few)
        operator = few.at(measured=True) if products is None else few.by(products, products.state, measured=True)
        if few.alone is not None and few.keeps_twin and operator.probe.state is not None:
            few.alone.kept[operator.dtype] = (operator.probe.state, operator)
        return operator

    @cached_property
    def twin(self) -> OperatorFactory:
        """The factory of the same operators in float64; made once, since points need it often."""
        problem = problem_in(self.problem, torch.float64) if self.alone is None else self.alone.double
        plan = self._reference_plan(min(self.plan.batch_size, MAX_TWIN_BATCH))
        memory = min(self.memory, MAX_TWIN_BYTES)
        # with its tensors in other places the model is the same function, which was seen in its own precision
        twin = OperatorFactory(
            problem, self.parameters, self.product, self.total, plan, memory, check=self.check,
            compared=not self._keeps_graphs,
        )  # fmt: skip
        if not self.traces_few and self.compared:  # what is not compared is the traced `few` of another
            return twin
        return replace(
            twin,
            plan=self._traced_plan,
            programs=self._twin_traces(self.product, torch.float64),
            fallback=self.fallback,
            compared=self.compared,
        )

    def _twin_traces(self, product: Product, dtype: torch.dtype) -> dict[Any, LinearizedProgram]:
        """The traces of operators in another precision."""
        return self.twin_programs.setdefault((product, dtype), {})

    @property
    def _cancels(self) -> bool:
        """Whether products cancelled so much where the plan was made that rounding is measured at every point."""
        return self.plan.rounding is not None and self.plan.rounding[1] > MAX_RELATIVE

    def _rounding(self, dtype: torch.dtype) -> MeasuredRounding | None:
        """What is allowed at a point for what was measured where the plan was made; None where nothing was."""
        if self.plan.rounding is None:
            return None
        return MeasuredRounding.elsewhere(self.plan.rounding[1], float(torch.finfo(dtype).eps))

    def _over(
        self, products: PointProducts, state: Mapping[str, Tensor], batch_size: int, problem: Problem
    ) -> LinearizedOperator:
        """The operator at these tensors over other data, by the same plan; rounding assumed.

        Over the operator's own data by its own products, so that what these keep is made once.

        A trace for fewer samples that did not fit would differ from its twin, whose loss is compared.
        """
        plan = replace(self.plan, batch_size=batch_size, rounding=None)
        other = replace(self, problem=problem, plan=plan, compared=self.compared and not self.traces_few)
        if problem is self.problem and batch_size == self.batch and other.compared == self.compared:
            return other.by(products, state, measured=False)
        return other.at(state)

    def _twin(
        self, state: Mapping[str, Tensor], given: Problem, dtype: torch.dtype, product: Product
    ) -> LinearizedOperator:
        """The operator of a problem in another precision, at these tensors: linearized, or by the backend used here
        where double backward is wrong.
        """
        if given is self.problem and product is self.product and dtype == torch.float64 and self.keeps_twin:
            return self.twin_at(state)
        problem = problem_in(given, dtype, state)
        plan, fallback = self._reference_plan(self.plan.batch_size), False
        if product is not hessian and self._keeps_graphs:  # graphs are kept of the Hessian alone
            plan = HvpPlan("double-backward", self.plan.batch_size)
        if self.traces_few and product is self.product and problem.loss is self.problem.loss:
            plan, fallback = self._traced_plan, self.fallback
            if isinstance(problem.data, FixedBatches):  # cut here, and alike: the loss of one of them is compared
                problem = problem.with_data(BatchList(problem.data.batches))
        twin = OperatorFactory(problem, self.parameters, product, self.total, plan, self.memory, fallback=fallback)
        return replace(twin, programs=self._twin_traces(product, dtype)).at()

    def products(self, state: Mapping[str, Tensor]) -> PointProducts:
        """What the plan's backend offers at a point, where the model has these tensors."""
        if self.plan.backend == "double-backward":
            return self._double_backward(state)
        if self.plan.backend == "retained-graph":
            return RetainedGraphProducts(self.batched, self.layout, self.plan, state, self.memory, self.compared)
        linearized = LinearizedProducts(
            self.batched, self.layout, self.product, self.plan, state, self.memory, self.programs, self.compared
        )
        return FallbackProducts(linearized, partial(self._double_backward, state)) if self.fallback else linearized

    def _double_backward(self, state: Mapping[str, Tensor]) -> PointProducts:
        return DoubleBackwardProducts(self.batched, self.parameters, self.product, state)


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether tensors by name are the same."""
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def disagreement(factory: OperatorFactory, reference: str = "double-backward") -> str | None:
    """Why products may not be linearized, in one clause; None where they agree with the reference's.

    reference  the backend to compare with: double-backward, or linearized in the contiguous format

    One product is compared in float64, on a few samples, with the model's own tensors and in the plan's memory format,
    since operations differ in what they make of it.
    """
    if factory.product not in LINEARIZATIONS:
        return "there are no rules for this product"
    try:
        truth, product = _compared_products(factory, reference)
    except Exception as error:  # user code may raise anything under a tracer: then it is differentiated as it is
        lines = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {lines[0]}"
    difference, size = norm(product - truth), norm(truth)
    if difference <= MAX_DISAGREEMENT * size:
        return None
    relative = difference / size if size else difference
    return f"its product differs from {reference.replace('-', ' ')}'s by {relative:.1g}"


def _compared_products(factory: OperatorFactory, reference: str) -> tuple[Tensor, Tensor]:
    """One product with a random vector, (1, n) float64, by the reference and linearized."""
    problem = factory.problem.rebatched(CHECKED_SAMPLES)
    if not has_float64(next(problem.model.parameters()).device):  # its own tensors take none of another device
        problem = problem_in(problem, torch.float64)
    few = BatchList([move_batch(next(iter(problem.data)), None, torch.float64)])
    state = {k: t.detach() for k, t in named_tensors(problem.model).items()}
    state = {k: for_float64(t) for k, t in state.items()}
    rows = torch.randn(1, factory.size, generator=generator("disagreement", factory.size), dtype=torch.float64)
    rows = rows.to(next(iter(state.values())).device)
    plan = replace(factory.plan, backend="linearized", batch_size=CHECKED_SAMPLES, vectorized=False)
    small = OperatorFactory(problem.with_data(few), factory.parameters, factory.product, single_rank, plan, 1 << 40)
    twin = replace(small, plan=HvpPlan(reference, CHECKED_SAMPLES), programs={})
    with torch.no_grad(), temporary_parameters(problem.model, state):
        return twin.products(state).local_sum(rows), small.products(state).local_sum(rows)


@dataclass(frozen=True, eq=False)
class BatchList:
    """A few batches in place of the data they were taken from."""

    batches: Sequence[Batch]

    @property
    def samples(self) -> int:
        """In all batches."""
        return sum(samples_in(b) for b in self.batches)

    @property
    def batch_size(self) -> int:
        """Samples of the largest batch."""
        return max(samples_in(b) for b in self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def rebatched(self, size: int) -> BatchList:
        """The same: these batches are not cut again."""
        return self

    def share(self, rank: int, size: int) -> BatchList:
        """The same: these batches are not shared out."""
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> BatchList:
        """On another device, floating-point tensors in another precision."""
        return BatchList([move_batch(b, device, dtype) for b in self.batches])
