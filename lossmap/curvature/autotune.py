"""Chooses how products are computed, by a short probe: backend, batch size, memory format, Winograd tiles, vmap.

A map visits many points with one model, and needs many products with the curvature at each. `prepare` does once what
depends on neither; `at` does once per point what does not depend on the vector:

    factory = prepare(problem)                   # traces, compares with double backward, probes
    operator = factory.at(plane.at(point))       # computes the values that products read, when first asked
    operator @ v, operator.loss()

The backends and their prices stand in `hvp_plan`; all are exact where PyTorch's derivatives are. Before their first
use they are compared with differences of the gradient in float64 on a few samples (`product_check`), and given up,
with a line to the log, where they differ or fail: a trace sees through detach, `.data`, no_grad and random numbers,
double backward through what a custom autograd function keeps. Prices as measured:
benchmarks/hvp.py.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap import accelerators
from lossmap.curvature import plan_cache
from lossmap.curvature.backends import LINEARIZATIONS, RetainedGraphProducts, differentiable_evaluation
from lossmap.curvature.hvp_plan import BACKENDS, HvpPlan, ProductCheck, backend_of
from lossmap.curvature.linearized_operator import BatchList, LinearizedOperator, OperatorFactory, disagreement
from lossmap.curvature.moved_loss import refuse_unmoved
from lossmap.curvature.operators import (
    THROUGH_OUTPUTS,
    Product,
    Total,
    differentiated,
    first_backward,
    hessian,
    made_by_all,
    outputs_and_loss,
    refuse_unfit,
    single_rank,
)
from lossmap.curvature.product_check import check_product
from lossmap.curvature.team_check import any_of_all, check_by_all
from lossmap.data.batch_structure import strided_parts
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.weight_check import refuse_moving_frozen
from lossmap.device_errors import loses_gpu, out_of_memory
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.memory import free_memory
from lossmap.seeding import generator
from lossmap.sums import norm

log = logging.getLogger("lossmap")

FIRST_BATCH_SIZE = 32  # at which the probe starts
MIN_BATCH_SIZE = 8  # below which it does not go
MIN_WINOGRAD_CHANNELS = 16  # of 3x3 convolutions with which tiles are tried
MAX_FORMAT_ROUNDING = 32  # of tiles and memory formats, in units of the precision
SIZE_FACTORS = (4.0, 0.5)  # by which batches grow, and then shrink, while that gains
MAX_ROUNDING = 1.0  # relative, with its safety, beyond which another backend is tried
MIN_TRACED_PRODUCTS = 20_000  # of one sample, from which traces and a probe pay for themselves beside a retained graph
ROUNDS = 3  # in which plans are timed in turns
MAX_TIMING_SECONDS = 0.1  # after which two rounds are enough
PROBE_SHARE, MIN_PROBE_SECONDS = 0.25, 0.3  # of the seconds of all products that are to come; at least
MAX_PROBE_SECONDS = 30.0  # of processor time, after which the probe tries nothing further


def prepare(
    problem: Problem,
    parameters: str = "weights",
    product: Product = hessian,
    *,
    total: Total = single_rank,
    backend: str = "auto",
    plan: HvpPlan | Mapping[str, Any] | None = None,
    memory: int | None = None,
    check: bool | ProductCheck = True,
    distant: Mapping[str, Tensor] | bool = True,
    kinks: bool = True,
    products: int | None = None,
    like: OperatorFactory | None = None,
) -> OperatorFactory:
    """What many products at many points have in common, made once.

    problem     model, loss and this rank's share of the data
    parameters  `weights` (dimension > 1), `all`, `trainable`, or a regular expression
    product     hessian, gauss_newton or fisher
    total       adds a tensor up over the ranks of a team
    backend     `linearized`, `retained-graph`, `double-backward`, or `auto`: the cheapest by a short probe here
    plan        what an earlier `prepare` chose, here, on another rank, or as a file holds it: no probe
    memory      bytes for kept values; by default a third of what is free now (give less where ranks share it)
    check       compares products with differences of the gradient (`product_check`); without, with double backward; or
                what rank 0 found (`OperatorFactory.check`). The ranks of a team come to one decision (`team_check`)
    distant     tensors of the survey's farthest point, where products are compared too; by default some random point;
                False: nowhere else, where there is no other point
    kinks       whether error bars hold the difference of both sides of a kink (ReLU at 0): the dearest part of a check
    products    about how many are to come, over all points, with one vector each: for few, `auto` neither traces nor
                probes, for more the probe takes a share of their time; None: many, and with several vectors at once too
    like        a factory over the same model and loss, as the probe made it, whose traces serve here too

    What `auto` has chosen is kept for later processes (`plan_cache`), and then neither probed nor timed again; whether
    products are right is looked at each time. The model's mode does not matter: products are those of evaluation mode.
    Where a backend cannot be trusted, the log says why and another is taken. Raises ValueError where there is no such
    backend or parameter, for weights in less than float32, where no backend gives the second derivative of this loss,
    or for Gauss-Newton where the problem does not keep outputs and loss apart.
    """
    return _prepared(
        problem, parameters, product, total=total, backend=backend, plan=plan, memory=memory, check=check,
        distant=distant, kinks=kinks, products=products, like=like,
    )[0]  # fmt: skip


def prepare_here(
    problem: Problem,
    parameters: str,
    product: Product,
    *,
    total: Total,
    backend: str,
    plan: HvpPlan | Mapping[str, Any] | None,
    memory: int | None,
    check: bool | ProductCheck,
    products: int,
) -> LinearizedOperator:
    """The operator at the model's own tensors, with its rounding, as `prepare(...).at(measured=True)` gives it.

    What was measured, and made for that, where the plan was chosen serves here too, and no other point is looked at.
    Arguments as of `prepare`.
    """
    factory, operator = _prepared(
        problem, parameters, product, total=total, backend=backend, plan=plan, memory=memory, check=check,
        distant=False, products=products, here=True,
    )  # fmt: skip
    return factory.at(measured=True) if operator is None else operator


def _prepared(
    problem: Problem,
    parameters: str,
    product: Product,
    *,
    total: Total,
    backend: str,
    plan: HvpPlan | Mapping[str, Any] | None,
    memory: int | None,
    check: bool | ProductCheck,
    distant: Mapping[str, Tensor] | bool,
    kinks: bool = True,
    products: int | None,
    like: OperatorFactory | None = None,
    here: bool = False,
) -> tuple[OperatorFactory, LinearizedOperator | None]:
    """(what `prepare` returns, the operator at the model's own tensors where it was made to measure its rounding).

    here  whether that is what is asked for; else rounding is measured over few samples, as at the points to come
    """
    backend = backend_of(backend)
    moving = selected(problem.model, parameters)
    refuse_unfit(moving.values())
    problem = check_loss(problem, total=total)
    refuse_moving_frozen(problem, moving)
    device = next(iter(moving.values())).device
    if memory is None:
        memory = free_memory(device) // 3
    if plan is None:
        start = HvpPlan("double-backward", problem.data.batch_size)
    else:
        start = plan if isinstance(plan, HvpPlan) else HvpPlan.from_stored(plan)
        backend = start.backend
    factory = OperatorFactory(problem, parameters, product, total, start, memory)
    if like is not None and _is_traced_alike(factory, like):
        factory = replace(
            factory, programs=like.programs, twin_programs=like.twin_programs, few_samples=like.few_samples
        )
    is_short = products is not None and products * factory.problem.data.samples < MIN_TRACED_PRODUCTS
    considered = _considered(backend, product, is_short)
    verdict = check_by_all(total, device, lambda: _own_verdict(factory, considered, check, distant, kinks))
    rejected = verdict.rejected
    factory = replace(factory, fallback="double-backward" not in rejected, check=verdict)
    candidates = _candidates(considered, rejected)
    for other, reason in rejected.items():
        if backend in ("auto", other):
            log.warning("products are not %s, but made by %s: %s", _WORDS[other], _by(candidates), reason)
    if plan is not None:
        if start.backend in candidates:
            return factory, None
        return replace(factory, plan=replace(start, backend=next(iter(candidates)))), None

    def probed() -> tuple[OperatorFactory, LinearizedOperator]:
        with torch.inference_mode(False), torch.no_grad():
            probe = Probe(factory, products=products)
            if is_short:
                return probe.for_few(candidates, here)
            best = probe.best(candidates) if backend != "auto" else _remembered(probe, candidates)
            return best, best.at(measured=True) if here else best.over_few()

    return _with_rounding(*made_by_all(total, device, probed, "probe of products"))


def _remembered(probe: Probe, candidates: set[str]) -> OperatorFactory:
    """What the probe of an earlier process chose for the like, where it runs here and is right; else a new choice."""
    factory = probe.factory
    key = plan_cache.key_of(factory.problem, factory.layout, factory.product.__name__, probe.blocks)
    plan = plan_cache.load(key, probe.products)
    if plan is not None:
        known = probe.again(plan, candidates)
        if known is not None:
            return known
        plan_cache.forget(key)
    best = probe.best(candidates)
    plan_cache.store(key, best.plan, probe.products)
    return best


def _own_verdict(
    factory: OperatorFactory,
    considered: Sequence[str],
    check: bool | ProductCheck,
    distant: Mapping[str, Tensor] | bool,
    kinks: bool,
) -> ProductCheck:
    """What this rank says of the backends, by its share of the data; raises what speaks against any product."""
    problem = factory.problem
    refuse_unmoved(problem)
    if factory.product in THROUGH_OUTPUTS:
        with differentiable_evaluation(problem):
            outputs_and_loss(problem, next(iter(problem.rebatched(1).data)))
    return _verdict(factory, considered, check, distant, kinks)


def with_check(factory: OperatorFactory, check: ProductCheck) -> OperatorFactory:
    """The factory with what a further check of the same products found, as at another point.

    Its plan and its traces stay, unless the check rejects their backend.
    """
    plan = factory.plan
    candidates = _candidates(_considered(plan.backend, factory.product, is_short=False), check.rejected)
    if plan.backend not in candidates:
        plan = replace(plan, backend=next(iter(candidates)))
    return replace(factory, plan=plan, fallback="double-backward" not in check.rejected, check=check)


def realization_factories(factory: OperatorFactory, problems: Sequence[Problem]) -> tuple[OperatorFactory, ...]:
    """The factories of each realisation of a random loss, by double backward: for few products at a point.

    factory   of the mean over them
    problems  as `noise.realizations` returns them
    """
    plan = HvpPlan("double-backward", factory.batch)
    return tuple(replace(factory, problem=p, plan=plan, memory=0, programs={}) for p in problems)


def _with_rounding(
    factory: OperatorFactory, operator: LinearizedOperator
) -> tuple[OperatorFactory, LinearizedOperator]:
    """(the factory with the rounding of its products, its operator with the same), at the model's own tensors.

    Products that lose a third of themselves are made by double backward where these lose a tenth of that: a trace may
    be right in float64, in which it is checked, and wrong in the model's own precision.
    """
    measured = operator.measured
    if measured is None:
        return factory, operator
    coarse = measured.relative > MAX_ROUNDING and factory.fallback and factory.plan.backend != "double-backward"
    device = next(iter(factory.problem.model.parameters())).device
    if any_of_all(factory.total, device, coarse):  # the probes of a team may have chosen different backends
        plain = replace(factory, plan=HvpPlan("double-backward", factory.plan.batch_size))
        reference = plain.at(measured=True)
        other = reference.measured
        if other is not None and other.relative < 0.1 * measured.relative:
            log.warning(
                "products are not %s, but made by double backward: in this precision they differ from float64",
                _WORDS[factory.plan.backend],
            )
            factory, operator, measured = plain, reference, other
    factory = replace(factory, plan=replace(factory.plan, rounding=(measured.rounding, measured.relative)))
    return factory, replace(operator, factory=factory, given=measured, measured_here=False)


_WORDS = {
    "linearized": "linearized",
    "retained-graph": "made by a retained graph",
    "double-backward": "made by double backward",
}


def _by(candidates: set[str]) -> str:
    """The backends that are left, in words."""
    return " or ".join(b.replace("-", " ") for b in reversed(BACKENDS) if b in candidates)


def _is_traced_alike(factory: OperatorFactory, other: OperatorFactory) -> bool:
    """Whether the traces of one factory are those of another: over the same model object, loss and parameters."""
    one, two = factory.problem, other.problem
    return (
        one.model is two.model
        and one.forward == two.forward
        and one.loss == two.loss
        and factory.product is other.product
        and factory.layout.names == other.layout.names
    )


def _considered(backend: str, product: Product, is_short: bool) -> tuple[str, ...]:
    """The backends among which is to be chosen, the cheapest first; for few products those that need no trace."""
    considered = {("auto", False): BACKENDS, ("auto", True): BACKENDS[1:]}.get((backend, is_short), (backend,))
    return tuple(b for b in considered if product is hessian or b != "retained-graph")


def _verdict(
    factory: OperatorFactory,
    considered: Sequence[str],
    check: bool | ProductCheck,
    distant: Mapping[str, Tensor] | bool,
    kinks: bool,
) -> ProductCheck:
    """Which backends are not to be used, among those that come into question, and what error bars must hold."""
    if isinstance(check, ProductCheck):
        return check
    judged = ["double-backward", *(b for b in reversed(considered) if b != "double-backward")]
    if factory.product not in LINEARIZATIONS:
        return ProductCheck({"linearized": "there are no rules for this product"})
    is_random = factory.problem.noise_seed is not None
    if is_random:  # a trace would draw other numbers than the loss at the point
        judged = [b for b in judged if b != "linearized"]
    result = ProductCheck(unchecked="not asked for")
    if check:
        result = check_product(
            factory.problem, factory.parameters, factory.product, backends=judged, distant=distant, kinks=kinks
        )
    if is_random:
        return replace(result, rejected={"linearized": "the loss draws at random", **result.rejected})
    if not result.unchecked or "linearized" not in judged:
        return result
    reason = disagreement(factory)
    return result if reason is None else replace(result, rejected={"linearized": reason})


def _candidates(considered: Sequence[str], rejected: Mapping[str, str]) -> set[str]:
    """The backends among which the probe chooses; double backward, or what else is right, where nothing is left."""
    candidates = set(considered) - set(rejected)
    if candidates:
        return candidates
    return {"linearized" if "double-backward" in rejected else "double-backward"}


class Probe:
    """The search for the cheapest plan, while it lasts. Not a result: `best` makes an `OperatorFactory`."""

    def __init__(self, factory: OperatorFactory, *, products: int | None = None) -> None:
        self.factory, self.products = factory, products  # None: many, and with several vectors at once too
        self.blocks = products is None
        self.samples = factory.problem.data.samples
        self.deadline = time.process_time() + MAX_PROBE_SECONDS
        self.full_at: int | None = None  # samples of the batch with which memory ran out
        self.seconds: dict[str, float] = {}  # per sample and product, by the plan's label
        # of one thread, what it worked itself: others on the same cores do not count
        single_thread = torch.get_num_threads() == 1 and next(factory.problem.model.parameters()).device.type == "cpu"
        self.clock = time.thread_time if single_thread else time.perf_counter
        self.images = any(p.dim() == 4 for p in factory.problem.model.parameters())

    def best(self, backends: set[str]) -> OperatorFactory:
        """The cheapest among these backends, with its batch size, memory format, and what else there is to choose."""
        sized = self.sized(backends)
        size = sized.plan.batch_size if sized else self.first_size
        runs = [] if sized is None else [sized]
        for backend in BACKENDS:
            if runs and time.process_time() > self.deadline:
                break
            if backend in backends and (sized is None or backend != sized.plan.backend):
                found = self.search(backend, size)
                runs += [found] if found else []
        runs = [run for run in runs if run.plan.backend in backends]
        if not runs:  # what was asked for does not run in the model's own precision
            runs = [self.first_that_fits("double-backward")]  # type: ignore[list-item]
        winner = self.cheapest(runs)
        plan = winner.plan
        if plan.backend == "linearized" and self.blocks:
            plan = self.with_vmap(winner)
        record = {label: float(f"{seconds:.3g}") for label, seconds in self.seconds.items()}
        return self.with_plan(replace(plan, seconds_per_sample=record))

    def again(self, plan: HvpPlan, backends: set[str]) -> OperatorFactory | None:
        """The factory with a plan that was chosen before, without a look at the clock; None where it is not right here.

        Backends have been checked by then; tiles and other memory formats are compared here, as when they were chosen.
        """
        if plan.backend not in backends:
            return None
        candidate = self.candidate(replace(plan, batch_size=max(1, min(plan.batch_size, self.samples))))
        if candidate is None:
            return None
        if plan.memory_format == "contiguous" and not plan.winograd_channels:
            return self.with_plan(candidate.plan)
        plain = self.candidate(HvpPlan("double-backward" if self.factory.fallback else "linearized", plan.batch_size))
        is_right = plain is not None and self.agree(candidate, plain)
        if not is_right and not plan.winograd_channels:
            reference = "double-backward" if self.factory.fallback else "linearized"
            is_right = disagreement(candidate.factory, reference) is None
        return self.with_plan(candidate.plan) if is_right else None

    def limit_to_share(self, first: Candidate) -> None:
        """End the search where it has taken a share of what all products take as the first candidate makes them."""
        if self.products is None:
            return
        expected = self.products * self.samples * in_turns([first], self.clock, 1)[0]
        self.deadline = min(self.deadline, time.process_time() + max(MIN_PROBE_SECONDS, PROBE_SHARE * expected))

    def for_few(self, backends: set[str], here: bool = True) -> tuple[OperatorFactory, LinearizedOperator]:
        """What is cheap from the first product on, without a look at the clock; and its operator at the model's own
        tensors: with `here` the one that is asked for, else one over a few samples, whose rounding is measured.
        """
        size = min(self.samples, 2 * FIRST_BATCH_SIZE)
        if "retained-graph" in backends:
            try:
                return self.retaining(size) if here else self.retaining_elsewhere(size)
            except Exception as error:  # somebody's own code where the model is called with other tensors
                log.info("products keep no graph: %s", error)
        plain = self.with_plan(HvpPlan("double-backward", size))
        if "double-backward" not in backends:
            plain = self.best(backends)
        return plain, plain.at(measured=True) if here else plain.over_few()

    def retaining(self, size: int) -> tuple[OperatorFactory, LinearizedOperator]:
        """Products by graphs of so many samples: that of the first ones says how many bytes one takes, and is kept.

        Raises what the model raises.
        """
        plan, products = self._first_graph(self.with_plan(HvpPlan("retained-graph", size)))
        factory = self.with_plan(plan)
        return factory, factory.by(products, products.state, measured=True)

    def retaining_elsewhere(self, size: int) -> tuple[OperatorFactory, LinearizedOperator]:
        """The same where products here are none that are asked for: by the graph over which rounding is measured.

        Its bytes for a sample hold a larger share of what does not grow with the samples: where all graphs might not be
        kept by that, those of so many samples are looked at.
        """
        plan = HvpPlan("retained-graph", size)
        few, products = self._first_graph(self.with_plan(plan).few(traced=False))
        if few.graph_bytes * self.samples > self.factory.memory:
            plan, _ = self._first_graph(self.with_plan(plan))
            factory = self.with_plan(plan)
            return factory, factory.over_few()
        factory = self.with_plan(replace(plan, graph_bytes=few.graph_bytes))
        return factory, factory.over_few(products)

    @staticmethod
    def _first_graph(factory: OperatorFactory) -> tuple[HvpPlan, RetainedGraphProducts]:
        """(the plan with the bytes of a graph for a sample, the products at the model's own tensors that keep it)."""
        products = factory.at().products
        if not isinstance(products, RetainedGraphProducts):
            raise TypeError(f"no products that keep graphs: {type(products).__name__}")
        return products.keep_first(AllocationCounter()), products

    @property
    def first_size(self) -> int:
        """Samples of the first batch that is tried; all of them where they are few: then there is one trace."""
        return self.samples if self.samples <= 2 * FIRST_BATCH_SIZE else FIRST_BATCH_SIZE

    def with_plan(self, plan: HvpPlan) -> OperatorFactory:
        """The factory with this plan."""
        return replace(self.factory, plan=plan)

    def sized(self, backends: set[str]) -> Candidate | None:
        """The best batch size: larger batches as long as they gain, then smaller ones.

        It is looked for with a product that needs no trace, where one is right: what makes a size good, overhead
        against what fits into the cache, is much the same for all, and every size would need a trace of its own.
        """
        backend = "retained-graph"
        if backend not in backends:
            backend = "double-backward" if self.factory.fallback else "linearized"
        best = self.first_that_fits(backend)
        if best is not None:
            self.limit_to_share(best)
        if best is None or self.samples == self.first_size:
            return best
        for factor in SIZE_FACTORS:
            best = self.with_batches_scaled(best, factor)
        return best

    def search(self, backend: str, size: int) -> Candidate | None:
        """A backend at a batch size, where it is linearized in the cheapest memory format."""
        first = HvpPlan(backend, size)
        best = self.candidate(first)
        if backend == "linearized" and self.images:
            best = self.with_channels_last(best, first)
        if best is not None and best.plan.memory_format == "channels_last":
            best = self.with_winograd(best)
        return best

    def with_batches_scaled(self, best: Candidate, factor: float) -> Candidate:
        """Batches larger or smaller by the factor, again and again as long as that gains 3 %."""
        while time.process_time() < self.deadline:
            size = min(int(best.plan.batch_size * factor), self.samples)
            if size < MIN_BATCH_SIZE or size == best.plan.batch_size:
                break
            scaled = self.candidate(replace(best.plan, batch_size=size))
            if scaled is None and self.full_at == size:
                return self.with_room(best)
            if scaled is None or self.cheaper(best, scaled, 0.97) is best:
                break
            best = scaled
        return best

    def with_room(self, best: Candidate) -> Candidate:
        """With half the batch, after memory ran out with a larger one: this one may have left no room for all else."""
        half = best.plan.batch_size // 2
        return (self.candidate(replace(best.plan, batch_size=half)) if half else None) or best

    def with_channels_last(self, best: Candidate | None, plan: HvpPlan) -> Candidate | None:
        """The plan in channels-last format, if that runs and is cheaper, and its products are right."""
        other = self.candidate(replace(plan, memory_format="channels_last"))
        if other is None or (best is not None and self.cheaper(best, other) is best):
            return best
        # an operation may not know the other format, or take it otherwise
        if best is not None and self.agree(other, best):
            return other
        if disagreement(other.factory, "double-backward" if self.factory.fallback else "linearized") is not None:
            return best
        return other

    def with_winograd(self, best: Candidate) -> Candidate:
        """With 3x3 convolutions of many channels done by tiles, as long as that gains and rounds well enough."""
        plain = best
        shapes = [p.shape for p in self.factory.problem.model.parameters() if p.dim() == 4 and p.shape[2:] == (3, 3)]
        channels = {min(s[:2]) for s in shapes if min(s[:2]) >= MIN_WINOGRAD_CHANNELS}
        for threshold in sorted(channels, reverse=True)[:3]:  # widest layers first: they gain the most
            if time.process_time() > self.deadline:
                break
            tiled = self.candidate(replace(plain.plan, winograd_channels=threshold))
            if tiled is None or self.cheaper(best, tiled) is best:
                continue
            if self.agree(tiled, plain):
                best = tiled
        return best

    @staticmethod
    def agree(candidate: Candidate, other: Candidate) -> bool:
        """Whether two ways to one product differ by no more than tiles may round."""
        product, reference = candidate.work(), other.work()
        return norm(product - reference) <= MAX_FORMAT_ROUNDING * torch.finfo(product.dtype).eps * norm(reference)

    def with_vmap(self, best: Candidate) -> HvpPlan:
        """Four vectors together by vmap, if that is cheaper than one after the other."""
        if best.plan.winograd_channels:
            return best.plan
        together = Candidate(self, replace(best.plan, vectorized=True), vectors=4)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                together.work()
        except Exception:  # an operation that vmap does not know, or loops over, or somebody's own code
            return best.plan
        apart = Candidate(self, best.plan, vectors=4)
        apart_seconds, together_seconds = in_turns([apart, together], self.clock, 2)
        return together.plan if together_seconds < apart_seconds else best.plan

    def candidate(self, plan: HvpPlan) -> Candidate | None:
        """A plan with its first batch prepared; None where it does not run."""
        try:
            if plan.backend == "retained-graph":
                few = self.first_batch(self.with_plan(plan))
                plan = replace(plan, graph_bytes=graph_bytes(few.problem, few.layout) // few.problem.data.samples)
            candidate = Candidate(self, plan)
            candidate.work()
            return candidate
        except Exception as error:  # too large, in a format that an operation does not take, somebody's own code
            is_full = out_of_memory(error)
            if loses_gpu(error) or (plan.backend == "double-backward" and not (is_full and plan.batch_size > 1)):
                raise
        if is_full:
            self.full_at = plan.batch_size
            accelerators.release_cache()  # outside of the handler, whose error holds what was computed
        return None

    def first_that_fits(self, backend: str) -> Candidate | None:
        """A backend with the first batch, or with as much of it as memory has room for; None where it does not run."""
        size = self.first_size
        found = self.candidate(HvpPlan(backend, size))
        while found is None and self.full_at == size and size > 1:
            size //= 2
            found = self.candidate(HvpPlan(backend, size))
        return found

    def cheaper(self, best: Candidate, other: Candidate, margin: float = 1.0) -> Candidate:
        """The cheaper per sample, both timed in turns; the first unless the second is cheaper by the margin."""
        first, second = self.timed([best, other])
        return other if second < margin * first else best

    def cheapest(self, candidates: Sequence[Candidate]) -> Candidate:
        """The cheapest per sample of all, timed in turns; one alone is not timed."""
        if len(candidates) == 1:
            return candidates[0]
        seconds = self.timed(candidates)
        return candidates[min(range(len(candidates)), key=lambda i: seconds[i])]

    def timed(self, candidates: Sequence[Candidate]) -> tuple[float, ...]:
        """Seconds per sample of each, which are also noted under the plan's label."""
        seconds = in_turns(candidates, self.clock)
        for candidate, measured in zip(candidates, seconds, strict=True):
            label = candidate.plan.label
            self.seconds[label] = min(measured, self.seconds.get(label, measured))
        return seconds

    def first_batch(self, factory: OperatorFactory) -> OperatorFactory:
        """The same over its first batch alone."""
        batch = next(iter(factory.batched.data))
        return replace(factory, problem=factory.problem.with_data(BatchList([batch])), total=single_rank)


class Candidate:
    """A plan that can be timed: its product over one batch with some vectors."""

    def __init__(self, probe: Probe, plan: HvpPlan, vectors: int = 1) -> None:
        # a plan that fails is to fail here, and not to be timed as what takes over at every point
        self.plan, self.factory = plan, replace(probe.with_plan(plan), fallback=False)
        few = probe.first_batch(self.factory)
        self.samples = few.problem.data.samples
        operator = few.at()
        self.place = operator.place
        rows = torch.randn(vectors, few.size, generator=generator("probe", vectors, few.size))
        self.work: Callable[[], Tensor] = partial(operator.products.local_sum, rows.to(self.place, operator.dtype))


def in_turns(candidates: Sequence[Candidate], clock: Callable[[], float], rounds: int = ROUNDS) -> tuple[float, ...]:
    """The smallest seconds per sample of each, timed in turns, so that a change of load meets all alike."""
    smallest = [float("inf")] * len(candidates)
    begun = clock()
    for done in range(rounds):
        if done >= 2 and clock() - begun > MAX_TIMING_SECONDS:
            break  # what takes long is measured well enough
        for i, candidate in enumerate(candidates):
            start = clock()
            candidate.work()
            accelerators.synchronize(candidate.place)
            smallest[i] = min(smallest[i], (clock() - start) / candidate.samples)
    return tuple(smallest)


class AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all results inside: more than a graph of them can hold."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped is to import PyTorch's compiler first, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # most results are one tensor, for which a look into nested values takes as long as the operation
        for leaf in (result,) if type(result) is Tensor else pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf._base is None:  # a view takes no bytes of its own
                self.bytes += sum(part.untyped_storage().nbytes() for part in strided_parts(leaf))
        return result


def graph_bytes(problem: Problem, layout: Layout) -> int:
    """A bound of the bytes that the gradient's graphs over these few batches would take."""
    own = dict(problem.model.named_parameters())
    parameters = [own[k] for k in layout.names]
    with (
        temporary_parameters(problem.model, {}),
        differentiated(problem.model, parameters),
        AllocationCounter() as counter,
    ):
        for batch in problem.data:
            first_backward(problem, batch, parameters)
    total: int = counter.bytes
    return total


__all__ = ["HvpPlan", "LinearizedOperator", "OperatorFactory", "prepare", "realization_factories", "with_check"]
