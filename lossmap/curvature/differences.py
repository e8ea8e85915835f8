"""Products by differences of first derivatives: what every backend is judged by, on a few samples in float64.

    H v   = (g(theta + h v) - g(theta - h v)) / 2h                 g the gradient of the summed loss, one backward pass
    G v   = J^T (s(f + h J v) - s(f - h J v)) / 2h                 f the outputs, s the loss's gradient by them,
            J v = (f(theta + h v) - f(theta - h v)) / 2h
    F v   = J^T s (s . J v), sample by sample
    g . v = (L(theta + h v) - L(theta - h v)) / 2h                 whether the gradient is that of the loss

They need no second derivative of PyTorch's, and none of the formulas that are put in place where products are made, so
that an error of either shows; functions that saturate are taken in forms that do not cancel. v has the length of theta
in each of its tensors; h is a share of that. Rounding is of the order eps |g| / h, the truncation of h^2: both are seen
by comparing two steps. Price: two gradients each.

Of a model of more than `MAX_HELD_ENTRIES` entries no float64 copy is held: the tensors at a point, and those of v, are
made one by one where they are read (`MadeWhenRead`), to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import overload

import torch
from torch import Tensor, nn

from lossmap.copies import lazy_copy
from lossmap.curvature.formulas import PlainTables
from lossmap.curvature.operators import (
    MAX_HELD_ENTRIES,
    THROUGH_OUTPUTS,
    Product,
    fisher,
    outer,
    outputs_and_loss,
    sample_slopes,
)
from lossmap.curvature.vector_jacobian import vector_jacobian
from lossmap.data.batches import Batch, move_batch
from lossmap.data.borrow import borrowed_once, copy_of
from lossmap.data.gradients import each_gradient
from lossmap.data.held_model import first_look
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.module_walks import named_tensors
from lossmap.seeding import generator
from lossmap.stable.forms import stable_forms
from lossmap.sums import for_float64, moved_from, norm

ROUNDING = 64 * torch.finfo(torch.float64).eps

Parts = Sequence[Tensor]  # one tensor for each of theta's


@dataclass(frozen=True, eq=False)
class MadeWhenRead(Mapping[str, Tensor]):
    """Tensors by name of which none is held.

    names  in their order
    make   of a name its tensor, the same at every call
    """

    names: tuple[str, ...]
    make: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class PartsMadeWhenRead(Sequence[Tensor]):
    """A vector by its tensors, of which none is held.

    length  how many tensors
    make     of a place its tensor, the same at every call
    """

    length: int
    make: Callable[[int], Tensor]

    @overload
    def __getitem__(self, i: int) -> Tensor: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, i: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(i, slice):
            return [self.make(j) for j in range(self.length)[i]]
        return self.make(range(self.length)[i])

    def __len__(self) -> int:
        return self.length


def float64_copy(model: nn.Module) -> nn.Module:
    """A deep copy in float64, buffers too. What hooks have computed (old weight norm) is copied by its values."""
    return copy_of(model, torch.float64)


@dataclass(frozen=True, eq=False)
class FewSamples:
    """A few samples in float64 over a copy of the model, at one point.

    problem  over the copy
    batch    the samples
    names    of theta's tensors
    product  hessian, gauss_newton or fisher
    state    the model's tensors at the point, by name
    is_large whether they are made where they are read, and the copy's own are those of the model
    first    the summed loss of the first pass, where that was made here
    """

    problem: Problem
    batch: Batch
    names: tuple[str, ...]
    product: Product
    state: Mapping[str, Tensor]
    is_large: bool = False
    first: float | None = None

    @classmethod
    def of(cls, problem: Problem, names: Sequence[str], product: Product, samples: int) -> FewSamples:
        """At the model's own tensors. Raises what the model raises in float64."""
        own = dict(problem.model.named_parameters())[names[0]]
        batch = move_batch(next(iter(problem.rebatched(samples).data)), None, torch.float64)
        place, count = moved_from(own.device), problem.count
        if problem.count is not samples_in:

            def in_own_precision(b: Batch) -> float:
                return problem.count(move_batch(b, place, own.dtype))

            # Once, while nothing is borrowed: what a loss uses beside the model is in float64 within a borrow of the
            # twin, and the model itself is not.
            weight = in_own_precision(batch)

            def count(b: Batch) -> float:
                return weight if b is batch else in_own_precision(b)

        twin = replace(problem, model=float64_copy(problem.model), count=count)
        for p in twin.model.parameters():
            p.grad = None
        few = cls(twin, batch, tuple(names), product, tensors_of(twin.model))
        if sum(p.numel() for p in twin.model.parameters()) > MAX_HELD_ENTRIES:
            few = few.with_nothing_held(problem.model)
        with few.moving() as parameters:
            look = first_look(few.problem, problem.model, batch)
        if not parameters or (look.has_gradient and not look.is_held):
            return replace(few, first=float(look.value))
        # a loss that holds the model itself, whatever model it is given
        state = {k: for_float64(t) for k, t in tensors_of(problem.model).items()}
        return replace(few, problem=replace(problem, count=count), state=state)

    @classmethod
    def in_own_precision(cls, problem: Problem, names: Sequence[str], product: Product, samples: int) -> FewSamples:
        """The same over a copy in the model's own precision, where it does not run in float64."""
        batch = next(iter(problem.rebatched(samples).data))
        twin = replace(problem, model=copy_of(problem.model))
        return cls(twin, batch, tuple(names), product, tensors_of(twin.model))

    def with_nothing_held(self, model: nn.Module) -> FewSamples:
        """The same with float64 parameters made where they are read, from those of the model that was copied."""
        own, buffers = dict(model.named_parameters()), dict(self.problem.model.named_buffers())
        for name, p in self.problem.model.named_parameters():
            p.data = lazy_copy(own[name])

        def make(name: str) -> Tensor:
            if name in buffers:
                return buffers[name].detach()
            t = own[name].detach()
            return for_float64(t)

        return replace(self, state=MadeWhenRead(tuple(self.state), make), is_large=True)

    def at(self, state: Mapping[str, Tensor]) -> FewSamples:
        """The same samples at another point."""
        return replace(self, state=state, first=None)

    def moved(self, change: Callable[[int, str, Tensor], Tensor], names: Sequence[str] | None = None) -> FewSamples:
        """The same samples where some tensors are others.

        change  (place among the names, name, tensor here) -> the tensor there
        names   of those; by default theta's
        """
        here = self.state
        places = {name: i for i, name in enumerate(self.names if names is None else names)}
        if not self.is_large:
            return self.at({**here, **{name: change(i, name, here[name]) for name, i in places.items()}})

        def make(name: str) -> Tensor:
            return change(places[name], name, here[name]) if name in places else here[name]

        return self.at(MadeWhenRead(tuple(here), make))

    def parts(self, make: Callable[[int, Tensor], Tensor]) -> Parts:
        """A vector over theta from (place, theta's tensor) -> its tensor; of a large model made where it is read."""
        if not self.is_large:
            return [make(i, t) for i, t in enumerate(self.theta)]
        return PartsMadeWhenRead(len(self.names), lambda i: make(i, self.state[self.names[i]]))

    @property
    def theta(self) -> Parts:
        """Theta's tensors."""
        if not self.is_large:
            return [self.state[name] for name in self.names]
        return PartsMadeWhenRead(len(self.names), lambda i: self.state[self.names[i]])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, passes over the copy are cheaper by half, and the same; of a large model they are as outside."""
        if self.is_large or self.first is None:  # without a first pass of its own the model may be no copy
            yield
            return
        with borrowed_once(self.problem.model):
            yield

    @contextmanager
    def moving(self, v: Sequence[Tensor] | None = None, h: float = 0.0) -> Iterator[list[nn.Parameter]]:
        """The parameters at theta + h v, requiring gradients; with forms that do not cancel."""
        there = self
        if v is not None:
            there = self.moved(lambda i, _, t: t + h * v[i])
        own = dict(self.problem.model.named_parameters())
        parameters = [own[name] for name in self.names]
        before = [p.requires_grad for p in parameters]
        with (
            temporary_parameters(self.problem.model, there.state),
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
        """The summed loss here, evaluated so many times, each as if it were the first, whatever passes leave."""
        values = []
        for _ in range(times):
            with self.moving():
                values.append(float(self.problem.total(self.batch).detach()))
        return values

    @cached_property
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
        if self.product in THROUGH_OUTPUTS:
            return self._through_outputs(v, h), self.slope(v, h)
        up, ahead = self.loss_and_gradient(v, h)
        if self.is_large:
            change = list(ahead)
            del ahead
            down = self._subtract_gradient(change, v, -h)
            for i in range(len(change)):  # not in place: two parts may be one tensor
                change[i] = change[i] / (2 * h)
            return change, (up - down) / (2 * h)
        down, behind = self.loss_and_gradient(v, -h)
        return [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)], (up - down) / (2 * h)

    def slope(self, v: Sequence[Tensor], h: float) -> float:
        """The loss's derivative along v alone, by two forward passes."""
        return (self.loss(v, h) - self.loss(v, -h)) / (2 * h)

    def _subtract_gradient(self, parts: list[Tensor], v: Sequence[Tensor], h: float) -> float:
        """Take the gradient at theta + h v off these parts, one tensor at a time; the summed loss there."""

        def take(i: int, gradient: Tensor) -> None:
            parts[i] = parts[i] - gradient.to_dense()

        with self.moving(v, h) as parameters:
            loss = self.problem.total(self.batch)
            if loss.requires_grad:
                each_gradient(loss, parameters, take)
        return float(loss.detach())

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite here."""
        loss, gradient = self.loss_and_gradient()
        return isfinite(loss) and all(bool(g.isfinite().all()) for g in gradient)

    def one_sided(self, v: Sequence[Tensor], h: float, gradient: Parts | None = None) -> tuple[Parts, Parts]:
        """The Hessian's product with v by differences from here ahead, and from behind.

        gradient  the one here, where it is known
        """
        if gradient is None:
            gradient = self.loss_and_gradient()[1]
        ahead, behind = self.loss_and_gradient(v, h)[1], self.loss_and_gradient(v, -h)[1]
        return (
            [(a - g) / h for a, g in zip(ahead, gradient, strict=True)],
            [(g - b) / h for b, g in zip(behind, gradient, strict=True)],
        )

    def _through_outputs(self, v: Sequence[Tensor], h: float) -> Parts:
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

            if self.product is fisher:
                curved = outer(sample_slopes(self.problem, self.batch, values, loss_of), moved_outputs)
            else:
                curved = [(a - b) / (2 * h) for a, b in zip(slope(1.0), slope(-1.0), strict=True)]
            reached = [i for i, f in enumerate(values) if f.requires_grad]
            if not reached:
                return [torch.zeros_like(t) for t in self.theta]
            parts = vector_jacobian([values[i] for i in reached], parameters, [curved[i] for i in reached])
        return [p.detach() for p in parts]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, detached."""
    return {k: t.detach() for k, t in named_tensors(model).items()}


def random_part(like: Tensor, *purpose: str | int) -> Tensor:
    """A random tensor of the norm of `like`, of norm one where that is zero."""
    d = torch.randn(like.shape, generator=generator(*purpose), dtype=torch.float64).to(like)
    return d * ((norm(like) or 1.0) / (norm(d) or 1.0))
