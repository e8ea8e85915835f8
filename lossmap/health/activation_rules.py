"""Rules on activations: dead and saturated units, layers that amplify or attenuate the signal.

Each rule takes the measurements and yields findings; which of them stand `rules.apply_rules` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import numpy as np

from lossmap.diagnostics.activations import Activation, Gain
from lossmap.health.finding import MODERATE, SERIOUS, Finding, Suggestion
from lossmap.health.measurements import Measurements
from lossmap.health.suggestions import CLIP, INITIALIZE, NORMALIZE, RETRAINING, SMALLER_STEP
from lossmap.report.text import value_with_error

DEAD_SHARE, HALF = 0.3, 0.5
SATURATED_SHARE = 0.5
EXPLODING_GAIN, VANISHING_GAIN = 10.0, 0.05
GAIN_SOURCE = "threshold ours; He et al. 2015, arXiv:1502.01852, for signals that keep their magnitude"


def activations_in(measured: Measurements) -> tuple[Activation, ...]:
    """The activations examined; none where signals were not."""
    if measured.activity is None:
        return ()
    return measured.activity.activations


def gains_in(measured: Measurements) -> tuple[Gain, ...]:
    """The gains examined; none where signals were not."""
    if measured.activity is None:
        return ()
    return measured.activity.gains


def dead_units(measured: Measurements) -> Iterator[Finding]:
    """Units that are never active, as a share of their layer's."""
    for activation in activations_in(measured):
        share = activation.dead / activation.units
        if share <= DEAD_SHARE:
            continue
        rule, level = "dead units", MODERATE
        if activation.all_dead:
            rule = "dead layer"
        if share >= HALF:
            level = SERIOUS
        yield Finding(
            rule=rule,
            where=activation.name or "the model",
            value=share,
            error=0.0,
            threshold=DEAD_SHARE,
            sense="above",
            level=level,
            evidence=f"{activation.dead} of {activation.units} {activation.kind} units are active for none of "
            f"{activation.samples:,} samples; with 95 % confidence such a unit is active for less than "
            f"{100 * activation.silence:.2g} % of them",
            means="these samples give their weights no gradient: only a change of their inputs revives them",
            source="threshold ours; Lu et al. 2020, arXiv:1903.06733",
            tries=(
                Suggestion(
                    "leaky activations",
                    "Maas et al. 2013; Xu et al. 2015, arXiv:1505.00853",
                    "changes the function; dead units may be harmless in a wide layer",
                ),
                Suggestion(
                    "a randomized asymmetric initialization",
                    "Lu et al. 2020, arXiv:1903.06733",
                    RETRAINING,
                ),
                SMALLER_STEP,
            ),
        )


def saturated_units(measured: Measurements) -> Iterator[Finding]:
    """Bounded activations near their bounds, as a share of all outputs."""
    for activation in activations_in(measured):
        share = activation.saturated
        if not isfinite(share):
            continue
        yield Finding(
            rule="saturated units",
            where=activation.name or "the model",
            value=share,
            error=float(np.sqrt(share * (1 - share) / activation.samples)),
            threshold=SATURATED_SHARE,
            sense="above",
            level=MODERATE,
            evidence=f"{100 * share:.0f} % of {activation.kind} outputs are within .01 of a bound",
            means="gradients through them vanish",
            source="threshold ours; Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a",
            tries=(INITIALIZE, NORMALIZE),
        )


def signal_gains(measured: Measurements) -> Iterator[Finding]:
    """Layers between the first and the last that amplify or attenuate; those two depend on the units of the data."""
    for gain in gains_in(measured):
        if gain.first or gain.last or not isfinite(gain.gain):
            continue
        if gain.gain > 1.0:
            yield Finding(
                rule="exploding layer",
                where=gain.name,
                value=gain.gain,
                error=gain.error,
                threshold=EXPLODING_GAIN,
                sense="above",
                level=SERIOUS,
                evidence=_gain_text(gain),
                means="signals forward, and gradients backward, grow by that factor; steps of the layers before it are "
                "too large",
                source=GAIN_SOURCE,
                tries=(NORMALIZE, INITIALIZE, CLIP),
            )
        else:
            yield Finding(
                rule="vanishing layer",
                where=gain.name,
                value=gain.gain,
                error=gain.error,
                threshold=VANISHING_GAIN,
                sense="below",
                level=MODERATE,
                evidence=_gain_text(gain),
                means="little of the signal, and of the gradient, passes",
                source=GAIN_SOURCE,
                tries=(NORMALIZE, INITIALIZE),
            )


def _gain_text(gain: Gain) -> str:
    by = ", with no normalization after it,"
    if gain.norm:
        by = f" with its {gain.norm}"
    return f"the output of {gain.name}{by} is {value_with_error(gain.gain, gain.error)} times its input (rms)"
