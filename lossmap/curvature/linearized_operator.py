"""A place: the curvature at one theta, by each of the ways that `linearize` chooses from.

`OperatorFactory` is what many places have in common: the problem, how products are made, and the traces so far. A way
is a
function (prepared, the model's tensors there) -> (share, losses): this rank's sums over its samples, of products with
b vectors, (b, n) -> (b, n), and of the loss. Whatever can fail on one rank alone happens inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from lossmap.curvature.double_backward import twice_differentiable
from lossmap.curvature.linearize.trace import (
    Inputs,
    LinearizedProgram,
    ModelFunction,
    gauss_newton_steps,
    hessian_steps,
)
from lossmap.curvature.operators import (
    CurvatureOperator,
    Product,
    Total,
    add_rows,
    first_backward,
    gauss_newton,
    hessian,
    mean_product,
    scipy_operator,
    second_backward,
    single_rank,
)
from lossmap.data.batches import Batch, moved, samples_in
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.seeding import generator
from lossmap.sums import norm

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CHECKED = 4  # samples on which linear is compared with double backward
TOLERANCE = 1e-9  # the relative difference between them that float64 explains

HvpPlan = dict[str, Any]


@dataclass(frozen=True, eq=False)
class LinearizedOperator:
    """The curvature at one place: `matrix @ v` and `matrix.loss()`, until the tensors of that place change.

    layout   theta's
    samples  how many this rank holds
    """

    layout: Layout
    dtype: torch.dtype
    device: torch.device
    samples: Callable[[], int]
    total: Total
    share: Callable[[Tensor], Tensor]  # (b, n) -> (b, n), summed over this rank's samples
    losses: Callable[[], Tensor]  # summed over this rank's samples

    @property
    def size(self) -> int:
        """The entries n of theta."""
        return self.layout.size

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,), or with the columns of a block, (n, b) -> (n, b); as
        `CurvatureOperator`'s.
        """
        return mean_product(self.layout, v, self.dtype, self.share, self.samples, self.total)

    def loss(self) -> float:
        """The mean loss here, over all samples of all ranks; it may be NaN or infinite, which is no error."""
        message = torch.zeros(2, dtype=torch.float64, device=self.device)
        failure: Exception | None = None
        with torch.inference_mode(False):
            try:
                message[0] = self.losses()
                message[1] = self.samples()
            except Exception as error:
                failure = error
                message[1] = -torch.inf  # no sum of samples is negative: the sign that some rank failed
            message = self.total(message)
        if failure is not None:
            raise failure
        if float(message[1]) < 0:
            raise RuntimeError("the loss failed on another rank of the team, which says why")
        return float(message[0]) / float(message[1])

    def operator(self) -> LinearOperator:
        """The matrix for SciPy: NumPy vectors in, NumPy vectors out."""
        return scipy_operator(self, self.size, self.dtype, self.device)


@dataclass(frozen=True, eq=False)
class OperatorFactory:
    """What does not depend on the place. Make one by `prepare`; `at` gives the matrix at a place.

    choice  how products are made: way, batch, format, block, and the probe's seconds per sample (JSON-able);
            given to `prepare` on another rank, or on resuming, it is taken as it is
    memory  bytes that kept values may take
    """

    problem: Problem
    parameters: str
    product: Product
    total: Total
    choice: HvpPlan
    memory: int
    steps: dict[Any, LinearizedProgram] = field(default_factory=dict, repr=False)  # by the batch's shape

    @cached_property
    def layout(self) -> Layout:
        """How theta is made."""
        return Layout.of(selected(self.problem.model, self.parameters))

    @property
    def size(self) -> int:
        """The entries n of theta."""
        return self.layout.size

    @cached_property
    def cut(self) -> Problem:
        """The problem in batches of the chosen size."""
        return self.problem.rebatched(self.choice["batch"])

    @property
    def batch(self) -> int:
        """Samples of a batch here, where there are so many."""
        return min(int(self.choice["batch"]), max(1, self.problem.data.samples))

    def smaller(self) -> OperatorFactory | None:
        """For less memory: half the batch and half the bytes for kept values, none beside a batch of one sample.

        None where there is nothing left to give up.
        """
        if self.batch == 1 and self.memory == 0:
            return None
        choice, memory = self.choice | {"batch": max(1, self.batch // 2)}, self.memory // 2 if self.batch > 1 else 0
        return replace(self, choice=choice, memory=memory)

    def at(self, tensors: Mapping[str, Tensor] | None = None) -> LinearizedOperator:
        """The curvature where these tensors stand in the model's place; the others, or without any all, as they are.

        Parameters and buffers by their names in the state dict; the model itself is not changed. The values that
        products read are computed at the first product or loss. Raises KeyError for a name that the model has not.
        """
        own: dict[str, Tensor] = {
            **dict(self.problem.model.named_parameters()),
            **dict(self.problem.model.named_buffers()),
        }
        for name in tensors or ():
            if name not in own:
                raise KeyError(f"the model has no tensor named {name!r}")
        first = own[self.layout.names[0]]
        state = {k: t.detach() for k, t in own.items()}
        state |= {k: t.detach().to(own[k].device, own[k].dtype) for k, t in (tensors or {}).items()}
        place = {"linear": linear_place, "graph": graph_place, "double": double_place}[self.choice["way"]]
        share, losses = place(self, state)
        return LinearizedOperator(
            self.layout, first.dtype, first.device, lambda: self.problem.samples, self.total, share, losses
        )


Place = tuple[Callable[[Tensor], Tensor], Callable[[], Tensor]]  # share and losses of a Matrix


def double_place(prepared: OperatorFactory, state: Mapping[str, Tensor]) -> Place:
    """Double backward at a place: the fallback and the twin."""
    curvature = CurvatureOperator(prepared.cut, prepared.product, prepared.parameters)

    def share(rows: Tensor) -> Tensor:
        with temporary_parameters(prepared.problem.model, state):
            return curvature.share(rows)

    return share, lambda: summed_loss(prepared, state)


def summed_loss(prepared: OperatorFactory, state: Mapping[str, Tensor]) -> Tensor:
    """The loss summed over this rank's samples at a place, by forward passes alone."""
    losses: list[Tensor] = []
    with temporary_parameters(prepared.problem.model, state) as model, torch.enable_grad(), twice_differentiable(model):
        for batch in prepared.cut.data:
            losses.append(prepared.cut.total(batch).detach().double())
    return torch.stack(losses).sum()


def graph_place(prepared: OperatorFactory, state: Mapping[str, Tensor]) -> Place:
    """The gradient's graph of each batch kept, as far as memory goes; a second backward pass per vector."""
    problem, names = prepared.cut, prepared.layout.names
    theta = [state[k].requires_grad_(True) for k in names]  # a detached tensor: the model's own is not touched
    whole = {f"model.{k}": t for k, t in state.items()}
    graphs: list[Sequence[Tensor] | None] = []
    room = prepared.memory

    def graph_of(batch: Batch) -> Sequence[Tensor]:
        module = ModelFunction(problem.model, lambda: first_backward(problem, batch, theta))
        with temporary_parameters(problem.model, {}), torch.enable_grad(), twice_differentiable(problem.model):
            made: Sequence[Tensor] = functional_call(module, whole, ())
        return made

    def share(rows: Tensor) -> Tensor:
        sums = torch.zeros_like(rows)
        vectors = [prepared.layout.split(row) for row in rows]
        nonlocal room
        for i, batch in enumerate(problem.data):
            if i == len(graphs):
                room -= prepared.choice["kept_per_sample"] * samples_in(batch)
                graphs.append(graph_of(batch) if room >= 0 else None)
            kept = graphs[i]
            add_rows(sums, second_backward(kept or graph_of(batch), theta, vectors, keep=kept is not None))
        return sums

    return share, lambda: summed_loss(prepared, state)


def linear_place(prepared: OperatorFactory, state: Mapping[str, Tensor]) -> Place:
    """The values that tangents meet, of each batch, as far as memory goes; tangents alone per vector."""
    problem, layout, choice = prepared.cut, prepared.layout, prepared.choice
    form = FORMATS[choice["format"]]
    laid = {k: laid_out(t, form) for k, t in state.items()}
    places: list[tuple[LinearizedProgram, Any | None]] = []
    losses: list[Tensor] = []
    given = {t.untyped_storage().data_ptr() for t in laid.values()}
    room = prepared.memory

    def valued(batch: Batch) -> tuple[LinearizedProgram, Any, Tensor]:
        inputs = Inputs.of(problem.model, layout.names, batch)
        leaves = [laid_out(t, form) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        ordered = [laid[k] for k in (*inputs.moving, *inputs.still)]
        steps = steps_for(prepared, inputs, ordered, leaves)
        kept, loss = steps.values(ordered, leaves)
        return steps, kept, loss

    def walk() -> Iterator[tuple[LinearizedProgram, Any]]:
        """Steps and kept values of each batch; those beyond the memory are computed anew every time."""
        if places and all(kept is not None for _, kept in places):
            yield from places
            return
        nonlocal room
        for i, batch in enumerate(problem.data):
            if i < len(places) and places[i][1] is not None:
                yield places[i]
                continue
            steps, kept, loss = valued(batch)
            if i == len(places):
                losses.append(loss.detach().double())
                room -= bytes_of(kept, given)
                places.append((steps, kept if room >= 0 else None))
            yield steps, kept

    def share(rows: Tensor) -> Tensor:
        sums = torch.zeros_like(rows)
        if len(rows) > 1 and choice["block"] == "together":
            block = tuple(
                t.view(len(rows), *s)
                for t, s in zip(torch.split(rows, list(layout.sizes), 1), layout.shapes, strict=True)
            )
            for steps, kept in walk():
                add_rows(sums, together(steps, kept, block))
            return sums
        vectors = [tuple(laid_out(t, form) for t in layout.split(row)) for row in rows]
        targets = [layout.split(row) for row in sums]
        for steps, kept in walk():
            for vector, target in zip(vectors, targets, strict=True):
                for into, part in zip(target, steps.product(kept, vector), strict=True):
                    if part is not None:
                        into.add_(part)
        return sums

    def loss() -> Tensor:
        if not places:
            for _ in walk():
                pass
        return torch.stack(losses).sum()

    return share, loss


def together(steps: LinearizedProgram, kept: Any, block: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """The products with b vectors, tangents (b, ...), in one pass by vmap; zeros written out."""

    def filled(tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        results = steps.pure(kept, tangents)
        return tuple(torch.zeros_like(t) if r is None else r for r, t in zip(results, tangents, strict=True))

    products = vmap(filled)(block)
    return [[part[i] for part in products] for i in range(len(block[0]))]


def laid_out(tensor: Tensor, form: torch.memory_format) -> Tensor:
    """A four-dimensional tensor in this memory format; others as they are."""
    return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor


def bytes_of(values: Any, given: set[int]) -> int:
    """What the kept values occupy beyond the storages that are there anyhow."""
    seen, size = set(given), 0
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in seen:
            seen.add(leaf.untyped_storage().data_ptr())
            size += leaf.untyped_storage().nbytes()
    return size


def steps_for(
    prepared: OperatorFactory, inputs: Inputs, state: Sequence[Tensor], leaves: Sequence[Tensor]
) -> LinearizedProgram:
    """The trace for this shape of batch, made when first met."""
    tiled = prepared.choice.get("tiled", 0)
    shapes = tuple((t.shape, t.stride(), t.dtype) for t in leaves)
    key = (str(inputs.spec), tuple(map(repr, inputs.fixed)), shapes, tiled)
    if key not in prepared.steps:
        with tracing(prepared.problem):
            made = STEPS[prepared.product]
            prepared.steps[key] = made(prepared.problem, inputs.moving, inputs, [*state, *leaves], tiled)
    return prepared.steps[key]


STEPS: dict[Product, Callable[..., LinearizedProgram]] = {hessian: hessian_steps, gauss_newton: gauss_newton_steps}


@contextmanager
def tracing(problem: Problem) -> Iterator[None]:
    """Evaluation mode, and no kernel that has no second derivative."""
    with temporary_parameters(problem.model, {}), torch.enable_grad(), twice_differentiable(problem.model):
        yield


def disagreement(prepared: OperatorFactory) -> str | None:
    """Why products may not be linearised: one compared with double backward in float64, at the model's own place.

    In the memory format of the choice, since operations differ in what they make of it.
    """
    if prepared.product not in STEPS:
        return "there are no rules for this product"
    problem = prepared.problem.rebatched(CHECKED)
    model = problem.model
    try:
        few = [moved(next(iter(problem.data)), None, torch.float64)]
        own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {k: t.detach().double() if t.is_floating_point() else t for k, t in own.items()}
        n = prepared.size
        rows = torch.randn(1, n, generator=generator("disagreement", n), dtype=torch.float64)
        rows = rows.to(next(iter(state.values())).device)
        alike = BatchList(few)
        small = OperatorFactory(problem.with_data(alike), prepared.parameters, prepared.product, single_rank,
                         prepared.choice | {"way": "linear", "batch": CHECKED, "block": "apart"}, 1 << 40)  # fmt: skip
        with torch.no_grad(), temporary_parameters(model, state):
            truth = double_place(small, state)[0](rows)
            ours = linear_place(small, state)[0](rows)
    except Exception as error:  # whatever a stranger's model does under a tracer: then it is differentiated as it is
        return (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        )
    off, size = norm(ours - truth), norm(truth)
    if not off <= TOLERANCE * size:
        return f"its product differs from double backward's by {off / size if size else off:.1g}"
    return None


@dataclass(frozen=True, eq=False)
class BatchList:
    """A handful of batches in place of the data they were taken from."""

    batches: Sequence[Batch]

    @property
    def samples(self) -> int:
        return sum(samples_in(b) for b in self.batches)

    @property
    def batch_size(self) -> int:
        return max(samples_in(b) for b in self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def rebatched(self, size: int) -> BatchList:
        return self

    def share(self, rank: int, size: int) -> BatchList:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> BatchList:
        return BatchList([moved(b, device, dtype) for b in self.batches])
