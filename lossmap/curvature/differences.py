"""Products by differences of first derivatives: what every backend is judged by, on a few samples in float64.

    H v   = (g(theta + h v) - g(theta - h v)) / 2h                 g the gradient of the summed loss, one backward pass
    G v   = J^T (s(f + h J v) - s(f - h J v)) / 2h                 f the outputs, s the loss's gradient by them,
            J v = (f(theta + h v) - f(theta - h v)) / 2h
    g . v = (L(theta + h v) - L(theta - h v)) / 2h                 whether the gradient is that of the loss

They need no second derivative of PyTorch's, and none of the formulas that are put in place where products are made, so
that an error of either shows; functions that saturate are taken in forms that do not cancel. v has the length of theta
in each of its tensors; h is a share of that. Rounding is of the order eps |g| / h, the truncation of h^2: both are seen
by comparing two steps. Price: two gradients each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lossmap.curvature.formulas import PlainTables
from lossmap.curvature.operators import Product, gauss_newton, outputs_and_loss
from lossmap.data.batches import Batch, move_batch, samples_in
from lossmap.data.borrow import copy_of
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.stable_forms import stable_forms
from lossmap.seeding import generator
from lossmap.sums import norm

ROUNDING = 64 * torch.finfo(torch.float64).eps
Parts = list[Tensor]  # one tensor for each of theta's


def float64_copy(model: nn.Module) -> nn.Module:
    """A deep copy in float64, buffers too. What hooks have computed (old weight norm) is copied by its values."""
    return copy_of(model, torch.float64)


@dataclass(frozen=True, eq=False)
class FewSamples:
    """A few samples in float64 over a copy of the model, at one point.

    problem  over the copy
    batch    the samples
    names    of theta's tensors
    product  hessian or gauss_newton
    state    the model's tensors at the point, by name
    """

    problem: Problem
    batch: Batch
    names: tuple[str, ...]
    product: Product
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, names: Sequence[str], product: Product, samples: int) -> FewSamples:
        """At the model's own tensors. Raises what the model raises in float64."""
        own = {name: p.dtype for name, p in problem.model.named_parameters()}[names[0]]
        batch = move_batch(next(iter(problem.rebatched(samples).data)), None, torch.float64)
        count = problem.count if problem.count is samples_in else (lambda b: problem.count(move_batch(b, None, own)))
        twin = replace(problem, model=float64_copy(problem.model), count=count)
        for p in twin.model.parameters():
            p.grad = None
        few = cls(twin, batch, tuple(names), product, tensors_of(twin.model))
        with few.moving() as parameters, torch.enable_grad():
            loss = few.problem.total(batch)
        if loss.requires_grad or not parameters:
            return few
        # a loss that holds the model itself, whatever model it is given
        state = {k: t.double() if t.is_floating_point() else t for k, t in tensors_of(problem.model).items()}
        return replace(few, problem=problem, state=state)

    @classmethod
    def in_own_precision(cls, problem: Problem, names: Sequence[str], product: Product, samples: int) -> FewSamples:
        """The same over a copy in the model's own precision, where it does not run in float64."""
        batch = next(iter(problem.rebatched(samples).data))
        twin = replace(problem, model=copy_of(problem.model))
        return cls(twin, batch, tuple(names), product, tensors_of(twin.model))

    def at(self, state: Mapping[str, Tensor]) -> FewSamples:
        """The same samples at another point."""
        return replace(self, state=state)

    @property
    def theta(self) -> Parts:
        """Theta's tensors."""
        return [self.state[name] for name in self.names]

    @contextmanager
    def moving(self, v: Sequence[Tensor] | None = None, h: float = 0.0) -> Iterator[list[nn.Parameter]]:
        """The parameters at theta + h v, requiring gradients; with forms that do not cancel."""
        state = dict(self.state)
        if v is not None:
            state |= {k: t + h * d for k, t, d in zip(self.names, self.theta, v, strict=True)}
        own = dict(self.problem.model.named_parameters())
        parameters = [own[name] for name in self.names]
        before = [p.requires_grad for p in parameters]
        with (
            temporary_parameters(self.problem.model, state),
            torch.inference_mode(False),
            torch.enable_grad(),
            stable_forms(),
            PlainTables(),
        ):
            try:
                for p in parameters:
                    p.requires_grad_(True)
                yield parameters
            finally:
                for p, required in zip(parameters, before, strict=True):
                    p.requires_grad_(required)

    def loss_and_gradient(self, v: Sequence[Tensor] | None = None, h: float = 0.0) -> tuple[float, Parts]:
        """The summed loss and its gradient at theta + h v, by one backward pass."""
        with self.moving(v, h) as parameters:
            loss = self.problem.total(self.batch)
            if not loss.requires_grad:
                return float(loss), [torch.zeros_like(t) for t in self.theta]
            gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return float(loss.detach()), [g.detach().to_dense() for g in gradient]

    def loss(self, v: Sequence[Tensor], h: float) -> float:
        """The summed loss at theta + h v."""
        with self.moving(v, h):
            return float(self.problem.total(self.batch).detach())

    def repeated(self, times: int) -> list[float]:
        """The summed loss here, evaluated so many times."""
        with self.moving():
            return [float(self.problem.total(self.batch).detach()) for _ in range(times)]

    def resolution(self) -> float:
        """How far rounding may move the summed loss, where its terms are of the order of the outputs.

        Of the order of one where outputs and loss are not kept apart.
        """
        largest = 1.0
        if self.problem.separable:
            with self.moving():
                outputs = outputs_and_loss(self.problem, self.batch)[0]
                largest = max((float(f.detach().abs().max()) for f in outputs if f.numel()), default=0.0)
        return ROUNDING * largest * self.problem.count(self.batch)

    def difference(self, v: Sequence[Tensor], h: float) -> tuple[Parts, float]:
        """(the product with v, the loss's derivative along v), both by central differences with the step h."""
        if self.product is gauss_newton:
            slope = (self.loss(v, h) - self.loss(v, -h)) / (2 * h)
            return self._gauss_newton(v, h), slope
        (up, ahead), (down, behind) = self.loss_and_gradient(v, h), self.loss_and_gradient(v, -h)
        return [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)], (up - down) / (2 * h)

    def one_sided(self, v: Sequence[Tensor], h: float, gradient: Sequence[Tensor]) -> tuple[Parts, Parts]:
        """The Hessian's product with v by differences from here ahead, and from behind; `gradient` is the one here."""
        ahead, behind = self.loss_and_gradient(v, h)[1], self.loss_and_gradient(v, -h)[1]
        return (
            [(a - g) / h for a, g in zip(ahead, gradient, strict=True)],
            [(g - b) / h for b, g in zip(behind, gradient, strict=True)],
        )

    def _gauss_newton(self, v: Sequence[Tensor], h: float) -> Parts:
        def outputs(sign: float) -> Parts:
            with self.moving(v, sign * h):
                return [f.detach() for f in outputs_and_loss(self.problem, self.batch)[0]]

        moved_outputs = [(a - b) / (2 * h) for a, b in zip(outputs(1.0), outputs(-1.0), strict=True)]
        with self.moving() as parameters:
            values, loss_of = outputs_and_loss(self.problem, self.batch)

            def slope(sign: float) -> Sequence[Tensor]:
                leaves = [
                    (f.detach() + sign * h * t).requires_grad_(True) for f, t in zip(values, moved_outputs, strict=True)
                ]
                return torch.autograd.grad(loss_of(leaves), leaves, materialize_grads=True)

            curved = [(a - b) / (2 * h) for a, b in zip(slope(1.0), slope(-1.0), strict=True)]
            reached = [i for i, f in enumerate(values) if f.requires_grad]
            if not reached:
                return [torch.zeros_like(t) for t in self.theta]
            parts = torch.autograd.grad(
                [values[i] for i in reached], parameters, [curved[i] for i in reached], materialize_grads=True
            )
        return [p.detach() for p in parts]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, detached."""
    return {k: t.detach() for k, t in (*model.named_parameters(), *model.named_buffers())}


def random_part(like: Tensor, *purpose: str | int) -> Tensor:
    """A random tensor of the norm of `like`, of norm one where that is zero."""
    d = torch.randn(like.shape, generator=generator(*purpose), dtype=torch.float64).to(like)
    return d * ((norm(like) or 1.0) / (norm(d) or 1.0))
