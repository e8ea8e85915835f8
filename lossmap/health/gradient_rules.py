"""Rules on per-sample gradients: tensors without any, unbalanced magnitudes, one dominant direction.

Each rule takes the measurements and yields findings; which of them stand `rules.apply_rules` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite

import numpy as np

from lossmap.health.finding import MODERATE, NOTE, SERIOUS, Finding, Suggestion
from lossmap.health.measurements import Measurements
from lossmap.health.suggestions import CLIP, NORMALIZE
from lossmap.report.text import percent_with_error

MAX_RATIO = 1000.0
MAX_LEADING_SHARE = 0.8
MIN_SAMPLES = 20  # below them a leading direction says nothing


def gradient_magnitudes(measured: Measurements) -> Iterator[Finding]:
    """Tensors that no gradient reaches, and gradients of very different magnitude (root mean square over samples)."""
    if measured.gradients is None:
        return
    names = measured.gradients.names
    rms = np.where([name in (*measured.rounded, *measured.frozen) for name in names], 0.0, measured.gradients.rms)
    trained = [(name, size) for name, size in zip(names, rms, strict=True) if name not in measured.frozen]
    without = [name for name, size in trained if size == 0]
    if without:
        yield _no_gradient(without, len(trained), measured.gradients.samples)
    if int((rms > 0).sum()) > 1:
        yield _unbalanced(measured, rms, names)


def _no_gradient(without: Sequence[str], of: int, samples: int) -> Finding:
    shown = list(without[:4]) + ["..."] * (len(without) > 4)
    return Finding(
        rule="no gradient",
        where=without[0],
        value=float(len(without)),
        error=0.0,
        threshold=0.0,
        sense="above",
        level=SERIOUS,
        evidence=f"{len(without)} of {of} tensors have no gradient beyond rounding for any of {samples:,} samples: "
        f"{', '.join(shown)}",
        means="they do not train: cut off by dead units, detached, or not used",
        source="by definition",
        tries=(Suggestion("check what follows them: dead layers, detach(), unused modules", "-", "-"),),
    )


def _unbalanced(measured: Measurements, rms: np.ndarray, names: Sequence[str]) -> Finding:
    low, high = int(np.argmin(np.where(rms > 0, rms, inf))), int(np.argmax(rms))
    ratio = float(rms[high] / rms[low])
    return Finding(
        rule="unbalanced gradients",
        where=names[high],
        value=ratio,
        error=measured.gradient_ratio_error(high, low),
        threshold=MAX_RATIO,
        sense="above",
        level=MODERATE,
        evidence=f"per-sample gradients are {ratio:.3g} times as large in {names[high]} as in {names[low]} (rms)",
        means="one learning rate for all tensors is too large for some or too small for others",
        source="threshold ours; Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a",
        tries=(
            NORMALIZE,
            Suggestion(
                "a step size per tensor (Adam, LARS)",
                "Kingma and Ba 2015, arXiv:1412.6980; You et al. 2017, arXiv:1708.03888",
                "treats the symptom; scale alone may be harmless in normalized networks",
            ),
            CLIP,
        ),
    )


def dominant_direction(measured: Measurements) -> Iterator[Finding]:
    """The share of the gradient covariance's trace in its leading eigenvalue."""
    if measured.gradients is None or measured.gradients.samples < MIN_SAMPLES:
        return
    share, error = measured.gradients.concentrated
    if not isfinite(share):
        return
    yield Finding(
        rule="dominant gradient direction",
        where="gradient covariance",
        value=share,
        error=error,
        threshold=MAX_LEADING_SHARE,
        sense="above",
        level=NOTE,
        evidence=f"{percent_with_error(share, error)} of the variance of {measured.gradients.samples:,} samples' "
        "gradients lies along one direction",
        means="few samples, or one pair of classes, determine the steps",
        source="threshold ours; Papyan 2019, arXiv:1901.08244, for the class structure of gradients",
        tries=(
            Suggestion(
                "look at the samples with the largest gradients",
                "Katharopoulos and Fleuret 2018, arXiv:1803.00942, sample by them",
                "near the end of training few samples are left to learn, which is normal",
            ),
            CLIP,
        ),
    )
