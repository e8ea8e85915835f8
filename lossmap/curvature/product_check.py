"""Whether products are those of the loss's second derivative: every backend against differences of the gradient.

    check = check_product(problem, "weights", hessian)      once per problem, parameters and product; then remembered
    check.rejected                                           backends that are not to be used, with the reason

On a few samples, in float64, over a copy of the model (see `differences`), with vectors drawn over all of theta and
over half of its tensors, at the model's own parameters and at a point as far away as a survey goes. Each tensor's part
of a product is compared by its own norm, at several steps: it is wrong where two neighbouring steps agree with each
other and not with it. At a kink (ReLU at 0) they do not agree with each other, and nothing can be said. The gradient is
compared with differences of the loss in the same way, since a straight-through estimator or a `detach` makes it another
function's.

Price: at each of the two points five gradients, two passes, two products by double backward and of a trace, one of a
retained graph, over six samples (benchmarks/checks.py); nothing at a distant point where a survey has one point alone.
At a kink 20 products over up to 256 samples for each of two vectors, and as many for a linearized product.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from math import hypot, inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from lossmap.curvature.backends import PointProducts
from lossmap.curvature.culprits import advice_for, rescaled_table, suspects
from lossmap.curvature.differences import ROUNDING, FewSamples, Parts, random_part
from lossmap.curvature.gradient_refusal import refuse_gradient, refuse_in_own_precision, refuse_overwritten
from lossmap.curvature.hvp_plan import BACKENDS, HvpPlan, ProductCheck
from lossmap.curvature.linearized_operator import BatchList, OperatorFactory
from lossmap.curvature.operators import THROUGH_OUTPUTS, Product, hessian, single_rank
from lossmap.data.batches import move_batch
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.memory import return_freed_memory
from lossmap.module_walks import kinds_of
from lossmap.seeding import generator
from lossmap.sums import alike, in_float64, norm, norm_of
from lossmap.weak import reference

log = logging.getLogger("lossmap")

# shares of theta, in the order in which they are tried: a longer one crosses more kinks (ReLU at 0), and of deep nets
# some within nearly every look; a shorter one drowns where the gradient's terms cancel
STEPS = (1e-6, 1e-5, 1e-7, 1e-4, 1e-3)
SAMPLES = 6
REPEATS = 12  # evaluations of the loss that must agree before anything is refused
MAX_CHANGE = 1e-6  # relative, between them
LARGE = 1_000_000  # parameters from which fewer samples are taken
MAX_ERROR = 1e-5  # of a tensor's part of a product, relative to its norm
MAX_GRADIENT_ERROR = 1e-4  # of the derivative along a vector, relative to what the gradient gives along such a one
MAX_UNDECIDED = 0.01  # of a verdict over more samples that is taken in the place of a refusal
RESOLVED = 0.1  # two steps that differ by less than this share of the result say what it is
SIDE_STEPS = (1e-6, 1e-7, 1e-8)  # of differences of the loss to one side; kinks of deep nets may lie nearer than 1e-7
NOISE_STEPS = (1e-9, 3e-9)  # shares of theta, so small that a second difference of the gradient is its rounding alone
NOISE_SAFETY = 8.0  # the rounding seen is taken so many times
KINK_STEP = 1e-6  # share of theta by which products on both sides of a kink are apart from it
ASIDE = 1e-5  # share of theta by which a point beside a kink is apart from it, in a random direction
KINK_SAMPLES = 256  # over which the difference of both sides is measured, at most
KINK_VECTORS = 2  # along which both sides are compared: the first is over all of theta
KINK_ITERATIONS = 4  # of the power method that finds its norm
TOO_SMALL = "its product is below the rounding of the loss's terms"
DIFFERS = "its product differs from differences of the gradient by"
NOT_FINITE = "its product is not finite"  # why a backend is not taken


@dataclass(frozen=True)
class Judgement:
    """What differences say of one product.

    wrong      the largest relative error of a tensor's part that is wrong; 0 for none
    undecided  the largest difference of a part of which no steps could say whether it is right, relative to the product
    at_kink    whether some part is right on one side of the point alone
    too_small  whether it is so small that rounding of the loss's terms hides it, and differences do not confirm it
    """

    wrong: float = 0.0
    undecided: float = 0.0
    at_kink: bool = False
    too_small: bool = False


@dataclass(frozen=True, eq=False)
class Reference:
    """Differences along one vector by steps, made when they are asked for; of a large model only the last are held.

    few       the samples, at a point
    v         the vector
    rounding  what rounding may do to each part of a product, times the step
    slope     the derivative of the loss along v, as the gradient gives it
    usual     what it gives along such a vector
    loss      at the point
    gradient  at the point; None of a large model
    """

    few: FewSamples
    v: Parts
    rounding: Sequence[float]
    slope: float
    usual: float
    loss: float
    gradient: Parts | None = None
    made: dict[float, tuple[Parts, float]] = field(default_factory=dict)
    sides: dict[float, tuple[Parts, Parts]] = field(default_factory=dict)
    slopes: dict[float, float] = field(default_factory=dict)

    @classmethod
    def along(cls, few: FewSamples, v: Parts, gradient: Parts, loss: float) -> Reference:
        """The reference along v at a point, of which gradient and loss are known."""
        slope, squares, rounding = 0.0, 0.0, []
        for g, d in zip(gradient, v, strict=True):
            size = norm(g)
            slope += float((g * d).sum())
            length = size * norm(d)
            squares += length * length / max(g.numel(), 1)  # inf where `**` raises
            rounding.append(ROUNDING * size)
        held = None if few.is_large else gradient
        return cls(few, v, rounding, slope, sqrt(squares), loss, held)

    def at(self, h: float) -> tuple[Parts, float]:
        """(product, derivative of the loss) with this step."""
        if h not in self.made:
            if self.few.is_large:
                self.forget()
            self.made[h] = self.few.difference(self.v, h)
        return self.made[h]

    def forget(self) -> None:
        """Give back what is held of the differences; they are made anew where they are asked for again."""
        self.made.clear()
        self.sides.clear()

    def slope_at(self, h: float) -> float:
        """The derivative of the loss alone, with this step."""
        if h in self.made or not self.few.is_large:
            return self.at(h)[1]
        if h not in self.slopes:
            self.slopes[h] = self.few.slope(self.v, h)
        return self.slopes[h]

    def one_sided(self, h: float) -> tuple[Parts, Parts]:
        """The product by differences ahead alone, and behind alone: at a kink one of them is that of a single side."""
        if h not in self.sides:
            if self.few.is_large:
                self.forget()
            self.sides[h] = self.few.one_sided(self.v, h, self.gradient)
        return self.sides[h]

    def judge_product(self, parts: Parts, scale: float = 0.0) -> Judgement:
        """What the differences say of a product, given tensor by tensor.

        scale  the largest |H v| / |v| of any vector, to which the rounding of a product that cancels is relative
        """
        sizes = [norm(p) for p in parts]
        whole = hypot(*sizes)
        floor = ROUNDING * scale * hypot(*map(norm, self.v))

        def tolerance(i: int, h: float) -> float:
            return MAX_ERROR * sizes[i] + 1e-9 * whole + floor + self.rounding[i] / h

        pending = list(range(len(parts)))
        for h in STEPS:
            product = self.at(h)[0]
            pending = [i for i in pending if not norm(parts[i] - product[i]) <= tolerance(i, h)]
            if not pending:
                return Judgement()
        steps_of = self._by_steps(parts, pending)
        noise = self._rounding_of_gradient()
        pending = [
            i
            for i in pending
            if not any(e <= tolerance(i, h) + NOISE_SAFETY * noise[i] / h for h, e in steps_of[i].errors.items())
        ]
        at_kink = self._one_sided_parts(parts, pending, tolerance)
        wrong, undecided = 0.0, 0.0
        for i in pending:
            if i in at_kink:
                continue
            steps = steps_of[i]
            change, h = steps.closest
            error, size = steps.errors[h], max(steps.sizes[h], sizes[i])
            relative = error / size if size else 0.0
            if change < RESOLVED * size and not error <= 5 * change + tolerance(i, h):
                wrong = max(wrong, relative if isfinite(relative) else 1.0)
            else:
                smallest = min((e for e in steps.errors.values() if isfinite(e)), default=whole)
                undecided = max(undecided, smallest / max(whole, size) if size else 0.0)
        if wrong and hypot(*map(norm, self.v)) * max(whole, hypot(*map(norm, self.at(h)[0]))) <= self.few.resolution:
            return Judgement(too_small=True)
        return Judgement(wrong, undecided, bool(at_kink))

    def _rounding_of_gradient(self) -> list[float]:
        """How far rounding moves each tensor's gradient, measured by second differences.

        Where the terms of a gradient cancel, as those of a bias before a normalization do, its own size says nothing.
        """
        largest = [0.0] * len(self.v)
        for h in NOISE_STEPS:
            ahead, behind = self.one_sided(h)
            largest = [max(now, norm((a - b) * h)) for now, a, b in zip(largest, ahead, behind, strict=True)]
        return largest

    def _by_steps(self, parts: Parts, places: Sequence[int]) -> dict[int, _Steps]:
        """How these parts of the product compare with each step's, and each step's with the next: one pass over all."""
        found = {i: _Steps() for i in places}
        before: tuple[float, Parts] | None = None
        for h in sorted(STEPS) if places else ():
            product = self.at(h)[0]
            for i, steps in found.items():
                steps.errors[h], steps.sizes[h] = norm(parts[i] - product[i]), norm(product[i])
                if before is not None:
                    steps.changes.append((norm(before[1][i] - product[i]), before[0]))
            before = (h, product)
        return found

    def _one_sided_parts(
        self, parts: Parts, places: Sequence[int], tolerance: Callable[[int, float], float]
    ) -> set[int]:
        """The parts that are right on one side of here: then a kink explains that central differences are not they."""
        at_kink: set[int] = set()
        if self.few.product in THROUGH_OUTPUTS:
            return at_kink
        for h in STEPS[:3]:
            pending = [i for i in places if i not in at_kink]
            for side in self.one_sided(h) if pending else ():
                at_kink |= {i for i in pending if norm(parts[i] - side[i]) <= tolerance(i, h)}
        return at_kink

    def judge_gradient(self) -> float | None:
        """The error of the gradient along this vector relative to what is usual along such a one; 0 for none.

        Infinite where the loss jumps here. None where it differs by less than rounding of the loss's terms may do: the
        loss of -log(softmax + 1e-20), say, is 0 below 1e-16, with a gradient that is not.
        """
        size = abs(self.slope) + self.usual

        def tolerance(h: float) -> float:
            return MAX_GRADIENT_ERROR * size + ROUNDING * abs(self.loss) / h

        for h in STEPS:
            if abs(self.slope_at(h) - self.slope) <= tolerance(h):
                return 0.0
        if max(2 * h * abs(self.slope_at(h) - self.slope) for h in STEPS) <= self.few.resolution:
            return None
        slopes = {h: self.slope_at(h) for h in sorted(STEPS)}
        change, h = min((abs(slopes[a] - slopes[b]), a) for a, b in pairwise(slopes))
        error = abs(slopes[h] - self.slope)
        largest = max(abs(slopes[h]), size)
        if change < RESOLVED * largest and error > 5 * change + tolerance(h):
            return error / largest
        jumps = [2 * h * abs(slopes[h] - self.slope) for h in sorted(STEPS)[:3]]
        # what does not shrink with the step is a jump of the loss itself; at a kink it has none
        return inf if min(jumps) > max(0.5 * max(jumps), 1e-6 * abs(self.loss)) else 0.0

    def is_right_on_one_side(self) -> bool:
        """Whether the gradient is that of the loss ahead of here, or behind: then a kink explains what it differs by.

        By (4 L(h) - L(2h) - 3 L(0)) / 2h, with steps of which rounding leaves as much as is asked for.
        """
        largest = MAX_GRADIENT_ERROR * (abs(self.slope) + self.usual)
        for h in SIDE_STEPS:
            rounding = 4 * ROUNDING * abs(self.loss) / h
            for step in (h, -h) if rounding <= largest else ():
                slope = (4 * self.few.loss(self.v, step) - self.few.loss(self.v, 2 * step) - 3 * self.loss) / (2 * step)
                if abs(slope - self.slope) <= largest + rounding:
                    return True
        return False


@dataclass(frozen=True, eq=False)
class _Steps:
    """Of one part of a product, by step: its error, the size of the difference, and (change to the next step, step)."""

    errors: dict[float, float] = field(default_factory=dict)
    sizes: dict[float, float] = field(default_factory=dict)
    changes: list[tuple[float, float]] = field(default_factory=list)

    @property
    def closest(self) -> tuple[float, float]:
        """(difference, step): between which neighbouring steps it changes the least, and the smaller of the two."""
        return min(self.changes)


class _Remembered:
    """Checks by problem (its model, forward and loss), parameters and product; gone with the model."""

    def __init__(self) -> None:
        self.by_model: weakref.WeakKeyDictionary[Any, list[tuple[Any, ...]]] = weakref.WeakKeyDictionary()

    def get(self, problem: Problem, names: Sequence[str], request: _Request) -> ProductCheck | None:
        """The check of these parameters, or of more; only what passed speaks for a part."""
        for former, kinds, forward, loss, done, check in self.by_model.get(problem.model, []):
            same = (
                former.covers(request)
                and kinds == kinds_of(problem.model)
                and forward() is problem.forward
                and loss() is problem.loss
            )
            if same and (tuple(names) == done or (set(names) <= set(done) and not check.rejected)):
                found: ProductCheck = check
                return found
        return None

    def elsewhere(self, problem: Problem, names: Sequence[str], request: _Request) -> ProductCheck | None:
        """The same check as it was made with another distant point, or with none."""
        return self.get(problem, names, replace(request, distant=None))

    def add(self, problem: Problem, names: Sequence[str], request: _Request, check: ProductCheck) -> None:
        """Remember a check."""
        entry = (
            request,
            kinds_of(problem.model),
            reference(problem.forward),
            reference(problem.loss),
            tuple(names),
            check,
        )
        self.by_model.setdefault(problem.model, []).append(entry)


@dataclass(frozen=True)
class _Request:
    """What was to be checked: the product's name, the backends, a mark of the distant point (None without), kinks."""

    product: str
    backends: tuple[str, ...]
    distant: tuple[float, ...] | None
    kinks: bool = True

    @classmethod
    def of(
        cls, product: Product, backends: Sequence[str], distant: bool | Mapping[str, Tensor], kinks: bool = True
    ) -> _Request:
        mark: tuple[float, ...] | None = None
        if isinstance(distant, Mapping):
            mark = tuple(float(in_float64(t).sum()) for t in distant.values())
        elif distant:
            mark = ()
        return cls(getattr(product, "__name__", ""), tuple(backends), mark, kinks)

    def covers(self, other: _Request) -> bool:
        """Whether a check of this kind answers the other request too."""
        return (
            self.product == other.product
            and set(other.backends) <= set(self.backends)
            and (other.distant is None or other.distant == self.distant)
            and self.kinks >= other.kinks
        )


_remembered = _Remembered()


def check_product(
    problem: Problem,
    parameters: str = "weights",
    product: Product = hessian,
    *,
    backends: Sequence[str] = ("double-backward",),
    distant: bool | Mapping[str, Tensor] = True,
    kinks: bool = True,
) -> ProductCheck:
    """Which backends give the second derivative of this loss, by differences; see the module.

    parameters  `weights` (dimension > 1), `all`, `trainable`, or a regular expression
    product     hessian, gauss_newton or fisher
    backends    to judge: double-backward, retained-graph, linearized
    distant     also far from the model's parameters: at the tensors of a survey's farthest point, by name, or in a
                random direction where there is none
    kinks       whether the difference of both sides of a kink is measured, which takes far longer than all the rest

    Raises ValueError, naming the operation, where the gradient is not that of the loss, or where no backend is right.
    """
    names = tuple(selected(problem.model, parameters))
    request = _Request.of(product, backends, distant, kinks)
    done = _remembered.get(problem, names, request)
    if done is None:
        former = _remembered.elsewhere(problem, names, request)
        done = _checked(problem, parameters, names, product, tuple(backends), distant, former, kinks=kinks)
        _remembered.add(problem, names, request, done)
        return_freed_memory(problem.model)
    return done


def kink_of_block(problem: Problem, parameters: str, product: Product = hessian) -> float | None:
    """By how much a block differs on the two sides of a kink along its own parameters, as a share of its size.

    Looked at anew: what is known of more parameters says nothing of fewer. None where there is no answer, as of a block
    that is 0 here and not beside. Arguments as of `check_product`.
    """
    names = tuple(selected(problem.model, parameters))
    try:
        check = _checked(problem, parameters, names, product, ("double-backward",), False, None, report=False)
    except ValueError:
        return None
    return None if check.unchecked else check.disagreement


def _checked(
    problem: Problem,
    parameters: str,
    names: tuple[str, ...],
    product: Product,
    backends: Sequence[str],
    distant: bool | Mapping[str, Tensor],
    former: ProductCheck | None,
    report: bool = True,
    kinks: bool = True,
) -> ProductCheck:
    """The check; with a former one of the same products only at the distant point, what was found before beside it."""
    if former is not None and former.unchecked:
        return former
    size = sum(p.numel() for p in selected(problem.model, parameters).values())
    try:
        few = FewSamples.of(problem, names, product, SAMPLES if size < LARGE else 2)
        known = None
        if few.is_large or former is not None:  # a gradient is a copy of the weights, or is not needed here
            loss = few.repeated(1)[0]
        else:
            known = few.loss_and_gradient()
            loss = known[0]
        repeated = few.repeated(1)[0] if few.first is None else few.first
    except Exception as error:  # user code may raise anything in float64, or in a copy
        refuse_overwritten(error)
        refuse_in_own_precision(problem, names, product)
        return _not_checked(f"the model does not run in float64 on a copy ({_first_line(error)})")
    if not isfinite(loss):
        return ProductCheck(unchecked="the loss is not finite")
    if abs(loss - repeated) > 1e-12 * abs(loss):
        refuse_changing_loss([loss, repeated])
        return _not_checked("the loss is not repeatable to more digits than 6")
    layout = Layout.of(selected(problem.model, parameters))
    try:
        with few.kept():
            return _judged(few, parameters, layout, backends, distant, former, report, known, kinks)
    except ValueError as refusal:
        refuse_changing_loss(few.repeated(REPEATS))
        # the loss of a few that are fitted far better than others may be nothing but what rounding of terms leaves
        return _over_more(few, parameters, layout, backends, distant, refusal)


def refuse_changing_loss(values: Sequence[float]) -> None:
    """Raise ValueError where evaluations of one loss differ by more than rounding may do in float32."""
    low, high = min(values), max(values)
    if high - low > MAX_CHANGE * max(abs(low), abs(high)):
        raise ValueError(
            f"the loss is not repeatable: the same samples gave {low:.8g}, then {high:.8g} at the same parameters, so "
            "that no derivative can be checked; let it count no calls, and draw from the generators of torch, NumPy "
            "or Python"
        ) from None


def _judged(
    few: FewSamples,
    parameters: str,
    layout: Layout,
    backends: Sequence[str],
    distant: bool | Mapping[str, Tensor],
    former: ProductCheck | None = None,
    report: bool = True,
    known: tuple[float, Parts] | None = None,
    kinks: bool = True,
) -> ProductCheck:
    """The verdict over some samples, see `check_product`. Raises ValueError for a refusal.

    known  their loss and gradient at the model's own parameters, where it was made before
    """
    judge = _Judge(few, parameters, layout, backends, former, kinks)
    if former is None:
        judge.compare(few, known)
    if isinstance(distant, Mapping):
        judge.compare(toward(few, distant))
    elif distant:
        judge.compare(far(few))
    verdict = judge.verdict()
    if report:
        judge.report()
    return verdict


def _over_more(
    few: FewSamples,
    parameters: str,
    layout: Layout,
    backends: Sequence[str],
    distant: bool | Mapping[str, Tensor],
    refusal: ValueError,
) -> ProductCheck:
    """The verdict over more samples where it is clear and there are more; raises the refusal elsewhere."""
    size = KINK_SAMPLES if layout.size < LARGE else 4 * SAMPLES
    batch = move_batch(next(iter(few.problem.rebatched(size).data)), None, torch.float64)
    if few.problem.count(batch) <= few.problem.count(few.batch):
        raise refusal
    try:
        check = _judged(replace(few, batch=batch), parameters, layout, backends, distant)
    except ValueError:
        raise refusal from None
    if check.disagreement > MAX_UNDECIDED:
        raise refusal
    return check


def _not_checked(reason: str) -> ProductCheck:
    log.warning("products were not compared with differences of the gradient: %s", reason)
    return ProductCheck(unchecked=reason)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"


def far(few: FewSamples) -> FewSamples:
    """The samples at a distant point: each of theta's tensors moved by its own norm in a random direction."""
    return few.moved(lambda i, _, t: t + random_part(t, "distant point", i))


def toward(few: FewSamples, tensors: Mapping[str, Tensor]) -> FewSamples:
    """The samples where the model has these tensors, by name; nearer to where it is, where the loss is not finite."""
    ends = [name for name in tensors if name in few.state]
    for share in (1.0, 0.5, 0.25, 0.125):

        def change(_: int, name: str, t: Tensor, share: float = share) -> Tensor:
            return t + share * (alike(tensors[name].detach(), t) - t)

        there = few.moved(change, ends)
        if there.is_finite:
            break
    return there


class _Judge:
    """The comparison while it lasts: the worst that was seen of each backend."""

    def __init__(
        self,
        few: FewSamples,
        parameters: str,
        layout: Layout,
        backends: Sequence[str],
        former: ProductCheck | None = None,
        kinks: bool = True,
    ) -> None:
        former, self.kinks = former or ProductCheck(), kinks
        self.layout, self.backends = layout, list(backends)
        twin = few.problem.with_data(BatchList([few.batch]))
        plan = HvpPlan("double-backward", SAMPLES)
        self.factories = {
            b: OperatorFactory(
                twin,
                parameters,
                few.product,
                single_rank,
                HvpPlan(b, SAMPLES, graph_bytes=plan.graph_bytes),
                1 << 40,
                compared=b != "retained-graph",  # whose products are compared
            )
            for b in BACKENDS
        }
        self.few = few
        self.points: list[tuple[FewSamples, list[Reference]]] = []  # that were compared so far
        self.rejected: dict[str, str] = dict(former.rejected)
        self.reported, self.undecided = former.disagreement, former.disagreement
        self.at_kink = False
        self.is_zero_here_alone = False  # the second derivative, and not on both sides of here
        self.loss_is_too_small = False  # to be compared with its gradient
        self.many: dict[str, OperatorFactory] = {}  # made where there is a kink
        self.crossed: dict[FewSamples, Reference] = {}  # by point with a kink, along what both sides differ most

    def compare(self, few: FewSamples, known: tuple[float, Parts] | None = None) -> None:
        """All backends at one point with all vectors. Raises ValueError where the gradient is not the loss's.

        known  loss and gradient there, where they were made before
        """
        references, error = self.references(few, known)
        if not references:
            return
        rescaled = rescaled_table(few.problem.model, few.state)
        if rescaled:
            raise ValueError(f"the gradient that PyTorch gives is not that of the loss: {rescaled}")
        kink = None
        if error:
            kink, (few, references) = self.explained_by_kink(few, references, error)
        self.points.append((few, references))
        for backend in self.backends:
            if backend not in self.rejected:
                self.compare_backend(backend, few, references)
                if kink is not None and backend not in self.rejected:
                    self.at_kink = True
                    self.note_jumps(backend, kink, references)
        if kink is None and self.is_wrong("double-backward"):
            self.look_beside(few, references)
        if "double-backward" in self.rejected and "linearized" not in self.backends:
            self.backends.append("linearized")  # a trace sees what a custom function hides
            for point in self.points:
                if "linearized" not in self.rejected:
                    self.compare_backend("linearized", *point)

    def explained_by_kink(
        self, few: FewSamples, references: list[Reference], error: float
    ) -> tuple[FewSamples | None, tuple[FewSamples, list[Reference]]]:
        """(the point with a kink that is left for one beside it, or None; what is compared), where the gradient is off.

        Raises ValueError where no kink explains by how much.
        """
        beside = self.beside(few) if error < inf else None
        if beside is not None:
            return few, beside
        if error == inf or not is_of_one_side(few, [r.v for r in references]):
            refuse_gradient(few, error)
        refuse_changing_loss(few.repeated(REPEATS))  # one look at it may agree with another by chance
        return None, (few, references)

    def references(self, few: FewSamples, known: tuple[float, Parts] | None = None) -> tuple[list[Reference], float]:
        """(differences along each vector, the largest error of the gradient along any); none where it is not finite."""
        loss, gradient = known or few.loss_and_gradient()
        if not isfinite(loss) or not all(bool(g.isfinite().all()) for g in gradient):
            return [], 0.0
        references = [Reference.along(few, v, gradient, loss) for v in self.vectors(few)]
        # along the gradient itself first, which is another copy of a large model's weights
        steepest = few.parts(lambda i, t: as_long(gradient[i], t))
        errors = [LossAlong.along(few, steepest, gradient, loss).judge_gradient()]
        gradient, steepest = [], []
        errors += [r.judge_gradient() for r in references]
        if None in errors:
            self.loss_is_too_small = True
        return references, max(error or 0.0 for error in errors)

    def vectors(self, few: FewSamples) -> list[Parts]:
        """One over all of theta, and one over half of its tensors, drawn apart: two show whether a matrix is symmetric.

        The first alone finds what the second does: 1 % in a tensor of 16 weights, also where these are 1e-6 of the
        others, and 0.01 % where they are 1 % (benchmarks/planted.py).
        """
        count = len(few.names)
        everything = few.parts(lambda i, t: random_part(t, "whole", i))
        if count == 1:
            return [everything]
        members = set(torch.randperm(count, generator=generator("groups", count)).tolist()[::2])
        half = few.parts(lambda i, t: random_part(t, "group", i) if i in members else torch.zeros_like(t))
        return [everything, half]

    def beside(self, few: FewSamples) -> tuple[FewSamples, list[Reference]] | None:
        """A point beside this one, and what is compared there; None where the gradient is not the loss's there either.

        At a kink that matters, as where a ReLU's input is 0 and its output is not ignored, the loss has no gradient: a
        difference is the mean of both sides, and PyTorch's is that of one. Beside it the loss has one.
        """
        there = few.moved(lambda i, _, t: t + ASIDE * random_part(t, "beside a kink", i))
        references, error = self.references(there)
        if error or not references:
            return None
        return there, references

    def is_wrong(self, backend: str) -> bool:
        """Whether the products of a backend are not the differences of the gradient."""
        return self.rejected.get(backend, "").startswith(DIFFERS)

    def look_beside(self, few: FewSamples, references: Sequence[Reference]) -> None:
        """Take back the rejection of products that are right just beside a point where those of no side are.

        Where the gradient has a kink, and not the loss, differences of any step agree: they are the mean of both sides,
        as of weights that are all zero behind a ReLU whose input is.
        """
        beside = self.beside(few)
        if beside is None:
            return
        rejected = dict(self.rejected)
        for backend in [b for b in self.backends if self.is_wrong(b)]:
            del self.rejected[backend]
            self.compare_backend(backend, *beside)
            if backend in self.rejected:
                self.rejected = rejected
                return
        self.points[-1] = beside
        self.at_kink = True
        self.note_jumps("double-backward", few, references)

    def compare_backend(self, backend: str, few: FewSamples, references: Sequence[Reference]) -> None:
        """The products of one backend; what it raises is a reason too."""
        if backend == "retained-graph" and "double-backward" not in self.rejected:
            references = references[:1]  # the same derivatives as those that passed, kept between vectors
        judged, images, scale = [], _Images(references), 0.0
        products, held = _Products(self.factories[backend], few), []
        for i, r in enumerate(references):
            try:
                result = products.along([r.v for r in references], i)
            except Exception as error:  # user code may raise anything under a tracer, and what has no derivative does
                self.rejected[backend] = _first_line(error)
                return
            if not bool(result.isfinite().all()):
                self.rejected[backend] = NOT_FINITE
                return
            scale = max(scale, norm(result) / (images.sizes[i] or 1.0))
            held.append((r, result))
            del result
            # of a large model each is judged by itself, and by the scale of those so far: it is two copies of weights
            if few.is_large or i + 1 == len(references):
                while held:
                    former, image = held.pop(0)
                    judged.append(former.judge_product(self.layout.split(image), scale))
                    images.add(self.layout.split(image))
                    if few.is_large:
                        former.forget()
                    del image
        if any(j.too_small for j in judged):
            self.rejected[backend] = TOO_SMALL
            return
        wrong = max((j.wrong for j in judged), default=0.0)
        if wrong:
            self.rejected[backend] = f"{DIFFERS} {wrong:.1g}"
        elif images.asymmetry > MAX_ERROR:
            self.rejected[backend] = f"its matrix is not symmetric, by {images.asymmetry:.1g}"
        else:
            self.note_kinks(backend, few, references, judged)

    def note_kinks(
        self, backend: str, few: FewSamples, references: Sequence[Reference], judged: Sequence[Judgement]
    ) -> None:
        """What could not be decided, and the difference of both sides of a kink, of a backend that is not wrong."""
        self.undecided = max([self.undecided, *(j.undecided for j in judged)])
        kinked = [r for r, j in zip(references, judged, strict=True) if j.at_kink]
        if kinked:
            self.note_jumps(backend, few, kinked)
            self.at_kink = True

    def note_jumps(self, backend: str, few: FewSamples, references: Sequence[Reference]) -> None:
        """The differences of both sides of a kink along some vectors: by the first backend that is right.

        Of a further one, which may take another side at the point itself, along the vector where they differ most;
        none of a retained graph, whose derivatives are the same.
        """
        if not self.kinks:
            return
        crossed = self.crossed.get(few)
        if crossed is not None:
            references = [crossed]
            if backend == "retained-graph" and "double-backward" not in self.rejected:
                return
        pairs = [self._jump(backend, few, r) for r in references[:KINK_VECTORS]]
        jumps, sizes = zip(*pairs, strict=True)
        largest, size = max(jumps), max(sizes)
        self.crossed.setdefault(few, references[jumps.index(largest)])
        if size:
            self.undecided = max(self.undecided, largest / size)
        else:  # a bar is a share of the matrix's size, and this one is 0
            self.undecided, self.is_zero_here_alone = inf, largest > 0.0

    def _jump(self, backend: str, few: FewSamples, reference: Reference) -> tuple[float, float]:
        """(how far a backend's matrices on both sides of here differ from that here, its size), in the spectral norm.

        By some steps of the power method from the reference's vector. All are 0 of a loss of straight pieces, whose
        curvature lies in the kink alone.
        """
        factory = self._over_many_samples(backend)
        matrices = []
        with torch.inference_mode(False), torch.no_grad():
            for sign in (0.0, 1.0, -1.0):
                there = few.moved(lambda i, _, t, sign=sign: t + sign * KINK_STEP * reference.v[i])  # type: ignore[misc]
                products = factory.products({k: t.detach() for k, t in there.state.items()})
                matrices.append(products.local_sum)
            start = torch.cat([d.reshape(-1) for d in reference.v])[None]
            here, *sides = matrices
            return max(largest_image(difference_of(side, here), start) for side in sides), largest_image(here, start)

    def _over_many_samples(self, backend: str) -> OperatorFactory:
        """The products of a backend over more samples: those at a kink may be few."""
        if backend not in self.many:
            problem = self.few.problem
            batch = move_batch(next(iter(problem.rebatched(KINK_SAMPLES).data)), None, torch.float64)
            plan = replace(self.factories[backend].plan, batch_size=KINK_SAMPLES)
            twin = problem.with_data(BatchList([batch]))
            self.many[backend] = replace(self.factories[backend], problem=twin, plan=plan, programs={})
        return self.many[backend]

    def verdict(self) -> ProductCheck:
        """What to use. Raises ValueError where no backend is right, and where there is a kink and nothing else."""
        if self.at_kink and self.is_zero_here_alone:
            raise ValueError(
                "the loss has a kink exactly at these parameters: its second derivative is 0 here and not beside, as "
                "of weights that are all zero behind a ReLU whose input is 0, so that there is no curvature to state; "
                "move off the kink"
            )
        if self.at_kink and self.undecided == inf:
            raise ValueError(
                "the loss has a kink exactly at these parameters: its gradient jumps there, and its second derivative "
                "is 0 on every side, so that there is no curvature to state; move off the kink, or take a smooth loss"
            )
        if self.undecided > self.reported:
            refuse_changing_loss(self.few.repeated(REPEATS))
        if all(b in self.rejected for b in ("double-backward", "linearized") if b in self.backends) and self.rejected:
            if self.rejected["double-backward"] == NOT_FINITE:
                raise ValueError(
                    "the second derivative is not finite at these parameters or at a distant point, though loss and "
                    "gradient are: look for a power, a root or a logarithm at 0, as (1 - p) ** 1.5 where p rounds to "
                    "1, and keep its argument away from 0"
                )
            if TOO_SMALL in self.rejected.values():
                raise ValueError(
                    "the second derivative cannot be told from zero in float64 at these parameters or at a distant "
                    "point: it is smaller than the rounding of the loss's terms, and differences of the gradient do "
                    "not confirm it. The samples are fitted beyond what this form of the loss resolves; take one whose "
                    "terms do not cancel (cross_entropy or log_softmax for log(softmax + eps), expm1 for 1 - exp), or "
                    "parameters that fit less"
                )
            names = suspects(self.few)
            if not names:
                raise ValueError(
                    "PyTorch's second derivative of this model or its loss is missing or wrong: "
                    f"{self.rejected['double-backward']}; no module and no custom autograd Function is wrong alone: "
                    "look in the forward pass for an operation without a second derivative, or for a value of the "
                    "weights that passes no gradient (detach, .item(), the steps that an adaptive solver takes)"
                )
            raise ValueError(
                f"PyTorch's second derivative of {names} is missing or wrong: {self.rejected['double-backward']}; "
                f"{advice_for(names)}"
            )
        return ProductCheck(dict(self.rejected), self.undecided)

    def report(self) -> None:
        """Log what could not be decided, where there is a verdict."""
        if self.loss_is_too_small:
            log.warning(
                "the gradient was not compared with the loss, whose changes over these samples are below the rounding "
                "of its terms: fitted beyond what this form of the loss resolves, as log(softmax + eps) below 1e-16"
            )
        if self.at_kink and self.undecided > max(MAX_ERROR, self.reported):
            log.warning(
                "the loss has a kink at these parameters (ReLU at 0, a tie of max-pooling): the Hessian is that of one "
                "side, and differs by up to %.1g of its size from the other's; error bars hold this difference",
                self.undecided,
            )
        elif self.undecided > self.reported:
            log.warning(
                "products and differences of the gradient differ by up to %.1g, and no step decides between them: near "
                "kinks of the loss (ReLU at 0, a tie of max-pooling), or where the loss's own terms cancel, as in a "
                "saturated network; error bars hold this difference",
                self.undecided,
            )


def largest_image(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The norm of a symmetric matrix from below: the largest |A v| of some power iterates v of length one, (1, n)."""
    v, largest = start / (norm(start) or 1.0), 0.0
    for _ in range(KINK_ITERATIONS):
        image = product(v)
        size = norm(image)
        largest = max(largest, size)
        if not size:
            break
        v = image / size
    return largest


def difference_of(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The product with A - B."""
    return lambda v: a(v) - b(v)


class LossAlong(Reference):
    """A reference for the gradient alone: differences of the loss."""

    def at(self, h: float) -> tuple[Parts, float]:
        """(nothing, derivative of the loss) with this step."""
        if h not in self.made:
            self.made[h] = ([], self.few.slope(self.v, h))
        return self.made[h]


def as_long(v: Tensor, theta: Tensor) -> Tensor:
    """A tensor made as long as one of theta's, or of length one where that is zero."""
    return v * ((norm(theta) or 1.0) / (norm(v) or 1.0))


def is_of_one_side(few: FewSamples, vectors: Sequence[Parts]) -> bool:
    """Whether the gradient is the loss's along itself and these vectors, ahead of here or behind where not on both.

    A deep network has kinks of the loss (max-pooling, ReLU) within any step of nearly every point, and beside it too.
    """
    loss, gradient = few.loss_and_gradient()
    for v in (few.parts(lambda i, t: as_long(gradient[i], t)), *vectors):
        along = LossAlong.along(few, v, gradient, loss)
        if along.judge_gradient() and not along.is_right_on_one_side():
            return False
    return True


class _Products:
    """The products of one backend at one point; of a large model nothing is held between two of them."""

    def __init__(self, factory: OperatorFactory, few: FewSamples) -> None:
        self.factory, self.few = factory, few
        self.made: PointProducts | None = None
        self.results: Tensor | None = None

    def along(self, vectors: Sequence[Parts], i: int) -> Tensor:
        """The product with the i-th of some vectors, (n,). Raises what the model raises.

        Of a small model double backward makes them all of one gradient, when it is first asked.
        """
        if self.few.is_large:
            state = self._state()
            with temporary_parameters(self.few.problem.model, state):  # its own are in the precision of the original
                return self._products(self.factory.products(state), vectors[i : i + 1])[0]
        if self.made is None:
            self.made = self.factory.products(self._state())
        if self.factory.plan.backend != "double-backward":
            return self._products(self.made, vectors[i : i + 1])[0]
        if self.results is None:
            self.results = self._products(self.made, vectors)
        return self.results[i]

    def _state(self) -> dict[str, Tensor]:
        return {k: t.detach() for k, t in self.few.state.items()}

    def _products(self, made: PointProducts, vectors: Sequence[Parts]) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            like = vectors[0][0]
            rows = torch.empty(len(vectors), self.factory.size, dtype=like.dtype, device=like.device)
            for row, v in zip(rows, vectors, strict=True):
                for i, part in enumerate(self.factory.layout.split(row)):
                    part.copy_(v[i])  # one by one: they may be made where they are read
            return made.local_sum(rows)


class _Images:
    """How symmetric a matrix is, from its products with the vectors of references, of which none is held."""

    def __init__(self, references: Sequence[Reference]) -> None:
        self.references = references
        self.sizes = [norm_of(r.v) for r in references]
        self.images: list[float] = []  # their norms
        self.products: list[list[float]] = []  # of the j-th image with each vector

    def add(self, parts: Parts) -> None:
        """Take in the product with the next vector, given tensor by tensor."""
        self.images.append(norm_of(parts))
        self.products.append([_dot(r.v, parts) for r in self.references])

    @property
    def asymmetry(self) -> float:
        """The largest of |u.Hv - v.Hu|, relative to the norms."""
        worst = 0.0
        for i, j in combinations(range(len(self.images)), 2):
            size = max(self.sizes[i] * self.images[j], self.sizes[j] * self.images[i])
            worst = max(worst, abs(self.products[j][i] - self.products[i][j]) / size if size else 0.0)
        return worst


def _dot(u: Parts, v: Parts) -> float:
    """The scalar product of two vectors given tensor by tensor."""
    return sum(float(torch.dot(a.reshape(-1), b.reshape(-1))) for a, b in zip(u, v, strict=True))
