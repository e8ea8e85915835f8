"""Layer by layer: the diagonal blocks of a Hessian, each with its own spectrum, and what they leave out.

A block is what the matrix looks like to one group of parameters while all others stand still. Groups are parameter
tensors, modules, or whatever regular expressions say. Small blocks are made whole, in float64; large ones are read by
their extreme eigenvalues and their density.

What blocks say of the whole (n, n) matrix, by Cauchy's interlacing: its largest eigenvalue is at least the largest of
any block, its smallest at most the smallest of any block. What they do not say is measured: `off_diagonal_energy`
multiplies the whole matrix with vectors that live in one block alone, and sees how much of the answer falls outside
of it.

An eigenvalue counts as zero below the noise floor: `RELATIVE` = 1e-6 of the block's own largest, or 64 roundings of
the precision beside the network's largest, whichever is more. Price: a small block as many products as it has
parameters, a large one some tens; `off_diagonal_energy` as many as blocks times probes. Source: Horn and Johnson,
Matrix Analysis, 4.3.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import hypot, nan
from typing import Any

import numpy as np
import torch

from lossmap.curvature.build import build_matrix, notes_of, product_of
from lossmap.curvature.gradient import refuse_without_loss
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.hvp_plan import ProductCheck
from lossmap.curvature.loss_at_start import LossAtStart
from lossmap.curvature.operators import Product, Total, made_by_all, single_rank
from lossmap.curvature.product_check import check_product, kink_of_block
from lossmap.curvature.same_function import refuse_other_function
from lossmap.curvature.team_check import check_by_all
from lossmap.data.batches import Batch, move_batch
from lossmap.data.borrow import copy_of, temporary_parameters
from lossmap.data.held_model import refuse_held
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in
from lossmap.diagnostics.layer_signals import signals, why_zero
from lossmap.diagnostics.step_rule import with_preconditioner
from lossmap.keywords import checked_keywords
from lossmap.linalg.block_norms import OffDiagonalEnergy, off_diagonal_energy
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.eigenpairs import EigenPairs, with_rounding_measured
from lossmap.linalg.operator import Rounding, SymmetricOperator
from lossmap.linalg.solvers import extremes
from lossmap.linalg.spectral_density import spectral_density
from lossmap.spectra.block import Block, with_noise_floor
from lossmap.spectra.block_groups import groups_of, indices_of, size_of
from lossmap.spectra.block_spectra import BlockSpectra
from lossmap.spectra.layer_hessian import LayerHessian, layer_hessians
from lossmap.sums import norm

DENSE = 256  # blocks up to this size are made whole
MAX_SHARED_KINK = 0.01  # share of the matrix that both sides of a kink may differ by without a look at each block


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
    """The spectrum of one block, given as a matrix of its own; whole up to the size `dense`.

    tensors        the parameters that it is made of
    density_error  wanted of the density of a larger one; None for no density

    Raises FloatingPointError where a product is not finite.
    """
    began, epsilon = time.perf_counter(), float(torch.finfo(matrix.dtype).eps)
    kinks = Rounding.of(matrix).kinks
    if matrix.size <= dense:
        whole = DenseMatrix.of(matrix)
        values, error, products = whole.eigendecomposition[0], whole.error, matrix.size
        block = Block(name, tuple(tensors), matrix.size, values, error, whole.entries, epsilon=epsilon, kinks=kinks)
        return replace(block, products=products, seconds=time.perf_counter() - began)
    pairs = extremes(matrix, "ends", tol=tol, seed=f"{seed} {name}", max_products=max_products, certify=True)
    pairs = with_rounding_measured(matrix, pairs)
    spread, products = None, pairs.products
    if density_error is not None:
        spread = spectral_density(matrix, error=density_error, seed=f"{seed} {name}")
        products += spread.products
    return Block(
        name,
        tuple(tensors),
        matrix.size,
        np.sort(pairs.values),
        float(pairs.residuals.max()),
        density=spread,
        epsilon=epsilon,
        products=products,
        seconds=time.perf_counter() - began,
        converged=pairs.converged,
        kinks=kinks,
    )


def block_matrix(
    problem: Problem,
    matrix: str,
    tensors: Sequence[str],
    total: Total = single_rank,
    *,
    check: bool | ProductCheck = True,
) -> SymmetricOperator:
    """The block of these tensors, which costs less than a product with all parameters.

    check  what is known of products with all parameters, or whether to look, see `build_matrix`; where these have a
           kink the block is looked at by itself, since there may be none along its own parameters
    """
    pattern = "^(?:" + "|".join(re.escape(n) for n in tensors) + ")$"
    if isinstance(check, ProductCheck) and check.disagreement > MAX_SHARED_KINK:
        check = replace(check, disagreement=_own_kink(problem, matrix, pattern, total, check.disagreement))
    return build_matrix(problem, matrix, pattern, total, check=check)


def _own_kink(problem: Problem, matrix: str, pattern: str, total: Total, otherwise: float) -> float:
    """By how much a block differs on the two sides of a kink along its own parameters; else what is given."""

    def look() -> ProductCheck:
        own = kink_of_block(*_with_pattern(problem, matrix, pattern))
        return ProductCheck(disagreement=otherwise if own is None else own)

    device = next(problem.model.parameters()).device
    return check_by_all(total, device, look).disagreement


def _with_pattern(problem: Problem, matrix: str, parameters: str) -> tuple[Problem, str, Product]:
    """The problem of a named matrix, the parameters, and the product with it."""
    own, product = product_of(problem, matrix)
    return own, parameters, product


def doubled(problem: Problem) -> Problem:
    """The same problem in float64, over a copy of its model. Raises what the model's forward raises there."""
    own = next(p for p in problem.model.parameters() if p.is_floating_point()).dtype

    def count_in_own_precision(batch: Batch) -> float:
        return problem.count(move_batch(batch, None, own))

    model, data = copy_of(problem.model, torch.float64), problem.data.to(dtype=torch.float64)
    twin = replace(problem.over(model), data=data)
    # it may count with the model it was made with, which stays as it is
    if twin.count is problem.count is not samples_in:
        twin = replace(twin, count=count_in_own_precision)
    with temporary_parameters(model, {}):
        twin.total(next(iter(twin.data.rebatched(1))))
    refuse_held(twin, problem.model)
    refuse_other_function(twin, problem)
    return twin


def exact_problem(problem: Problem, total: Total = single_rank) -> tuple[Problem, tuple[str, ...]]:
    """The problem in float64, or as it is with a note where its model or loss does not bear that on some rank."""
    if next(p for p in problem.model.parameters() if p.is_floating_point()).dtype == torch.float64:
        return problem, ()
    try:
        device = next(problem.model.parameters()).device
        return made_by_all(total, device, lambda: doubled(problem), "problem in float64"), ()
    except Exception as error:  # user code may raise any exception
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return problem, (f"computed in the model's own precision, since it does not run in float64 ({text})",)


@checked_keywords
def layer_spectra(
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
    preconditioner: Any = None,
) -> BlockSpectra:
    """Every layer's own block of the Hessian of the mean loss, with its definiteness, and what that says of the
    network.

    Args:
        problem: model, loss and data.
        by: how blocks are cut: `tensor` or `module`.
        patterns: blocks of one's own instead: regular expressions, or `label=regex`.
        matrix: `hessian`, `gauss-newton`, `fisher`, the empirical one, or `mc-fisher`, of targets drawn from the model;
            or `preconditioned`, as of `spectrum`.
        parameters: of the whole matrix beside the blocks: `all`, `weights`, `trainable`, or a regular expression.
        dense: blocks up to this size are made whole, in float64.
        tol: accuracy of the ends of larger blocks, relative to their largest absolute value.
        density_error: error of the larger blocks' densities, as a share of the range; None for none.
        whole: the extreme eigenvalues of the whole matrix beside the blocks.
        probes: for what the blocks leave out; 0 for none.
        second: per-layer output Hessians: by `inputs`, `weights`, or both.
        total: adds a tensor up over the ranks of a team.
        label: what the report calls it.
        seed: of probes, start vectors and drawn targets.
        preconditioner: as of `spectrum`.

    Returns:
        A `BlockSpectra`: print it for the report; `result[name]` is a block, `result.blocks` all of them.

    Raises:
        ValueError: as `spectrum` does, and for a pattern that matches nothing.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> result = lossmap.layer_spectra(problem, "tensor", probes=0)
        >>> [block.name for block in result.blocks]
        ['0.weight', '0.bias']

    """
    began = time.perf_counter()
    problem = replace(check_loss(problem, total=total), draws=replace(problem.draws, seed=seed))
    problem = with_preconditioner(problem, preconditioner, "all")
    at_start = LossAtStart([problem])
    everything = build_matrix(problem, matrix, parameters, total)
    refuse_without_loss(problem, total)
    check = check_by_all(  # each rank's was made by then, and is remembered
        total, everything.device, lambda: check_product(*_with_pattern(problem, matrix, parameters), distant=False)
    )
    sizes = zip(everything.layout.names, everything.layout.sizes, strict=True)
    groups = groups_of([name for name, size in sizes if size], by, patterns)  # a tensor without entries has no block
    twin, notes = exact_problem(problem, total)
    # Small blocks are computed in float64, where that is possible; for large ones it would cost too much.
    blocks = [
        read_block(
            block_matrix(
                twin if size_of(everything.layout, names) <= dense else problem, matrix, names, total, check=check
            ),
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
        ends = with_rounding_measured(everything, ends)
    energy = None
    if probes and len(groups) > 1:
        covered = {name: indices_of(everything.layout, names) for name, names in groups.items()}
        energy = off_diagonal_energy(everything, covered, probes=probes, seed=seed)
    result = assemble(
        blocks,
        problem,
        "pattern" if patterns else by,
        matrix,
        ends=ends,
        energy=energy,
        hessians=tuple(p for at in second for p in layer_hessians(problem, at, dense=dense)),
        notes=(*problem.notes, *notes, *notes_of(problem, matrix)),
        total=total,
        label=label,
        seconds=time.perf_counter() - began,
    )
    at_start.refuse_change(total)
    return result


def assemble(
    blocks: Sequence[Block],
    problem: Problem,
    by: str,
    matrix: str = "hessian",
    *,
    ends: EigenPairs | None = None,
    energy: OffDiagonalEnergy | None = None,
    hessians: tuple[LayerHessian, ...] = (),
    notes: tuple[str, ...] = (),
    total: Total = single_rank,
    label: str = "",
    seconds: float = nan,
) -> BlockSpectra:
    """The blocks with their noise floors and gradients; zero blocks explained by the signals of one pass.

    ends      of the whole matrix, whose largest absolute eigenvalue sets the noise floor
    energy    what the blocks leave out
    hessians  per-layer output Hessians
    """
    scale = 0.0 if ends is None else ends.scale
    found = measured_gradient(problem, "all", total)
    by_tensor = found.layout.unflatten(found.gradient)
    by_module = signals(problem)
    complete = []
    for block in with_noise_floor(blocks, scale):
        length = float(sum(norm(by_tensor[n]) ** 2 for n in block.tensors) ** 0.5)
        why = ""
        if block.kind == "zero":
            module = block.tensors[0].rpartition(".")[0]
            why = why_zero(module, by_module, length, matrix)
        error = hypot(*(found.errors[n] for n in block.tensors))
        complete.append(replace(block, gradient_norm=length, gradient_norm_error=error, why=why))
    return BlockSpectra(
        tuple(complete), by, matrix, label, ends, energy, by_module, hessians, notes, seconds, problem.unit
    )


def verdicts_of(
    blocks: Mapping[str, Sequence[float]], *, dtype: torch.dtype = torch.float32, label: str = ""
) -> BlockSpectra:
    """Verdicts on eigenvalues that somebody has computed already, by the name of each layer.

    blocks  for each layer its eigenvalues, (m,), in any order
    dtype   the precision that they were computed in, which sets the noise floor

    Raises ValueError where a layer has none, or one that is not finite.
    """
    epsilon = float(torch.finfo(dtype).eps)
    made: list[Block] = []
    for name, eigenvalues in blocks.items():
        values = np.sort(np.asarray(eigenvalues, dtype=np.float64))
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"{name}: eigenvalues must be a row of finite numbers, at least one; got {eigenvalues!r}")
        error = Rounding(epsilon).allowance(float(np.abs(values).max()))
        made.append(Block(name, (name,), values.size, values, error, epsilon=epsilon))
    return BlockSpectra(with_noise_floor(made), "given", label=label)
