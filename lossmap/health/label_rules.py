"""Rules on labels and predictions: label noise, memorization, chance level and over-confidence, class means.

Each rule takes the measurements and yields findings; which of them stand `rules.apply_rules` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite

import numpy as np

from lossmap.health.finding import CHANCE_LEVEL, MODERATE, NOTE, SERIOUS, Finding, Suggestion
from lossmap.health.measurements import Measurements
from lossmap.health.suggestions import RETRAINING
from lossmap.report.text import meaningful_digits, percent_with_error, value_with_error

MAX_NOISE = 0.05
MIN_ACCURACY = 0.5  # of a classifier whose doubts about labels are taken seriously
MAX_GAP = 0.1
MAX_NC4 = 0.25
STOP_EARLY = "stop early"
CALIBRATE = (
    Suggestion(
        "calibrate the temperature of the outputs on held-out samples",
        "Guo et al. 2017, arXiv:1706.04599",
        "changes the probabilities alone, no predicted class",
    ),
    Suggestion(
        "label smoothing",
        "Szegedy et al. 2016, arXiv:1512.00567; Mueller et al. 2019, arXiv:1906.02629",
        f"{RETRAINING}; a network distilled from it was seen to learn less",
    ),
    Suggestion(
        f"{STOP_EARLY}, by the loss on held-out samples",
        "Guo et al. 2017, arXiv:1706.04599",
        "the accuracy may still rise where that loss does too",
    ),
)


def label_noise(measured: Measurements) -> Iterator[Finding]:
    """Labels that the network confidently contradicts; poor classifiers are not considered."""
    labels = measured.labels
    if labels is None or labels.accuracy < MIN_ACCURACY:
        return
    share, error = labels.noise
    if not isfinite(share):
        return
    first = ", ".join(str(int(i)) for i in labels.suspected_errors[:5])
    yield Finding(
        rule="label noise",
        where="the data",
        value=share,
        error=error,
        threshold=MAX_NOISE,
        sense="above",
        level=MODERATE,
        evidence=f"{percent_with_error(share, error)} of confident samples are predicted another class than "
        f"labelled ({len(labels.suspected_errors)} suspected label errors; first {first})",
        means="wrong labels, classes that overlap, or errors of the network: look at them",
        source="threshold ours; Northcutt et al. 2021, doi:10.1613/jair.1.12125",
        tries=(
            Suggestion(
                "correct or leave out suspected label errors",
                "Northcutt et al. 2021, doi:10.1613/jair.1.12125",
                "also removes hard samples whose labels are right",
            ),
            Suggestion(
                f"{STOP_EARLY}; a loss that is bounded per sample",
                "Li et al. 2020, arXiv:1903.11680; Zhang and Sabuncu 2018, arXiv:1805.07836",
                "slower where labels are clean",
            ),
        ),
    )


def memorization(measured: Measurements) -> Iterator[Finding]:
    """The generalization gap: accuracy on the samples examined above that on held-out samples."""
    if measured.labels is None or measured.held_out is None:
        return
    (here, error), (there, other) = measured.labels.accuracy_estimate, measured.held_out.accuracy_estimate
    yield Finding(
        rule="memorization (generalization gap)",
        where="held-out samples",
        value=here - there,
        error=float(np.hypot(error, other)),
        threshold=MAX_GAP,
        sense="above",
        level=MODERATE,
        evidence=f"accuracy {100 * here:.1f} % on the {measured.labels.samples:,} samples examined, "
        f"{100 * there:.1f} % on {measured.held_out.samples:,} held out",
        means="labels, wrong ones included, were memorized, or held-out samples are of another distribution; all other "
        "findings are of the samples examined",
        source="threshold ours; Zhang et al. 2017, arXiv:1611.03530, for networks that fit random labels",
        tries=(
            Suggestion(
                "more samples, or augmented ones",
                "Shorten and Khoshgoftaar 2019, doi:10.1186/s40537-019-0197-0",
                "augmentations must preserve the label",
            ),
            Suggestion(STOP_EARLY, "Li et al. 2020, arXiv:1903.11680", "needs held-out samples to see when"),
            Suggestion(
                "more weight decay",
                "Krogh and Hertz 1991 (NIPS 4)",
                "Zhang et al. 2017 find that it helps, and is not decisive",
            ),
        ),
    )


def chance_level(measured: Measurements) -> Iterator[Finding]:
    """A negative log-likelihood no lower than the entropy of the labels' frequencies, both in nats.

    Of a network that classifies nevertheless it says that its probabilities are wrong, not its classes.
    """
    labels = measured.labels
    if labels is None or labels.entropy == 0.0:  # samples of one class: nothing is better than their frequency
        return
    loss, error = labels.negative_log_likelihood
    finding = Finding(
        rule=CHANCE_LEVEL,
        where="the model",
        value=loss,
        error=error,
        threshold=labels.entropy,
        sense="above",
        level=SERIOUS,
        evidence=f"the mean negative log-likelihood of the labels is {value_with_error(loss, error)} nats; predicting "
        f"their frequencies alone gives {meaningful_digits(labels.entropy, error)}",
        means="untrained, wrong checkpoint or preprocessing, or confidently wrong; no other finding means much",
        source="by definition",
        tries=(Suggestion("check checkpoint, normalization and order of the classes", "-", "-"),),
    )
    if labels.classifies:
        finding = replace(
            finding,
            rule="over-confident",
            level=MODERATE,
            evidence=f"{finding.evidence}, although the network is right on "
            f"{percent_with_error(*labels.accuracy_estimate)} of the samples (chance {100 * labels.chance:.3g} %)",
            means="its mistakes are made with great confidence, or some labels are wrong: the predicted classes mean "
            "something, their probabilities do not, and few samples make most of the loss",
            tries=CALIBRATE,
        )
    yield finding


def class_means(measured: Measurements) -> Iterator[Finding]:
    """Last features whose nearest class mean is not the predicted class (nc4 of neural collapse)."""
    collapse = measured.collapse
    if collapse is None or not isfinite(collapse.nc4):
        return
    yield Finding(
        rule="class means not separated",
        where=collapse.layer,
        value=collapse.nc4,
        error=collapse.errors["nc4"],
        threshold=MAX_NC4,
        sense="above",
        level=NOTE,
        evidence=f"for {100 * collapse.nc4:.0f} % of {collapse.samples:,} samples the nearest class mean is not that "
        "of the predicted class",
        means="the last layer does much of the work; common early in training",
        source="threshold ours; Papyan et al. 2020, doi:10.1073/pnas.2015509117",
        tries=(
            Suggestion(
                "train longer",
                "Papyan et al. 2020, doi:10.1073/pnas.2015509117",
                "collapse is a property of training samples; its relation to generalization is unclear (Hui et al. "
                "2022, arXiv:2202.08384)",
            ),
        ),
    )
