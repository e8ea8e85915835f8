"""What is measured of a network for its diagnosis: a value that the rules judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lossmap.curvature.per_sample_gradients import GradientCovariance
from lossmap.diagnostics.activations import ActivationStatistics
from lossmap.diagnostics.label_noise import LabelNoise
from lossmap.diagnostics.neural_collapse import NeuralCollapse
from lossmap.diagnostics.singular_values import SingularValueTable
from lossmap.linalg.power_law import PowerLawTail
from lossmap.spectra.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of a network, before any judgement.

    samples   examined; of which gradients and Hessian take a subset
    held_out  what the net thinks of the labels of samples that it was not trained on
    """

    label: str
    size: int
    samples: int
    weights: SingularValueTable | None = None
    tails: Mapping[str, PowerLawTail] = field(default_factory=dict)
    gradients: GradientCovariance | None = None
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    spectrum: Spectrum | None = None
    collapse: NeuralCollapse | None = None
    activity: ActivationStatistics | None = None
    labels: LabelNoise | None = None
    held_out: LabelNoise | None = None
    rate: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    unit: str = "nats"
    skipped: Mapping[str, str] = field(default_factory=dict)

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
