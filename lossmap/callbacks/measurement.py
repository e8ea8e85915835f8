"""The curvature at one step of a training: both ends of the Hessian, its trace, and the optimizer's stability.

    reading   loss, gradient_norm, max_eig, min_eig, trace, each with `_error`; max_eig_limit, min_eig_limit;
              preconditioned_max_eig (+ _error), stability_threshold, stability_ratio (1 is the edge); products

The model is read in evaluation mode over a fixed set of samples, and comes back as it was: parameters, buffers, modes,
gradients, and the states of all global random number generators. A search starts from the eigenvectors of the step
measured before, and may come upon an eigenvalue from inside the spectrum first: so it ends only where, with a
probability of `CONFIDENCE`, none lies further out than ten tolerances, as far as `max_products` and `memory` allow.
Units: those of the loss, per squared unit of theta for curvature.

Price: 10 to 30 products a search, two of them with Adam; `trace_products`; a gradient; and for the error bars some
products in float64 (benchmarks/callbacks.py). What prepares the first one comes in three parts, `PREPARATION`, each of
which can wait: `preparation_seconds` guesses what the next one takes, `prepare_next` does it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.gradient_check import check_gradient, has_custom_functions
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck, backend_of
from lossmap.curvature.linearized_operator import BatchList, OperatorFactory
from lossmap.curvature.moved_loss import refuse_unmoved
from lossmap.curvature.operators import refuse_unfit
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.diagnostics.step_rule import StepRule, rule_of_reading
from lossmap.geometry.grid import Field
from lossmap.geometry.parameter_vector import selected
from lossmap.linalg.eigenpairs import EigenPairs, with_residuals
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.preconditioned import PreconditionedOperator
from lossmap.linalg.solvers import extremes
from lossmap.linalg.trace import trace
from lossmap.seeding import preserved_random_state
from lossmap.sums import norm

logger = logging.getLogger("lossmap")

Reading = dict[str, float]

CONFIDENCE = 0.99  # probability of the limits beyond which no eigenvalue lies
# The time of a gradient, the check of loss and gradient, and that of products with the choice of a backend.
PREPARATION = ("time", "loss", "products")
SAMPLES = 6  # over which a gradient is timed, as many as the checks take
GRADIENTS = {"loss": 80, "products": 100, "traces": 80}  # over six samples, that a part costs at most, but for kinks
PROBED_SAMPLES = 5000  # products of one sample that a trace and a probe cost about
PRODUCT = 2.5  # gradients that a product costs, by double backward
READINGS = 20  # for whose products a probe may look for the cheapest backend
STEPS_OF_TIME = 30  # of the training, that two gradients over six samples take at most, even of a tiny network
MIN_PRODUCTS = 20  # of a search, however little time there is
OTHER_PRODUCTS = 12  # about as many as gradient and rounding of a reading cost


def fields_of(unit: str) -> tuple[Field, ...]:
    """The fields of a reading; unit is that of the loss."""
    curved = f"{unit} per squared unit of theta"
    within = "an eigenvalue lies within this distance"
    beyond = f"with probability {CONFIDENCE:g} no eigenvalue lies beyond"
    return (
        Field("loss", unit, "mean loss over the measured samples"),
        Field("loss_error", unit, "how far rounding may have moved the loss"),
        Field("gradient_norm", f"{unit} per unit of theta", "norm of the mean gradient"),
        Field("gradient_norm_error", f"{unit} per unit of theta", "how far rounding may have moved it"),
        Field("max_eig", curved, "largest eigenvalue of the Hessian"),
        Field("max_eig_error", curved, within),
        Field("max_eig_limit", curved, beyond),
        Field("min_eig", curved, "smallest eigenvalue of the Hessian"),
        Field("min_eig_error", curved, within),
        Field("min_eig_limit", curved, beyond),
        Field("trace", curved, "trace of the Hessian"),
        Field("trace_error", curved, "standard error of the trace"),
        Field("preconditioned_max_eig", "1", "largest eigenvalue of the Hessian as the optimizer's step sees it"),
        Field("preconditioned_max_eig_error", "1", within),
        Field("stability_threshold", "1", "that eigenvalue beyond which full-batch steps diverge"),
        Field("stability_ratio", "1", "that eigenvalue relative to its threshold"),
        Field("products", "1", "Hessian-vector products spent"),
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is evaluated in its own precision; afterwards no generator and no switch has changed.

    An autocast around the training loop is switched off, and so is one that Accelerate has put around `forward`.
    """
    device = next(model.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(own_forward(model))
        yield


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """The model's own `forward`, where Accelerate has replaced it by one in half precision; afterwards as before."""
    patched, own = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if patched is None or own is None:
        yield
        return
    model.__dict__["forward"] = own
    try:
        yield
    finally:
        model.__dict__["forward"] = patched


@dataclass
class Measurement:
    """Measures the curvature of a problem's model at its present parameters, again and again: `measurement(optimizer)`.

    problem         model, loss and the fixed samples
    parameters      what the Hessian is of: `trainable`, `weights` (dimension > 1), `all`, or a regular expression
    tol             accuracy of the eigenvalues, relative to the largest absolute one
    trace_products  of the trace; 0: it is not measured
    max_products    of one search
    backend         of products
    seed            of random starts and probes
    check           whether products are first compared with differences of the gradient (`curvature.product_check`),
                    at the price of a hundred gradients, or of thousands where the loss has a kink at the start; None:
                    but for what kinks do, where the loss goes through custom autograd Functions, whose second
                    derivatives may be wrong, or where products are not those of double backward; else the gradient
                    alone, with differences of the loss: two of them and eight passes over six samples
    memory          bytes that a search may take
    clock           seconds; to be replaced in tests

    A working state: it keeps the last eigenvectors, and counts its searches. Raises ValueError, when made, for weights
    in half precision and parameters that are not there; when prepared, for a model that cannot be differentiated twice
    and a loss that is no mean over samples.
    """

    problem: Problem
    parameters: str = "trainable"
    tol: float = 1e-2
    trace_products: int = 12
    max_products: int = 100
    backend: str = "double-backward"
    seed: int = 0
    check: bool | None = None
    memory: int = 1 << 29
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    starts: dict[str, Tensor] = field(default_factory=dict, repr=False)
    searches: int = field(default=0, repr=False)
    names: tuple[str, ...] = field(default=(), init=False, repr=False)  # of the parameters that the Hessian is of
    factory: OperatorFactory = field(init=False, repr=False)
    pending: list[str] = field(default_factory=lambda: list(PREPARATION), repr=False)
    is_quick: bool = field(default=False, init=False, repr=False)  # whether the check leaves out kinks
    is_plain: bool = field(default=True, init=False, repr=False)
    seconds_of_few: float = field(default=0.0, init=False, repr=False)  # of a gradient over six samples
    seconds_of_all: float = field(default=0.0, init=False, repr=False)  # over all of them
    rule_reason: str = field(default="", init=False, repr=False)  # why the last optimizer's threshold is not known
    without_gradient: tuple[str, ...] = field(default=(), init=False, repr=False)  # what that optimizer does not move

    def __post_init__(self) -> None:
        refuse_unfit(selected(self.problem.model, self.parameters).values())
        self.is_plain = backend_of(self.backend) == "double-backward"  # whether there is nothing to probe

    def _seconds(self, problem: Problem) -> float:
        """Seconds of a gradient; the lesser of two: the first one may have to load libraries and fill caches."""
        seconds: list[float] = []
        for _ in range(2):
            before = self.clock()
            float(loss_and_gradient(problem, self.parameters).gradient[0])  # read, so that a GPU has done it
            seconds.append(self.clock() - before)
        return min(seconds)

    def preparation_seconds(self, step: float) -> float:
        """About how long the next part of the preparation takes at most; 0 where all is prepared.

        step  seconds of a step of the training, by which the time of a gradient is guessed before one is timed
        """
        if not self.pending:
            return 0.0
        part, gradients = self.pending[0], 0
        if part == "time":
            return STEPS_OF_TIME * step
        if part == "loss":
            gradients = GRADIENTS["loss"]
        elif self.is_checked:
            gradients = GRADIENTS["products"]
        seconds = gradients * self.seconds_of_few
        if part == "products" and not self.is_plain:
            share = PROBED_SAMPLES / max(1, self.problem.data.samples)
            seconds += GRADIENTS["traces"] * self.seconds_of_few + share * PRODUCT * self.seconds_of_all
        return seconds

    @property
    def is_timed(self) -> bool:
        """Whether a gradient has been timed, so that guesses rest on it."""
        return "time" not in self.pending

    @property
    def is_checked(self) -> bool:
        """Whether products are compared with differences of the gradient."""
        return bool(self.check) or (self.check is None and not self.is_plain)

    def prepare_next(self) -> None:
        """Do the next part of the preparation. Raises ValueError for what speaks against any measurement."""
        with undisturbed(self.problem.model):
            if self.pending[0] == "time":
                self._prepare_time()
            elif self.pending[0] == "loss":
                self._prepare_loss()
            else:
                self._prepare_products()
        self.pending.pop(0)

    def prepare_all(self) -> None:
        """Do what is left of the preparation."""
        while self.pending:
            self.prepare_next()

    def _prepare_time(self) -> None:
        few = self.problem.rebatched(SAMPLES)
        few = few.with_data(BatchList([next(iter(few.data))]))
        self.seconds_of_few = self._seconds(few)
        self.seconds_of_all = self.seconds_of_few * max(1.0, self.problem.data.samples / max(1, few.data.samples))

    def _prepare_loss(self) -> None:
        self.problem = check_loss(self.problem)
        refuse_unmoved(self.problem)
        if self.check is None and has_custom_functions(self.problem, self.parameters):
            self.check, self.is_quick = True, True
        if not self.is_checked:
            check_gradient(self.problem, self.parameters)
        self.seconds_of_all = self._seconds(self.problem)

    def _prepare_products(self) -> None:
        self.names = tuple(selected(self.problem.model, self.parameters))
        plan = HvpPlan("double-backward", self.problem.data.batch_size) if self.is_plain else None
        self.factory = prepare(
            self.problem,
            self.parameters,
            backend=self.backend,
            plan=plan,
            check=True if self.is_checked else ProductCheck(),
            kinks=self.check is True and not self.is_quick,
            products=READINGS * self.usual_products,
        )
        self.problem = self.factory.problem

    def _follow_parameters(self) -> None:
        """Begin anew where other parameters are trained by now, as by a schedule that unfreezes layers."""
        names = tuple(selected(self.problem.model, self.parameters))
        if names != self.names:
            logger.warning("from here on the Hessian is of %d tensors, no longer of %d", len(names), len(self.names))
            self.starts.clear()
            self._prepare_products()

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a reading."""
        return fields_of(self.problem.unit)

    @property
    def usual_products(self) -> int:
        """About how many products a first reading takes, with what else costs as much as one."""
        return 40 + self.trace_products

    @property
    def usual_seconds(self) -> float:
        """About how long a first reading takes, by the seconds of a gradient."""
        return self.usual_products * PRODUCT * self.seconds_of_all

    def __call__(self, optimizer: Any = None, products: int | None = None) -> Reading:
        """The reading now; where the loss is not finite, of its curvature NaN.

        optimizer  whose stability is compared; None: none
        products   about how many it may take, with what else costs as much as one: searches end earlier, with wider
                   error bars and limits; None: as many as `max_products` allow

        Raises FloatingPointError where the loss is finite and a product is not; ValueError, before the first reading,
        for what speaks against any.
        """
        self.rule_reason, self.without_gradient = "", ()
        self.prepare_all()
        with undisturbed(self.problem.model):
            self._follow_parameters()
            found = measured_gradient(self.problem, self.parameters)
            reading = dict.fromkeys((f.name for f in self.fields), nan)
            reading |= {"loss": found.loss, "loss_error": found.loss_error, "products": 0.0}
            if isfinite(found.loss):  # else the gradient is one of the batches that have a loss
                reading |= {"gradient_norm": norm(found.gradient), "gradient_norm_error": found.norm_error}
            rule = None
            if optimizer is not None:
                rule = rule_of_reading(optimizer, selected(self.problem.model, self.parameters), self.problem)
                reading["stability_threshold"] = rule.threshold
                self.rule_reason, self.without_gradient = rule.reason, rule.without_gradient
            if isfinite(found.loss):
                self._add_curvature(reading, rule, self._products_of_search(rule, products))
        return reading

    def _products_of_search(self, rule: StepRule | None, products: int | None) -> int:
        """At most so many for each search of a reading that may take that many."""
        if products is None:
            return self.max_products
        searches = 1 if rule is None or rule.reason or rule.is_plain else 2
        share = (products - self.trace_products - OTHER_PRODUCTS) // searches
        return min(self.max_products, max(MIN_PRODUCTS, share))

    def _add_curvature(self, reading: Reading, rule: StepRule | None, most: int) -> None:
        operator = self.factory.at(measured=True)
        ends = self._search("ends", operator, most)
        names = ("max_eig", "min_eig")
        for name, value, error, limit in zip(names, ends.values, ends.residuals, ends.limits, strict=True):
            reading |= {name: float(value), f"{name}_error": float(error)}
            # Not known of a search that memory made begin anew.
            reading[f"{name}_limit"] = float(limit) if isfinite(limit) else nan
        reading["products"] += ends.products
        if self.trace_products:
            estimate = trace(operator, products=self.trace_products, seed=self.seed, sums=False)
            reading |= {"trace": estimate.value, "trace_error": estimate.error}
            reading["products"] += estimate.products
        if rule is not None and not rule.reason:
            self._add_stability(reading, operator, rule, most)

    def _add_stability(self, reading: Reading, operator: SymmetricOperator, rule: StepRule, most: int) -> None:
        """The eigenvalue that the optimizer's threshold limits, and how far from it."""
        value, error = reading["max_eig"], reading["max_eig_error"]
        if rule.is_plain:
            value += float(rule.decay)
        else:
            seen = PreconditionedOperator(operator, _diagonal(rule.scale, operator), rule.decay)
            pairs = _with_float64_residuals(self._search("top:1", seen, most), seen)
            value, error = float(pairs.values[0]), float(pairs.residuals[0])
            reading["products"] += pairs.products
        reading |= {"preconditioned_max_eig": value, "preconditioned_max_eig_error": error}
        reading["stability_ratio"] = value / rule.threshold

    def _search(self, which: str, operator: SymmetricOperator, most: int) -> EigenPairs:
        """Eigenpairs from those of the last reading on, which are near; see the module on ends that come in late."""
        pairs = extremes(
            operator,
            which,
            tol=self.tol,
            start=self.starts.get(which),
            # Limits rest on a random part that the vectors it is added to have not seen.
            seed=f"{self.seed} {self.searches}",
            certify=True,
            confidence=CONFIDENCE,
            max_products=most,
            memory=self.memory,
        )
        self.starts[which] = pairs.vectors
        self.searches += 1
        return pairs


def _diagonal(scale: Tensor | None, operator: SymmetricOperator) -> Tensor:
    if scale is not None:
        return scale
    return torch.ones(operator.size, dtype=torch.float64, device=operator.device)


def _with_float64_residuals(pairs: EigenPairs, operator: PreconditionedOperator) -> EigenPairs:
    """The pairs with residuals by one float64 product each; as they are where there is no such product."""
    if operator.dtype == torch.float64:
        return pairs
    try:
        measured = with_residuals(pairs, operator.in_float64())
    except Exception as failure:  # user code may raise any exception in another precision
        logger.info("residuals are not measured in float64: %s", failure)
        return pairs
    return replace(measured, products=pairs.products + len(pairs.values))
