"""The health of a network: five examinations, their numbers with error bars, and findings that rest on them.

    diagnosis = diagnose_network_health(model, loader, loss="crossentropy")
    print(diagnosis); diagnosis.findings; diagnosis.measurements.spectrum; diagnosis.to_json()

    weights    singular values per layer, and the tails of their spectra        no data
    gradients  per-sample gradients: covariance, signal to noise                N gradients, of `samples` samples
    hessian    ends, trace, density, negative mass                              some 100 products over those samples
    collapse   neural collapse of the last features                             two passes over the data
    signals    firing rates, dead units, gains, gradient norms; labels          three passes

All of that is of the samples that are given, as a rule those of the training. Of `held_out` samples, where there are
any, accuracy and labels are judged too: memorization shows only there.

What does not apply to a problem (a regression has no classes) is left out, and the report says why. Rules, thresholds
and sources: `rules`. Sources of the numbers: their modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from lossmap.curvature.gradient_check import check_gradient
from lossmap.curvature.loss_at_start import LossAtStart
from lossmap.curvature.per_sample_gradients import gradient_covariance, rounded_gradients
from lossmap.data.batches import FixedBatches, Resident, Streamed, map_tensors
from lossmap.data.criteria import Criterion
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.data.sample_count import samples_in
from lossmap.diagnostics.activations import activation_statistics, gradient_norms
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.neural_collapse import neural_collapse
from lossmap.diagnostics.regression_fit import regression_fit
from lossmap.diagnostics.singular_values import SingularValueTable, singular_values
from lossmap.geometry.parameter_vector import frozen_among, selected
from lossmap.health.diagnosis import Diagnosis
from lossmap.health.measurements import Measurements
from lossmap.health.price import fit_examination, parts_of_examination
from lossmap.health.rules import apply_rules
from lossmap.keywords import checked_keywords
from lossmap.linalg.expected_products import SpectrumParts
from lossmap.linalg.power_law import MIN_TAIL_SIZE, PowerLawTail, power_law_tail
from lossmap.report.text import counted
from lossmap.seeding import generator
from lossmap.spectra.spectrum import spectrum
from lossmap.spectra.spectrum_result import Spectrum

EXAMINATIONS = ("weights", "gradients", "hessian", "collapse", "signals")
DENSITY_ERROR = 0.05  # of the spectral density, as a share of its range
SAMPLES = 512  # for gradients and Hessian
FEW = 16  # over which per-sample gradients are compared with those in float64
T = TypeVar("T")


@checked_keywords
def diagnose_network_health(
    model: nn.Module,
    loader: Any,
    loss: str | Criterion = "crossentropy",
    *,
    held_out: Any = None,
    examinations: Sequence[str] = EXAMINATIONS,
    samples: int = SAMPLES,
    rate: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    layer: str | None = None,
    parameters: str = "weights",
    density_error: float | None = DENSITY_ERROR,
    budget: float | None = None,
    seed: int = 0,
    label: str = "",
) -> Diagnosis:
    """Examine a model on the data of a loader: `diagnose` for a model and a loader, without a `Problem`.

    Args:
        model: the network.
        loader: as `Problem.supervised` takes data: a DataLoader, a Dataset, or (inputs, targets).
        loss: `crossentropy`, `mse`, or a function of outputs and targets, mean over the batch.
        held_out: a second loader, of samples that the model was not trained on.
        examinations: as of `diagnose`.
        samples: as of `diagnose`.
        rate: as of `diagnose`.
        momentum: as of `diagnose`.
        nesterov: as of `diagnose`.
        layer: as of `diagnose`.
        parameters: as of `diagnose`.
        density_error: as of `diagnose`.
        budget: as of `diagnose`.
        seed: as of `diagnose`.
        label: as of `diagnose`.

    Returns:
        A `Diagnosis`, as `diagnose` does.

    Raises:
        ValueError: for an examination that there is not, and for a loader without inputs and targets.

    Example:
        >>> import torch, lossmap
        >>> model, data = torch.nn.Linear(4, 3), (torch.randn(20, 4), torch.arange(20) % 3)
        >>> lossmap.diagnose_network_health(model, data, examinations=["weights"]).measurements.size
        15

    """
    other = None
    if held_out is not None:
        other = Problem.supervised(model, loss, held_out)
    return diagnose(
        Problem.supervised(model, loss, loader),
        held_out=other,
        examinations=examinations,
        samples=samples,
        rate=rate,
        momentum=momentum,
        nesterov=nesterov,
        layer=layer,
        parameters=parameters,
        density_error=density_error,
        budget=budget,
        seed=seed,
        label=label,
    )


@checked_keywords
def diagnose(
    problem: Problem,
    *,
    held_out: Problem | None = None,
    examinations: Sequence[str] = EXAMINATIONS,
    samples: int = SAMPLES,
    rate: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    layer: str | None = None,
    parameters: str = "weights",
    density_error: float | None = DENSITY_ERROR,
    budget: float | None = None,
    seed: int = 0,
    label: str = "",
) -> Diagnosis:
    """Examine a network: weights, gradients, Hessian, features and signals, and what rules find in the numbers.

    Args:
        problem: model, loss and data. The model is examined in evaluation mode, and comes back as it was.
        held_out: the same model over samples that it was not trained on: accuracy and labels are judged there too.
        examinations: which are made, of `weights`, `gradients`, `hessian`, `collapse`, `signals`.
        samples: for gradients and Hessian, at most: a random subset, drawn from `seed`; of batches that are not cut
            whole ones, one at least.
        rate: the learning rate: the edge of stability is judged only where it is given.
        momentum: of the steps taken with it.
        nesterov: whether the momentum is Nesterov's.
        layer: whose input are the features for neural collapse; by default the last linear one.
        parameters: of gradients and Hessian: `weights` (dimension > 1), `all`, `trainable`, or a regular expression.
        density_error: of the spectral density, as a share of its range; None for no density.
        budget: seconds into which the Hessian's Lanczos steps and probes are fitted; the report says what was cut.
        seed: of probes and of the subset.
        label: of the network in the report; by default its class.

    Returns:
        A `Diagnosis`: print it for the report; `findings`, the most severe first, `undecided`, `numbers()`,
        `to_json()`.

    Raises:
        ValueError: for an examination that there is not.

    Example:
        >>> import torch, lossmap
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> data = (torch.randn(20, 4), torch.arange(20) % 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", data)
        >>> diagnosis = lossmap.diagnose(problem, examinations=["weights"])
        >>> [layer.name for layer in diagnosis.measurements.weights]
        ['0.weight']

    """
    unknown = [name for name in examinations if name not in EXAMINATIONS]
    if unknown:
        raise ValueError(f"there is no examination {unknown[0]!r}; there are {', '.join(EXAMINATIONS)}")
    problem = check_loss(problem)
    if held_out is not None:
        held_out = check_loss(held_out)
    at_start = LossAtStart([problem] if held_out is None else [problem, held_out])
    subset_problem = subset(problem, samples, seed)
    run = _Examinations(tuple(examinations))
    n = sum(p.numel() for p in selected(problem.model, parameters).values())
    parts = parts_of_examination(n, density_error)
    if budget is not None:
        fit = fit_examination(problem, subset_problem, parts, examinations, parameters, held_out, budget)
        parts = fit.parts
        if fit.cuts:
            run.skipped["budget"] = "; ".join(fit.cuts)
    of_gradient = _OfGradient(subset_problem, parameters)
    with temporary_parameters(problem.model, {}):
        gradients = run.attempt("gradients", "gradients", lambda: of_gradient(gradient_covariance, subset_problem))
        weights = run.attempt("weights", "weights", lambda: singular_values(problem.model))
        measured = Measurements(
            label=label or type(problem.model).__name__,
            size=sum(p.numel() for p in problem.model.parameters()),
            samples=problem.data.samples,
            weights=weights,
            tails=_tails(run, weights, seed),
            gradients=gradients,
            rounded=() if gradients is None else rounded_gradients(subset(problem, FEW, seed), parameters),
            gradient_norms=run.attempt("gradient norms", "signals", lambda: of_gradient(gradient_norms, problem)) or {},
            spectrum=run.attempt("hessian", "hessian", lambda: _spectrum_of(subset_problem, parameters, parts, seed)),
            collapse=run.attempt("collapse", "collapse", lambda: neural_collapse(problem, layer=layer)),
            activity=run.attempt("signals", "signals", lambda: activation_statistics(problem)),
            labels=run.attempt("labels", "signals", lambda: label_noise(problem)),
            fit=run.attempt_quietly("signals", lambda: regression_fit(problem)),
            rate=rate,
            momentum=momentum,
            nesterov=nesterov,
            unit=problem.unit,
            skipped=run.skipped,
            weight=None if counted(problem.unit) == "sample" else problem.sample_count,
            notes=tuple(problem.notes),
            frozen={name: p.numel() for name, p in frozen_among(problem.model, parameters).items()},
        )
        if held_out is not None:
            beyond = run.attempt("held-out labels", "signals", partial(label_noise, held_out))
            fit_beyond = run.attempt_quietly("signals", partial(regression_fit, held_out))
            measured = replace(measured, held_out=beyond, held_out_fit=fit_beyond)
    at_start.refuse_change()
    for name, labels in (("label noise", measured.labels), ("held-out label noise", measured.held_out)):
        if labels is not None and labels.undecided:
            run.skipped[name] = labels.undecided
    findings, undecided = apply_rules(measured)
    return Diagnosis(measured, findings, undecided)


@dataclass(frozen=True)
class _Examinations:
    """Makes the examinations that were asked for, and notes why one could not be made."""

    names: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def attempt_quietly(self, examination: str, examine: Callable[[], T]) -> T | None:
        """As `attempt`, of what does not apply to most problems, which no reader misses."""
        return replace(self, skipped={}).attempt("", examination, examine)

    def attempt(self, name: str, examination: str, examine: Callable[[], T]) -> T | None:
        """What `examine` returns; None where the examination is not asked for or does not apply."""
        if examination not in self.names:
            return None
        try:
            return examine()
        except (ValueError, ArithmeticError, RuntimeError, NotImplementedError) as error:
            self.skipped[name] = str(error).split("\n")[0] or type(error).__name__
            return None


@dataclass(frozen=True)
class _OfGradient:
    """Makes what rests on the gradient alone, where that is the loss's own.

    problem  over whose samples, by parameters, it is checked, once
    """

    problem: Problem
    parameters: str

    def __call__(self, examine: Callable[[Problem, str], T], problem: Problem) -> T:
        """What `examine` returns. Raises ValueError for a gradient that is not that of the loss."""
        if self.refusal is not None:
            raise self.refusal
        return examine(problem, self.parameters)

    @cached_property
    def refusal(self) -> ValueError | None:
        """Why the gradient is refused; None where it is not."""
        try:
            check_gradient(self.problem, self.parameters)
        except ValueError as error:
            return error
        return None


def _tails(run: _Examinations, weights: SingularValueTable | None, seed: int) -> dict[str, PowerLawTail]:
    """Power laws fitted to the squared singular values, of layers that have enough of them."""
    fits: dict[str, PowerLawTail] = {}
    for layer in weights or ():
        if int((layer.values > 0).sum()) < MIN_TAIL_SIZE:
            continue
        fit = run.attempt(f"tail of {layer.name}", "weights", partial(power_law_tail, layer.values**2, seed=seed))
        if fit is not None:
            fits[layer.name] = fit
    return fits


def _spectrum_of(problem: Problem, parameters: str, parts: SpectrumParts, seed: int) -> Spectrum:
    error = parts.density_error if parts.density else None
    return spectrum(
        problem,
        parameters=parameters,
        top=parts.top,
        bottom=parts.bottom,
        max_products=parts.max_products,
        trace_products=parts.trace,
        density_error=error,
        density_steps=parts.density_steps,
        density_probes=parts.density_probes,
        dense=parts.dense,
        seed=seed,
    )


def subset(problem: Problem, samples: int, seed: int = 0) -> Problem:
    """The problem over at most `samples` of its samples, drawn without replacement and kept in their order.

    Of batches that are not cut whole ones are drawn: as many as fit, or one where none does.
    """
    total, data = problem.data.samples, problem.data
    if total <= samples:
        return problem
    if isinstance(data, FixedBatches):
        return problem.over_part(_whole_batches(data, samples, seed))
    chosen = torch.randperm(total, generator=generator("health samples", seed))[:samples].sort().values
    if isinstance(data, Streamed):
        return problem.over_part(replace(data, indices=[data.indices[i] for i in chosen.tolist()]))
    if not isinstance(data, Resident):
        return problem
    rows = map_tensors(lambda t: t[chosen.to(t.device)], data.tensors)
    return problem.over_part(Resident(rows, min(data.batch_size, samples)))


def _whole_batches(data: FixedBatches, samples: int, seed: int) -> FixedBatches:
    """Some of the batches at random, up to the first that is more than the samples that are left."""
    chosen: list[int] = []
    left = samples
    for i in torch.randperm(len(data.batches), generator=generator("health samples", seed)).tolist():
        left -= samples_in(data.batches[i])
        if left < 0 and chosen:
            break
        chosen.append(i)
    return replace(data, batches=tuple(data.batches[i] for i in sorted(chosen)))
