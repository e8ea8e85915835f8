"""The spectrum of a network's curvature at one checkpoint: ends, trace, density, and what they mean; with error bars.

    s = spectrum(problem, top=5)      of somebody's own model, loss and data
    s = spectrum_of(matrix, top=5)    of any symmetric matrix known by its products

A `Spectrum` is a value: print it for the report. Units: those of the loss, per squared unit of theta. Price: the ends
10-40 products, the trace 60, the density some hundred (`benchmarks/spectrum.py`); a product is a few passes over the
data. Letters: n the dimension, m eigenpairs, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossmap.curvature.build import build_operator
from lossmap.curvature.checks import check_mean
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.curvature.operators import Total, single_rank
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import Layout
from lossmap.linalg.deflation import successive_eigenpairs
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.lanczos import EigenPairs
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.spectral_density import Density, MassInterval, density
from lossmap.linalg.trace import Trace, trace
from lossmap.report.definiteness import definiteness_of_ends
from lossmap.report.spectrum import spectrum_report
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.sums import norm

ILL_CONDITIONED = 1000.0
MOST = 100  # eigenvalues at an end


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of one symmetric matrix.

    top, bottom   the largest and the smallest eigenvalues with their error bars; None where not asked for
    trace         with its standard error; None where not asked for
    density       the distribution of all eigenvalues; None where not asked for
    masses        for each stated t: the share below -t, and that above t
    shares        for each extreme eigenvector, keyed `top 1`, ..., the share of its squared norm in each tensor
    loss, gradient_norm   at this place; NaN where only a matrix was given
    keep_vectors  whether a file keeps the eigenvectors too
    """

    label: str
    matrix: str
    size: int
    precision: str
    top: EigenPairs | None
    bottom: EigenPairs | None
    trace: Trace | None
    density: Density | None
    masses: tuple[tuple[float, MassInterval, MassInterval], ...] = ()
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    samples: int = 0
    unit: str = "1"
    loss: float = nan
    gradient_norm: float = nan
    products: int = 0
    seconds: float = nan
    keep_vectors: bool = False

    @property
    def values(self) -> np.ndarray:
        """The extreme eigenvalues found, descending, each once: (m,)."""
        return self._joined()[0]

    @property
    def errors(self) -> np.ndarray:
        """An eigenvalue lies within this distance of each of `values`: (m,)."""
        return self._joined()[1]

    def largest_by_magnitude(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvalues largest in absolute value, and their errors; at most as many as were found at one end."""
        ends = (self.top, self.bottom)
        known = min(len(e.values) if e is not None else 0 for e in ends)
        if count > min(known, self.size):
            raise ValueError(
                f"the {count} largest by magnitude want {count} eigenvalues at both ends; there are {known} "
                f"(ask for top={count}, bottom={count})"
            )
        values, errors = self._joined()
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        return values[order], errors[order]

    @property
    def largest(self) -> tuple[float, float]:
        """The largest eigenvalue and its error; NaN where not asked for."""
        return _first(self.top)

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest eigenvalue and its error; NaN where not asked for."""
        return _first(self.bottom)

    @property
    def condition(self) -> float:
        """largest / smallest; inf where the smallest is not positive beyond its error; NaN where not known."""
        (high, _), (low, error) = self.largest, self.smallest
        if not (isfinite(high) and isfinite(low)):
            return nan
        return high / low if low - error > 0.0 else inf

    @property
    def ill_conditioned(self) -> bool:
        """Whether the condition number is above 1,000."""
        return self.condition > ILL_CONDITIONED

    @property
    def step_limit(self) -> tuple[float, float]:
        """2 / largest and its error: the step above which plain gradient descent grows along the sharpest direction."""
        high, error = self.largest
        if not high > 0.0:
            return inf, nan
        return 2.0 / high, 2.0 * error / high**2

    @property
    def converged(self) -> bool:
        """Whether the ends, the trace and the density met what was asked of them."""
        ends = all(e is None or e.converged for e in (self.top, self.bottom))
        return ends and (self.trace is None or self.trace.met) and (self.density is None or self.density.met)

    @property
    def verdict(self) -> str:
        """The shape of the matrix in words, with the numbers that they rest on."""
        lowest = nan if self.bottom is None else self.bottom.limits[1]
        return definiteness_of_ends(self.largest, self.smallest, lowest)

    def shifted(self, strength: float) -> np.ndarray:
        """The eigenvalues found, with an L2 term strength/2 ||theta||^2 added to the loss at these weights: exact."""
        return self.values + strength

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        return stored_spectrum(self)

    def __repr__(self) -> str:
        return spectrum_report(_report_of(self))

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ends as one descending row; where they overlap (all n were found) each once."""
        top = (self.top.values, self.top.residuals) if self.top is not None else (np.zeros(0), np.zeros(0))
        low = (self.bottom.values, self.bottom.residuals) if self.bottom is not None else (np.zeros(0), np.zeros(0))
        keep = max(self.size - len(top[0]), 0)
        values = np.concatenate([top[0], low[0][:keep][::-1]])
        return values, np.concatenate([top[1], low[1][:keep][::-1]])


def _first(pairs: EigenPairs | None) -> tuple[float, float]:
    if pairs is None or not len(pairs.values):
        return nan, nan
    return float(pairs.values[0]), float(pairs.residuals[0])


def stored_spectrum(s: Spectrum) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Arrays: ends with errors, nodes and weights, the band, masses, shares by tensor. The rest as attributes."""
    report = _report_of(s)
    arrays, attributes = dict(report.arrays), dict(report.attributes)
    for name, pairs in (("top", s.top), ("bottom", s.bottom)):
        if pairs is not None and s.keep_vectors:
            arrays[f"{name}_vectors"] = pairs.vectors.float().cpu().numpy()
    if s.density is not None:
        ticks, value, low, high = s.density.band
        arrays |= {"weight": s.density.nodes[1], "tick": ticks, "cumulative": value}
        arrays |= {"cumulative_low": low, "cumulative_high": high}
    attributes |= {"step_limit": s.step_limit[0], "converged": s.converged, "verdict": s.verdict, "report": repr(s)}
    return arrays, attributes


def _report_of(s: Spectrum) -> StoredReport:
    """The part of what is stored that the report is rendered from."""
    arrays: dict[str, np.ndarray] = {}
    attributes: dict[str, object] = {
        "label": s.label, "matrix": s.matrix, "size": s.size, "samples": s.samples, "precision": s.precision,
        "unit": s.unit, "loss": s.loss, "gradient_norm": s.gradient_norm, "condition": s.condition,
        "ill_conditioned": s.ill_conditioned, "products": s.products, "seconds": s.seconds,
        "report_version": REPORT_VERSION,
    }  # fmt: skip
    for name, limit, pairs, i in (("top", "upper_limit", s.top, 0), ("bottom", "lower_limit", s.bottom, 1)):
        if pairs is None:
            continue
        arrays |= {name: pairs.values, f"{name}_error": pairs.residuals}
        attributes |= {limit: pairs.limits[i], f"{name}_confidence": pairs.confidence, f"{name}_scale": pairs.scale}
        attributes |= {f"{name}_converged": pairs.converged, f"{name}_tolerance": pairs.tolerance}
        attributes[f"{name}_products"] = pairs.products
        if isfinite(pairs.others):
            attributes[f"{name}_others"] = pairs.others
    if s.trace is not None:
        low, high = s.trace.interval()
        attributes |= {"trace": s.trace.value, "trace_error": s.trace.error, "trace_method": s.trace.method}
        attributes |= {"trace_low": low, "trace_high": high, "trace_products": s.trace.products}
        attributes["trace_met"] = s.trace.met
    if s.density is not None:
        arrays["node"] = s.density.nodes[0]
        attributes |= {"density_error": s.density.error, "density_confidence": s.density.confidence}
        attributes |= {"density_probes": s.density.probes, "density_products": s.density.products}
        attributes["density_band"] = "simultaneous"
        attributes |= {"density_steps": s.density.steps, "density_met": s.density.met}
    if s.masses:
        arrays["mass_at"] = np.array([t for t, _, _ in s.masses])
        for name, masses in (("mass_below", [b for _, b, _ in s.masses]), ("mass_above", [a for _, _, a in s.masses])):
            arrays[name] = np.array([[m.value, m.low, m.high] for m in masses])
    if s.shares:
        arrays["vector"] = np.array(list(s.shares), dtype=object)
        arrays["tensor"] = np.array(list(next(iter(s.shares.values()))), dtype=object)
        arrays["share_by_tensor"] = np.array([list(row.values()) for row in s.shares.values()])
    return StoredReport(arrays, attributes)


def spectrum_of(
    matrix: SymmetricOperator,
    *,
    top: int = 5,
    bottom: int = 1,
    trace_products: int = 60,
    trace_method: str = "xtrace",
    trace_error: float | None = None,
    density_error: float | None = 0.01,
    density_steps: int | None = None,
    density_probes: int | None = None,
    mass_at: Sequence[float] = (),
    tol: float = 1e-3,
    solver: str = "auto",
    max_products: int | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    dense: int = 300,
    label: str = "",
    name: str = "matrix",
    layout: Layout | None = None,
) -> Spectrum:
    """The spectrum of any symmetric matrix known by its products.

    top, bottom     so many eigenvalues at the upper and the lower end, 0 to 100
    trace_products  for the trace; 0 for none; trace_error: the relative standard error wanted
    density_error   the error wanted of the density, as a share of the range (see `density`); None for none, unless
                    steps or probes are given
    mass_at         the t for which the mass below -t and above t are told; none: 1e-3 and 1e-2 of the largest
    tol             of the ends, relative to their largest absolute value
    dense           up to this dimension the whole matrix is made, by n products, and everything read off it exactly
    layout          which tensors theta is made of, for the shares of the eigenvectors

    Raises ValueError for what makes no sense, FloatingPointError where a product is not finite.
    """
    n, began = matrix.size, time.perf_counter()
    for end, count in (("top", top), ("bottom", bottom)):
        if not 0 <= count <= MOST:
            raise ValueError(f"{end} wants 0 to {MOST} eigenvalues; got {count}")
        if count > n:
            raise ValueError(f"{end} {count}: the matrix has {n} rows, and no more eigenvalues than that")
    wants_density = density_error is not None or density_steps is not None or density_probes is not None
    upper = lower = estimate = spread = None
    if n <= dense:
        whole, products = DenseMatrix.of(matrix), n
        upper, lower = (
            (whole.pairs(f"top:{top}") if top else None),
            (whole.pairs(f"bottom:{bottom}") if bottom else None),
        )
        estimate = whole.trace() if trace_products else None
        spread = whole.density() if wants_density else None
    else:
        told: dict[str, Any] = {"tol": tol, "solver": solver, "confidence": confidence, "max_products": max_products}
        upper, lower = (
            successive_eigenpairs(matrix, f"{end}:{count}", seed=f"{seed}", **told) if count else None
            for end, count in (("top", top), ("bottom", bottom))
        )
        if trace_products:
            estimate = trace(matrix, trace_method, products=trace_products, error=trace_error, seed=seed)
        if wants_density:
            wanted = 0.01 if density_error is None else density_error
            spread = density(matrix, error=wanted, steps=density_steps, probes=density_probes, seed=seed)
        products = sum(part.products for part in (upper, lower, estimate, spread) if part is not None)
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
        shares={} if layout is None else shares_of((("top", upper), ("bottom", lower)), layout),
        products=products,
        seconds=time.perf_counter() - began,
    )


def masses_of(spread: Density | None, mass_at: Sequence[float]) -> tuple[tuple[float, MassInterval, MassInterval], ...]:
    """For each t the share of eigenvalues below -t and above t. Raises ValueError for a negative t."""
    if spread is None:
        return ()
    if any(t < 0.0 for t in mass_at):
        raise ValueError(f"the mass is told below -t and above t for t of 0 or more; got {min(mass_at)}")
    stated = tuple(mass_at) or common_masses([spread])
    return tuple((t, spread.below(-t), spread.above(t)) for t in stated)


def common_masses(spreads: Sequence[Density | None]) -> tuple[float, ...]:
    """The t that are stated where none is asked for: 1e-3 and 1e-2 of the largest absolute value, rounded.

    Where another spectrum's largest is less than a tenth of that, 1e-2 of it as well, so that each has one that tells.
    """
    reach = sorted(max(abs(end) for end in s.range) for s in spreads if s is not None)
    if not reach:
        return ()
    chosen = {1e-3 * reach[-1], 1e-2 * reach[-1]} | ({1e-2 * reach[0]} if reach[0] < 0.1 * reach[-1] else set())
    return tuple(sorted({float(f"{t:.1g}") for t in chosen}))


def shares_of(ends: Sequence[tuple[str, EigenPairs | None]], layout: Layout) -> dict[str, dict[str, float]]:
    """The share of each eigenvector's squared norm in each tensor; each vector's shares add up to one."""
    found = {}
    for end, pairs in ends:
        for i in range(0 if pairs is None else len(pairs.values)):
            found[f"{end} {i + 1}"] = share_by_tensor(pairs.vectors[:, i], layout)  # type: ignore[union-attr]
    return found


def share_by_tensor(vector: Tensor, layout: Layout) -> dict[str, float]:
    """Where the mass of a vector lies: the share of its squared norm in each tensor."""
    parts = {name: norm(part) ** 2 for name, part in layout.unflatten(vector).items()}
    total = sum(parts.values())
    return {name: part / total if total > 0.0 else nan for name, part in parts.items()}


def spectrum(
    problem: Problem,
    *,
    matrix: str = "hessian",
    parameters: str = "weights",
    total: Total = single_rank,
    label: str = "",
    check: bool = True,
    backend: str = "auto",
    **told: Any,
) -> Spectrum:
    """The spectrum of the mean loss of a model over its data, at its present weights.

    matrix      hessian, or gauss-newton
    parameters  weights (of dimension > 1, as in the paper), all, or a regular expression
    total       adds a tensor up over the ranks of a team, each with its own share of the data
    check       refuses a loss that is no mean over samples
    backend     of products, see `autotune.prepare`; auto: the cheapest by a short probe
    told        as `spectrum_of` takes it: top, bottom, trace_products, density_error, mass_at, tol, seed, ...

    Raises ValueError with one sentence for a model in training mode, weights in half precision, a loss that is no
    mean, more eigenvalues than there are parameters, or parameters that match nothing.
    """
    began = time.perf_counter()
    if check:
        check_mean(problem)
    if build_operator(problem, matrix, parameters, total).size <= int(told.get("dense", 300)) and backend == "auto":
        backend = "double-backward"  # so few products that no probe pays
    operator = build_operator(problem, matrix, parameters, total, backend=backend)
    loss, slope, _ = loss_and_gradient(problem, parameters, total)
    if not isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at these weights: there is no curvature to read here")
    found = spectrum_of(operator, label=label, name=matrix, layout=operator.layout, **told)
    samples = int(total(torch.tensor([float(problem.samples)], dtype=torch.float64))[0])
    return replace(
        found,
        samples=samples,
        unit=problem.unit,
        loss=loss,
        gradient_norm=norm(slope),
        seconds=time.perf_counter() - began,
    )
