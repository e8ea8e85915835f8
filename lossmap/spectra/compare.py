"""Spectra side by side: checkpoints, training against test samples, an L2 term.

An L2 term strength/2 ||theta||^2 adds strength times the identity to the Hessian over the parameters that it covers:
at fixed weights every eigenvalue moves up by just that, and no product is needed. What a net retrained with it has is
another question, and requires retraining.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan

import numpy as np

from lossmap.report.text import (
    WIDTH,
    filled,
    meaningful_digits,
    number,
    rough_number,
    table,
    value_with_error,
    value_with_limit,
    wrapped,
)
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.spectra.summaries import common_masses, masses_of


def _beyond_floor(s: Spectrum) -> str:
    """The condition beyond the noise floor, within which its smallest eigenvalue is known; a dash without one."""
    condition = s.condition_beyond_floor
    if isnan(condition):
        return "-"
    return rough_number(condition, s.noise_floor * condition / max(abs(s.largest[0]), abs(s.smallest[0])))


@dataclass(frozen=True)
class Comparison:
    """Several spectra by label, in order. Print it for the table; `draw` shows it as one figure."""

    spectra: Mapping[str, Spectrum]

    def __getitem__(self, label: str) -> Spectrum:
        return self.spectra[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.spectra)

    def gap(self, first: str, second: str) -> dict[str, tuple[float, float]]:
        """second - first of loss, largest and smallest eigenvalue and trace, each with its error."""
        a, b = self.spectra[first], self.spectra[second]
        gaps = {"loss": (b.loss - a.loss, a.loss_error + b.loss_error)}
        for name, one, two in (("largest", a.largest, b.largest), ("smallest", a.smallest, b.smallest)):
            gaps[name] = (two[0] - one[0], one[1] + two[1])
        if a.trace is not None and b.trace is not None:
            gaps["trace"] = (b.trace.value - a.trace.value, float(np.hypot(a.trace.error, b.trace.error)))
        return gaps

    def __repr__(self) -> str:
        head = ("", "n", "loss", "gradient", "largest", "smallest", "trace", "condition", "beyond floor", "2/largest")
        rows: list[Sequence[str]] = [head]
        for label, s in self.spectra.items():
            trace = "-"
            if s.trace is not None:
                trace = value_with_error(s.trace.value, s.trace.error)
            rows.append(
                (
                    label,
                    f"{s.size:,}",
                    f"{s.loss:.4g}",
                    f"{s.gradient_norm:.3g}",
                    value_with_limit(*s.largest, s.limits[0]),
                    value_with_limit(*s.smallest, s.limits[1]),
                    trace,
                    number(s.condition),
                    _beyond_floor(s),
                    number(s.step_limit[0]),
                )
            )
        lines = ["Side by side", "", *table(rows, right=range(1, 10))]
        lines += [
            "",
            "  condition: largest / smallest eigenvalue; beyond floor: |lambda|max /",
            "  |lambda|min of those beyond the noise floor, where all are known",
        ]
        lines += self._masses()
        labels = list(self.spectra)
        if len(labels) == 2:
            lines += ["", *self._gap_lines(*labels)]
        return "\n".join(lines)

    def _masses(self) -> list[str]:
        lines = []
        for label, s in self.spectra.items():
            for t, below, above in s.masses[:1]:
                lines += wrapped(label, f"eigenvalues below -{t:g}: {below}; above {t:g}: {above}")
        if lines:
            lines.insert(0, "")
        return lines

    def _gap_lines(self, first: str, second: str) -> list[str]:
        parts = []
        for name, (value, error) in self.gap(first, second).items():
            if isfinite(value):
                text = f"{name} {'+' * (value >= 0.0)}{value_with_error(value, error)}"
                if name != "loss" and abs(value) <= error:
                    text += " (within the error)"
                parts.append(text)
        return wrapped("gap", f"{second} - {first}: " + ", ".join(parts))


def compare(spectra: Mapping[str, Spectrum]) -> Comparison:
    """The comparison. Raises ValueError where there is nothing to compare."""
    if not spectra:
        raise ValueError("there are no spectra to compare")
    stated = {tuple(t for t, _, _ in s.masses) for s in spectra.values()}
    if len(stated) > 1:  # masses can be compared at the same t alone
        common = common_masses([s.density for s in spectra.values()])
        spectra = {label: replace(s, masses=masses_of(s.density, common)) for label, s in spectra.items()}
    return Comparison(dict(spectra))


@dataclass(frozen=True)
class L2Path:
    """Strength against eigenvalues.

    strengths  (p,) of strength/2 ||theta||^2
    largest, smallest   (p,) at fixed weights: exact shifts, so with the errors of strength 0
    errors              of largest and of smallest
    retrained           for each strength the spectrum of a net retrained with it, with the L2 term; or none
    """

    strengths: np.ndarray
    largest: np.ndarray
    smallest: np.ndarray
    errors: tuple[float, float]
    retrained: tuple[Spectrum, ...] = ()

    @property
    def conditions(self) -> np.ndarray:
        """(p,) condition numbers, inf where the smallest is not positive beyond its error."""
        sure = self.smallest - self.errors[1] > 0.0
        return np.where(sure, self.largest / np.where(sure, self.smallest, 1.0), inf)

    @property
    def convex_from(self) -> float:
        """The strength from which on no eigenvalue is negative at these weights."""
        return max(0.0, -float(self.smallest[0] - self.strengths[0]))

    def __repr__(self) -> str:
        head = ["strength", "largest", "smallest", "condition", "2/largest"]
        if self.retrained:
            head += ["retrained: loss", "largest", "smallest"]
        rows = [head]
        for i, strength in enumerate(self.strengths):
            limit = inf
            if self.largest[i] > 0:
                limit = 2.0 / self.largest[i]
            row = [f"{strength:g}", *map(meaningful_digits, (self.largest[i], self.smallest[i]), self.errors)]
            row += [number(self.conditions[i]), number(limit)]
            if self.retrained:
                s = self.retrained[i]
                upper, lower = s.limits
                ends = [value_with_limit(*s.largest, upper), value_with_limit(*s.smallest, lower)]
                row += [f"{s.loss:.4g}", *ends]
            rows.append(row)
        lines = ["L2 path: strength/2 ||theta||^2 added to the loss;", "  at fixed weights an exact shift", ""]
        lines += table(rows, right=range(len(rows[0])))
        text = (
            f"(errors: largest +- {self.errors[0]:.2g}, smallest +- {self.errors[1]:.2g}; no eigenvalue is negative "
            f"from strength {meaningful_digits(self.convex_from, self.errors[1])} on)"
        )
        lines += [f"  {line}" for line in filled(text, WIDTH - 2)]
        return "\n".join(lines)


def l2_path(spectrum: Spectrum, strengths: Sequence[float], retrained: Sequence[Spectrum] = ()) -> L2Path:
    """The path of a spectrum's ends. Raises ValueError for negative strengths, or a spectrum without both ends."""
    ascending = np.asarray(sorted(strengths), dtype=np.float64)
    if not ascending.size or not np.isfinite(ascending).all() or ascending[0] < 0.0:
        raise ValueError(f"the strengths of an L2 path must be >= 0, at least one; got {list(strengths)}")
    if retrained and len(retrained) != len(ascending):
        raise ValueError(f"{len(retrained)} retrained spectra for {len(ascending)} strengths")
    (high, high_error), (low, low_error) = spectrum.largest, spectrum.smallest
    if high != high or low != low:
        raise ValueError("an L2 path needs both ends of the spectrum: top and bottom 1 or more")
    return L2Path(ascending, high + ascending, low + ascending, (high_error, low_error), tuple(retrained))
