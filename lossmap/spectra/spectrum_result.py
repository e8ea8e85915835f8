"""What is known of one symmetric matrix: a value with error bars, its meaning, and what a file keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan

import numpy as np

from lossmap.keywords import checked_init
from lossmap.linalg.eigenpairs import EigenPairs
from lossmap.linalg.spectral_density import Density, MassInterval
from lossmap.linalg.trace import Trace
from lossmap.report.definiteness import definiteness_of_ends
from lossmap.report.spectrum import spectrum_report
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.spectra.block import RELATIVE, condition_beyond
from lossmap.values import DrawnResult

ILL_CONDITIONED = 1000.0  # a condition number above this


@checked_init
@dataclass(frozen=True, eq=False)
class Spectrum(DrawnResult):
    """What is known of one symmetric matrix, with error bars: the result of `spectrum`. Print it for the report.

    `values` and `errors` (m,), `largest` and `smallest` (value, error), `condition`, `step_limit`, `verdict` are read
    off it.

    Attributes:
        label: what the report calls it.
        matrix: hessian, gauss-newton, fisher, mc-fisher or preconditioned.
        size: n, the entries of theta.
        precision: of the products.
        top: the largest eigenvalues with their error bars; None where not requested.
        bottom: the smallest ones.
        trace: with its standard error; None where not requested.
        density: the distribution of all eigenvalues; None where not requested.
        masses: for each stated t: the share below -t, and that above t.
        shares: for each extreme eigenvector, keyed `top 1`, ..., the share of its squared norm in each tensor.
        samples: over which the loss is a mean.
        unit: of the loss.
        loss: at these weights; NaN where the matrix is all that is known.
        loss_error: how far rounding may have moved it, as it was measured; NaN where it was not.
        gradient_norm: at these weights; NaN as well.
        gradient_norm_error: how far rounding may have moved it.
        products: spent.
        seconds: spent.
        keep_vectors: whether a command's file keeps the eigenvectors too.
        frozen: entries of the parameters that are left out since they require no gradient.
        threshold: of a preconditioned Hessian, the eigenvalue above which the optimizer's full-batch steps diverge; NaN
            where it is not known.
        notes: how the loss is evaluated, a sentence each, where that is not as a mean over any samples.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> result = lossmap.spectrum(problem, top=1, density_error=None)
        >>> result.size, len(result.values), result.converged
        (12, 2, True)

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
    loss_error: float = nan
    gradient_norm: float = nan
    gradient_norm_error: float = nan
    products: int = 0
    seconds: float = nan
    keep_vectors: bool = False
    frozen: int = 0
    threshold: float = nan
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> np.ndarray:
        """The extreme eigenvalues known, descending, each once: (m,)."""
        return self._joined()[0]

    @property
    def errors(self) -> np.ndarray:
        """An eigenvalue lies within this distance of each of `values`: (m,)."""
        return self._joined()[1]

    def largest_by_magnitude(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvalues largest in absolute value, and their errors; at most as many as are known at one end.

        Returns two arrays (count,). Raises ValueError where fewer are known.
        """
        ends = (self.top, self.bottom)
        known = min(len(_values_and_errors(end)[0]) for end in ends)
        if count > min(known, self.size):
            raise ValueError(
                f"the {count} largest by magnitude need {count} eigenvalues at both ends; there are {known} "
                f"(use top={count}, bottom={count})"
            )
        values, errors = self._joined()
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        return values[order], errors[order]

    @property
    def largest(self) -> tuple[float, float]:
        """The largest eigenvalue and its error; NaN where not requested."""
        return _first(self.top)

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest eigenvalue and its error; NaN where not requested."""
        return _first(self.bottom)

    @property
    def limits(self) -> tuple[float, float]:
        """(upper, lower): beyond each no eigenvalue lies, with its confidence; NaN where not known."""
        upper = lower = nan
        if self.top is not None:
            upper = self.top.limits[0]
        if self.bottom is not None:
            lower = self.bottom.limits[1]
        return upper, lower

    @property
    def condition(self) -> float:
        """largest / smallest; inf where the smallest is not positive beyond its error; NaN where not known."""
        (high, _), (low, error) = self.largest, self.smallest
        if not (isfinite(high) and isfinite(low)):
            return nan
        if low - error <= 0.0:
            return inf
        return high / low

    @property
    def noise_floor(self) -> float:
        """Below it an eigenvalue counts as zero: 1e-6 of the largest, or rounding; NaN where not all are known."""
        if self.density is None or self.density.eigenvalues is None:
            return nan
        return max(RELATIVE * float(np.abs(self.density.eigenvalues).max(initial=0.0)), self.density.allowance)

    @property
    def condition_beyond_floor(self) -> float:
        """The largest over the smallest |eigenvalue| beyond the noise floor; NaN where not all are known, or none."""
        if self.density is None or self.density.eigenvalues is None:
            return nan
        return condition_beyond(self.density.eigenvalues, self.noise_floor)

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
        return 2.0 / high, 2.0 * error / high / high

    @property
    def converged(self) -> bool:
        """Whether the ends, the trace and the density met the accuracy requested of them."""
        ends = all(e is None or e.converged for e in (self.top, self.bottom))
        return ends and all(part is None or part.met for part in (self.trace, self.density))

    @property
    def verdict(self) -> str:
        """The shape of the matrix in words, with the numbers that they rest on."""
        highest, lowest = self.limits
        seen = nan if self.density is None else self.density.range[0]
        return definiteness_of_ends(self.largest, self.smallest, lowest, highest, self.rounding, seen, self.matrix)

    @property
    def rounding(self) -> float:
        """The part of the ends' errors that allows for rounding, the larger one; NaN where it is not known."""
        return float(np.fmax.reduce([nan, *(end.rounding for end in (self.top, self.bottom) if end is not None)]))

    def shifted(self, strength: float) -> np.ndarray:
        """The eigenvalues known, with an L2 term strength/2 ||theta||^2 added to the loss at these weights: exact."""
        return self.values + strength

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        return stored_spectrum(self)

    def __repr__(self) -> str:
        return spectrum_report(_report_of(self))

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        """Both ends as one descending row; where they overlap (all n were found) each once."""
        top, low = _values_and_errors(self.top), _values_and_errors(self.bottom)
        keep = max(self.size - len(top[0]), 0)
        values = np.concatenate([top[0], low[0][:keep][::-1]])
        return values, np.concatenate([top[1], low[1][:keep][::-1]])


def _values_and_errors(pairs: EigenPairs | None) -> tuple[np.ndarray, np.ndarray]:
    if pairs is None:
        return np.zeros(0), np.zeros(0)
    return pairs.values, pairs.residuals


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
        arrays |= s.density.stored()[0]
    if s.trace is not None:
        arrays |= s.trace.diagonal_arrays()
    attributes |= {"step_limit": s.step_limit[0], "converged": s.converged, "verdict": s.verdict, "report": repr(s)}
    return arrays, attributes


def _report_of(s: Spectrum) -> StoredReport:
    """The part of what is stored that the report is rendered from."""
    arrays: dict[str, np.ndarray] = {}
    attributes: dict[str, object] = {
        "label": s.label, "matrix": s.matrix, "size": s.size, "samples": s.samples, "precision": s.precision,
        "unit": s.unit, "loss": s.loss, "loss_error": s.loss_error, "gradient_norm": s.gradient_norm,
        "gradient_norm_error": s.gradient_norm_error, "condition": s.condition,
        "ill_conditioned": s.ill_conditioned, "products": s.products, "seconds": s.seconds,
        "report_version": REPORT_VERSION,
    }  # fmt: skip
    attributes |= {k: v for k, v in (("frozen", s.frozen), ("evaluation", "; ".join(s.notes))) if v}
    for name, limit, pairs, i in (("top", "upper_limit", s.top, 0), ("bottom", "lower_limit", s.bottom, 1)):
        if pairs is None:
            continue
        arrays |= {name: pairs.values, f"{name}_error": pairs.residuals}
        attributes |= {limit: pairs.limits[i], f"{name}_confidence": pairs.confidence, f"{name}_scale": pairs.scale}
        attributes |= {f"{name}_converged": pairs.converged, f"{name}_tolerance": pairs.tolerance}
        attributes[f"{name}_products"] = pairs.products
        if isfinite(pairs.rounding):
            attributes[f"{name}_rounding"] = pairs.rounding
        if isfinite(pairs.others):
            attributes[f"{name}_others"] = pairs.others
    if isfinite(s.condition_beyond_floor):
        attributes |= {"condition_beyond_floor": s.condition_beyond_floor, "noise_floor": s.noise_floor}
    if s.trace is not None:
        low, high = s.trace.interval()
        attributes |= {"trace": s.trace.value, "trace_error": s.trace.error, "trace_method": s.trace.method}
        attributes |= {"trace_low": low, "trace_high": high, "trace_products": s.trace.products}
        attributes["trace_met"] = s.trace.met
        if s.trace.sums is not None:
            arrays |= s.trace.sums.stored()
        attributes |= s.trace.diagonal_attributes()
    if s.density is not None:
        arrays["node"] = s.density.nodes[0]
        attributes |= s.density.attributes()
    if s.masses:
        arrays["mass_at"] = np.array([t for t, _, _ in s.masses])
        for name, masses in (("mass_below", [b for _, b, _ in s.masses]), ("mass_above", [a for _, _, a in s.masses])):
            arrays[name] = np.array([[m.value, m.low, m.high] for m in masses])
    if s.shares:
        arrays["vector"] = np.array(list(s.shares), dtype=object)
        arrays["tensor"] = np.array(list(next(iter(s.shares.values()))), dtype=object)
        arrays["share_by_tensor"] = np.array([list(row.values()) for row in s.shares.values()])
    attributes |= {"optimizer_threshold": s.threshold} if isfinite(s.threshold) else {}
    return StoredReport(arrays, attributes)
