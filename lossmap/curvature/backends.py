"""The three backends of a product at one point theta: double backward, retained graph, linearized.

Each takes a problem (model, loss, this rank's share of the data) and the model's tensors at the point, and gives sums
over this rank's samples: of the products with b vectors, (b, n) -> (b, n), and of the loss. Whatever can fail on one
rank alone happens inside these two methods, where `mean_product` catches it for the team.

What a backend keeps between products (graphs, values) stays within a bound of bytes: batches beyond it are computed
anew in every product. After Pearlmutter (1994), doi:10.1162/neco.1994.6.1.147, and the linearization of JAX (Radul,
Paszke, Frostig, Johnson and Maclaurin 2022, arXiv:2204.10923). Prices: benchmarks/hvp.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from lossmap.curvature.double_backward import twice_differentiable
from lossmap.curvature.hvp_plan import HvpPlan
from lossmap.curvature.linearize.stateless import call_with
from lossmap.curvature.linearize.trace import Inputs, ModelFunction
from lossmap.curvature.linearized_program import (
    LinearizedProgram,
    linearize_fisher,
    linearize_gauss_newton,
    linearize_hessian,
)
from lossmap.curvature.operators import (
    CurvatureOperator,
    Product,
    RowSums,
    add_rows,
    fisher,
    gauss_newton,
    gradient_with_graph,
    hessian,
    second_backward,
)
from lossmap.data.batch_structure import strided_parts
from lossmap.data.batches import Batch, Batches, FixedBatches, Resident
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.geometry.parameter_vector import Layout
from lossmap.sums import in_float64

log = logging.getLogger("lossmap")

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MEMORY_ERRORS = (MemoryError, torch.OutOfMemoryError)
MAX_LOSS_ERROR = {torch.float64: 1e-8, torch.float32: 1e-3}  # of the trace's loss, relative; what rounding explains
LINEARIZATIONS: dict[Product, Callable[..., LinearizedProgram]] = {
    hessian: linearize_hessian,
    gauss_newton: linearize_gauss_newton,
    fisher: linearize_fisher,
}


class PointProducts(Protocol):
    """What a backend offers at one point."""

    def local_sum(self, rows: Tensor) -> Tensor:
        """The products with b vectors, (b, n) -> (b, n), summed over this rank's samples."""

    def local_loss(self) -> Tensor:
        """The loss, summed over this rank's samples: a float64 number."""


class DoubleBackwardProducts:
    """Double backward: keeps nothing. The fallback of the other two, and what they are compared with."""

    def __init__(self, problem: Problem, parameters: str, product: Product, state: Mapping[str, Tensor]) -> None:
        self.problem, self.state = problem, state
        self.curvature = CurvatureOperator(problem, product, parameters)

    def local_sum(self, rows: Tensor) -> Tensor:
        """(b, n) -> (b, n), summed over this rank's samples."""
        with temporary_parameters(self.problem.model, self.state):
            return self.curvature.local_sum(rows)

    def local_loss(self) -> Tensor:
        """The loss, summed over this rank's samples."""
        return forward_loss(self.problem, self.state)


class RetainedGraphProducts:
    """The gradient's graph of each batch is kept, as far as memory goes; one more backward pass per vector."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        plan: HvpPlan,
        state: Mapping[str, Tensor],
        memory: int,
        compared: bool = True,
    ) -> None:
        self.problem, self.layout, self.plan, self.state = problem, layout, plan, state
        # detached tensors: the model's own are not touched
        self.theta = [state[name].requires_grad_(True) for name in layout.names]
        self._memory = self._free_bytes = memory
        self._graphs: list[Sequence[Tensor] | None] = []  # by batch; None beyond the memory
        self.compared = compared  # whether the loss of a graph is compared with the model's
        self._is_compared = not compared

    def __reduce__(self) -> tuple[Any, ...]:
        """Without the graphs: in another process they are made anew."""
        state = {name: t.detach() for name, t in self.state.items()}
        return RetainedGraphProducts, (self.problem, self.layout, self.plan, state, self._memory, self.compared)

    def keep_first(self, counting: AbstractContextManager[Any]) -> HvpPlan:
        """Make the graph of the first batch, and keep it where it fits; the plan, by which the others are kept.

        counting  counts the bytes that are taken inside, at most: `.bytes` of what it gives
        """
        batch = next(iter(self.problem.data))
        with counting as counter:
            graph, loss = self._new_graph(batch)
        self._compare(batch, loss)
        samples = samples_in(batch)
        self.plan = replace(self.plan, graph_bytes=counter.bytes // samples)
        if self.plan.graph_bytes * samples <= self._memory:
            self._graphs, self._free_bytes = [graph], self._memory - self.plan.graph_bytes * samples
        return self.plan

    def local_sum(self, rows: Tensor) -> Tensor:
        """(b, n) -> (b, n), summed over this rank's samples."""
        sums = RowSums(rows)
        vectors = [self.layout.split(row) for row in rows]
        for i, batch in enumerate(self.problem.data):
            if i == len(self._graphs):
                self._free_bytes -= self.plan.graph_bytes * samples_in(batch)
                self._graphs.append(self._graph(batch) if self._free_bytes >= 0 else None)
            graph = self._graphs[i]
            retain = graph is not None
            sums.add(second_backward(graph or self._graph(batch), self.theta, vectors, retain_graph=retain))
        return sums.value()

    def local_loss(self) -> Tensor:
        """The loss, summed over this rank's samples."""
        return forward_loss(self.problem, self.state)

    def _graph(self, batch: Batch) -> Sequence[Tensor]:
        """The gradient of a batch's summed loss by theta, with its graph; its loss is compared with the model's."""
        gradient, loss = self._new_graph(batch)
        self._compare(batch, loss)
        return gradient

    def _new_graph(self, batch: Batch) -> tuple[Sequence[Tensor], Tensor]:
        """The same gradient, and the loss."""
        model = self.problem.model
        named = dict(model.named_parameters())
        own = [named[name] for name in self.layout.names]
        losses: list[Tensor] = []

        def work() -> Sequence[Tensor]:
            losses.append(self.problem.total(batch))
            return gradient_with_graph(losses[0], self.theta, own)

        tensors = {f"model.{name}": t for name, t in self.state.items()}
        with differentiable_evaluation(self.problem):
            for p in own:  # a loss that holds one depends on it where it is frozen too
                p.requires_grad_(True)
            gradient: Sequence[Tensor] = call_with(ModelFunction(model, work), tensors)
        return gradient, losses[0].detach()

    def _compare(self, batch: Batch, loss: Tensor) -> None:
        """Once: the attributes and identity of theta's tensors are not those of the model's own parameters."""
        if not self._is_compared:
            compare_loss(self.problem, batch, {name: t.detach() for name, t in self.state.items()}, loss)
            self._is_compared = True


class FallbackProducts:
    """Linearized products, by double backward from the first failure at this point on.

    A trace does not see everything that depends on values (shapes, branches, numbers read from a tensor), so that it
    may fit one point and fail at another, or give the values of the first: then its loss is not the model's.
    """

    def __init__(self, linearized: LinearizedProducts, fallback: Callable[[], PointProducts]) -> None:
        self.current: PointProducts = linearized
        self._fallback = fallback

    def local_sum(self, rows: Tensor) -> Tensor:
        """(b, n) -> (b, n), summed over this rank's samples."""
        return self._or_fallback(lambda products: products.local_sum(rows))

    def local_loss(self) -> Tensor:
        """The loss, summed over this rank's samples."""
        return self._or_fallback(lambda products: products.local_loss())

    def _or_fallback(self, work: Callable[[PointProducts], Tensor]) -> Tensor:
        if not isinstance(self.current, LinearizedProducts):
            return work(self.current)
        try:
            return work(self.current)
        except MEMORY_ERRORS:
            raise
        except Exception as error:  # whatever the model's own operations raise where the trace does not fit
            if "alloc" in str(error):  # the CPU's allocator raises RuntimeError
                raise
            lines = str(error).strip().splitlines() or ["no reason given"]
            log.warning("products at this point are made by double backward: %s: %s", type(error).__name__, lines[0])
        self.current = self._fallback()  # values of the failed trace are let go
        return work(self.current)


class LinearizedProducts:
    """The values that tangents meet are kept of each batch, as far as memory goes; tangents alone per vector."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        product: Product,
        plan: HvpPlan,
        state: Mapping[str, Tensor],
        memory: int,
        programs: dict[Any, LinearizedProgram],
        compared: bool = True,
    ) -> None:
        self.problem, self.layout, self.product, self.plan = problem, layout, product, plan
        self.programs = programs  # by the shape of a batch; shared by all points
        self.compared = compared  # whether the trace's loss is compared with the model's
        self._format = MEMORY_FORMATS[plan.memory_format]
        self._state = {name: in_format(t, self._format) for name, t in state.items()}
        # the model's tensors and the data are there anyhow: values that share their storage cost nothing
        held = chain(self._state.values(), tensors_held_by(problem.data))
        self._own_storages = {t.untyped_storage()._cdata for t in held}
        self._memory = self._free_bytes = memory
        self._batches: list[tuple[LinearizedProgram, Any | None]] = []  # program and values; None beyond the memory
        self._losses: list[Tensor] = []
        self._complete = False  # whether a pass has met every batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Without traces and values: in another process they are made anew."""
        programs: dict[Any, LinearizedProgram] = {}
        parts = (self.problem, self.layout, self.product, self.plan, self._state, self._memory, programs)
        return LinearizedProducts, (*parts, self.compared)

    def local_sum(self, rows: Tensor) -> Tensor:
        """(b, n) -> (b, n), summed over this rank's samples."""
        sums = torch.zeros_like(rows)
        if len(rows) > 1 and self.plan.vectorized:
            split = torch.split(rows, list(self.layout.sizes), 1)
            block = tuple(t.view(len(rows), *s) for t, s in zip(split, self.layout.shapes, strict=True))
            for program, values in self._linearized():
                add_rows(sums, vectorized_product(program, values, block))
            return sums
        vectors = [tuple(in_format(t, self._format) for t in self.layout.split(row)) for row in rows]
        targets = [self.layout.split(row) for row in sums]  # views: what is added to them arrives in the sums
        for program, values in self._linearized():
            for vector, target in zip(vectors, targets, strict=True):
                add_parts(target, program.product(values, vector))
        return sums

    def local_loss(self) -> Tensor:
        """The loss, summed over this rank's samples: computed together with the values."""
        if not self._complete:
            for _ in self._linearized():
                pass
        return in_float64(torch.stack(self._losses)).sum()

    def _linearized(self) -> Iterator[tuple[LinearizedProgram, Any]]:
        """Program and values of each batch; those beyond the memory are computed anew every time."""
        if self._complete and all(values is not None for _, values in self._batches):
            yield from self._batches  # without a look at the data, which may be read from a disk
            return
        for i, batch in enumerate(self.problem.data):
            if i < len(self._batches) and self._batches[i][1] is not None:
                yield self._batches[i]
                continue
            program, values, loss = self._evaluate(batch)
            if i == len(self._batches):
                self._losses.append(loss.detach())
                self._free_bytes -= bytes_of(values, self._own_storages)
                self._batches.append((program, values if self._free_bytes >= 0 else None))
            yield program, values
        self._complete = True  # not reached where a batch failed: then the next pass meets the rest

    def _evaluate(self, batch: Batch) -> tuple[LinearizedProgram, Any, Tensor]:
        """The program for a batch of this shape, the values that its products read, and the summed loss."""
        inputs = Inputs.of(self.problem.model, self.layout.names, batch)
        leaves = [in_format(t, self._format) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor)]
        tensors = [self._state[name] for name in (*inputs.moving, *inputs.still)]
        program = self._program(inputs, tensors, leaves)
        values, loss = program.values(tensors, leaves)
        if self.compared and (not self._batches or isinstance(self.problem.data, FixedBatches)):  # each of its own kind
            compare_loss(self.problem, batch, self._state, loss)
        return program, values, loss

    def _program(self, inputs: Inputs, tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> LinearizedProgram:
        """The program for this shape of batch, traced when first met."""
        shapes = tuple((t.shape, t.stride(), t.dtype) for t in leaves)
        # strides belong to the key: a trace fixes the memory format too
        trace = (inputs.structure, shapes)
        key = (*trace, self.plan.winograd_channels)
        other = next((self.programs[k] for k in self.programs if k[:-1] == trace), None)
        if key not in self.programs and other is not None:
            self.programs[key] = other.tiled(self.plan.winograd_channels)
        if key not in self.programs:
            with differentiable_evaluation(self.problem, "logistic"):
                self.programs[key] = LINEARIZATIONS[self.product](
                    self.problem, inputs, [*tensors, *leaves], self.plan.winograd_channels
                )
        return self.programs[key]


def compare_loss(problem: Problem, batch: Batch, state: Mapping[str, Tensor], loss: Tensor) -> None:
    """Raises ValueError where the loss of a trace or a graph is not the model's at this point: it holds values of
    another one, or the model is another function with other tensors in the place of its parameters.
    """
    with temporary_parameters(problem.model, state), torch.enable_grad(), twice_differentiable(problem.model):
        own = problem.total(batch).detach()
    gap, size = float((loss.detach() - own).abs()), float(own.abs())
    if gap > MAX_LOSS_ERROR[loss.dtype] * (size + samples_in(batch) * 1e-3):
        raise ValueError(f"the trace or graph gives the loss {float(loss):.6g} and the model {float(own):.6g}")


def forward_loss(problem: Problem, state: Mapping[str, Tensor]) -> Tensor:
    """The loss at a point, summed over this rank's samples, by forward passes alone: a float64 number."""
    losses: list[Tensor] = []
    with temporary_parameters(problem.model, state) as model, torch.enable_grad(), twice_differentiable(model):
        for batch in problem.data:
            losses.append(problem.total(batch).detach())
    return in_float64(torch.stack(losses)).sum()


def vectorized_product(program: LinearizedProgram, values: Any, block: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """The products with b vectors, given as tangents (b, ...), in one pass by vmap; zeros written out."""

    def dense(tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        results = program.product_for_vmap(values, tangents)
        return tuple(torch.zeros_like(t) if r is None else r for r, t in zip(results, tangents, strict=True))

    products = vmap(dense)(block)
    return [[part[i] for part in products] for i in range(len(block[0]))]


def add_parts(targets: Sequence[Tensor], parts: Sequence[Tensor | None]) -> None:
    """Adds each part of a product in place; None is zero."""
    added = [(target, part) for target, part in zip(targets, parts, strict=True) if part is not None]
    if added:  # one launch on a GPU
        torch._foreach_add_([target for target, _ in added], [part for _, part in added])


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A four-dimensional tensor in this memory format; others as they are."""
    return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor


def tensors_held_by(data: Batches) -> Iterator[Tensor]:
    """The tensors that data keep in memory, of which batches are views; none of what is streamed."""
    held: Any = data.tensors if isinstance(data, Resident) else ()
    if isinstance(data, FixedBatches):
        held = list(data.batches)
    return (t for t in pytree.tree_leaves(held) if isinstance(t, Tensor) and t.layout == torch.strided)


def bytes_of(values: Any, own_storages: set[int]) -> int:
    """The bytes that values occupy, each storage counted once, beyond those that exist anyhow, by `_cdata`."""
    counted, size = set(own_storages), 0
    tensors = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    for part in chain.from_iterable(map(strided_parts, tensors)):
        if part.untyped_storage()._cdata not in counted:
            counted.add(part.untyped_storage()._cdata)
            size += part.untyped_storage().nbytes()
    return size


@contextmanager
def differentiable_evaluation(problem: Problem, forms: str = "all") -> Iterator[None]:
    """Inside, the model is in evaluation mode, and no kernel without a second derivative is used.

    forms  as in `twice_differentiable`
    """
    with temporary_parameters(problem.model, {}), torch.enable_grad(), twice_differentiable(problem.model, forms):
        yield
