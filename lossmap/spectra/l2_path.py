"""An L2 term strength/2 ||theta||^2: what a model retrained with it has for a spectrum.

At fixed weights the term adds strength times the identity to the Hessian over the parameters that it covers, so that
every eigenvalue moves up by just that (`lossmap.spectra.compare.l2_path`); a model retrained with it has other weights,
and other eigenvalues: this costs a training for each strength.

The trainer's weight decay is the gradient of that term (Krogh and Hertz, 1992, NIPS 4: A simple weight decay can
improve generalization), so that the strength is the decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lossmap.curvature.same_function import over_a_copy
from lossmap.data.problem import Problem
from lossmap.spectra.spectrum import spectrum
from lossmap.spectra.spectrum_result import Spectrum
from lossmap.training import Recipe, train

RETRAINING_RATE = 0.01  # learning rate, small enough to start from a trained model


def retrained_spectra(
    problem: Problem, strengths: Sequence[float], epochs: int, *, parameters: str = "weights", seed: int = 0
) -> list[Spectrum]:
    """The spectra of copies of a model, each retrained with an L2 term of one strength, its curvature included.

    problem     model, data and loss; the model stays as it is
    strengths   (p,) of strength/2 ||theta||^2, in units of the loss over those of theta squared
    epochs      of each retraining
    parameters  of the Hessian: weights, all, trainable, or a regular expression
    seed        of the order of the samples

    Returns a spectrum (largest and smallest eigenvalue alone) for each strength, ascending. Raises ValueError as
    `lossmap.training.train` does.
    """
    spectra = []
    for strength in sorted(strengths):
        twin = over_a_copy(problem)
        train(twin, Recipe(epochs=epochs, rate=RETRAINING_RATE, weight_decay=strength, seed=seed))
        plain = spectrum(
            twin, parameters=parameters, top=1, trace_products=0, density_error=None, backend="double-backward"
        )
        spectra.append(add_l2(plain, strength))
    return spectra


def add_l2(spectrum: Spectrum, strength: float) -> Spectrum:
    """A spectrum whose ends have the curvature of an L2 term added: an exact shift by its strength."""
    ends = {}
    for name in ("top", "bottom"):
        pairs = getattr(spectrum, name)
        if pairs is not None:
            ends[name] = replace(pairs, values=pairs.values + strength)
    return replace(spectrum, **ends)
