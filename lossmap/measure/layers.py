"""Layer by layer: the diagonal blocks of a Hessian, each with its own spectrum, and what they leave out.

A block is what the matrix looks like to one group of parameters while all others stand still. Groups are parameter
tensors, modules, or whatever regular expressions say. Small blocks are made whole, in float64; large ones are read by
their extreme eigenvalues and their density.

What blocks say of the whole (n, n) matrix, by Cauchy's interlacing: its largest eigenvalue is at least the largest of
any block, its smallest at most the smallest of any block. What they do not say is measured: `shortfall` multiplies the
whole matrix with vectors that live in one block alone, and sees how much of the answer falls outside of it.

An eigenvalue counts as zero below the noise floor: `RELATIVE` = 1e-6 of the block's own largest, or 64 roundings of
the precision beside the network's largest, whichever is more. Price: a small block as many products as it has
parameters, a large one some tens; `shortfall` as many as blocks times probes. Source: Horn and Johnson, Matrix
Analysis, 4.3.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
import torch
from torch import Tensor

from lossmap.measure import report
from lossmap.measure.curvature import alone
from lossmap.measure.dense import Whole
from lossmap.measure.density import Density, density
from lossmap.measure.eigen import EigenPairs, extremes
from lossmap.measure.krylov import ROUNDING, Symmetric
from lossmap.measure.pieces import Piece, pieces
from lossmap.measure.signals import Signal, signals, why_zero
from lossmap.measure.spectrum import Total, check_mean, curvature, loss_and_gradient
from lossmap.space import chance
from lossmap.space.data import Batch, moved, samples_in
from lossmap.space.problem import Problem
from lossmap.space.vectors import Layout, norm, selected

RELATIVE = 1e-6
DENSE = 256  # blocks up to this size are made whole
WAYS = ("tensor", "module")
Groups = Mapping[str, tuple[str, ...]]  # label -> names of its tensors


@dataclass(frozen=True, eq=False)
class Block:
    """One diagonal block.

    tensors    the parameters that it is made of
    values     all eigenvalues, ascending, where the block is `whole`; else the smallest and the largest
    error      an eigenvalue lies within this distance of each
    entries    the matrix (n, n) where it is whole, else None
    density    of a block that is not whole
    epsilon    rounding of the precision it was computed in
    floor      below it an eigenvalue counts as zero
    gradient_norm  of the loss by these parameters
    why        of a zero block: why it is zero
    """

    name: str
    tensors: tuple[str, ...]
    size: int
    values: np.ndarray
    error: float
    entries: np.ndarray | None = None
    density: Density | None = None
    epsilon: float = float(np.finfo(np.float32).eps)
    floor: float = 0.0
    gradient_norm: float = nan
    products: int = 0
    seconds: float = nan
    converged: bool = True
    why: str = ""

    @property
    def whole(self) -> bool:
        """Whether all of its eigenvalues are known."""
        return len(self.values) == self.size

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue."""
        return float(self.values[0])

    @property
    def spread(self) -> float:
        """largest - smallest."""
        return self.largest - self.smallest

    @property
    def scale(self) -> float:
        """The largest absolute value."""
        return float(np.abs(self.values).max())

    @property
    def condition(self) -> float:
        """largest / smallest; inf where the smallest is not positive beyond its error and the noise floor."""
        return self.largest / self.smallest if self.smallest > max(self.floor, self.error) else inf

    @property
    def positive(self) -> tuple[int, int]:
        """How many eigenvalues are above the noise floor, from and to."""
        return self._count(1.0)

    @property
    def negative(self) -> tuple[int, int]:
        """How many are below minus the noise floor, from and to."""
        return self._count(-1.0)

    @property
    def zero(self) -> tuple[int, int]:
        """How many are within the noise floor, from and to."""
        (p, most_p), (q, most_q) = self.positive, self.negative
        return max(self.size - most_p - most_q, 0), self.size - p - q

    @property
    def kind(self) -> str:
        """The shape in a word or two: zero, positive definite, ..., indefinite."""
        return report.kind_of(self.positive, self.negative, self.zero, self.size)

    @property
    def verdict(self) -> str:
        """The shape in words, with the numbers it rests on."""
        return report.of_block(self)

    def _count(self, sign: float) -> tuple[int, int]:
        values = sign * self.values
        if self.whole:
            found = int((values > self.floor).sum())
            return found, found
        least = int((values - self.error > self.floor).any())  # the ends alone know of one
        if self.density is None:
            return least, self.size - least
        share = self.density.above(self.floor) if sign > 0 else self.density.below(-self.floor)
        low, high = share.count
        return max(low, least), max(high, least)

    def __repr__(self) -> str:
        return f"Block({self.name}, {self.size} parameters: {self.verdict})"


@dataclass(frozen=True)
class Shortfall:
    """What the block-diagonal picture leaves out.

    share     of the squared Frobenius norm of the whole matrix, what lies outside the blocks; error: its standard error
    by_block  for each block the share of its own columns that lies outside of it
    """

    share: float
    error: float
    by_block: Mapping[str, float]
    products: int

    def __repr__(self) -> str:
        return f"{100 * self.share:.1f}% +- {100 * self.error:.1g}% of the squared entries lie outside the blocks"


@dataclass(frozen=True, eq=False)
class Layers:
    """All blocks, and the whole beside them. Print it for the report.

    whole      largest and smallest eigenvalue of the whole matrix over all parameters; None where not asked for
    shortfall  what the blocks leave out; None where not asked for
    signals    by module, what passes through it
    pieces     second readings: each layer with its activation as a function by itself
    notes      what else a person should know
    """

    blocks: tuple[Block, ...]
    by: str
    matrix: str = "hessian"
    label: str = ""
    whole: EigenPairs | None = None
    shortfall: Shortfall | None = None
    signals: Mapping[str, Signal] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = nan

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(f"there is no block {name!r}; there are {', '.join(b.name for b in self.blocks)}")

    @property
    def products(self) -> int:
        """Products spent: with blocks, and with the whole matrix."""
        extra = (self.whole, self.shortfall)
        return sum(b.products for b in self.blocks) + sum(e.products for e in extra if e is not None)

    @property
    def verdict(self) -> str:
        """What the blocks together say of the network."""
        return report.of_network(self)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        return stored_layers(self)

    def __repr__(self) -> str:
        return report.of_layers(self)


def stored_layers(found: Layers) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """One row a block; for each block its eigenvalues, and its matrix or its density, named after it."""
    blocks = found.blocks
    arrays: dict[str, np.ndarray] = {
        name: np.array([getattr(b, name) for b in blocks])
        for name in ("size", "largest", "smallest", "spread", "condition", "error", "floor", "gradient_norm")
    }
    for name in ("positive", "negative", "zero"):
        arrays[name] = np.array([getattr(b, name) for b in blocks])  # (blocks, 2): from and to
    for name in ("name", "kind", "verdict"):
        arrays["block" if name == "name" else name] = np.array([getattr(b, name) for b in blocks], dtype=object)
    for b in blocks:
        own = b.name.replace("/", "_")
        arrays[f"eigenvalues:{own}"] = b.values
        if b.entries is not None:
            arrays[f"matrix:{own}"] = b.entries
        if b.density is not None:
            arrays[f"nodes:{own}"], arrays[f"weights:{own}"] = b.density.nodes
    if found.shortfall is not None:
        arrays["outside"] = np.array([found.shortfall.by_block[b.name] for b in blocks])
    for p in found.pieces:
        if not p.skipped:
            arrays[f"piece_{p.at}:{p.name}"] = p.values
    attributes: dict[str, object] = {
        "label": found.label, "matrix": found.matrix, "by": found.by, "verdict": found.verdict,
        "products": found.products, "seconds": found.seconds, "notes": "; ".join(found.notes), "report": repr(found),
    }  # fmt: skip
    if found.shortfall is not None:
        attributes |= {"outside": found.shortfall.share, "outside_error": found.shortfall.error}
    if found.whole is not None:
        attributes |= {"whole_largest": found.whole.values[0], "whole_smallest": found.whole.values[1]}
    return arrays, attributes


def judged(blocks: Mapping[str, Sequence[float]], *, dtype: torch.dtype = torch.float32, label: str = "") -> Layers:
    """Verdicts on eigenvalues that somebody has computed already, by the name of each layer.

    dtype  the precision that they were computed in, which sets the noise floor
    """
    epsilon = float(torch.finfo(dtype).eps)
    made = []
    for name, given in blocks.items():
        values = np.sort(np.asarray(given, dtype=np.float64))
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name}: eigenvalues want a row of finite numbers, at least one; got {given!r}")
        error = ROUNDING * epsilon * float(np.abs(values).max())
        made.append(Block(name, (name,), values.size, values, error, epsilon=epsilon))
    return Layers(floored(made), "given", label=label)


def floored(blocks: Sequence[Block], scale: float = 0.0) -> tuple[Block, ...]:
    """The blocks with their noise floors, which need the network's largest absolute eigenvalue: theirs, or `scale`."""
    top = max([scale, *(b.scale for b in blocks)])
    return tuple(replace(b, floor=max(RELATIVE * b.scale, ROUNDING * b.epsilon * top)) for b in blocks)


def groups_of(names: Sequence[str], by: str = "tensor", patterns: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Which tensors make a block together.

    by        tensor (each alone), or module (those of one module together)
    patterns  regular expressions, searched in the names, each making a group of what it matches; `label=regex` names
              it. What none matches is left out

    Raises ValueError for a pattern that matches nothing, or a tensor that two patterns match.
    """
    if by not in WAYS:
        raise ValueError(f"layers are taken by {' or '.join(WAYS)}, or by regular expressions; got {by!r}")
    if not patterns:
        label = {n: n if by == "tensor" else (n.rpartition(".")[0] or "the model itself") for n in names}
        found: dict[str, tuple[str, ...]] = {}
        for n in names:
            found[label[n]] = (*found.get(label[n], ()), n)
        return found
    groups: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for text in patterns:
        label_text, equals, expression = text.partition("=")
        title, expression = (label_text, expression) if equals else (text, text)
        try:
            pattern = re.compile(expression)
        except re.error as error:
            raise ValueError(f"{expression!r} is no regular expression: {error}") from None
        chosen = tuple(n for n in names if pattern.search(n))
        if not chosen:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"no parameter matches {expression!r}; there are {some}")
        twice = next((n for n in chosen if n in owner), None)
        if twice is not None:
            raise ValueError(f"{twice} is matched by {owner[twice]!r} and by {title!r}; a tensor belongs to one block")
        owner |= dict.fromkeys(chosen, title)
        groups[title] = chosen
    return groups


@dataclass(frozen=True, eq=False)
class Restricted:
    """The diagonal block of any symmetric matrix at these indices: a full product for each of its own."""

    matrix: Symmetric
    indices: Tensor  # (size,)

    @property
    def size(self) -> int:
        """The dimension of the block."""
        return len(self.indices)

    @property
    def dtype(self) -> torch.dtype:
        """The whole matrix's precision."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are made."""
        return self.matrix.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with v, (size,) -> (size,)."""
        padded = torch.zeros(self.matrix.size, dtype=self.dtype, device=self.device)
        padded[self.indices] = v
        return (self.matrix @ padded)[self.indices]


def places(layout: Layout, tensors: Sequence[str]) -> Tensor:
    """The indices of these tensors' entries in a flat vector."""
    starts = dict(zip(layout.names, np.concatenate([[0], np.cumsum(layout.sizes)[:-1]]).tolist(), strict=True))
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return torch.cat([torch.arange(starts[n], starts[n] + sizes[n]) for n in tensors])


def read_block(
    matrix: Symmetric,
    name: str,
    tensors: Sequence[str] = (),
    *,
    dense: int = DENSE,
    tol: float = 1e-3,
    density_error: float | None = 0.05,
    max_products: int | None = None,
    seed: int = 0,
) -> Block:
    """The spectrum of one block, given as a matrix of its own; whole up to the size `dense`."""
    began, epsilon = time.perf_counter(), float(torch.finfo(matrix.dtype).eps)
    if matrix.size <= dense:
        whole = Whole.of(matrix)
        values, error, products = whole.decomposed[0], whole.error, matrix.size
        block = Block(name, tuple(tensors), matrix.size, values, error, whole.entries, epsilon=epsilon)
        return replace(block, products=products, seconds=time.perf_counter() - began)
    pairs = extremes(matrix, "ends", tol=tol, seed=f"{seed} {name}", max_products=max_products, certify=True)
    spread = None if density_error is None else density(matrix, error=density_error, seed=f"{seed} {name}")
    return Block(
        name,
        tuple(tensors),
        matrix.size,
        np.sort(pairs.values),
        float(pairs.residuals.max()),
        density=spread,
        epsilon=epsilon,
        products=pairs.products + (spread.products if spread else 0),
        seconds=time.perf_counter() - began,
        converged=pairs.converged,
    )


def block_matrix(problem: Problem, matrix: str, tensors: Sequence[str], total: Total = alone) -> Symmetric:
    """The block of these tensors, which costs less than a product with all parameters."""
    return curvature(problem, matrix, "^(?:" + "|".join(re.escape(n) for n in tensors) + ")$", total)


def leak(matrix: Symmetric, name: str, indices: Tensor, probes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared lengths of products with random signs in one block: what stays inside, (probes,), and what leaves it."""
    inside, outside = np.zeros(probes), np.zeros(probes)
    for i in range(probes):
        v = torch.zeros(matrix.size, dtype=matrix.dtype, device=matrix.device)
        signs = chance.signs(len(indices), "shortfall probe", seed, name, i)
        v[indices] = signs.to(matrix.device, matrix.dtype)
        image = matrix @ v
        inside[i] = norm(image[indices]) ** 2
        image[indices] = 0.0
        outside[i] = norm(image) ** 2
    return inside, outside


def shortfall(matrix: Symmetric, where: Mapping[str, Tensor], *, probes: int = 4, seed: int = 0) -> Shortfall:
    """How much of a matrix lies outside its diagonal blocks, from products with random signs in one block at a time.

    where  the indices of each block
    """
    if probes < 2:
        raise ValueError(f"a share with a standard error wants 2 probes or more; got {probes}")
    return shortfall_of({name: leak(matrix, name, indices, probes, seed) for name, indices in where.items()})


def shortfall_of(leaks: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Shortfall:
    """The shares from what `leak` saw of each block."""
    inside, outside = (np.array([pair[i] for pair in leaks.values()]) for i in (0, 1))  # (blocks, probes)
    both = inside + outside
    out, all_of = outside.sum(0), both.sum(0)
    share = float(out.sum() / all_of.sum()) if all_of.sum() > 0.0 else 0.0
    spread = (out - share * all_of) / (all_of.mean() or 1.0)  # the ratio's linear part
    own = {name: float(outside[b].sum() / (both[b].sum() or 1.0)) for b, name in enumerate(leaks)}
    return Shortfall(share, float(spread.std(ddof=1) / np.sqrt(len(out))), own, both.size)


def doubled(problem: Problem) -> Problem:
    """The same problem in float64, over a copy of its model. Raises what the model's forward raises there."""
    own = next(problem.model.parameters()).dtype

    def count(batch: Batch) -> int:  # a problem may count with its own model, which stays as it is
        return problem.count(moved(batch, None, own))

    twin = replace(
        problem,
        model=copy.deepcopy(problem.model).double(),
        data=problem.data.to(dtype=torch.float64),
        count=problem.count if problem.count is samples_in else count,
    )
    twin.total(next(iter(twin.data.rebatched(1))))
    return twin


def exact_problem(problem: Problem) -> tuple[Problem, tuple[str, ...]]:
    """The problem in float64, or as it is with a note where its model or loss does not bear that."""
    if next(problem.model.parameters()).dtype == torch.float64:
        return problem, ()
    try:
        return doubled(problem), ()
    except Exception as error:  # somebody's own forward may raise anything
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return problem, (f"computed in the model's own precision, since it does not run in float64 ({text})",)


def layers(
    problem: Problem,
    by: str = "tensor",
    *,
    patterns: Sequence[str] = (),
    matrix: str = "hessian",
    parameters: str = "all",
    dense: int = DENSE,
    tol: float = 1e-3,
    density_error: float | None = 0.05,
    whole: bool = True,
    probes: int = 4,
    second: Sequence[str] = (),
    total: Total = alone,
    label: str = "",
    seed: int = 0,
) -> Layers:
    """Every layer's own block of the Hessian of the mean loss, with a verdict on each and on the network.

    by             tensor, module; or patterns: regular expressions, `label=regex`
    dense          blocks up to this size are made whole, in float64
    density_error  wanted of the others' densities; None for none
    whole          the extreme eigenvalues of the whole matrix beside the blocks
    probes         for what the blocks leave out; 0 for not asking
    second         second readings: `inputs`, `weights`, or both

    Raises ValueError as `spectrum` does, and for a pattern that matches nothing.
    """
    began = time.perf_counter()
    check_mean(problem)
    everything = curvature(problem, matrix, parameters, total)
    groups = groups_of(everything.layout.names, by, patterns)
    twin, notes = exact_problem(problem)
    found = [
        read_block(
            block_matrix(twin if _size(everything.layout, names) <= dense else problem, matrix, names, total),
            name,
            names,
            dense=dense,
            tol=tol,
            density_error=density_error,
            seed=seed,
        )
        for name, names in groups.items()
    ]
    ends = None
    if whole:
        ends = extremes(everything, "ends", tol=tol, seed=f"{seed}", certify=True)
    left_out = None
    if probes and len(groups) > 1:
        covered = {name: places(everything.layout, names) for name, names in groups.items()}
        left_out = shortfall(everything, covered, probes=probes, seed=seed)
    readings = tuple(p for at in second for p in pieces(problem, at, dense=dense))
    return assembled(
        found, problem, by if not patterns else "pattern", matrix, ends, left_out, readings, notes, total, label=label,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def assembled(
    found: Sequence[Block],
    problem: Problem,
    by: str,
    matrix: str = "hessian",
    ends: EigenPairs | None = None,
    left_out: Shortfall | None = None,
    readings: tuple[Piece, ...] = (),
    notes: tuple[str, ...] = (),
    total: Total = alone,
    *,
    label: str = "",
    seconds: float = nan,
) -> Layers:
    """The blocks with their noise floors and gradients; zero blocks explained by the signals of one pass."""
    blocks = floored(found, 0.0 if ends is None else ends.scale)
    _, slope = loss_and_gradient(problem, "all", total)
    layout = Layout.of(selected(problem.model, "all"))
    by_tensor = layout.unflatten(slope)
    passing = signals(problem)
    complete = []
    for block in blocks:
        length = float(sum(norm(by_tensor[n]) ** 2 for n in block.tensors) ** 0.5)
        why = ""
        if block.kind == "zero":
            module = block.tensors[0].rpartition(".")[0]
            why = why_zero(module, passing, length)
        complete.append(replace(block, gradient_norm=length, why=why))
    return Layers(tuple(complete), by, matrix, label, ends, left_out, passing, readings, notes, seconds)


def _size(layout: Layout, names: Sequence[str]) -> int:
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return sum(sizes[n] for n in names)
