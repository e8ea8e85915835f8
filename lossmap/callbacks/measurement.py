"""The curvature at one step of a training: both ends of the Hessian, its trace, and the optimizer's stability.

    reading   loss, gradient_norm, max_eig, min_eig, trace, each with `_error`; max_eig_limit, min_eig_limit;
              preconditioned_max_eig (+ _error), stability_threshold, stability_ratio (1 is the edge); products

The model is read in evaluation mode over a fixed set of samples, and comes back as it was: parameters, buffers, modes,
gradients, and the states of all global random number generators. A search starts from the eigenvectors of the step
measured before, and may come upon an eigenvalue from inside the spectrum first: so it ends only where, with a
probability of `CONFIDENCE`, none lies further out than ten tolerances, as far as `max_products` and `memory` allow.
Units: those of the loss, per squared unit of theta for curvature.

Price: 10 to 30 products a search, two of them with Adam; `trace_products`; a gradient; and for the error bars some
products in float64 (benchmarks/callbacks.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.callbacks.optimizer import StepRule, step_rule
from lossmap.callbacks.preconditioned import PreconditionedOperator
from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient_check import check_gradient, has_custom_functions
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck, backend_of
from lossmap.curvature.linearized_operator import OperatorFactory
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Field
from lossmap.geometry.parameter_vector import selected
from lossmap.linalg.eigenpairs import EigenPairs, with_residuals
from lossmap.linalg.lanczos import extremes
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.trace import trace
from lossmap.seeding import preserved_random_state
from lossmap.sums import norm

logger = logging.getLogger("lossmap")

Reading = dict[str, float]

CONFIDENCE = 0.99  # probability of the limits beyond which no eigenvalue lies


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
                    where the loss goes through custom autograd Functions, whose second derivatives may be wrong; else
                    the gradient alone, with differences of the loss: two of them and eight passes over six samples
    memory          bytes that a search may take

    A working state: it keeps the last eigenvectors, and counts its searches. Raises ValueError, when made, for a model
    that cannot be differentiated twice, a loss that is no mean over samples, and weights in half precision.
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
    starts: dict[str, Tensor] = field(default_factory=dict, repr=False)
    searches: int = field(default=0, repr=False)
    factory: OperatorFactory = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan = None
        if backend_of(self.backend) == "double-backward":  # nothing to probe
            plan = HvpPlan("double-backward", self.problem.data.batch_size)
        with undisturbed(self.problem.model):
            if self.check is None:
                self.check = has_custom_functions(self.problem, self.parameters)
            check = self.check or ProductCheck()
            self.factory = prepare(self.problem, self.parameters, backend=self.backend, plan=plan, check=check)
            self.problem = self.factory.problem
            if not self.check:
                check_gradient(self.problem, self.parameters)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a reading."""
        return fields_of(self.problem.unit)

    @property
    def usual_products(self) -> int:
        """About how many products a first reading takes, with what else costs as much as one."""
        return 40 + self.trace_products

    def __call__(self, optimizer: Any = None) -> Reading:
        """The reading now; where the loss is not finite, of its curvature NaN.

        optimizer  whose stability is compared; None: none

        Raises FloatingPointError where the loss is finite and a product is not.
        """
        with undisturbed(self.problem.model):
            found = measured_gradient(self.problem, self.parameters)
            reading = dict.fromkeys((f.name for f in self.fields), nan)
            reading |= {"loss": found.loss, "loss_error": found.loss_error, "products": 0.0}
            reading |= {"gradient_norm": norm(found.gradient), "gradient_norm_error": found.norm_error}
            rule = None
            if optimizer is not None:
                rule = step_rule(optimizer, selected(self.problem.model, self.parameters))
                reading["stability_threshold"] = rule.threshold
            if isfinite(found.loss):
                self._add_curvature(reading, rule)
        return reading

    def _add_curvature(self, reading: Reading, rule: StepRule | None) -> None:
        operator = self.factory.at(measured=True)
        ends = self._search("ends", operator)
        names = ("max_eig", "min_eig")
        for name, value, error, limit in zip(names, ends.values, ends.residuals, ends.limits, strict=True):
            reading |= {name: float(value), f"{name}_error": float(error)}
            # Not known of a search that memory made begin anew.
            reading[f"{name}_limit"] = float(limit) if isfinite(limit) else nan
        reading["products"] += ends.products
        if self.trace_products:
            estimate = trace(operator, products=self.trace_products, seed=self.seed)
            reading |= {"trace": estimate.value, "trace_error": estimate.error}
            reading["products"] += estimate.products
        if rule is not None and not rule.reason:
            self._add_stability(reading, operator, rule)

    def _add_stability(self, reading: Reading, operator: SymmetricOperator, rule: StepRule) -> None:
        """The eigenvalue that the optimizer's threshold limits, and how far from it."""
        value, error = reading["max_eig"], reading["max_eig_error"]
        if rule.is_plain:
            value += float(rule.decay)
        else:
            seen = PreconditionedOperator(operator, _diagonal(rule.scale, operator), rule.decay)
            pairs = _with_float64_residuals(self._search("top:1", seen), seen)
            value, error = float(pairs.values[0]), float(pairs.residuals[0])
            reading["products"] += pairs.products
        reading |= {"preconditioned_max_eig": value, "preconditioned_max_eig_error": error}
        reading["stability_ratio"] = value / rule.threshold

    def _search(self, which: str, operator: SymmetricOperator) -> EigenPairs:
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
            max_products=self.max_products,
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
