"""What may be wrong with a network, and what could be tried: rules with their thresholds, sources and doubts.

A finding is made only where its number is beyond its threshold by two standard errors; one that is beyond it by less is
told apart, as undecided. Thresholds without a source in the literature are ours, and say so; each was set well away
from what healthy small networks show (tests). A finding says what may be, not what is: most have several causes. What
to try names who proposed or examined it; that it helps in the case at hand nobody has shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isfinite

import numpy as np

from lossmap.health.finding import CHANCE, MODERATE, NOTE, SERIOUS, Finding, Suggestion
from lossmap.health.measurements import Measurements

CLIP = Suggestion(
    "clip the gradient's norm",
    "Pascanu et al. 2013, arXiv:1211.5063; Zhang et al. 2020, arXiv:1905.11881",
    "hides the cause; the threshold is one more thing to set",
)
SECOND_ORDER = Suggestion(
    "a second-order step (K-FAC, Shampoo)",
    "Martens and Grosse 2015, arXiv:1503.05671; Gupta et al. 2018, arXiv:1802.09568",
    "dearer per step; its gain over well-set momentum varies between problems",
)
NORMALISE = Suggestion(
    "a normalisation behind the layer",
    "Ioffe and Szegedy 2015, arXiv:1502.03167; Ba et al. 2016, arXiv:1607.06450",
    "changes the network: it wants training anew; batch norm ties the samples of a batch together",
)
INITIALISE = Suggestion(
    "an initialisation that keeps signals their size",
    "He et al. 2015, arXiv:1502.01852",
    "acts at the start of a training, and wants training anew",
)
SMALLER_STEP = Suggestion(
    "a smaller learning rate, or a warm-up",
    "Goyal et al. 2017, arXiv:1706.02677; Gilmer et al. 2022, arXiv:2110.04369",
    "slower; a large first step was seen to generalise better once it is cut (Li et al. 2019, arXiv:1907.04595)",
)


def dead_units(health: Measurements) -> Iterator[Finding]:
    """Units that never fire."""
    for seen in health.activity.activations if health.activity else ():
        share = seen.dead / seen.units
        if share > 0.3:
            yield Finding(
                rule="dead layer" if seen.dead == seen.units else "dead units",
                where=seen.name or "the model",
                value=share,
                error=0.0,
                threshold=0.3,
                sense="above",
                level=SERIOUS if share >= 0.5 else MODERATE,
                evidence=f"{seen.dead} of {seen.units} {seen.kind} units fire in none of {seen.samples:,} samples; "
                f"with 95 % confidence such a unit fires in less than {100 * seen.silence:.2g} % of them",
                means="these samples send their weights no gradient: only a change of what comes in brings them back",
                source="threshold ours; Lu et al. 2020, arXiv:1903.06733",
                tries=(
                    Suggestion(
                        "leaky activations",
                        "Maas et al. 2013; Xu et al. 2015, arXiv:1505.00853",
                        "changes the function; dead units may be harmless where width is to spare",
                    ),
                    Suggestion(
                        "a randomised asymmetric initialisation",
                        "Lu et al. 2020, arXiv:1903.06733",
                        "wants training anew",
                    ),
                    SMALLER_STEP,
                ),
            )


def saturated_units(health: Measurements) -> Iterator[Finding]:
    """Bounded activations that stand at their ends."""
    for seen in health.activity.activations if health.activity else ():
        if isfinite(seen.saturated):
            error = float(np.sqrt(seen.saturated * (1 - seen.saturated) / seen.samples))
            yield Finding(
                rule="saturated units",
                where=seen.name or "the model",
                value=seen.saturated,
                error=error,
                threshold=0.5,
                sense="above",
                level=MODERATE,
                evidence=f"{100 * seen.saturated:.0f} % of {seen.kind} outputs are within .01 of an end",
                means="gradients through them vanish",
                source="threshold ours; Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a",
                tries=(INITIALISE, NORMALISE),
            )


def gains(health: Measurements) -> Iterator[Finding]:
    """Layers between the first and the last that amplify or extinguish; first and last depend on the data's units."""
    for seen in health.activity.gains if health.activity else ():
        if seen.first or seen.last or not isfinite(seen.gain):
            continue
        by = f" with its {seen.norm}" if seen.norm else ", with no normalisation behind it,"
        said = f"what leaves {seen.name}{by} is {seen.gain:.3g} +- {seen.error:.1g} times what enters (rms)"
        if seen.gain > 1.0:
            yield Finding(
                rule="exploding layer",
                where=seen.name,
                value=seen.gain,
                error=seen.error,
                threshold=10.0,
                sense="above",
                level=SERIOUS,
                evidence=said,
                means="signals forward, and gradients back, grow by as much; layers before it take steps too large",
                source="threshold ours; He et al. 2015, arXiv:1502.01852, for signals that keep their size",
                tries=(NORMALISE, INITIALISE, CLIP),
            )
        else:
            yield Finding(
                rule="vanishing layer",
                where=seen.name,
                value=seen.gain,
                error=seen.error,
                threshold=0.05,
                sense="below",
                level=MODERATE,
                evidence=said,
                means="little of the signal, and of the gradient, passes",
                source="threshold ours; He et al. 2015, arXiv:1502.01852, for signals that keep their size",
                tries=(NORMALISE, INITIALISE),
            )


def gradient_sizes(health: Measurements) -> Iterator[Finding]:
    """Tensors that no gradient reaches, and gradients of very different size."""
    if health.gradients is None:
        return
    rms, names = health.gradients.rms, health.gradients.names
    silent = [name for name, size in zip(names, rms, strict=True) if size == 0]
    if silent:
        yield Finding(
            rule="no gradient",
            where=silent[0],
            value=float(len(silent)),
            error=0.0,
            threshold=0.0,
            sense="above",
            level=SERIOUS,
            evidence=f"{len(silent)} of {len(names)} tensors have no gradient in any of {health.gradients.samples:,} "
            f"samples: {', '.join(silent[:4])}{', ...' if len(silent) > 4 else ''}",
            means="they do not learn: cut off by dead units, detached, or not used",
            source="by definition",
            tries=(Suggestion("see what stands behind them: dead layers, detach(), unused modules", "-", "-"),),
        )
    felt = rms[rms > 0]
    if len(felt) > 1:
        low, high = int(np.argmin(np.where(rms > 0, rms, inf))), int(np.argmax(rms))
        error = health.gradient_ratio_error(high, low)
        yield Finding(
            rule="unbalanced gradients",
            where=names[high],
            value=float(rms[high] / rms[low]),
            error=error,
            threshold=1000.0,
            sense="above",
            level=MODERATE,
            evidence=f"gradients of single samples are {rms[high] / rms[low]:.3g} times as large in {names[high]} as "
            f"in {names[low]} (rms)",
            means="one learning rate for all tensors is too large for some or too small for others",
            source="threshold ours; Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a",
            tries=(
                NORMALISE,
                Suggestion(
                    "a step for each tensor of its own (Adam, LARS)",
                    "Kingma and Ba 2015, arXiv:1412.6980; You et al. 2017, arXiv:1708.03888",
                    "treats the symptom; scale alone may be harmless in normalised nets",
                ),
                CLIP,
            ),
        )


def concentrated_gradients(health: Measurements) -> Iterator[Finding]:
    """Scatter of gradients along one direction."""
    if health.gradients is None or health.gradients.samples < 20:
        return
    value, error = health.gradients.concentrated
    if not isfinite(value):
        return
    yield Finding(
        rule="one direction of gradients",
        where="gradient covariance",
        value=value,
        error=error,
        threshold=0.8,
        sense="above",
        level=NOTE,
        evidence=f"{100 * value:.0f} +- {100 * error:.1g} % of the scatter of {health.gradients.samples:,} samples' "
        "gradients lies along one direction",
        means="few samples, or one pair of classes, decide where steps go",
        source="threshold ours; Papyan 2019, arXiv:1901.08244, for gradients' structure by classes",
        tries=(
            Suggestion(
                "look at the samples with the largest gradients",
                "Katharopoulos and Fleuret 2018, arXiv:1803.00942, sample by them",
                "near the end of a training few samples are left to learn: that is no fault",
            ),
            CLIP,
        ),
    )


def thin_layers(health: Measurements) -> Iterator[Finding]:
    """Weights of almost no rank."""
    for layer in health.weights or ():
        least = min(layer.shape)
        if least < 8 or not isfinite(layer.effective_rank):
            continue
        yield Finding(
            rule="rank-deficient layer",
            where=layer.name,
            value=layer.effective_rank,
            error=0.0,
            threshold=2.0,
            sense="below",
            level=SERIOUS,
            evidence=f"effective rank {layer.effective_rank:.3g}, stable rank {layer.stable_rank:.3g} of {least}; "
            f"{layer.near_zero} singular values near zero",
            means="all that passes is one or two numbers per place: a bottleneck, or a layer that collapsed",
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
                    "they find that the low rank matters little for generalising",
                ),
                Suggestion(
                    "an orthogonal initialisation",
                    "Saxe et al. 2014, arXiv:1312.6120, of deep linear nets",
                    "wants training anew",
                ),
            ),
        )


def tails(health: Measurements) -> Iterator[Finding]:
    """Power-law tails outside of the range that was seen in well-trained layers."""
    for name, fit in health.tails.items():
        if fit.plausible:
            yield Finding(
                rule="light-tailed weights",
                where=name,
                value=fit.alpha,
                error=fit.error,
                threshold=6.0,
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


def label_noise(health: Measurements) -> Iterator[Finding]:
    """Labels that the net is sure are others; poor classifiers are not asked."""
    if health.labels is None or health.labels.accuracy < 0.5:
        return
    share, error = health.labels.noise
    if isfinite(share):
        first = ", ".join(str(int(i)) for i in health.labels.suspects[:5])
        yield Finding(
            rule="label noise",
            where="the data",
            value=share,
            error=error,
            threshold=0.05,
            sense="above",
            level=MODERATE,
            evidence=f"of {100 * share:.1f} +- {100 * error:.1g} % of confident samples the net is sure that they are "
            f"another class than labelled ({len(health.labels.suspects)} samples; first {first})",
            means="wrong labels, classes that overlap, or mistakes of the net: look at them",
            source="threshold ours; Northcutt et al. 2021, doi:10.1613/jair.1.12125",
            tries=(
                Suggestion(
                    "correct or leave out suspects",
                    "Northcutt et al. 2021, doi:10.1613/jair.1.12125",
                    "also removes hard samples that are right",
                ),
                Suggestion(
                    "stop early; a loss that bounds single samples",
                    "Li et al. 2020, arXiv:1903.11680; Zhang and Sabuncu 2018, arXiv:1805.07836",
                    "slower where labels are clean",
                ),
            ),
        )


def learned_by_heart(health: Measurements) -> Iterator[Finding]:
    """Held-out samples that are named wrongly far oftener than those examined."""
    if health.labels is None or health.held_out is None:
        return
    (here, error), (there, other) = health.labels.hits, health.held_out.hits
    yield Finding(
        rule="learned by heart",
        where="held-out samples",
        value=here - there,
        error=float(np.hypot(error, other)),
        threshold=0.1,
        sense="above",
        level=MODERATE,
        evidence=f"accuracy {100 * here:.1f} % on the {health.labels.samples:,} samples examined, {100 * there:.1f} % "
        f"on {health.held_out.samples:,} held out",
        means="labels, wrong ones included, were learned by heart, or held-out samples are of another kind; what "
        "else stands here is of the samples examined",
        source="threshold ours; Zhang et al. 2017, arXiv:1611.03530, for nets that learn random labels",
        tries=(
            Suggestion(
                "more samples, or augmented ones",
                "Shorten and Khoshgoftaar 2019, doi:10.1186/s40537-019-0197-0",
                "augmentations must keep the label",
            ),
            Suggestion("stop early", "Li et al. 2020, arXiv:1903.11680", "needs held-out samples to see when"),
            Suggestion(
                "more weight decay",
                "Krogh and Hertz 1991 (NIPS 4)",
                "Zhang et al. 2017 find that it helps, and does not decide",
            ),
        ),
    )


def no_better_than_chance(health: Measurements) -> Iterator[Finding]:
    """A loss no lower than that of the labels' frequencies."""
    if health.labels is None:
        return
    loss, error = health.labels.surprise
    yield Finding(
        rule=CHANCE,
        where="the model",
        value=loss,
        error=error,
        threshold=health.labels.entropy,
        sense="above",
        level=SERIOUS,
        evidence=f"-log p of the labels is {loss:.3g} +- {error:.1g} nats; knowing only how frequent they are gives "
        f"{health.labels.entropy:.3g}",
        means="not trained, wrong checkpoint or preprocessing, or sure of wrong answers; nothing else here means much",
        source="by definition",
        tries=(Suggestion("check checkpoint, normalisation and order of the classes", "-", "-"),),
    )


def bearable(rate: float, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The largest eigenvalue at which full-batch steps on a quadratic do not grow.

    2 (1 + b) / rate with heavy-ball momentum b; with Nesterov's, which PyTorch's SGD takes where told so, less:
    2 (1 + b) / ((1 + 2 b) rate). Cohen et al. (2021), arXiv:2103.00065.
    """
    return 2.0 * (1.0 + momentum) / (rate * (1.0 + 2.0 * momentum if nesterov else 1.0))


def edge_of_stability(health: Measurements) -> Iterator[Finding]:
    """The largest eigenvalue against what the step size bears."""
    if health.spectrum is None or health.rate is None:
        return
    value, error = health.spectrum.largest
    limit = bearable(health.rate, health.momentum, health.nesterov)
    share, past = value / limit, value / limit > 1.1
    kind = "Nesterov's momentum" if health.nesterov else "momentum"
    steps = f"rate {health.rate:g}" + (f", {kind} {health.momentum:g}" if health.momentum else "")
    yield Finding(
        rule="beyond the edge of stability" if past else "at the edge of stability",
        where="Hessian",
        value=share,
        error=error / limit,
        threshold=1.1 if past else 0.9,
        sense="above",
        level=MODERATE if past else NOTE,
        evidence=f"largest eigenvalue {value:.4g} +- {error:.1g}, {share:.3g} times what full-batch steps of {steps} "
        f"bear, {limit:.4g}",
        means="such steps grow along the sharpest direction until curvature gives way"
        + ("" if past else "; full-batch training often runs here of itself, and that is no fault"),
        source="Cohen et al. 2021, arXiv:2103.00065 (thresholds .9 and 1.1 ours)",
        tries=(SMALLER_STEP, CLIP, SECOND_ORDER),
    )


def negative_curvature(health: Measurements) -> Iterator[Finding]:
    """Downward bends that are not small beside the upward ones."""
    if health.spectrum is None:
        return
    (high, high_error), (low, low_error) = health.spectrum.largest, health.spectrum.smallest
    if not (low < 0 < high):
        return
    ratio = -low / high
    yield Finding(
        rule="negative curvature",
        where="Hessian",
        value=ratio,
        error=ratio * float(np.hypot(low_error / low, high_error / high)),
        threshold=0.1,
        sense="above",
        level=MODERATE,
        evidence=f"the least eigenvalue, {low:.3g} +- {low_error:.1g}, is {100 * ratio:.2g} % of the largest, "
        f"{high:.4g}",
        means="no minimum here, to second order: a saddle, or a training that is not at its end",
        source="threshold ours; Dauphin et al. 2014, arXiv:1406.2572, for saddles",
        tries=(
            Suggestion(
                "train longer; noise leads away from saddles",
                "Jin et al. 2017, arXiv:1703.00887",
                "trained nets keep some negative curvature (Alain et al. 2019, arXiv:1902.02366)",
            ),
        ),
    )


def one_sharp_direction(health: Measurements) -> Iterator[Finding]:
    """One eigenvalue far above the next ones."""
    top = health.spectrum.top if health.spectrum is not None else None
    if top is None or len(top.values) < 5 or not top.values[4] > 0:
        return
    ratio = float(top.values[0] / top.values[4])
    relative = float(np.hypot(top.residuals[0] / top.values[0], top.residuals[4] / top.values[4]))
    yield Finding(
        rule="ill-conditioned",
        where="Hessian",
        value=ratio,
        error=ratio * relative,
        threshold=100.0,
        sense="above",
        level=MODERATE,
        evidence=f"the largest eigenvalue, {top.values[0]:.4g}, is {ratio:.3g} times the fifth, {top.values[4]:.3g}",
        means="the step that the sharpest direction bears is far too small for the others",
        source="threshold ours; Sagun et al. 2018, arXiv:1706.04454, for outliers as such; Ghorbani et al. 2019, "
        "arXiv:1901.10159, saw almost none with batch norm",
        tries=(SECOND_ORDER, CLIP, NORMALISE),
    )


def disordered_features(health: Measurements) -> Iterator[Finding]:
    """Last features whose nearest class mean is not what the net says."""
    if health.collapse is None or not isfinite(health.collapse.nc4):
        return
    seen = health.collapse
    yield Finding(
        rule="features without order by class",
        where=seen.layer,
        value=seen.nc4,
        error=seen.errors["nc4"],
        threshold=0.25,
        sense="above",
        level=NOTE,
        evidence=f"for {100 * seen.nc4:.0f} % of {seen.samples:,} samples the nearest class mean is not the class "
        "that the net names",
        means="the last layer does much of the work; common early in a training",
        source="threshold ours; Papyan et al. 2020, doi:10.1073/pnas.2015509117",
        tries=(
            Suggestion(
                "train longer",
                "Papyan et al. 2020, doi:10.1073/pnas.2015509117",
                "collapse is a property of training samples; what it has to do with generalising is unclear (Hui et "
                "al. 2022, arXiv:2202.08384)",
            ),
        ),
    )


RULES: tuple[Callable[[Measurements], Iterator[Finding]], ...] = (
    no_better_than_chance,
    dead_units,
    saturated_units,
    gains,
    gradient_sizes,
    concentrated_gradients,
    thin_layers,
    tails,
    label_noise,
    learned_by_heart,
    edge_of_stability,
    negative_curvature,
    one_sharp_direction,
    disordered_features,
)


def apply_rules(health: Measurements) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings, the gravest first, and those that are beyond their threshold by less than two errors.

    That a net is no better than chance comes before all others, which mean little then.
    """
    beyond = [finding for rule in RULES for finding in rule(health) if finding.beyond > 0]
    ranked = sorted(beyond, key=lambda finding: (finding.rule != CHANCE, finding.rank))
    return tuple(f for f in ranked if f.sure), tuple(f for f in ranked if not f.sure)
