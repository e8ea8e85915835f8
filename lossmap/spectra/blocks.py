"""Layer by layer: the diagonal blocks of a Hessian, each with its own spectrum, and what they leave out.

A block is what the matrix looks like to one group of parameters while all others stand still. Groups are parameter
tensors, modules, or whatever regular expressions say. Small blocks are made whole, in float64; large ones are read by
their extreme eigenvalues and their density.

What blocks say of the whole (n, n) matrix, by Cauchy's interlacing: its largest eigenvalue is at least the largest of
any block, its smallest at most the smallest of any block. What they do not say is measured: `off_diagonal_energy`
multiplies the
whole matrix with vectors that live in one block alone, and sees how much of the answer falls outside of it.

An eigenvalue counts as zero below the noise floor: `RELATIVE` = 1e-6 of the block's own largest, or 64 roundings of
the precision beside the network's largest, whichever is more. Price: a small block as many products as it has
parameters, a large one some tens; `off_diagonal_energy` as many as blocks times probes. Source: Horn and Johnson,
Matrix Analysis, 4.3.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.checks import check_mean
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.batches import Batch, move_batch, samples_in
from lossmap.data.problem import Problem
from lossmap.diagnostics.layer_signals import Signal, signals, why_zero
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.block_norms import OffDiagonalEnergy, off_diagonal_energy
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.lanczos import EigenPairs, extremes
from lossmap.linalg.operator import Rounding, SymmetricOperator
from lossmap.linalg.spectral_density import density
from lossmap.report import blocks as report_blocks
from lossmap.report import layer_hessian as report_layer_hessian
from lossmap.report import signals as report_signals
from lossmap.report.stored import REPORT_VERSION, StoredReport, columns_of
from lossmap.spectra.block import Block, with_noise_floor
from lossmap.spectra.layer_hessian import LayerHessian, layer_hessians
from lossmap.sums import norm

DENSE = 256  # blocks up to this size are made whole
WAYS = ("tensor", "module")
Groups = Mapping[str, tuple[str, ...]]  # label -> names of its tensors


@dataclass(frozen=True, eq=False)
class BlockSpectra:
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
    off_diagonal_energy: OffDiagonalEnergy | None = None
    signals: Mapping[str, Signal] = field(default_factory=dict)
    layer_hessians: tuple[LayerHessian, ...] = ()
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
        extra = (self.whole, self.off_diagonal_energy)
        return sum(b.products for b in self.blocks) + sum(e.products for e in extra if e is not None)

    @property
    def verdict(self) -> str:
        """What the blocks together say of the network."""
        return report_blocks.network_text(_report_of(self))

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        return stored_layers(self)

    def __repr__(self) -> str:
        return report_blocks.blocks_report(_report_of(self))


def stored_layers(found: BlockSpectra) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """One row a block; for each block its eigenvalues, and its matrix or its density, named after it."""
    report = _report_of(found)
    arrays, attributes = dict(report.arrays), dict(report.attributes)
    arrays["verdict"] = np.array([b.verdict for b in found.blocks], dtype=object)
    for b in found.blocks:
        if b.density is not None:
            own = b.name.replace("/", "_")
            arrays[f"nodes:{own}"], arrays[f"weights:{own}"] = b.density.nodes
    if found.off_diagonal_energy is not None:
        arrays["outside"] = np.array([found.off_diagonal_energy.by_block[b.name] for b in found.blocks])
    for p in found.layer_hessians:
        if not p.skipped:
            arrays[f"piece_{p.at}:{p.name}"] = p.values
    attributes |= {"by": found.by, "notes": "; ".join(found.notes), "verdict": found.verdict, "report": repr(found)}
    return arrays, attributes


def _report_of(found: BlockSpectra) -> StoredReport:
    """The part of what is stored that the report is rendered from."""
    arrays = columns_of([b.summary() for b in found.blocks], report_blocks.ARRAYS)
    arrays |= columns_of([p.summary() for p in found.layer_hessians], report_layer_hessian.ARRAYS)
    arrays |= columns_of([s.summary() for s in found.signals.values()], report_signals.ARRAYS)
    arrays["note"] = np.array(found.notes, dtype=object)
    for b in found.blocks:
        own = b.name.replace("/", "_")
        arrays[f"eigenvalues:{own}"] = b.values
        if b.entries is not None:
            arrays[f"matrix:{own}"] = b.entries
    attributes: dict[str, object] = {
        "label": found.label, "matrix": found.matrix, "products": found.products, "seconds": found.seconds,
        "report_version": REPORT_VERSION,
    }  # fmt: skip
    if found.off_diagonal_energy is not None:
        attributes |= {"outside": found.off_diagonal_energy.share, "outside_error": found.off_diagonal_energy.error}
    if found.whole is not None:
        attributes |= {"whole_largest": found.whole.values[0], "whole_smallest": found.whole.values[1]}
        largest_error, smallest_error = found.whole.residuals
        attributes |= {"whole_largest_error": largest_error, "whole_smallest_error": smallest_error}
    return StoredReport(arrays, attributes)


def verdicts_of(
    blocks: Mapping[str, Sequence[float]], *, dtype: torch.dtype = torch.float32, label: str = ""
) -> BlockSpectra:
    """Verdicts on eigenvalues that somebody has computed already, by the name of each layer.

    dtype  the precision that they were computed in, which sets the noise floor
    """
    epsilon = float(torch.finfo(dtype).eps)
    made = []
    for name, given in blocks.items():
        values = np.sort(np.asarray(given, dtype=np.float64))
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name}: eigenvalues want a row of finite numbers, at least one; got {given!r}")
        error = Rounding(epsilon).allowance(float(np.abs(values).max()))
        made.append(Block(name, (name,), values.size, values, error, epsilon=epsilon))
    return BlockSpectra(with_noise_floor(made), "given", label=label)


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


def indices_of(layout: Layout, tensors: Sequence[str]) -> Tensor:
    """The indices of these tensors' entries in a flat vector."""
    starts = dict(zip(layout.names, np.concatenate([[0], np.cumsum(layout.sizes)[:-1]]).tolist(), strict=True))
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return torch.cat([torch.arange(starts[n], starts[n] + sizes[n]) for n in tensors])


def read_block(
    matrix: SymmetricOperator,
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
        whole = DenseMatrix.of(matrix)
        values, error, products = whole.eigendecomposition[0], whole.error, matrix.size
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


def block_matrix(
    problem: Problem, matrix: str, tensors: Sequence[str], total: Total = single_rank
) -> SymmetricOperator:
    """The block of these tensors, which costs less than a product with all parameters."""
    return build_operator(problem, matrix, "^(?:" + "|".join(re.escape(n) for n in tensors) + ")$", total)


def doubled(problem: Problem) -> Problem:
    """The same problem in float64, over a copy of its model. Raises what the model's forward raises there."""
    own = next(problem.model.parameters()).dtype

    def count(batch: Batch) -> int:  # a problem may count with its own model, which stays as it is
        return problem.count(move_batch(batch, None, own))

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
    total: Total = single_rank,
    label: str = "",
    seed: int = 0,
) -> BlockSpectra:
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
    everything = build_operator(problem, matrix, parameters, total)
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
        covered = {name: indices_of(everything.layout, names) for name, names in groups.items()}
        left_out = off_diagonal_energy(everything, covered, probes=probes, seed=seed)
    readings = tuple(p for at in second for p in layer_hessians(problem, at, dense=dense))
    return assemble(
        found, problem, by if not patterns else "pattern", matrix, ends, left_out, readings, notes, total, label=label,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def assemble(
    found: Sequence[Block],
    problem: Problem,
    by: str,
    matrix: str = "hessian",
    ends: EigenPairs | None = None,
    left_out: OffDiagonalEnergy | None = None,
    readings: tuple[LayerHessian, ...] = (),
    notes: tuple[str, ...] = (),
    total: Total = single_rank,
    *,
    label: str = "",
    seconds: float = nan,
) -> BlockSpectra:
    """The blocks with their noise floors and gradients; zero blocks explained by the signals of one pass."""
    blocks = with_noise_floor(found, 0.0 if ends is None else ends.scale)
    _, slope, layout = loss_and_gradient(problem, "all", total)
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
    return BlockSpectra(tuple(complete), by, matrix, label, ends, left_out, passing, readings, notes, seconds)


def _size(layout: Layout, names: Sequence[str]) -> int:
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    return sum(sizes[n] for n in names)
