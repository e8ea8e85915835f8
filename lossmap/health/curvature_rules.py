"""Rules on the Hessian: the edge of stability, negative curvature, one outlying eigenvalue.

Each rule takes the measurements and yields findings; which of them stand `rules.apply_rules` decides. Eigenvalues are
in the unit of the loss per squared unit of theta.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lossmap.diagnostics.stability import stability_limit
from lossmap.health.finding import MODERATE, NOTE, Finding, Suggestion
from lossmap.health.measurements import Measurements
from lossmap.health.suggestions import CLIP, NORMALIZE, SECOND_ORDER, SMALLER_STEP
from lossmap.report.text import number, value_with_error, value_with_limit

AT_THE_EDGE, BEYOND_THE_EDGE = 0.9, 1.1  # of the stability threshold
MAX_NEGATIVE_RATIO = 0.1
MAX_OUTLIER_RATIO = 100.0
FROZEN = "; {} frozen parameters are counted, which no training moves: with parameters `trainable` they are left out"


def _frozen_text(measured: Measurements) -> str:
    """What the Hessian counts besides what is trained; empty for nothing."""
    return FROZEN.format(f"{sum(measured.frozen.values()):,}") if measured.frozen else ""


def edge_of_stability(measured: Measurements) -> Iterator[Finding]:
    """The largest eigenvalue against the stability limit of the stated learning rate and momentum."""
    if measured.spectrum is None or measured.rate is None:
        return
    value, error = measured.spectrum.largest
    limit = stability_limit(measured.rate, measured.momentum, measured.nesterov)
    share = value / limit
    evidence = (
        f"largest eigenvalue {value_with_error(value, error)}, {share:.3g} times the stability limit, {limit:.4g}, of "
        f"full-batch steps with {_optimizer_text(measured)}"
    )
    means = "such steps diverge along the leading eigenvector until curvature decreases"
    means += _frozen_text(measured)
    rule, threshold, level = "beyond the edge of stability", BEYOND_THE_EDGE, MODERATE
    if share <= BEYOND_THE_EDGE:
        rule, threshold, level = "at the edge of stability", AT_THE_EDGE, NOTE
        means += "; full-batch training often runs here by itself, and that is no fault"
    yield Finding(
        rule=rule,
        where="Hessian",
        value=share,
        error=error / limit,
        threshold=threshold,
        sense="above",
        level=level,
        evidence=evidence,
        means=means,
        source="Cohen et al. 2021, arXiv:2103.00065 (thresholds .9 and 1.1 ours)",
        tries=(SMALLER_STEP, CLIP, SECOND_ORDER),
    )


def _optimizer_text(measured: Measurements) -> str:
    text = f"learning rate {measured.rate:g}"
    if not measured.momentum:
        return text
    kind = {True: "Nesterov momentum", False: "momentum"}[measured.nesterov]
    return f"{text}, {kind} {measured.momentum:g}"


def negative_curvature(measured: Measurements) -> Iterator[Finding]:
    """A smallest eigenvalue that is negative and not small beside the largest."""
    if measured.spectrum is None:
        return
    (high, high_error), (low, low_error) = measured.spectrum.largest, measured.spectrum.smallest
    if not (low < 0 < high):
        return
    ratio = -low / high
    yield Finding(
        rule="negative curvature",
        where="Hessian",
        value=ratio,
        error=ratio * float(np.hypot(low_error / low, high_error / high)),
        threshold=MAX_NEGATIVE_RATIO,
        sense="above",
        level=MODERATE,
        evidence=f"the smallest eigenvalue, {value_with_limit(low, low_error, measured.spectrum.limits[1])}, is "
        f"{number(float(f'{100 * ratio:.2g}'))} % of the largest, {high:.4g}, in magnitude",
        means="not a minimum, to second order: a saddle, or training that has not finished" + _frozen_text(measured),
        source="threshold ours; Dauphin et al. 2014, arXiv:1406.2572, for saddles",
        tries=(
            Suggestion(
                "train longer; noise escapes saddles",
                "Jin et al. 2017, arXiv:1703.00887",
                "trained networks keep some negative curvature (Alain et al. 2019, arXiv:1902.02366)",
            ),
        ),
    )


def outlying_eigenvalue(measured: Measurements) -> Iterator[Finding]:
    """The largest eigenvalue far above the fifth."""
    if measured.spectrum is None or measured.spectrum.top is None:
        return
    top = measured.spectrum.top
    if len(top.values) < 5 or not top.values[4] > 0:
        return
    ratio = float(top.values[0] / top.values[4])
    relative = float(np.hypot(top.residuals[0] / top.values[0], top.residuals[4] / top.values[4]))
    yield Finding(
        rule="ill-conditioned",
        where="Hessian",
        value=ratio,
        error=ratio * relative,
        threshold=MAX_OUTLIER_RATIO,
        sense="above",
        level=MODERATE,
        evidence=f"the largest eigenvalue, {top.values[0]:.4g}, is {ratio:.3g} times the fifth, {top.values[4]:.3g}",
        means="a step size that is stable along the leading eigenvector is far too small for the others",
        source="threshold ours; Sagun et al. 2018, arXiv:1706.04454, for outliers as such; Ghorbani et al. 2019, "
        "arXiv:1901.10159, saw almost none with batch norm",
        tries=(SECOND_ORDER, CLIP, NORMALIZE),
    )
