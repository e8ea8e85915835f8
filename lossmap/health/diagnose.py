"""The health of a network: five examinations, their numbers with error bars, and findings that rest on them.

    health = diagnose_network_health(model, loader, loss="crossentropy")
    print(health); health.findings; health.to_json()

    weights    singular values per layer, and the tails of their spectra        no data
    gradients  per-sample gradients: covariance, signal to noise                N gradients, of `samples` samples
    hessian    ends, trace, density, negative mass                              some 100 products over those samples
    collapse   neural collapse of the last features                             two passes over the data
    signals    firing rates, dead units, gains, gradient norms; labels          three passes

All of that is of the samples that are given, as a rule those of the training. Of `held_out` samples, where there are
any, accuracy and labels are judged too: what was learned by heart shows only there.

What does not apply to a problem (a regression has no classes) is left out, and the report says why. Rules, thresholds
and sources: `findings`. Sources of the numbers: their rooms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.curvature.per_sample_gradients import gradient_covariance
from lossmap.data.batches import Resident, Streamed
from lossmap.data.problem import Criterion, Problem, temporary_parameters
from lossmap.diagnostics.activations import activation_statistics, gradient_norms
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.neural_collapse import neural_collapse
from lossmap.diagnostics.singular_values import singular_values
from lossmap.geometry.parameter_vector import selected
from lossmap.health.finding import LEVELS, Finding
from lossmap.health.measurements import Measurements
from lossmap.health.rules import apply_rules
from lossmap.linalg.power_law import MIN_TAIL_SIZE, PowerLawTail, power_law_tail
from lossmap.report.health import health_report
from lossmap.report.stored import StoredReport
from lossmap.seeding import generator
from lossmap.spectra.spectrum import Spectrum, spectrum

EXAMINATIONS = ("weights", "gradients", "hessian", "collapse", "signals")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Diagnosis(Measurements):
    """What was measured, and what the rules find in it. Print it for the report."""

    @cached_property
    def _judged(self) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
        return apply_rules(self)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is beyond its threshold by two standard errors, the gravest first."""
        return self._judged[0]

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """What is beyond its threshold, but not by two standard errors."""
        return self._judged[1]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the large matrices, as JSON-able values; numbers that are not finite become None."""
        plain: dict[str, Any] = {
            "label": self.label,
            "parameters": self.size,
            "samples": self.samples,
            "unit": self.unit,
            "rate": self.rate,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "held_out_samples": self.held_out.samples if self.held_out is not None else 0,
            "findings": [_of_finding(f) for f in self.findings],
            "undecided": [_of_finding(f) for f in self.undecided],
            "numbers": self.numbers(),
            "skipped": dict(self.skipped),
        }
        if self.weights is not None:
            plain["weights"] = [
                {
                    "name": w.name,
                    "shape": list(w.shape),
                    "spectral_norm": w.spectral_norm,
                    "condition": w.condition,
                    "stable_rank": w.stable_rank,
                    "effective_rank": w.effective_rank,
                    "near_zero": w.near_zero,
                    "singular_values": w.values.tolist(),
                    "tail": _of_tail(self.tails.get(w.name)),
                }
                for w in self.weights
            ]
        if self.gradients is not None:
            plain["gradients"] = {
                "samples": self.gradients.samples,
                "spectrum": self.gradients.spectrum.tolist(),
                "participation": self.gradients.participation,
                "rms": dict(zip(self.gradients.names, self.gradients.rms.tolist(), strict=True)),
                "mean": dict(self.gradient_norms),
            }
        if self.spectrum is not None:
            plain["hessian"] = _of_spectrum(self.spectrum)
        if self.activity is not None:
            plain["activations"] = [vars(a) | {"silence": a.silence} for a in self.activity.activations]
            plain["gains"] = [vars(g) for g in self.activity.gains]
        if self.labels is not None:
            plain["suspects"] = self.labels.suspects.tolist()
        if self.held_out is not None:
            plain["held_out_suspects"] = self.held_out.suspects.tolist()
        return _finite(plain)  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = 1) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file keeps of it: each chief number as [value, error], and all the rest as JSON, `report`."""
        arrays = {name: np.array([n["value"], n["error"]], dtype=np.float64) for name, n in self.numbers().items()}
        return arrays, {"report": self.to_json(indent=None)}

    def __repr__(self) -> str:
        return health_report(StoredReport(*self.stored()))


def diagnose_network_health(
    model: nn.Module, loader: Any, loss: str | Criterion = "crossentropy", *, held_out: Any = None, **told: Any
) -> Diagnosis:
    """Examines a model on the data of a loader, and its accuracy on those of a second one, `held_out`.

    `told` as `diagnose` takes it: rate, momentum, samples, layer, ...
    """
    other = Problem.supervised(model, loss, held_out) if held_out is not None else None
    return diagnose(Problem.supervised(model, loss, loader), held_out=other, **told)


def diagnose(
    problem: Problem,
    *,
    held_out: Problem | None = None,
    examinations: Sequence[str] = EXAMINATIONS,
    samples: int = 512,
    rate: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    layer: str | None = None,
    parameters: str = "weights",
    density_error: float | None = 0.05,
    seed: int = 0,
    label: str = "",
) -> Diagnosis:
    """Examines a problem's model, in evaluation mode; it comes back as it was.

    held_out  the same model over samples that it was not trained on: accuracy and labels are judged there too
    samples   for gradients and Hessian, at most: a random subset, drawn from `seed`
    rate      the learning rate, with its momentum: the edge of stability is judged only where they are given
    nesterov  whether the momentum is Nesterov's
    layer     whose input are the features for neural collapse; by itself the last linear one

    Raises ValueError for an examination that there is not.
    """
    unknown = [name for name in examinations if name not in EXAMINATIONS]
    if unknown:
        raise ValueError(f"there is no examination {unknown[0]!r}; there are {', '.join(EXAMINATIONS)}")
    skipped: dict[str, str] = {}
    few = subset(problem, samples, seed)

    def tried(name: str, examination: str, examine: Callable[[], T]) -> T | None:
        if examination not in examinations:
            return None
        try:
            return examine()
        except (ValueError, ArithmeticError, RuntimeError, NotImplementedError) as error:
            skipped[name] = str(error).split("\n")[0] or type(error).__name__
            return None

    with temporary_parameters(problem.model, {}):
        w = tried("weights", "weights", lambda: singular_values(problem.model))
        fits: dict[str, PowerLawTail] = {}
        for x in w or ():
            if int((x.values > 0).sum()) >= MIN_TAIL_SIZE:
                fit = tried(f"tail of {x.name}", "weights", partial(power_law_tail, x.values**2, seed=seed))
                fits |= {x.name: fit} if fit is not None else {}
        return Diagnosis(
            label=label or type(problem.model).__name__,
            size=sum(p.numel() for p in problem.model.parameters()),
            samples=problem.data.samples,
            weights=w,
            tails=fits,
            gradients=tried("gradients", "gradients", lambda: gradient_covariance(few, parameters)),
            gradient_norms=tried("gradient norms", "signals", lambda: gradient_norms(problem, parameters)) or {},
            spectrum=tried("hessian", "hessian", lambda: _spectrum_of(few, parameters, density_error, seed)),
            collapse=tried("collapse", "collapse", lambda: neural_collapse(problem, layer=layer)),
            activity=tried("signals", "signals", lambda: activation_statistics(problem)),
            labels=tried("labels", "signals", lambda: label_noise(problem)),
            held_out=tried("held-out labels", "signals", lambda: label_noise(held_out))
            if held_out is not None
            else None,
            rate=rate,
            momentum=momentum,
            nesterov=nesterov,
            unit=problem.unit,
            skipped=skipped,
        )


def _spectrum_of(problem: Problem, parameters: str, density_error: float | None, seed: int) -> Spectrum:
    n = sum(p.numel() for p in selected(problem.model, parameters).values())
    return spectrum(problem, parameters=parameters, top=min(5, n), bottom=1, density_error=density_error, seed=seed)


def subset(problem: Problem, samples: int, seed: int = 0) -> Problem:
    """The problem over at most so many of its samples, drawn without return and kept in their order."""
    total = problem.data.samples
    if total <= samples:
        return problem
    chosen = torch.randperm(total, generator=generator("health samples", seed))[:samples].sort().values
    data = problem.data
    if isinstance(data, Streamed):
        return problem.with_data(replace(data, indices=[data.indices[i] for i in chosen.tolist()]))
    if isinstance(data, Resident):
        rows = pytree.tree_map(lambda t: t[chosen.to(t.device)] if isinstance(t, Tensor) else t, data.tensors)
        return problem.with_data(Resident(rows, min(data.batch_size, samples)))
    return problem


def _of_finding(f: Finding) -> dict[str, Any]:
    fields = {k: v for k, v in vars(f).items() if k not in ("tries", "level")}
    return {**fields, "level": LEVELS[f.level], "tries": [vars(t) for t in f.tries]}


def _of_tail(fit: PowerLawTail | None) -> dict[str, Any] | None:
    return None if fit is None else {**vars(fit), "plausible": fit.plausible}


def _of_spectrum(s: Spectrum) -> dict[str, Any]:
    found: dict[str, Any] = {
        "samples": s.samples,
        "values": s.values.tolist(),
        "errors": s.errors.tolist(),
        "verdict": s.verdict,
        "gradient_norm": s.gradient_norm,
        "masses": [{"t": t, "below": vars(low), "above": vars(high)} for t, low, high in s.masses],
    }
    if s.trace is not None:
        found["trace"] = {"value": s.trace.value, "error": s.trace.error}
    if s.density is not None:
        nodes, shares = s.density.nodes
        found["density"] = {"nodes": nodes.tolist(), "shares": shares.tolist()}
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
