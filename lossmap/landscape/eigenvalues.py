"""The measure of a map of eigenvalues: the extreme ones of the Hessian of the mean loss at points of a plane.

    point (k,) -> {max_eig, max_eig_error, max_eig_limit, min_eig, ..., products}      what they mean: `linalg.lanczos`

A search starts from the eigenvectors of the nearest point that this rank has solved, continued in a straight line where
the point beyond it is known too, plus a small random part made from (seed, point). Where the loss is not finite the
readings are NaN and the point is done; a product that is not finite at a finite loss raises.

Of a loss that draws at random the matrix is that of one fixed realisation, or of the mean over R. Then another R would
move an eigenvalue by about its max_eig_noise_error: to first order its value in realisation r is x^T H_r x, with x its
eigenvector, and this is the standard error of their mean (Kato, Perturbation Theory for Linear Operators, 1966, II.2).

Units: loss per squared unit of theta. Price: `benchmarks/eigenmap.py`. Memory: the search space and the neighbours'
vectors, each at most `memory` bytes.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from lossmap import accelerators
from lossmap.curvature.autotune import prepare, realization_factories, with_check
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck
from lossmap.curvature.linearized_operator import OperatorFactory as CurvatureFactory
from lossmap.curvature.rounding import extrapolated_rounding
from lossmap.data.loss_check import check_loss
from lossmap.data.noise import mean_and_error, mean_over, realizations
from lossmap.data.problem import Problem
from lossmap.data.weight_check import refuse_moving_frozen
from lossmap.geometry.directions import Plane
from lossmap.geometry.grid import Field, Point
from lossmap.interrupt import Interrupted
from lossmap.io.memory_store import with_unknown_fields
from lossmap.io.methods import Method, method_of
from lossmap.keywords import checked_init
from lossmap.landscape.underflow_remarks import UnderflowRemarks
from lossmap.landscape.variance_remarks import VarianceRemarks
from lossmap.linalg.eigenpairs import MAX_ROUNDING_SHARE, EigenPairs, Which, check_eigenvalue_request, with_residuals
from lossmap.linalg.operator import SymmetricOperator, noisy
from lossmap.linalg.solvers import extremes, has_places
from lossmap.linalg.trace import Trace, trace
from lossmap.report.eigenmap import MEASURED, ROUNDING
from lossmap.sums import in_float64

logger = logging.getLogger("lossmap")

CERTIFY = ("audit", "each", "none")
MIN_REPRESENTED = 0.7  # share of the curvature along eigenvectors that few samples have, if they speak for all
ROUNDING_SAFETY = 3.0  # what rounding did over a few samples is taken so many times
# The rounding seen where the plan was made is taken so many times where it is not looked at: at the rim of a recurrent
# network's map it was 25 times as large, of which the measurement's own factor of 3 covers a part.
UNSEEN_SAFETY = 10.0
MAX_TRACE_PRODUCTS = 60  # of the trace at one point, unless --max-products says otherwise
MAX_NEIGHBOURS = 512  # whose eigenvectors are kept
COPIES_APART = 0.1  # tolerances: eigenvalues that are nearer are taken for copies, each of which needs a start
MIN_COSINE = 0.8  # a vector is continued in a straight line where the last two make an angle with a cosine above this


class PointOperator(SymmetricOperator, Protocol):
    """The matrix at one point, which knows the loss there."""

    @property
    def kinks(self) -> float:
        """By how much the matrix differs on the two sides of a kink, see `linalg.Rounding`."""

    def loss(self) -> float:
        """The mean loss over all samples of the team."""

    def in_float64(self) -> SymmetricOperator:
        """The same matrix with products in float64."""

    def rounding_of(self, vectors: Tensor) -> tuple[float, float]:
        """How far rounding moves the product with the sum of vectors, (n, b), over a few samples; its size there."""


class OperatorFactory(Protocol):
    """A problem made ready for many products at many points: `autotune.prepare` makes one."""

    @property
    def size(self) -> int:
        """The entries n of theta."""

    @property
    def batch(self) -> int:
        """Samples of a batch."""

    def at(self, tensors: Mapping[str, Tensor]) -> PointOperator:
        """The matrix where the model has these tensors."""

    def smaller(self) -> OperatorFactory | None:
        """The same with smaller batches and fewer kept values; None where it cannot do with less."""


@checked_init
class EigenvalueMap:
    """The measure of extreme Hessian eigenvalues at points of a plane: `measure(point)` -> reading.

    A reading has `max_eig`, `max_eig_error`, `max_eig_limit`, the same of `min_eig`, and `products`, or what `which`
    names; in the loss's unit per squared unit of theta. With `certify="audit"` a `survey` solves a random 2 % of the
    points a second time from a cold start, counts the misses, and computes them again.

    Args:
        problem: one problem (named `train`), or one for each split, {"train": ..., "test": ...}: the fields of the
            first have no prefix, those of the others `test_`. What `curvature.autotune.prepare` made of a problem
            is taken as it is.
        plane: origin and axes; a point is a tuple of its coordinates.
        which: `ends`, `top:k`, `bottom:k`, `abs:k` or `trace`, or several of them joined by commas.
        parameters: what the Hessian is of: `weights` (dimension > 1), `all`, `trainable`, or a regular expression.
        backend: of products: `auto` (the cheapest by a probe of some seconds), `linearized`, `retained-graph` or
            `double-backward`.
        tol: accuracy of each end, relative to the largest absolute eigenvalue.
        solver: `auto`, `lanczos` or `eigsh`.
        max_products: at a point at most; by default unlimited.
        certify: `audit`; `each`: every point starts cold, and goes on until its limits are near; or `none`.
        confidence: probability with which no eigenvalue lies beyond the limits.
        seed: of random starts, and of the audit's choice.
        memory: bytes of the search space, and of the eigenvectors that are kept of neighbours.
        stop: called between products; where it is true, Interrupted is raised, whose state `resume` takes.
        unit: of the loss; by default the problem's.
        settings: further settings, to be stored.
        audit: cold and certified, its fields under names of their own: the second solution of some points.
        noise_repeats: of a loss that draws at random: the number R >= 2 of fixed realisations, of whose mean the
            eigenvalues are, each with its standard error over them; without it one realisation.
        realizations: by split, what is prepared of each realisation, where that of their mean is given as prepared.

    Raises:
        ValueError: where `which`, `certify` or a number is out of range, and where no backend gives second derivatives.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, torch.zeros(2, 1)))
        >>> line = lossmap.random_plane(model, axes=1)
        >>> measure = lossmap.EigenvalueMap(problem, line, backend="double-backward")
        >>> round(measure((0.0,))["max_eig"], 3)
        4.0

    """

    def __init__(
        self,
        problem: Problem | Mapping[str, Problem | OperatorFactory],
        plane: Plane,
        which: str = "ends",
        *,
        parameters: str = "weights",
        backend: str = "auto",
        tol: float = 1e-3,
        solver: str = "auto",
        max_products: int | None = None,
        certify: str = "audit",
        confidence: float = 0.99,
        seed: int = 0,
        memory: int = 1 << 29,
        stop: Callable[[], bool] | None = None,
        unit: str | None = None,
        settings: Mapping[str, Any] | None = None,
        audit: bool = False,
        noise_repeats: int | None = None,
        realizations: Mapping[str, Sequence[OperatorFactory]] | None = None,
    ) -> None:
        if certify not in CERTIFY:
            raise ValueError(f"--certify must be one of {', '.join(CERTIFY)}; got {certify!r}")
        given = {"train": problem} if isinstance(problem, Problem) else dict(problem)
        problems = [p for p in given.values() if isinstance(p, Problem)]
        if unit is None:
            unit = problems[0].unit if problems else "nats"
        ready = _prepared(given, parameters, backend, noise_repeats)
        for factory in ready.factories.values():
            if isinstance(own := getattr(factory, "problem", None), Problem):  # somebody's own factory may have none
                refuse_moving_frozen(own, plane.axes)
        self.prepared: dict[str, OperatorFactory] = ready.factories
        self.plane, self.which = plane, which
        self.parts = parts_of(which)
        for part in self.parts:
            ends = Which.parse("ends" if part == "trace" else part)
            for factory in self.prepared.values():
                check_eigenvalue_request(ends, factory.size, tol, max_products, confidence)
        self.certify, self.seed, self.stop, self.unit, self.audit = certify, seed, stop, unit, audit
        self.cold = audit or certify == "each"
        self.name = "audit" if audit else "eigen"
        self.solver_options: dict[str, Any] = {
            "tol": tol,
            "solver": "lanczos" if audit else solver,
            "max_products": max_products,
            "confidence": confidence,
        }
        self.memory = memory
        self.realizations = {split: tuple(made) for split, made in (realizations or ready.realizations).items()}
        self._settings = dict(settings or {})
        self._own_splits = tuple(s for s, p in given.items() if isinstance(p, Problem))  # that were made ready here
        if ready.plan is not None:
            self._settings = {"parameters": parameters, **self._settings, "chosen": {"way": ready.plan.stored()}}
        if noise_repeats is not None:
            self._settings["noise_repeats"] = noise_repeats
        self.prefixes = _prefixes(self.prepared)
        own = [f for split in self.prepared for f in self._fields_of(split)]
        if audit:
            own = [_renamed(f, "audit_") for f in own]
        self.fields = tuple(own)
        self._tasks = [(split, part) for split in self.prepared for part in self.parts]
        self._solved = {task: Neighbours(plane, memory // len(self._tasks)) for task in self._tasks}
        self._underflows, self._variances = UnderflowRemarks(), VarianceRemarks()

    def _fields_of(self, split: str) -> list[Field]:
        own = fields_of(self.parts, self.prefixes[split], split, self.unit)
        if not self.realizations:
            return own
        count = len(self.realizations[split])
        return [g for f in own for g in ((f, noise_error_of(f, count)) if f.name.endswith("_eig") else (f,))]

    @property
    def problems(self) -> dict[str, Problem]:
        """The problems, by split, as they are evaluated; none where the factories do not say."""
        problems = {split: getattr(factory, "problem", None) for split, factory in self.prepared.items()}
        return {split: problem for split, problem in problems.items() if problem is not None}

    def with_choice(self, chosen: Mapping[str, Any]) -> EigenvalueMap:
        """The measure with a plan that was chosen in another process, as `settings` has it under "chosen"."""
        if "way" not in chosen or chosen == self._settings.get("chosen"):
            return self
        other = copy.copy(self)
        plan = HvpPlan.from_stored(chosen["way"])
        other.prepared = {
            split: replace(factory, plan=plan) if hasattr(factory, "plan") else factory  # type: ignore[type-var]
            for split, factory in self.prepared.items()
        }
        other.realizations = {
            split: tuple(replace(factory, plan=plan) for factory in made)  # type: ignore[type-var]
            for split, made in self.realizations.items()
        }
        other._settings = {**self._settings, "chosen": dict(chosen)}
        other._solved = {task: Neighbours(self.plane, self.memory // len(self._tasks)) for task in self._tasks}
        return other

    def distant_check(self, point: Point) -> ProductCheck | None:
        """What differences of the gradient say of the products at a survey's farthest point too.

        None where the factories were given: who made them has checked them. Raises ValueError where no backend gives
        second derivatives there.
        """
        first = next((self.prepared[split] for split in self._own_splits), None)
        if not isinstance(first, CurvatureFactory):
            return None
        return prepare(
            first.problem, first.parameters, first.product, plan=first.plan, memory=first.memory,
            distant=self.plane.at(point),
        ).check  # fmt: skip

    def with_check(self, check: ProductCheck | None) -> EigenvalueMap:
        """The measure with products by what `distant_check` found on one rank, the same on all."""
        if check is None:
            return self
        other = copy.copy(self)
        own = {split: cast(CurvatureFactory, self.prepared[split]) for split in self._own_splits}
        checked = {split: with_check(factory, check) for split, factory in own.items()}
        other.prepared = {**self.prepared, **checked}
        other.realizations = {
            split: tuple(replace(factory, check=check) for factory in made)  # type: ignore[type-var]
            for split, made in self.realizations.items()
        }
        way = next(iter(checked.values())).plan.stored()
        other._settings = {**self._settings, "chosen": {**self._settings["chosen"], "way": way}}
        other._solved = {task: Neighbours(self.plane, self.memory // len(self._tasks)) for task in self._tasks}
        return other

    def audit_twin(self) -> EigenvalueMap:
        """The measure that solves points a second time, from a cold start and certified, under names of its own."""
        return EigenvalueMap(
            self.prepared,
            self.plane,
            self.which,
            tol=self.solver_options["tol"],
            certify=self.certify,
            confidence=self.solver_options["confidence"],
            seed=self.seed,
            memory=self.memory,
            stop=self.stop,
            unit=self.unit,
            settings=self._settings,
            audit=True,
            realizations=self.realizations,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What is stored of it: equal settings, equal results within their bounds."""
        return {
            **self._settings,
            "which": self.which,
            **self.solver_options,
            "start": "cold" if self.cold else "neighbour",
        }

    @property
    def method(self) -> Method | None:
        """How its numbers are found, where several of an end are requested; None where it never changed."""
        return method_of(self.name, {"which": self.which})

    def upgraded(self, index: int, fields: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The reading of a point of this measure as an earlier version kept it: what it did not have is NaN."""
        return with_unknown_fields(self.fields, fields)

    @property
    def auditable(self) -> bool:
        """Whether a second, cold solution could differ: starts are a neighbour's, and eigenvalues are read."""
        return not self.cold and self.parts != ("trace",)

    def smaller(self) -> str | None:
        """After memory ran out: half the batches, kept values and vectors. A sentence on what was done, or None.

        Every rank of a team calls it, also where that is no use, since all must go on from the same vectors.
        """
        self.memory //= 2
        for solved in self._solved.values():
            solved.forget(self.memory // len(self._tasks))
        accelerators.release_cache()  # held for batches of the former size
        smaller = {split: prepared.smaller() for split, prepared in self.prepared.items()}
        if all(factory is None for factory in smaller.values()):
            return None
        before = dict(self.prepared)
        self.prepared |= {split: factory for split, factory in smaller.items() if factory is not None}
        if all(self.prepared[split].batch == factory.batch for split, factory in before.items()):
            return "no values of products are kept from here on"
        batch = max(prepared.batch for prepared in self.prepared.values())
        return f"products over batches of {batch} samples, and half the memory for what is kept, from here on"

    def __call__(self, point: Point) -> dict[str, Any]:
        """Read the eigenvalues at a point. Every rank of a team calls with the same point."""
        return self.resume(point, {})

    def resume(self, point: Point, state: Mapping[str, Any]) -> dict[str, Any]:
        """Go on at a point that was left by raising Interrupted with this state."""
        first = int(state.get("job", 0))
        reading = {k.removeprefix("reading:"): v for k, v in state.items() if k.startswith("reading:")}
        space: dict[str, Any] | None = {k.removeprefix("space:"): v for k, v in state.items() if k.startswith("space:")}
        tensors = self.plane.at(point)
        matrix: PointOperator | None = None
        for i, (split, part) in enumerate(self._tasks):
            if i < first:  # its fields are in the state
                continue
            if matrix is None or part == self.parts[0]:
                matrix = self.prepared[split].at(tensors)
                finite = isfinite(matrix.loss())
            try:
                fields = {}
                if finite:
                    fields = self._read(matrix, split, part, point, space or None)
            except Interrupted as left:
                done = {f"reading:{k}": v for k, v in reading.items()}
                raise Interrupted({"job": i, **done, **{f"space:{k}": v for k, v in left.state.items()}}) from None
            space = None
            products = f"{self.prefixes[split]}products"
            fields[products] = reading.get(products, 0.0) + fields.get(products, 0.0)
            reading |= fields | self._roundings(split, reading, fields)
        names = {f.name.removeprefix("audit_"): f for f in self.fields}
        return {f.name: reading.get(name, _nothing(f)) for name, f in names.items()}

    def remark(self, point: Point, reading: Mapping[str, Any]) -> str | None:
        """A sentence where eigenvalues of 0 here are those of a loss that underflows, or NaN those of a negative
        variance; of the first such point alone.
        """
        zero, audited, all_values = [], "audit_" if self.audit else "", list[float]()
        for split, problem in self.problems.items():
            prefix = self.prefixes[split]
            eigenvalues = [reading.get(f"{audited}{prefix}{end}_eig", nan) for end in ("max", "min")]
            if 0 in eigenvalues:
                zero.append(problem)
            all_values += eigenvalues
        if (negative := self._variances.remark(all_values, self.plane, point)) is not None:
            return negative
        return self._underflows.remark(zero, self.plane, point)

    def _roundings(self, split: str, reading: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, float]:
        """Of several parts of a split the largest rounding, and whether it was measured for all of them."""
        prefix = self.prefixes[split]
        rounding, measured = f"{prefix}{ROUNDING}", f"{prefix}{MEASURED}"
        if rounding not in fields or rounding not in reading:
            return {}
        return {
            rounding: float(np.fmax(reading[rounding], fields[rounding])),
            measured: min(reading[measured], fields[measured]),
        }

    def _read(
        self, matrix: PointOperator, split: str, part: str, point: Point, state: dict[str, Any] | None
    ) -> dict[str, Any]:
        """One part's fields, without the name of the audit."""
        prefix, seed = self.prefixes[split], f"{self.name} {self.seed} {part} {point}"
        if part == "trace":
            estimate = self._trace(matrix, seed)
            return {
                f"{prefix}trace": estimate.value,
                f"{prefix}trace_error": estimate.error,
                f"{prefix}products": float(estimate.products),
            }
        solved = self._solved[split, part]
        start = None
        if not self.cold:
            start = solved.start(point)
        # Without a neighbour, as at a rank's first point and the first after an interruption, a random start alone may
        # settle on a value far from the extreme: the search then goes on until its limits are near.
        certify = start is None
        if state is not None:
            certify = self.cold or bool(state.pop("certify", 0))
        try:
            pairs = extremes(
                matrix,
                part,
                start=start,
                seed=seed,
                certify=certify,
                memory=self.memory,
                stop=self.stop,
                state=state,
                **self.solver_options,
            )
        except Interrupted as left:
            raise Interrupted({**left.state, "certify": int(certify)}) from None
        if not self.cold:
            is_one_start = has_places(Which.parse(part)) and not has_copies(pairs)
            solved.add(point, pairs.vectors, is_one_start=is_one_start)
        pairs, is_measured = self._with_measured_rounding(matrix, pairs, split)
        reading = reading_of(pairs, Which.parse(part)) | {ROUNDING: pairs.rounding, MEASURED: float(is_measured)}
        if self.realizations:
            reading |= self._noise_errors(pairs, Which.parse(part), split, point)
            reading["products"] += np.isfinite(pairs.values).sum()  # one of each realisation cost one of their mean
        return {f"{prefix}{k}": v for k, v in reading.items()}

    def _trace(self, matrix: PointOperator, seed: str) -> Trace:
        """The trace; one whose only error is rounding, of a small network, in float64 where that can be had."""
        products = self.solver_options["max_products"] or MAX_TRACE_PRODUCTS
        if matrix.size <= products and matrix.dtype != torch.float64:
            try:
                double = matrix.in_float64()
                # where all terms cancel, those in float64 are noise as well, of which their own size says nothing
                noise = extrapolated_rounding(matrix, double)
                return trace(noisy(double, noise), products=products, seed=seed, sums=False)
            except Exception as failure:  # somebody's own forward may raise anything in another precision
                logger.info("the trace is not computed in float64 at this point: %s", failure)
        return trace(matrix, products=products, seed=seed, sums=False)

    def _noise_errors(self, pairs: EigenPairs, which: Which, split: str, point: Point) -> dict[str, Any]:
        """The standard error over the realisations of every eigenvalue, under the names of the fields."""
        tensors = self.plane.at(point)
        values = np.full((len(self.realizations[split]), len(pairs.values)), nan)
        for r, factory in enumerate(self.realizations[split]):
            matrix = factory.at(tensors)
            for i in np.flatnonzero(np.isfinite(pairs.values)):
                x = pairs.vectors[:, i]
                values[r, i] = float(in_float64(x) @ in_float64(matrix @ x)) / float(in_float64(x) @ in_float64(x))
        reading = reading_of(replace(pairs, values=mean_and_error(values)[1]), which)
        return {f"{name}_noise_error": value for name, value in reading.items() if name.endswith("_eig")}

    def _with_measured_rounding(self, matrix: PointOperator, pairs: EigenPairs, split: str) -> tuple[EigenPairs, bool]:
        """The pairs with bars that hold rounding: measured where it could exceed a tenth of an error bar.

        The second value says whether rounding was measured here: at audited points it always is. Over a few samples
        first, of which it is added to the bars; over all of them where it could exceed these.

        What rounding could do here is judged by what it did where the plan was made: in the unit of the eigenvalues,
        as where terms cancel, or relative to them; and where it is measured, by what it does to these eigenvectors over
        the few samples too. Every rank of a team comes to the same decision.
        """
        plan = getattr(self.prepared[split], "plan", None)
        if plan is None or plan.rounding is None or matrix.dtype == torch.float64:
            return pairs, False
        suspected = max(plan.rounding[0], plan.rounding[1] * pairs.scale)
        bar = float(np.nanmax(pairs.residuals, initial=0.0))
        if suspected <= MAX_ROUNDING_SHARE * bar and not self.audit:
            return widened(pairs, UNSEEN_SAFETY * suspected), False
        if suspected <= bar:
            seen = max(suspected, rounding_of(matrix, pairs))
            if seen <= bar:
                return widened(pairs, seen), True
        return remeasured(matrix, pairs, suspected)


def rounding_of(matrix: PointOperator, pairs: EigenPairs) -> float:
    """How far rounding moves these eigenvalues, as seen over a few samples; infinite where that cannot be measured.

    Nor can it where the few have a much smaller curvature along these vectors than all: then it lies in samples that
    are not among them, and rounding may as well.
    """
    known = np.flatnonzero(np.isfinite(pairs.values))
    if not known.size:
        return 0.0
    try:
        error, size = matrix.rounding_of(pairs.vectors[:, known])
    except Exception as failure:  # somebody's own forward may raise anything in another precision
        logger.info("rounding is not measured at this point: %s", failure)
        return inf
    if size < MIN_REPRESENTED * float(np.linalg.norm(pairs.values[known])):
        return inf
    return ROUNDING_SAFETY * error


def widened(pairs: EigenPairs, rounding: float) -> EigenPairs:
    """The pairs with this much more for rounding in bars and limits."""
    upper, lower = pairs.limits
    residuals, limits = pairs.residuals + rounding, (upper + rounding, lower - rounding)
    return replace(pairs, residuals=residuals, limits=limits, rounding=pairs.rounding + rounding)


@dataclass(frozen=True)
class _Prepared:
    """Problems made ready for many products: factories by split, those of each realisation, and the probe's plan."""

    factories: dict[str, OperatorFactory]
    realizations: dict[str, tuple[OperatorFactory, ...]] = field(default_factory=dict)
    plan: HvpPlan | None = None


def _prepared(
    given: Mapping[str, Problem | OperatorFactory], parameters: str, backend: str, repeats: int | None
) -> _Prepared:
    """Each split made ready, by the plan that the probe chose for the first; factories are taken as they are.

    repeats  of a loss that draws at random: the number of realisations, whose mean is read
    """
    made = _Prepared({})
    plan: HvpPlan | None = None
    for split, problem in given.items():
        if not isinstance(problem, Problem):
            made.factories[split] = problem
            continue
        problem = check_loss(problem)
        realized: tuple[Problem, ...] = ()
        if repeats is not None:
            realized = realizations(problem, repeats)
            problem = mean_over(realized)
        factory = prepare(problem, parameters, backend=backend, plan=plan)
        plan, made.factories[split] = factory.plan, factory
        if realized:
            made.realizations[split] = tuple(realization_factories(factory, realized))
    return replace(made, plan=plan)


def remeasured(matrix: PointOperator, pairs: EigenPairs, suspected: float) -> tuple[EigenPairs, bool]:
    """The pairs with ||A x - theta x|| by products in float64, and whether these could be made.

    suspected  what is added to the bars where they could not
    """
    try:
        return with_residuals(pairs, matrix.in_float64()), True
    except Exception as failure:  # somebody's own forward may raise anything in another precision
        logger.info("rounding is not measured at this point: %s", failure)
    return widened(pairs, UNSEEN_SAFETY * suspected), False


def parts_of(which: str) -> tuple[str, ...]:
    """What is to be read, from a list joined by commas. Raises ValueError for one that is unknown or named twice."""
    parts = tuple(p.strip() for p in which.split(","))
    for part in parts:
        if part != "trace":
            Which.parse(part)
    kinds = [p.partition(":")[0] for p in parts]
    if len(set(kinds)) < len(kinds) or ("ends" in kinds and {"top", "bottom"} & set(kinds)):
        raise ValueError(f"--which names the same eigenvalues twice: {which!r}; top:k and bottom:k hold the ends")
    return parts


def _prefixes(splits: Iterable[str]) -> dict[str, str]:
    """By split what its fields' names begin with: nothing for the first."""
    first, *others = splits
    return {first: "", **{split: f"{split}_" for split in others}}


def check_which(which: str, n: int, tol: float, max_products: int | None, confidence: float) -> None:
    """Raises ValueError where eigenvalues `which` cannot be had of a matrix of n rows, or an option is out of range."""
    for part in parts_of(which):
        if part != "trace":
            check_eigenvalue_request(Which.parse(part), n, tol, max_products, confidence)


def expected_fields(
    splits: Iterable[str], which: str, unit: str, *, certify: str = "audit", noise_repeats: int | None = None
) -> list[list[Field]]:
    """The fields of the measure and of its audit, if any, as they will be, before a product was made."""
    parts, own = parts_of(which), []
    for split, prefix in _prefixes(splits).items():
        for read in fields_of(parts, prefix, split, unit):
            own.append(read)
            if noise_repeats and read.name.endswith("_eig"):
                own.append(noise_error_of(read, noise_repeats))
    audited = certify == "audit" and parts != ("trace",)
    return [own, [_renamed(f, "audit_") for f in own]] if audited else [own]


def fields_of(parts: tuple[str, ...], prefix: str, split: str, unit: str) -> list[Field]:
    """The fields that these parts read."""
    per = f"{unit} per squared unit of theta"
    over = f" over the {split} samples" if prefix else ""  # the first split is an attribute of the file
    fields: list[Field] = []
    words = {"max": "largest", "min": "smallest"}
    for part in parts:
        if part == "trace":
            fields += [
                Field(f"{prefix}trace", per, f"trace of the Hessian{over}, an estimate"),
                Field(f"{prefix}trace_error", per, f"standard error of the trace{over}"),
            ]
            continue
        which = Which.parse(part)
        ends = {"ends": ("max", "min"), "top": ("max",), "bottom": ("min",), "abs": ()}[which.kind]
        for end in ends:
            name, word = f"{prefix}{end}_eig", words[end]
            fields += [
                Field(name, per, f"{word} eigenvalue of the Hessian{over}"),
                Field(f"{name}_error", per, f"an eigenvalue lies within this distance of the {word}{over}"),
                Field(f"{name}_limit", per, f"beyond it, with the stated confidence, lies no eigenvalue{over}"),
            ]
        if which.kind != "ends":
            word = {"top": "largest", "bottom": "smallest", "abs": "largest in absolute value"}[which.kind]
            extra = (which.kind, which.count)
            fields += [
                Field(f"{prefix}{which.kind}_eig", per, f"eigenvalues of the Hessian{over}, {word}", extra),
                Field(f"{prefix}{which.kind}_eig_error", per, f"an eigenvalue lies within this distance{over}", extra),
            ]
    if parts != ("trace",):
        fields += [
            Field(f"{prefix}{ROUNDING}", per, f"the part of the eigenvalues' errors that allows for rounding{over}"),
            Field(
                f"{prefix}{MEASURED}",
                "1",
                "1 where rounding was measured at the point by float64 products (over 16 to 128 samples at audited "
                f"points where these say that it is small, else over all), 0 where it is estimated{over}",
            ),
        ]
    return [*fields, Field(f"{prefix}products", "1", f"Hessian-vector products spent{over}")]


def noise_error_of(field: Field, realizations: int) -> Field:
    """The field of an eigenvalue's standard error over this number of realisations."""
    about = f"standard error over {realizations} realisations of the noise: {field.long_name}"
    return Field(f"{field.name}_noise_error", field.unit, about, field.extra)


def reading_of(pairs: EigenPairs, which: Which) -> dict[str, Any]:
    """The fields of one search."""
    reading: dict[str, Any] = {"products": float(pairs.products)}
    limits = dict(zip(("max", "min"), pairs.limits, strict=True))
    columns = {"ends": {"max": 0, "min": 1}, "top": {"max": 0}, "bottom": {"min": 0}, "abs": {}}[which.kind]
    for end, column in columns.items():
        reading |= {
            f"{end}_eig": float(pairs.values[column]),
            f"{end}_eig_error": float(pairs.residuals[column]),
            f"{end}_eig_limit": limits[end],
        }
    if which.kind != "ends":
        reading |= {f"{which.kind}_eig": pairs.values, f"{which.kind}_eig_error": pairs.residuals}
    return reading


def _renamed(field: Field, prefix: str) -> Field:
    return Field(prefix + field.name, field.unit, f"audit: {field.long_name}", field.extra)


def _nothing(field: Field) -> Any:
    """What a field reads where the loss is not finite: no product was spent, and nothing is known."""
    if field.name.endswith("products"):
        return 0.0
    if field.extra:
        return np.full(field.extra[1], nan)
    return nan


@dataclass(frozen=True)
class SolvedPoint:
    """A point that was solved, as lengths in theta, (axes,), and its eigenvectors (n, m) of length one.

    is_one_start  whether a search starts from their sum, and not from each of them
    """

    position: np.ndarray
    vectors: Tensor
    is_one_start: bool = False

    def starts(self, vectors: Tensor) -> Tensor:
        """Vectors (n, m) like those of this point as (n, q) starts."""
        return vectors.sum(1, keepdim=True) if self.is_one_start else vectors


class Neighbours:
    """The points that this rank has solved, the newest ones: within a bound of bytes, but three at least.

    plane   gives the lengths of the axes, so that near means near in theta
    memory  bytes for their eigenvectors; at most `MAX_NEIGHBOURS` points are kept
    """

    def __init__(self, plane: Plane, memory: int) -> None:
        self.lengths = np.array([length or 1.0 for length in plane.lengths])
        self.memory = memory
        self.points: OrderedDict[Point, SolvedPoint] = OrderedDict()

    def add(self, point: Point, vectors: Tensor, *, is_one_start: bool = False) -> None:
        """Remember the eigenvectors of a point, unless some are missing; `is_one_start` as of `SolvedPoint`."""
        if not bool(vectors.isfinite().all()):
            return
        self.points.pop(point, None)
        self.points[point] = SolvedPoint(np.array(point) * self.lengths, vectors, is_one_start)
        size = vectors.numel() * vectors.element_size()
        while len(self.points) > min(max(3, self.memory // size), MAX_NEIGHBOURS):
            self.points.popitem(last=False)

    def forget(self, memory: int) -> None:
        """Let go of all points, and hold no more than this number of bytes from here on."""
        self.points.clear()
        self.memory = memory

    def start(self, point: Point) -> Tensor | None:
        """(n, q) vectors to start from: the nearest point's, continued in a straight line where that is possible."""
        if not self.points:
            return None
        position = np.array(point) * self.lengths
        solved = list(self.points.values())
        distances = np.linalg.norm([s.position - position for s in solved], axis=1)
        nearest = solved[int(distances.argmin())]
        beyond = 2.0 * nearest.position - position  # where the line from here through the nearest goes on
        gaps = np.linalg.norm([s.position - beyond for s in solved], axis=1)
        if distances.min() == 0.0 or gaps.min() > 1e-6 * distances.min():
            return nearest.starts(nearest.vectors)
        return nearest.starts(continued(nearest.vectors, solved[int(gaps.argmin())].vectors))


def has_copies(pairs: EigenPairs) -> bool:
    """Whether some of several eigenvalues are so near that a search from one start would see one alone."""
    gaps = np.abs(np.diff(pairs.values))
    return bool((gaps <= COPIES_APART * pairs.tolerance * pairs.scale).any())


def continued(near: Tensor, far: Tensor) -> Tensor:
    """Vectors (n, m), each continued by the step from far to near where those two are nearly alike up to their sign."""
    overlaps = (in_float64(near) * in_float64(far)).sum(0)
    ahead = 2.0 * near - overlaps.sign().to(near.dtype) * far
    ahead = ahead / torch.linalg.vector_norm(ahead, dim=0, dtype=torch.float64).to(ahead.dtype)
    return torch.where(overlaps.abs() > MIN_COSINE, ahead, near)
