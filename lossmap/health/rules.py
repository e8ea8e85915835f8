"""What may be wrong with a network, and what could be tried: all rules, with thresholds, sources and caveats.

A finding is made only where its number is beyond its threshold by two standard errors; one that is beyond it by less is
reported apart, as undecided. Thresholds without a source in the literature are ours, and say so; each was set well away
from what healthy small networks show (tests). A finding says what may be, not what is: most have several causes. What
to try names who proposed or examined it; that it helps in the case at hand nobody has shown.

To add a rule: a function from measurements to findings in the module of its subject, and a line in RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lossmap.health.activation_rules import dead_units, saturated_units, signal_gains
from lossmap.health.curvature_rules import edge_of_stability, negative_curvature, outlying_eigenvalue
from lossmap.health.finding import CHANCE_LEVEL, Finding
from lossmap.health.gradient_rules import dominant_direction, gradient_magnitudes
from lossmap.health.label_rules import chance_level, class_means, label_noise, memorization
from lossmap.health.measurements import Measurements
from lossmap.health.weight_rules import rank_deficient_layers, spectral_tails

RULES: tuple[Callable[[Measurements], Iterator[Finding]], ...] = (
    chance_level,
    dead_units,
    saturated_units,
    signal_gains,
    gradient_magnitudes,
    dominant_direction,
    rank_deficient_layers,
    spectral_tails,
    label_noise,
    memorization,
    edge_of_stability,
    negative_curvature,
    outlying_eigenvalue,
    class_means,
)


def apply_rules(measured: Measurements) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings, the most severe first, and those beyond their threshold by less than two standard errors.

    A network at chance level comes before all others, which mean little then.
    """
    beyond = [finding for rule in RULES for finding in rule(measured) if finding.excess > 0]
    ranked = sorted(beyond, key=lambda finding: (finding.rule != CHANCE_LEVEL, finding.sort_key))
    significant = tuple(f for f in ranked if f.is_significant)
    return significant, tuple(f for f in ranked if not f.is_significant)
