"""The spectrum of a network's curvature at one checkpoint: ends, trace, density, and what they mean; with error bars.

    s = spectrum(problem, top=5)      of your own model, loss and data
    s = spectrum(matrix, top=5)       of any symmetric matrix known by its products

A `Spectrum` is a value: print it for the report. Units: those of the loss, per squared unit of theta. Price: the ends
10-40 products, the trace 60, the density some hundred (`benchmarks/spectrum.py`); a product is a few passes over the
data. Letters: n the dimension, m eigenpairs, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lossmap.curvature.build import build_matrix, notes_of
from lossmap.curvature.gradient import refuse_no_number
from lossmap.curvature.gradient_rounding import measured_gradient
from lossmap.curvature.loss_at_start import LossAtStart
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.drawn_loss import Draws
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.diagnostics.step_rule import threshold_of, with_preconditioner
from lossmap.geometry.parameter_vector import Layout, frozen_entries, selected, warn_of_frozen
from lossmap.keywords import checked_keywords
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.eigenpairs import EigenPairs, with_rounding_measured
from lossmap.linalg.foreign import adopted
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.spectral_density import Density, spectral_density
from lossmap.linalg.trace import Trace, trace
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.spectra.summaries import masses_of, shares_of
from lossmap.sums import norm

MAX_EIGENVALUES = 100  # of one end
DEFAULT_TOP = 5  # or as many as there are
DENSE = 300  # rows of a matrix that is made whole
MIN_BATCH_SIZE = 32  # samples of a batch where no probe chooses: a loader's may be of one


def spectrum_of(
    matrix: SymmetricOperator,
    *,
    top: int = DEFAULT_TOP,
    bottom: int = 1,
    trace_products: int = 60,
    trace_method: str = "xtrace",
    trace_error: float | None = None,
    diagonal: bool = False,
    density_error: float | None = 0.01,
    density_steps: int | None = None,
    density_probes: int | None = None,
    mass_at: Sequence[float] = (),
    tol: float = 1e-3,
    solver: str = "auto",
    max_products: int | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    dense: int = DENSE,
    label: str = "",
    name: str = "matrix",
    layout: Layout | None = None,
) -> Spectrum:
    """The spectrum of any symmetric matrix known by its products.

    top, bottom     number of eigenvalues at the upper and the lower end, 0 to 100
    trace_products  for the trace; 0 for none; trace_error: the relative standard error wanted; diagonal: each entry of
                    the diagonal too
    density_error   the error wanted of the density, as a share of the range (see `density`); None for none, unless
                    steps or probes are given
    mass_at         the t for which the mass below -t and above t are stated; by default 1e-3 and 1e-2 of the largest
    tol             of the ends, relative to their largest absolute value
    dense           up to this dimension the whole matrix is made, by n products, and everything read off it exactly
    layout          which tensors theta is made of, for the shares of the eigenvectors

    Raises ValueError for an invalid request, FloatingPointError where a product is not finite.
    """
    n, began = matrix.size, time.perf_counter()
    refuse_without_trace(diagonal, trace_products)
    top = _checked_top(n, top, bottom)
    has_density = density_error is not None or density_steps is not None or density_probes is not None
    estimate: Trace | None = None
    spread: Density | None = None
    ends: dict[str, EigenPairs] = {}
    if n <= dense:
        whole, products = DenseMatrix.of(matrix), n
        ends = {end: whole.pairs(f"{end}:{count}") for end, count in (("top", top), ("bottom", bottom)) if count}
        if trace_products:
            estimate = whole.trace(layout or getattr(matrix, "layout", None), diagonal)
        if has_density:
            spread = whole.density()
    else:
        for end, count in (("top", top), ("bottom", bottom)):
            if count:
                found = successive_eigenpairs(
                    matrix,
                    f"{end}:{count}",
                    tol=tol,
                    solver=solver,
                    confidence=confidence,
                    max_products=max_products,
                    seed=f"{seed}",
                )
                ends[end] = with_rounding_measured(matrix, found)
        if trace_products:
            estimate = trace(
                matrix, trace_method, products=trace_products, error=trace_error, seed=seed, diagonal=diagonal
            )
        if has_density:
            target = 0.01 if density_error is None else density_error
            spread = spectral_density(matrix, error=target, steps=density_steps, probes=density_probes, seed=seed)
        parts = (*ends.values(), estimate, spread)
        products = sum(part.products for part in parts if part is not None)
    upper, lower = ends.get("top"), ends.get("bottom")
    shares: dict[str, dict[str, float]] = {}
    if layout is not None:
        shares = shares_of((("top", upper), ("bottom", lower)), layout)
    return Spectrum(
        label=label,
        matrix=name,
        size=n,
        precision=str(matrix.dtype).removeprefix("torch."),
        top=upper,
        bottom=lower,
        trace=estimate,
        density=spread,
        masses=masses_of(spread, mass_at),
        shares=shares,
        products=products,
        seconds=time.perf_counter() - began,
    )


def _checked_top(n: int, top: int, bottom: int) -> int:
    """The number of largest eigenvalues to find: all of a matrix that has fewer than by default.

    Raises ValueError for numbers of eigenvalues that are out of range.
    """
    if top == DEFAULT_TOP:  # which nobody has chosen
        top = min(top, n)
    for end, count in (("top", top), ("bottom", bottom)):
        if not 0 <= count <= MAX_EIGENVALUES:
            raise ValueError(f"{end} must be 0 to {MAX_EIGENVALUES}; got {count}")
        if count > n:
            raise ValueError(f"{end} {count}: the matrix has {n} rows, and no more eigenvalues than that")
    return top


def refuse_without_trace(diagonal: bool, trace_products: int) -> None:
    """Raises ValueError for a diagonal without the products that it is made of."""
    if diagonal and not trace_products:
        raise ValueError("the diagonal is made of the trace's products: take some, 6 or more")


@checked_keywords
def spectrum(
    problem: Problem | Any,
    *,
    matrix: str = "hessian",
    parameters: str = "weights",
    total: Total = single_rank,
    label: str = "",
    check: bool = True,
    backend: str = "auto",
    top: int = DEFAULT_TOP,
    bottom: int = 1,
    trace_products: int = 60,
    trace_method: str = "xtrace",
    trace_error: float | None = None,
    diagonal: bool = False,
    density_error: float | None = 0.01,
    density_steps: int | None = None,
    density_probes: int | None = None,
    mass_at: Sequence[float] = (),
    tol: float = 1e-3,
    solver: str = "auto",
    max_products: int | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    dense: int = DENSE,
    fisher_draws: int = 1,
    preconditioner: Any = None,
) -> Spectrum:
    """The spectrum of the curvature of a model's mean loss, at its present weights: ends, trace, density, with error
    bars. Or that of any symmetric matrix known by its products.

    Args:
        problem: model, loss and data. In its place a real symmetric matrix, (n, n): SciPy's LinearOperator, an array, a
            sparse matrix, a tensor, what has `to_scipy()` (as operators of curvlinops), or an operator of
            `lossmap.hessian`; then matrix, parameters, total, check and backend are left out, and rounding is assumed
            to be 64 unit roundoffs of the largest eigenvalue.
        matrix: `hessian`, `gauss-newton`, `fisher`, the empirical one, or `mc-fisher`, of targets drawn from the model;
            or `preconditioned`: P^-1/2 H P^-1/2, the Hessian as an optimizer's step sees it.
        parameters: `weights` (of dimension > 1, as in the paper), `all`, `trainable`, or a regular expression.
        total: adds a tensor up over the ranks of a team, each with its own share of the data.
        label: what the report calls it.
        check: looks whether the loss is a mean over samples, and products are its second derivative
            (`product_check`); without, both are taken for granted.
        backend: of products: `auto` (the cheapest by a short probe), `linearized`, `retained-graph`, `double-backward`.
        top: number of largest eigenvalues, 0 to 100; 5, or all of a matrix with fewer rows, if left out.
        bottom: number of smallest eigenvalues, 0 to 100.
        trace_products: products for the trace; 0 for none.
        trace_method: `xtrace`, `hutch++` or `hutchinson`.
        trace_error: relative standard error of the trace to reach.
        diagonal: each entry of the diagonal too, with its error, from the products of the trace: `trace.diagonal`.
        density_error: error of the density to reach, as a share of the range; None for no density.
        density_steps: Lanczos steps of each probe; None: chosen.
        density_probes: number of probes; None: chosen.
        mass_at: the t for which the shares of eigenvalues below -t and above t are stated; by default 1e-3 and 1e-2 of
            the largest.
        tol: accuracy of the ends, relative to their largest absolute value.
        solver: `auto`, `lanczos` or `eigsh`.
        max_products: at an end at most; by default unlimited.
        confidence: of the limits beyond which no eigenvalue lies.
        seed: of probes, start vectors and drawn targets.
        dense: up to this many parameters the whole matrix is made, by n products, and everything read off it exactly.
        fisher_draws: targets that `mc-fisher` draws for each sample.
        preconditioner: of `preconditioned`: the diagonal of P, a tensor (n,) over the parameters or a dict of tensors
            by name; or an optimizer, Adam, AdamW or RMSprop, whose state it is read from, weight decay that is added
            to the gradient and the threshold of stability with it.

    Returns:
        A `Spectrum`: print it for the report; `values` and `errors` (m,), `largest`, `smallest`, `trace`, `density`, in
        the loss's unit per squared unit of theta.

    Raises:
        ValueError: with one sentence, for weights in half precision, a loss that is no mean or changes meanwhile, more
            eigenvalues than there are parameters, parameters that match nothing, or a matrix that is not symmetric.
        TypeError: for what is neither a problem nor a matrix.
        FloatingPointError: where the loss or a product is not finite.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> result = lossmap.spectrum(problem, top=2)
        >>> result.values.shape, result.largest[0] > 0
        ((3,), True)
        >>> import numpy as np
        >>> float(lossmap.spectrum(np.diag([1.0, 2.0, 4.0]), top=1).largest[0])
        4.0

    """
    began = time.perf_counter()
    how: dict[str, Any] = {
        "top": top, "bottom": bottom, "trace_products": trace_products, "trace_method": trace_method,
        "trace_error": trace_error, "diagonal": diagonal, "density_error": density_error,
        "density_steps": density_steps, "density_probes": density_probes, "mass_at": mass_at, "tol": tol,
        "solver": solver, "max_products": max_products, "confidence": confidence, "seed": seed, "dense": dense,
        "label": label,
    }  # fmt: skip
    if not isinstance(problem, Problem):
        own = (matrix, parameters, total, check, backend, fisher_draws if preconditioner is None else 0)
        if own != ("hessian", "weights", single_rank, True, "auto", 1):
            raise ValueError(
                "matrix, parameters, total, check, backend, draws and preconditioner are of a Problem: leave them out"
            )
        return spectrum_of(adopted(problem), **how)
    warn_of_frozen(problem.model, parameters, "are counted in the Hessian")
    problem = check_loss(problem, total=total) if check else replace(problem, checked=True)
    problem = replace(problem, draws=Draws(seed, fisher_draws))
    problem = with_preconditioner(problem, preconditioner, parameters)
    if backend == "auto" and sum(p.numel() for p in selected(problem.model, parameters).values()) <= dense:
        backend = "double-backward"  # so few products that no probe pays
        if check:  # then it is known that the loss does not hang on the batches
            problem = problem.rebatched(max(problem.data.batch_size, MIN_BATCH_SIZE))
    at_start = LossAtStart([problem] if check else [])
    operator = build_matrix(problem, matrix, parameters, total, backend=backend, check=check)
    found = measured_gradient(problem, parameters, total)
    refuse_no_number(found.loss)
    result = spectrum_of(operator, name=matrix, layout=operator.layout, **how)
    samples = int(total(torch.tensor([float(problem.sample_count)], dtype=torch.float64))[0])
    at_start.refuse_change(total)
    return replace(
        result,
        samples=samples,
        unit=problem.unit,
        loss=found.loss,
        loss_error=found.loss_error,
        gradient_norm=norm(found.gradient),
        gradient_norm_error=found.norm_error,
        seconds=time.perf_counter() - began,
        frozen=frozen_entries(problem.model, parameters),
        threshold=threshold_of(problem, matrix),
        notes=(*problem.notes, *notes_of(problem, matrix)),
    )
