"""A diagnosis: measurements and what the rules find in them, as report, as JSON and as a group of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from lossmap.health.finding import Finding
from lossmap.health.measurements import Measurements
from lossmap.keywords import checked_init
from lossmap.linalg.power_law import PowerLawTail
from lossmap.report.health import health_report
from lossmap.report.stored import StoredReport
from lossmap.report.task import regression_numbers, task_numbers
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.values import DrawnResult


@checked_init
@dataclass(frozen=True, eq=False)
class Diagnosis(DrawnResult):
    """What was measured of a network, and what the rules find in it: the result of `diagnose`. Print it for the report.

    Attributes:
        measurements: the numbers, with their error bars.
        findings: what is beyond its threshold by two standard errors, the most severe first.
        undecided: what is beyond its threshold, but not by two standard errors.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> diagnosis = lossmap.diagnose(problem, examinations=["weights"])
        >>> sorted(diagnosis.to_dict())[:3]
        ['findings', 'held_out_samples', 'label']

    """

    measurements: Measurements
    findings: tuple[Finding, ...]
    undecided: tuple[Finding, ...]

    def numbers(self) -> dict[str, dict[str, float]]:
        """The chief numbers, {name: {value, error}}; error 0 where exact."""
        return self.measurements.numbers()

    def summary(self) -> str:
        """The report, several lines."""
        return health_report(StoredReport(*self.stored()))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the large matrices, as JSON-able values; numbers that are not finite become None.

        The keys stand in files, and stay. Two are given twice: a suggestion's `caveat` is also `doubt`, as version 0.1
        called it.
        """
        m = self.measurements
        held_out_samples = 0
        if m.held_out is not None:
            held_out_samples = m.held_out.samples
        plain: dict[str, Any] = {
            "label": m.label,
            "parameters": m.size,
            "samples": m.samples,
            "unit": m.unit,
            "rate": m.rate,
            "momentum": m.momentum,
            "nesterov": m.nesterov,
            "held_out_samples": held_out_samples,
            "findings": [_finding_dict(f) for f in self.findings],
            "undecided": [_finding_dict(f) for f in self.undecided],
            "numbers": self.numbers(),
            "skipped": dict(m.skipped),
            "task": {
                name: task_numbers(labels)
                for name, labels in (("examined", m.labels), ("held_out", m.held_out))
                if labels is not None
            }
            or {
                name: regression_numbers(fit)
                for name, fit in (("examined", m.fit), ("held_out", m.held_out_fit))
                if fit is not None
            },
            **({} if m.weight is None else {"weight": m.weight}),
            **({"evaluation": list(m.notes)} if m.notes else {}),
            **_parts_dict(m),
        }
        return _json_able(plain)  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = 1) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def without_vectors(self) -> Diagnosis:
        """The same without the eigenvectors of the Hessian, which are as large as the model."""
        spectrum = self.measurements.spectrum
        if spectrum is None:
            return self
        top, bottom = (
            pairs if pairs is None else replace(pairs, vectors=pairs.vectors[:, :0])
            for pairs in (spectrum.top, spectrum.bottom)
        )
        measurements = replace(self.measurements, spectrum=replace(spectrum, top=top, bottom=bottom))
        return replace(self, measurements=measurements)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file keeps of it: each chief number as [value, error], and all the rest as JSON, `report`."""
        arrays = {name: np.array([n["value"], n["error"]], dtype=np.float64) for name, n in self.numbers().items()}
        return arrays, {"report": self.to_json(indent=None)}

    def __repr__(self) -> str:
        return self.summary()


def _finding_dict(f: Finding) -> dict[str, Any]:
    fields = {name: value for name, value in vars(f).items() if name not in ("tries", "level")}
    tries = [{**vars(suggestion), "doubt": suggestion.caveat} for suggestion in f.tries]
    return {**fields, "level": f.severity, "tries": tries}


def _parts_dict(m: Measurements) -> dict[str, Any]:
    """The measurements that there are."""
    parts: dict[str, Any] = {}
    if m.weights is not None:
        parts["weights"] = [
            {
                "name": w.name,
                "shape": list(w.shape),
                "spectral_norm": w.spectral_norm,
                "condition": w.condition,
                "stable_rank": w.stable_rank,
                "effective_rank": w.effective_rank,
                "near_zero": w.near_zero,
                "singular_values": w.values.tolist(),
                "tail": _tail_dict(m.tails.get(w.name)),
            }
            for w in m.weights
        ]
    if m.gradients is not None:
        parts["gradients"] = {
            "samples": m.gradients.samples,
            "spectrum": m.gradients.spectrum.tolist(),
            "participation": m.gradients.participation,
            "rms": dict(zip(m.gradients.names, m.gradients.rms.tolist(), strict=True)),
            "mean": {name: norm for name, (norm, _) in m.gradient_norms.items()},
            "mean_error": {name: error for name, (_, error) in m.gradient_norms.items()},
        }
    if m.spectrum is not None:
        parts["hessian"] = _spectrum_dict(m.spectrum)
    if m.activity is not None:
        parts["activations"] = [vars(a) | {"silence": a.silence} for a in m.activity.activations]
        parts["gains"] = [vars(g) for g in m.activity.gains]
    if m.labels is not None and m.labels.classifies:
        parts["suspects"] = m.labels.suspected_errors.tolist()
    if m.held_out is not None and m.held_out.classifies:
        parts["held_out_suspects"] = m.held_out.suspected_errors.tolist()
    return parts


def _tail_dict(fit: PowerLawTail | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {**vars(fit), "plausible": fit.plausible}


def _spectrum_dict(s: Spectrum) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "samples": s.samples,
        "size": s.size,
        "values": s.values.tolist(),
        "errors": s.errors.tolist(),
        "verdict": s.verdict,
        "gradient_norm": s.gradient_norm,
        "gradient_norm_error": s.gradient_norm_error,
        "masses": [{"t": t, "below": vars(low), "above": vars(high)} for t, low, high in s.masses],
    }
    if s.trace is not None:
        plain["trace"] = {"value": s.trace.value, "error": s.trace.error}
    if s.density is not None:
        nodes, shares = s.density.nodes
        plain["density"] = {"nodes": nodes.tolist(), "shares": shares.tolist()}
    return plain


def _json_able(value: Any) -> Any:
    """Plain values; what is not finite becomes None, which JSON knows."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _json_able(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_able(v) for v in value]
    return value
