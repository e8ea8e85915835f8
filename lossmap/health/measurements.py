"""What is measured of a network for its diagnosis: a value that the rules judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, nan

import numpy as np

from lossmap.curvature.per_sample_gradients import GradientCovariance
from lossmap.diagnostics.activations import ActivationStatistics
from lossmap.diagnostics.label_noise import LabelNoise
from lossmap.diagnostics.neural_collapse import NeuralCollapse
from lossmap.diagnostics.regression_fit import RegressionFit
from lossmap.diagnostics.singular_values import SingularValueTable
from lossmap.linalg.power_law import PowerLawTail
from lossmap.spectra.spectrum_result import Spectrum

Estimate = tuple[float, float]  # value and standard error; error 0 where exact


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was measured of a network, before any judgement; None, or empty, where it was not.

    label      of the network, for the report
    size       number of its parameters
    samples    examined; gradients and Hessian are of a subset
    weight     what the loss is a mean over, where that is not the samples: the tokens of all of them
    weights    singular values; `tails`: power laws fitted to their squares, by tensor
    gradients  covariance of per-sample gradients; `gradient_norms`: of the mean gradient, by tensor, each with how far
               rounding may have moved it
    rounded    tensors whose per-sample gradients are nothing but rounding, as float64 shows
    spectrum   of the Hessian of the mean loss
    labels     confident learning on the samples examined; `held_out`: on samples that were not trained on
    fit        of a regression, against the targets' mean, and `held_out_fit`
    rate       the learning rate, with its momentum (Nesterov's or heavy-ball), where stated
    unit       of the loss
    skipped    why a part could not be measured, by its name
    notes      how the loss is evaluated, a sentence each, where that is not as a mean over any samples
    frozen     sizes of the tensors, by name, that gradients and Hessian count though no training moves them; none
               where none of the model's is trained
    """

    label: str
    size: int
    samples: int
    weights: SingularValueTable | None = None
    tails: Mapping[str, PowerLawTail] = field(default_factory=dict)
    gradients: GradientCovariance | None = None
    gradient_norms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rounded: tuple[str, ...] = ()
    spectrum: Spectrum | None = None
    collapse: NeuralCollapse | None = None
    activity: ActivationStatistics | None = None
    labels: LabelNoise | None = None
    held_out: LabelNoise | None = None
    fit: RegressionFit | None = None
    held_out_fit: RegressionFit | None = None
    rate: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    unit: str = "nats"
    skipped: Mapping[str, str] = field(default_factory=dict)
    weight: int | None = None
    notes: tuple[str, ...] = ()
    frozen: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # files of earlier versions hold norms alone
        norms = {n: v if isinstance(v, tuple) else (float(v), nan) for n, v in self.gradient_norms.items()}
        object.__setattr__(self, "gradient_norms", norms)

    def gradient_ratio_error(self, above: int, below: int) -> float:
        """The jackknife standard error of the ratio of two tensors' root mean square gradients.

        above, below  their places in `gradients.names`; NaN without gradients
        """
        if self.gradients is None:
            return nan
        a, b = self.gradients.by_tensor[above], self.gradients.by_tensor[below]
        rest = b.sum() - b
        if not (rest > 0).all():
            return inf
        parts = np.sqrt(np.maximum(a.sum() - a, 0.0) / rest)
        return float(np.sqrt((len(a) - 1) / len(a) * np.square(parts - parts.mean()).sum()))

    def numbers(self) -> dict[str, dict[str, float]]:
        """The chief numbers, {name: {value, error}}; the names stand in files and stay. Error 0 where exact.

        Those of the largest and the smallest eigenvalue have besides a `limit`, beyond which none lies, and `rounding`,
        the part of the error that allows for it; NaN where not known.
        """
        parts = (self._label_numbers(), self._curvature_numbers(), self._gradient_numbers(), self._layer_numbers())
        every = {
            name: {"value": value, "error": error} for numbers in parts for name, (value, error) in numbers.items()
        }
        if self.spectrum is not None:
            upper, lower = self.spectrum.limits
            for name, limit in (("largest_eigenvalue", upper), ("smallest_eigenvalue", lower)):
                every[name] |= {"limit": limit, "rounding": self.spectrum.rounding}
        return every

    def _label_numbers(self) -> dict[str, Estimate]:
        numbers: dict[str, Estimate] = {}
        for prefix, labels in (("", self.labels), ("held_out_", self.held_out)):
            if labels is None:
                continue
            numbers[f"{prefix}accuracy"] = labels.accuracy_estimate
            numbers[f"{prefix}surprise"] = labels.negative_log_likelihood
            numbers[f"{prefix}label_noise"] = labels.noise
        return numbers

    def _curvature_numbers(self) -> dict[str, Estimate]:
        if self.spectrum is None:
            return {}
        numbers = {
            "loss": (self.spectrum.loss, np.nan_to_num(self.spectrum.loss_error)),
            "largest_eigenvalue": self.spectrum.largest,
            "smallest_eigenvalue": self.spectrum.smallest,
        }
        if self.spectrum.trace is not None:
            numbers["trace"] = (self.spectrum.trace.value, self.spectrum.trace.error)
        return numbers

    def _gradient_numbers(self) -> dict[str, Estimate]:
        if self.gradients is None:
            return {}
        return {
            "noise_scale": self.gradients.noise_scale,
            "coherence": self.gradients.coherence,
            "gradients_first_direction": self.gradients.concentrated,
            "pulling_against": self.gradients.against,
        }

    def _layer_numbers(self) -> dict[str, Estimate]:
        numbers: dict[str, Estimate] = {}
        if self.collapse is not None:
            for name in ("nc1", "nc2", "nc2_norms", "nc3", "nc4"):
                numbers[name] = (getattr(self.collapse, name), self.collapse.errors[name])
        if self.activity is not None:
            numbers["dead_units"] = (float(sum(a.dead for a in self.activity.activations)), 0.0)
            numbers["units"] = (float(sum(a.units for a in self.activity.activations)), 0.0)
        if self.weights is not None:
            numbers["largest_spectral_norm"] = (max(w.spectral_norm for w in self.weights), 0.0)
            of_matrices = [w.stable_rank for w in self.weights if len(w.values) > 1]  # it is 1 of any single row
            if of_matrices:
                numbers["least_stable_rank"] = (min(of_matrices), 0.0)
        return numbers
