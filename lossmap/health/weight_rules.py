"""Rules on weights: layers of almost no rank, and the tails of their spectra.

Each rule takes the measurements and yields findings; which of them stand `rules.apply_rules` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from lossmap.health.finding import NOTE, SERIOUS, Finding, Suggestion
from lossmap.health.measurements import Measurements
from lossmap.health.suggestions import RETRAINING

MIN_EFFECTIVE_RANK = 2.0
MIN_WIDTH = 8  # narrower layers are bottlenecks by design
MAX_TAIL_EXPONENT = 6.0


def rank_deficient_layers(measured: Measurements) -> Iterator[Finding]:
    """Weights of almost no rank."""
    for layer in measured.weights or ():
        width = min(layer.shape)
        if width < MIN_WIDTH or not isfinite(layer.effective_rank):
            continue
        yield Finding(
            rule="rank-deficient layer",
            where=layer.name,
            value=layer.effective_rank,
            error=0.0,
            threshold=MIN_EFFECTIVE_RANK,
            sense="below",
            level=SERIOUS,
            evidence=f"effective rank {layer.effective_rank:.3g}, stable rank {layer.stable_rank:.3g} of {width}; "
            f"{layer.near_zero} singular values near zero",
            means="only one or two numbers per position pass: a bottleneck, or a layer that collapsed",
            source="threshold ours; Roy and Vetterli 2007 (EUSIPCO), for the measure; Feng et al. 2022, "
            "arXiv:2206.06072, for ranks that fall with depth",
            tries=(
                Suggestion(
                    "a skip connection around the layer",
                    "He et al. 2016, arXiv:1512.03385; Dong et al. 2021, arXiv:2103.03404, of attention",
                    "where the task needs one number only, low rank is right",
                ),
                Suggestion(
                    "less weight decay, larger batches",
                    "Galanti et al. 2022, arXiv:2206.05794",
                    "they find that the low rank matters little for generalization",
                ),
                Suggestion(
                    "an orthogonal initialization",
                    "Saxe et al. 2014, arXiv:1312.6120, of deep linear networks",
                    RETRAINING,
                ),
            ),
        )


def spectral_tails(measured: Measurements) -> Iterator[Finding]:
    """Power-law tails outside of the range that was seen in well-trained layers."""
    for name, fit in measured.tails.items():
        if not fit.plausible:
            continue
        yield Finding(
            rule="light-tailed weights",
            where=name,
            value=fit.alpha,
            error=fit.error,
            threshold=MAX_TAIL_EXPONENT,
            sense="above",
            level=NOTE,
            evidence=repr(fit),
            means="little correlation was learned into the layer, if large published models are a guide",
            source="threshold as in its authors' WeightWatcher; Martin et al. 2021, doi:10.1038/s41467-021-24025-8",
            tries=(
                Suggestion(
                    "train longer, or with smaller batches",
                    "Martin and Mahoney 2021, arXiv:1810.01075",
                    "a trend between models, which fails where depths are mixed (Martin and Mahoney 2021, "
                    "arXiv:2106.00734), and no rule for one layer",
                ),
            ),
        )
