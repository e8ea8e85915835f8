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
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.measure.activity import Activity, activity, gradient_norms
from lossmap.measure.collapse import Collapse, collapse
from lossmap.measure.findings import LEVELS, Finding, judged
from lossmap.measure.gradients import Scatter, scatter
from lossmap.measure.labels import Labels, labels
from lossmap.measure.report import with_error, wrapped
from lossmap.measure.spectrum import Spectrum, spectrum
from lossmap.measure.tails import LEAST, Tail, tail
from lossmap.measure.weights import Weights, weights
from lossmap.space.chance import generator
from lossmap.space.data import Resident, Streamed
from lossmap.space.problem import Criterion, Problem, placed
from lossmap.space.vectors import selected

EXAMINATIONS = ("weights", "gradients", "hessian", "collapse", "signals")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Health:
    """What the examinations found. Print it for the report.

    samples   examined; of which gradients and Hessian take a subset
    held_out  what the net thinks of the labels of samples that it was not trained on
    """

    label: str
    size: int
    samples: int
    weights: Weights | None = None
    tails: Mapping[str, Tail] = field(default_factory=dict)
    gradients: Scatter | None = None
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    spectrum: Spectrum | None = None
    collapse: Collapse | None = None
    activity: Activity | None = None
    labels: Labels | None = None
    held_out: Labels | None = None
    rate: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    unit: str = "nats"
    skipped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _judged(self) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
        return judged(self)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is beyond its threshold by two standard errors, the gravest first."""
        return self._judged[0]

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """What is beyond its threshold, but not by two standard errors."""
        return self._judged[1]

    def gradient_ratio_error(self, above: int, below: int) -> float:
        """The jackknife error of the ratio of two tensors' root mean square gradients."""
        if self.gradients is None:
            return float("nan")
        a, b = self.gradients.by_tensor[above], self.gradients.by_tensor[below]
        rest = b.sum() - b
        if not (rest > 0).all():
            return float("inf")
        parts = np.sqrt(np.maximum(a.sum() - a, 0.0) / rest)
        return float(np.sqrt((len(a) - 1) / len(a) * np.square(parts - parts.mean()).sum()))

    def numbers(self) -> dict[str, dict[str, float]]:
        """The chief numbers, {name: {value, error}}; error 0 where exact."""
        found: dict[str, tuple[float, float]] = {}
        for before, seen in (("", self.labels), ("held_out_", self.held_out)):
            if seen is not None:
                found[f"{before}accuracy"] = seen.hits
                found[f"{before}surprise"] = seen.surprise
                found[f"{before}label_noise"] = seen.noise
        if self.spectrum is not None:
            found["loss"] = (self.spectrum.loss, 0.0)
            found["largest_eigenvalue"], found["smallest_eigenvalue"] = self.spectrum.largest, self.spectrum.smallest
            if self.spectrum.trace is not None:
                found["trace"] = (self.spectrum.trace.value, self.spectrum.trace.error)
        if self.gradients is not None:
            found["noise_scale"] = self.gradients.noise_scale
            found["coherence"] = self.gradients.coherence
            found["gradients_first_direction"] = self.gradients.concentrated
            found["pulling_against"] = self.gradients.against
        if self.collapse is not None:
            for name in ("nc1", "nc2", "nc2_norms", "nc3", "nc4"):
                found[name] = (getattr(self.collapse, name), self.collapse.errors[name])
        if self.activity is not None:
            found["dead_units"] = (float(sum(a.dead for a in self.activity.activations)), 0.0)
            found["units"] = (float(sum(a.units for a in self.activity.activations)), 0.0)
        if self.weights is not None:
            found["largest_spectral_norm"] = (max(w.spectral_norm for w in self.weights), 0.0)
            found["least_stable_rank"] = (min(w.stable_rank for w in self.weights), 0.0)
        return {name: {"value": value, "error": error} for name, (value, error) in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the large matrices, as JSON-able values; numbers that are not finite become None."""
        plain: dict[str, Any] = {
            "label": self.label,
            "parameters": self.size,
            "samples": self.samples,
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

    def __repr__(self) -> str:
        return "\n".join(_report(self))


def diagnose_network_health(
    model: nn.Module, loader: Any, loss: str | Criterion = "crossentropy", *, held_out: Any = None, **told: Any
) -> Health:
    """Examines a model on the data of a loader, and its accuracy on those of a second one, `held_out`.

    `told` as `examined` takes it: rate, momentum, samples, layer, ...
    """
    other = Problem.supervised(model, loss, held_out) if held_out is not None else None
    return examined(Problem.supervised(model, loss, loader), held_out=other, **told)


def examined(
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
) -> Health:
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

    with placed(problem.model, {}):
        w = tried("weights", "weights", lambda: weights(problem.model))
        fits: dict[str, Tail] = {}
        for x in w or ():
            if int((x.values > 0).sum()) >= LEAST:
                fit = tried(f"tail of {x.name}", "weights", partial(tail, x.values**2, seed=seed))
                fits |= {x.name: fit} if fit is not None else {}
        return Health(
            label=label or type(problem.model).__name__,
            size=sum(p.numel() for p in problem.model.parameters()),
            samples=problem.data.samples,
            weights=w,
            tails=fits,
            gradients=tried("gradients", "gradients", lambda: scatter(few, parameters)),
            gradient_norms=tried("gradient norms", "signals", lambda: gradient_norms(problem, parameters)) or {},
            spectrum=tried("hessian", "hessian", lambda: _spectrum_of(few, parameters, density_error, seed)),
            collapse=tried("collapse", "collapse", lambda: collapse(problem, layer=layer)),
            activity=tried("signals", "signals", lambda: activity(problem)),
            labels=tried("labels", "signals", lambda: labels(problem)),
            held_out=tried("held-out labels", "signals", lambda: labels(held_out)) if held_out is not None else None,
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


def _of_tail(fit: Tail | None) -> dict[str, Any] | None:
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


WORDS = {
    "accuracy": "share of the samples that are named as labelled",
    "surprise": "mean -log p of the label, nats",
    "label_noise": "share of confident samples that are surely another class",
    "held_out_accuracy": "the same, of samples not trained on",
    "held_out_surprise": "nats",
    "held_out_label_noise": "with the net's own mistakes",
    "loss": "{unit}, mean over the Hessian's samples",
    "largest_eigenvalue": "of the Hessian, {unit} per squared unit of theta",
    "smallest_eigenvalue": "",
    "trace": "",
    "noise_scale": "batch size at which a step is half noise",
    "coherence": "mean cosine of two samples' gradients",
    "gradients_first_direction": "share of the gradients' scatter along it",
    "pulling_against": "share of samples whose gradient opposes the others' mean",
    "nc1": "spread within classes against between them; 0: collapsed",
    "nc2": "how far class means' cosines are off a simplex's; 0: none",
    "nc2_norms": "spread of the lengths of class means, relative",
    "nc3": "distance of the last layer's weights from the class means",
    "nc4": "share of samples nearer to another class mean than to that named",
    "dead_units": "units that fire in no sample",
    "units": "that could",
    "largest_spectral_norm": "of any layer's weights",
    "least_stable_rank": "of any layer's weights",
}


def _report(health: Health) -> list[str]:
    counted = {0: "no finding", 1: "1 finding"}.get(len(health.findings), f"{len(health.findings)} findings")
    beside = f", {health.held_out.samples:,} held out" if health.held_out is not None else ""
    lines = [
        f"Health of {health.label}: {counted}  ({health.size:,} parameters, {health.samples:,} samples{beside})",
    ]
    for i, f in enumerate(health.findings, 1):
        lines += ["", f"  {i}. {f.rule}, {f.where}  [{LEVELS[f.level]}]"]
        lines += wrapped("number", f"{with_error(f.value, f.error)}; threshold {f.threshold:g} ({f.source})")
        lines += wrapped("evidence", f.evidence)
        lines += wrapped("may mean", f.means)
        for t in f.tries:
            doubt = f"; but {t.doubt}" if t.doubt != "-" else ""
            by = f" ({t.source})" if t.source != "-" else ""
            lines += wrapped("try", f"{t.what}{by}{doubt}")
    if health.undecided:
        lines.append("")
        for f in health.undecided:
            number = f"{with_error(f.value, f.error)} against {f.threshold:g}"
            lines += wrapped("undecided", f"{f.rule}, {f.where}: {number}: not told apart by two standard errors")
    lines.append("")
    for name, entry in health.numbers().items():
        value = entry["value"]
        if value == value:
            number = with_error(value, entry["error"]) if isfinite(value) else "none is seen"
            lines.append(f"  {name.replace('_', ' '):<27}{number:<21}{WORDS[name].format(unit=health.unit)}".rstrip())
    for name, why in health.skipped.items():
        lines += wrapped("not examined", f"{name}: {why}", indent=17)
    return lines
