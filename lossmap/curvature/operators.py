"""Curvature of the loss: matrices too large to hold, met only through their products.

The loss is a mean over N samples, L(theta) = 1/N sum_i loss(f(theta, x_i), y_i), in the problem's unit. At the
model's present parameters theta, flat, (n,), the matrices, (n, n), are

    hessian        H = the second derivative of L              any sign
    gauss_newton   G = 1/N sum_i J_i^T (d2 loss_i / df2) J_i   no negative eigenvalue
                   with J_i = df(theta, x_i) / dtheta          where loss is convex in f
    fisher         F = 1/N sum_i g_i g_i^T                     no negative eigenvalue
                   with g_i = d loss_i / dtheta = J_i^T s_i    of the data's own targets: the empirical one;
                                                               of targets that were drawn: see `drawn_targets`

in that unit per squared unit of theta. Here they are multiplied by double backward, which builds the graph of the
gradient anew in every product; for many products at one theta, see `autotune.prepare`, which is several times
cheaper and falls back to this module. Prices: benchmarks/hvp.py.
Sources: Pearlmutter (1994), doi:10.1162/neco.1994.6.1.147, for Hv; Schraudolph (2002),
doi:10.1162/08997660260028683, for Gv; Kunstner et al. (2019), arXiv:1905.12558, for what the empirical Fisher matrix
is, and is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from lossmap.curvature.double_backward import twice_differentiable
from lossmap.curvature.overwritten import overwriting_named
from lossmap.curvature.vector_jacobian import vector_jacobian
from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.criteria import NoWeight
from lossmap.data.drawn_loss import DrawnLoss
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.geometry.parameter_vector import Layout, selected
from lossmap.linalg.operator import SymmetricOperator
from lossmap.memory import return_freed_memory
from lossmap.numerics import numerics
from lossmap.sums import float64_device, has_float64

Parameters = Sequence[Tensor]
# one batch's share, summed over its samples: (problem, batch, parameters, b tuples of vectors) -> b tuples
Product = Callable[[Problem, Batch, Parameters, Sequence[Parameters]], list[Sequence[Tensor]]]
Total = Callable[[Tensor], Tensor]
Made = TypeVar("Made")

MAX_HELD_ENTRIES = 1 << 23  # of a model whose copies beside the weights are held; of a larger one they are given back


def single_rank(share: Tensor) -> Tensor:
    """The total over a team of one."""
    return share


def hessian(
    problem: Problem, batch: Batch, parameters: Parameters, vectors: Sequence[Parameters]
) -> list[Sequence[Tensor]]:
    """One batch's Hessian of the summed loss times each of b vectors, by double backward: one gradient, b passes."""
    gradient = list(first_backward(problem, batch, parameters))
    if len(vectors) == 1 and sum(p.numel() for p in parameters) > MAX_HELD_ENTRIES:
        return [_released(gradient, parameters, vectors[0])]
    return second_backward(gradient, parameters, vectors, retain_graph=False)


def _released(gradient: list[Tensor], parameters: Parameters, v: Parameters) -> Sequence[Tensor]:
    """The derivative of gradient . v; the gradient's values, as many as theta's, are given back before."""
    moving = [i for i, g in enumerate(gradient) if g.requires_grad]
    edges = [get_gradient_edge(gradient[i]) for i in moving]
    gradient.clear()
    if not moving:  # the loss is linear in these parameters
        return [torch.zeros_like(p) for p in parameters]
    return torch.autograd.grad(edges, parameters, [aligned(v[i]) for i in moving], materialize_grads=True)


def aligned(v: Tensor) -> Tensor:
    """A part of a vector; a copy where pairs of its entries, read as complex numbers, would begin between two of them.

    `torch.view_as_complex`, through which derivatives by `torch.view_as_real` go, needs an even place in the memory.
    """
    if v.dim() and v.shape[-1] == 2 and v.storage_offset() % 2:
        return v.clone()
    return v


def first_backward(problem: Problem, batch: Batch, parameters: Parameters) -> Sequence[Tensor]:
    """The gradient of a batch's summed loss with its graph; zeros where a parameter does not reach the loss."""
    return gradient_with_graph(problem.total(batch), parameters)


def gradient_with_graph(loss: Tensor, parameters: Parameters, others: Parameters = ()) -> Sequence[Tensor]:
    """The gradient of a loss with its graph; zeros where a parameter does not reach it.

    others  the tensors in whose place the parameters stand: ValueError where the loss depends on them all the same
    """
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    inputs = [*parameters, *others]
    gradient: Sequence[Tensor | None] = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    if any(g is not None for g in gradient[len(parameters) :]):
        raise ValueError(
            "the loss, or a function that the model keeps, holds parameters of the model itself, in whose place a "
            "retained graph puts others; take --hvp-backend double-backward"
        )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=False)]


def second_backward(
    gradient: Sequence[Tensor], parameters: Parameters, vectors: Sequence[Parameters], *, retain_graph: bool
) -> list[Sequence[Tensor]]:
    """The derivative of gradient . v for each v; `retain_graph` leaves the gradient's graph for more."""
    moving = [i for i, g in enumerate(gradient) if g.requires_grad]
    if not moving:  # the loss is linear in these parameters
        return [[torch.zeros_like(p) for p in parameters] for _ in vectors]
    return [
        vector_jacobian(
            [gradient[i] for i in moving],
            parameters,
            [aligned(v[i]) for i in moving],
            retain_graph=retain_graph or j + 1 < len(vectors),
        )
        for j, v in enumerate(vectors)
    ]


def gauss_newton(
    problem: Problem, batch: Batch, parameters: Parameters, vectors: Sequence[Parameters]
) -> list[Sequence[Tensor]]:
    """One batch's Gauss-Newton matrix of the summed loss times each of b vectors.

    J v is the derivative of u -> J^T u, which is linear in u, along v: so all that PyTorch differentiates twice is
    covered. Then the loss's own Hessian at the outputs, and J^T by one more backward pass.
    """
    results: list[Sequence[Tensor]] = []
    outputs, loss_of = outputs_and_loss(problem, batch)
    moving = [f for f in outputs if f.requires_grad]
    if not moving:
        return [[torch.zeros_like(p) for p in parameters] for _ in vectors]
    duals = [torch.zeros_like(f, requires_grad=True) for f in moving]
    transposed = vector_jacobian(moving, parameters, duals, create_graph=True)
    reached = [i for i, t in enumerate(transposed) if t.requires_grad]
    leaves = [f.detach().requires_grad_(f.requires_grad) for f in outputs]
    chosen = [leaf for leaf in leaves if leaf.requires_grad]
    slope = torch.autograd.grad(loss_of(leaves), chosen, create_graph=True, materialize_grads=True)
    bent = [i for i, s in enumerate(slope) if s.requires_grad]
    for v in vectors:
        if not (bent and reached):  # a loss linear in the outputs, or outputs that no parameter reaches
            results.append([torch.zeros_like(p) for p in parameters])
            continue
        moved = [aligned(v[i]) for i in reached]
        forward = vector_jacobian([transposed[i] for i in reached], duals, moved, retain_graph=True)
        weighted = vector_jacobian([slope[i] for i in bent], chosen, [forward[i] for i in bent], retain_graph=True)
        results.append(vector_jacobian(moving, parameters, weighted, retain_graph=True))
    return results


def fisher(
    problem: Problem, batch: Batch, parameters: Parameters, vectors: Sequence[Parameters]
) -> list[Sequence[Tensor]]:
    """One batch's sum of g_i g_i^T times each of b vectors, g_i the gradient of sample i's loss.

    As Gauss-Newton's, with s_i s_i^T in the place of the loss's second derivative at the outputs, s_i its first.
    """
    outputs, loss_of = outputs_and_loss(problem, batch)
    slopes = sample_slopes(problem, batch, outputs, loss_of)
    moving = [i for i, f in enumerate(outputs) if f.requires_grad]
    if not moving:
        return [[torch.zeros_like(p) for p in parameters] for _ in vectors]
    reached = [outputs[i] for i in moving]
    duals = [torch.zeros_like(f, requires_grad=True) for f in reached]
    transposed = vector_jacobian(reached, parameters, duals, create_graph=True)
    linked = [i for i, t in enumerate(transposed) if t.requires_grad]
    results: list[Sequence[Tensor]] = []
    for v in vectors:
        if not linked:
            results.append([torch.zeros_like(p) for p in parameters])
            continue
        moved = [aligned(v[i]) for i in linked]
        forward = vector_jacobian([transposed[i] for i in linked], duals, moved, retain_graph=True)
        weighted = outer([slopes[i] for i in moving], forward)
        results.append(vector_jacobian(reached, parameters, weighted, retain_graph=True))
    return results


def outer(slopes: Sequence[Tensor], moved: Sequence[Tensor]) -> list[Tensor]:
    """s_i (s_i . d_i) for each sample i, the first dimension of every tensor, over all outputs together."""
    along = torch.stack([(s * d).flatten(1).sum(1) for s, d in zip(slopes, moved, strict=True)]).sum(0)
    return [s * along.reshape(-1, *[1] * (s.dim() - 1)) for s in slopes]


def sample_slopes(
    problem: Problem, batch: Batch, outputs: Sequence[Tensor], loss_of: Callable[[Sequence[Tensor]], Tensor]
) -> list[Tensor]:
    """The derivatives of the summed loss by the outputs, whose rows are those of each sample's own loss.

    Raises ValueError where rows are not samples, or where a sample's derivative hangs on the others.
    """
    slopes = _slopes(loss_of, outputs)
    if isinstance(problem.loss, DrawnLoss):  # a sum of terms of one row each
        return slopes
    samples = samples_in(batch)
    if any(s.dim() == 0 or s.shape[0] != samples for s in slopes):
        shapes = ", ".join(str(tuple(s.shape)) for s in slopes)
        raise ValueError(
            f"the Fisher matrix needs outputs with one row for each sample; a batch of {samples} gives {shapes}"
        )
    if abs(problem.count(batch) - samples) > 1e-6 * samples:
        raise ValueError(
            f"the Fisher matrix is a mean over samples of each one's own gradient; this loss is a mean over "
            f"{problem.count(batch):g} (tokens, or weights) of a batch of {samples}"
        )
    if samples > 1:  # the same rows where the others' outputs are moved, or the loss couples them
        half = samples // 2
        moved = [_with_other_rows(f, half) for f in outputs]
        for own, other in zip(slopes, _slopes(loss_of, moved), strict=True):
            if not torch.allclose(own[:half], other[:half], rtol=1e-4, atol=1e-6 * float(own.abs().max())):
                raise ValueError(
                    "the Fisher matrix is a mean over samples of each one's own gradient; this loss couples the "
                    "samples of a batch"
                )
    return slopes


def _with_other_rows(output: Tensor, half: int) -> Tensor:
    """The output with others in place of the rows from `half` on, which are ones of a model, too.

    Rows that come first are halved, and 1 where they are 0: a probability stays one, and a variance and a logarithm of
    a probability keep their signs. Elsewhere a loss may be an error (BCELoss; on a GPU one that ends the process's use
    of it).
    """
    rows = output[torch.arange(len(output) - half, device=output.device) % half]
    return torch.cat([output[:half], torch.where(rows == 0, torch.ones_like(rows), rows / 2)])


def _slopes(loss_of: Callable[[Sequence[Tensor]], Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [f.detach().requires_grad_(True) for f in outputs]
    return list(torch.autograd.grad(loss_of(leaves), leaves, materialize_grads=True))


def outputs_and_loss(problem: Problem, batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Tensor]]:
    """The floating-point tensors among the model's outputs, and the summed loss as a function of them.

    Raises ValueError where the problem does not say where the outputs end and the loss begins.
    """
    if not problem.separable:
        raise ValueError(
            "Gauss-Newton and Fisher matrices need outputs and loss as two steps; this problem gives its loss as one "
            "(Problem.supervised, or Problem(..., forward=, loss=), keep them apart)"
        )
    leaves, spec = pytree.tree_flatten(problem.forward(problem.model, batch))
    floating = [i for i, f in enumerate(leaves) if isinstance(f, Tensor) and f.is_floating_point()]
    if not floating:
        raise ValueError(f"the model's outputs hold no floating-point tensor; they are {spec}")

    def loss_of(outputs: Sequence[Tensor]) -> Tensor:
        filled: list[Any] = list(leaves)
        for i, f in zip(floating, outputs, strict=True):
            filled[i] = f
        return problem.loss(pytree.tree_unflatten(filled, spec), batch)

    return [leaves[i] for i in floating], loss_of


# products that are made through the outputs, with one derivative of the net
THROUGH_OUTPUTS: frozenset[Product] = frozenset((gauss_newton, fisher))


class RoundingResult(Protocol):
    """What a measurement of rounding says; see `rounding.MeasuredRounding`."""

    @property
    def rounding(self) -> float:
        """How far rounding may move an eigenvalue, in their unit."""

    @property
    def ratio(self) -> float:
        """The same relative to the largest absolute eigenvalue, at least."""

    @property
    def relative(self) -> float:
        """What was measured, relative to the largest absolute eigenvalue there."""


class RoundingMeasure(Protocol):
    """Measures the rounding of an operator when called; see `rounding.RoundingProbe`."""

    def __call__(self) -> RoundingResult | None:
        """The rounding; None where it cannot be measured."""

    def in_float64(self, kinks: float = 0.0) -> SymmetricOperator:
        """The operator with products in float64."""


@dataclass(frozen=True, eq=False)
class CurvatureOperator:
    """A symmetric (n, n) matrix over the data, known only by `matrix @ v`.

    problem     the model and loss, and the share of the data that this rank holds
    product     one batch's share of the product: hessian, gauss_newton or fisher
    parameters  what theta is made of: `weights` (dimension > 1), `all`, `trainable`, or a regular expression
    total       adds a tensor up over the ranks of a team, each with its own share of the data
    measure     measures the rounding of the products, when first asked for; None: it is assumed
    kinks       by how much the matrix differs on the two sides of a kink, see `linalg.Rounding`
    """

    problem: Problem
    product: Product = hessian
    parameters: str = "weights"
    total: Total = single_rank
    measure: RoundingMeasure | None = None
    kinks: float = 0.0

    @cached_property
    def named(self) -> dict[str, nn.Parameter]:
        """The parameters that theta is made of, by name, in order."""
        return selected(self.problem.model, self.parameters)

    @cached_property
    def layout(self) -> Layout:
        """How theta is made of them."""
        return Layout.of(self.named)

    @property
    def size(self) -> int:
        """The entries n of theta."""
        return self.layout.size

    @cached_property
    def measured(self) -> RoundingResult | None:
        """The rounding of the products, measured when first asked for, by all ranks of a team together."""
        return None if self.measure is None else self.measure()

    @property
    def rounding(self) -> float | None:
        """How far rounding may move an eigenvalue, in their unit; None where it was not measured."""
        return None if self.measured is None else self.measured.rounding

    @property
    def rounding_ratio(self) -> float | None:
        """The same relative to the largest absolute eigenvalue, at least; None where it was not measured."""
        return None if self.measured is None else self.measured.ratio

    def in_float64(self) -> SymmetricOperator:
        """The same curvature in float64, over a copy of the model and of the data.

        Raises what the model raises there, and ValueError where nothing is known that measures rounding.
        """
        if self.measure is None:
            raise ValueError("the operator has no twin in float64")
        return self.measure.in_float64(self.kinks)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the products: the model's."""
        return next(iter(self.named.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where vectors are kept: where the model is, or on the CPU where its device has no float64."""
        return float64_device(next(iter(self.named.values())).device)

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (n,) -> (n,), or with the columns of a block, (n, b) -> (n, b): one pass over the data.

        Every rank of the team calls with the same v and receives the same answer. It does not depend on how the
        data are cut into batches or shares, but for rounding.

        Raises ValueError where v has another length; FloatingPointError where the product is not finite.
        """
        place = next(iter(self.named.values())).device
        return mean_product(self.layout, v, self.dtype, place, self.local_sum, lambda: self.problem.weight, self.total)

    def local_sum(self, rows: Tensor) -> Tensor:
        """The part of this rank, summed over its samples, of the products with b vectors, (b, n) -> (b, n)."""
        sums = RowSums(rows)
        vectors = [self.layout.split(row) for row in rows]
        parameters = list(self.named.values())
        with differentiated(self.problem.model, parameters):
            for batch in self.problem.data:
                sums.add(self.product(self.problem, batch, parameters, vectors))
        return_freed_memory(self.problem.model)  # of a large model what lies between the tensors that stay
        return sums.value()

    def to_scipy(self) -> LinearOperator:
        """The matrix for SciPy: NumPy vectors in, NumPy vectors out."""
        return scipy_operator(self, self.size, self.dtype, self.device)


def refuse_unfit(parameters: Iterable[Tensor]) -> None:
    """Raise ValueError where some of the parameters are in less than float32, or not all on one device."""
    parameters = list(parameters)
    devices = sorted({str(p.device) for p in parameters})
    if len(devices) > 1:
        raise ValueError(
            f"the weights are on several devices ({', '.join(devices)}): second derivatives need them on "
            "one; a surface of losses does not"
        )
    for p in parameters:
        if p.is_floating_point() and p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"the weights are {str(p.dtype).removeprefix('torch.')}, in which second derivatives drown in "
                "rounding; call model.float() first"
            )


def add_rows(sums: Tensor, products: Sequence[Sequence[Tensor]]) -> None:
    """Adds b products, each given tensor by tensor, to (b, n)."""
    with torch.no_grad():  # rows are views of the sums, which PyTorch 2.6 does not let change where gradients are on
        for row, parts in zip(sums, products, strict=True):
            flat = [part.reshape(-1) for part in parts]
            torch._foreach_add_(row.split([part.numel() for part in flat]), flat)  # one launch on a GPU


class RowSums:
    """The sum over batches of b products, (b, n): a working state.

    Of a large model each product is a copy of the weights: memory for the sum is taken when the first product is there,
    whose tensors are given back one by one as they are copied.
    """

    def __init__(self, rows: Tensor) -> None:
        self._like = rows
        self._sums: Tensor | None = None

    def add(self, products: list[Sequence[Tensor]]) -> None:
        """Adds b products, each given tensor by tensor; the list is empty afterwards."""
        if self._sums is not None:
            add_rows(self._sums, products)
            products.clear()
            return
        with torch.no_grad():
            self._sums = torch.empty_like(self._like)
            for row in self._sums:
                parts, start = list(products.pop(0))[::-1], 0
                while parts:
                    part = parts.pop().reshape(-1)
                    row[start : start + part.numel()].copy_(part)
                    start += part.numel()
            self._sums.add_(0.0)  # a sum with 0, in which -0 is 0

    def value(self) -> Tensor:
        """(b, n); zeros without any batch."""
        return torch.zeros_like(self._like) if self._sums is None else self._sums


def total_or_raise(total: Total, message: Tensor, add_local_sums: Callable[[Tensor], None], name: str) -> Tensor:
    """The sum over the ranks of a team of what each writes into a message; where one fails, all raise.

    total           adds a tensor up over the ranks; called once, whatever happens, so that no rank waits for another
    message         (m,), whose last entry is 0 and free: it counts the ranks that failed
    add_local_sums  fills the message with this rank's sums
    name            of what is computed, for the other ranks' error

    Raises what `add_local_sums` raises, and RuntimeError on the ranks on which it did not.
    """
    failure: Exception | None = None
    try:
        add_local_sums(message)
    except Exception as error:
        failure = error
        message.zero_()
        message[-1] = 1.0
    message = total(message)
    if failure is not None:
        raise failure
    if total is not single_rank:  # to read it, the host waits for the device
        failed = int(message[-1])
        if failed > 0:
            raise RuntimeError(f"the {name} failed on {failed} other rank(s) of the team, which say why")
    return message


def made_by_all(
    total: Total, device: torch.device, make: Callable[[], Made], name: str = "operator in another precision"
) -> Made:
    """What `make` returns, where it returns on every rank of a team; where it raises on one, all raise.

    A rank that fell back alone would leave the others waiting in the products of what they made.

    name  of what is made, for the other ranks' error

    Raises what `make` raises, and RuntimeError on the ranks on which it did not.
    """
    made: list[Made] = []
    message = torch.zeros(1, dtype=torch.float32, device=device)
    total_or_raise(total, message, lambda _: made.append(make()), name)
    return made[0]


def mean_product(
    layout: Layout,
    v: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    local_sum: Callable[[Tensor], Tensor],
    samples: Callable[[], float],
    total: Total,
) -> Tensor:
    """The mean over all samples of all ranks, of products whose sum over a rank's samples `local_sum` gives.

    layout   theta's
    v        (n,) or (n, b), on the device, or on the CPU where that has no float64
    device   of the model
    local_sum  (b, n) -> (b, n), the sum over this rank's samples
    samples  how many they are, or their weight
    total    adds up over the ranks, and is called once: the product, the samples, and whether a rank failed, travel
             together, so that what only one rank notices is raised by all
    """
    if v.dim() not in (1, 2) or v.shape[0] != layout.size:
        n = layout.size
        raise ValueError(f"v has shape {tuple(v.shape)}; this matrix takes ({n},) or ({n}, b)")
    wide = torch.promote_types(dtype, torch.float32)  # half precision is too coarse for sums over many batches
    with torch.inference_mode(False), torch.no_grad(), numerics(device):
        rows = _rows_of(v, layout.size, dtype)
        if not has_float64(device):
            rows = rows.to(device)
        if total is single_rank:  # nothing is sent: the sum is divided in its own place, without a copy of a large one
            whole, weight = local_sum(rows).to(wide), _weight(samples)
            entries = float(whole.sum())  # for which the host waits once
        else:
            whole, weight, entries = _of_team(rows, wide, local_sum, samples, total)
        if not weight:
            raise NoWeight
        result: Tensor = whole.div_(weight)
        if not isfinite(entries) and not bool(result.isfinite().all()):
            raise FloatingPointError(
                "the product is not finite: look at the loss here first; where that is finite, look for a power, a "
                "root or a logarithm at 0, as (1 - p) ** 1.5 where p rounds to 1"
            )
        result = result.to(dtype)
        if not has_float64(device):
            result = result.to(v.device)
        return result.T.contiguous() if v.dim() == 2 else result[0]


def _weight(samples: Callable[[], float]) -> float:
    with torch.enable_grad():  # to count them may mean to run a loss that differentiates inside
        return float(samples())


def _of_team(
    rows: Tensor,
    wide: torch.dtype,
    local_sum: Callable[[Tensor], Tensor],
    samples: Callable[[], float],
    total: Total,
) -> tuple[Tensor, float, float]:
    """The products summed over all ranks of a team, their samples, and the sum of all entries; see `mean_product`."""
    sums: list[Tensor] = []
    failure: Exception | None = None
    try:
        sums.append(local_sum(rows))  # before there is a message, which of a large model takes as much memory again
    except Exception as error:
        failure = error

    def add_local_sums(message: Tensor) -> None:
        if failure is not None:
            raise failure
        message[:-3] = sums.pop().reshape(-1)
        count = _weight(samples)
        message[-3], message[-2] = count // 4096, count % 4096  # whole numbers are so exact in float32

    message = torch.zeros(3 + rows.numel(), dtype=wide, device=rows.device)
    message = total_or_raise(total, message, add_local_sums, "product")
    whole = message[:-3].view(rows.shape)
    # of the total, so that all ranks raise as one; the sum is cheap, and finite unless an entry is not. All in one
    # reading, for which the host waits once.
    many, rest, _, entries = torch.cat([message[-3:], whole.sum().reshape(1)]).tolist()
    return whole, 4096.0 * many + rest, entries


def _rows_of(v: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(n,) or (n, b) -> (b, n) in a precision; a single vector that has it is taken as it is."""
    if v.dim() == 1 and v.dtype == dtype and v.is_contiguous() and not v.is_inference():
        return v.detach()[None]
    rows = torch.empty(v.numel() // size, size, dtype=dtype, device=v.device)
    return rows.copy_(v.T if v.dim() == 2 else v)


def scipy_operator(matrix: Any, size: int, dtype: torch.dtype, device: torch.device) -> LinearOperator:
    """Anything with `@` over tensors as a LinearOperator of stated dtype, which can be pickled where `matrix` can."""
    over = _OverArrays(matrix, dtype, device)
    return LinearOperator(
        (size, size), matvec=over.column, rmatvec=over.column, matmat=over, rmatmat=over, dtype=over.number
    )


@dataclass(frozen=True)
class _OverArrays:
    """Products of a matrix over tensors with NumPy arrays."""

    matrix: Any
    dtype: torch.dtype
    device: torch.device

    @property
    def number(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.dtype == torch.float64 else np.float32)

    def __call__(self, v: np.ndarray) -> np.ndarray:
        vectors = torch.from_numpy(np.array(v, dtype=self.number, order="C", copy=True)).to(self.device, self.dtype)
        product: np.ndarray = (self.matrix @ vectors).to("cpu", torch.promote_types(self.dtype, torch.float32)).numpy()
        return product

    def column(self, v: np.ndarray) -> np.ndarray:
        return self(v.reshape(-1))


@contextmanager
def differentiated(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    """Inside, the model is in evaluation mode, these parameters require gradients, also frozen ones, and second
    derivatives exist; afterwards all is as before.

    Raises ValueError where the block takes a gradient through what the model has overwritten in place.
    """
    before = [p.requires_grad for p in parameters]
    with (
        torch.inference_mode(False),
        temporary_parameters(model, {}),
        torch.enable_grad(),
        twice_differentiable(model),
        overwriting_named(),
    ):
        for p in parameters:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p, required in zip(parameters, before, strict=True):
                p.requires_grad_(required)
