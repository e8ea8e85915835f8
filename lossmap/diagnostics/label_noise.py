"""Labels that the network confidently contradicts: an estimate of label noise by confident learning.

For each class j, t_j is the mean probability of j over the samples that are labelled j. A sample labelled i counts as
confidently j where its probability of j reaches t_j, the largest such. The share of confident samples for which j is
not i estimates the label noise; its error is binomial.

A network that has memorized wrong labels is confident of them: the estimate falls to 0 on samples it was trained on for
long. On held-out samples it does not. It also counts the errors of a poor classifier as noise: of an untrained network
it counts nothing else. So the noise is stated only where the network classifies (`classifies`), and is NaN elsewhere.

Source: Northcutt, Jiang and Chuang (2021), doi:10.1613/jair.1.12125 (arXiv:1911.00068).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossmap.data.criteria import are_classes
from lossmap.data.problem import Problem, ignored_by, targets_of, temporary_parameters
from lossmap.report.text import percent_with_error
from lossmap.sums import in_float64

Array = np.ndarray
CHANCE_ERRORS = 2.0  # standard errors by which a network must be better than chance
SUM_TOLERANCE = 1e-3  # of rows of probabilities, in low precision too
MAX_BYTES_THERE = 1 << 26  # of outputs that stay on the device until they are read together
MIN_GAIN = 0.1  # of the labels' entropy, in likelihood: untrained networks were seen to gain some percent


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """Confident learning on labelled samples: C classes."""

    joint: Array  # (C, C) samples labelled i, confidently j
    accuracy: float
    # mean -log of the label's probability, nats, and standard error, which is at least the rounding of the outputs
    negative_log_likelihood: tuple[float, float]
    entropy: float  # of the labels' frequencies, nats: the likelihood of predicting these alone
    majority: float  # the share of the most frequent label: the accuracy of predicting it alone
    suspected_errors: Array  # indices of samples confidently of another class, the most confident first
    samples: int

    @property
    def accuracy_estimate(self) -> tuple[float, float]:
        """The accuracy and its binomial standard error."""
        return self.accuracy, _deviation(self.accuracy, self.samples)

    @property
    def classifies(self) -> bool:
        """Whether the network is better than chance beyond its error.

        Its accuracy must be above that of the most frequent label by two standard errors; and since an untrained
        network's may be too, by features that happen to go with the classes, either its negative log-likelihood must
        be a tenth below that of the labels' frequencies, and two standard errors, or its accuracy be above the middle
        between chance and 1, as of a confident network whose few mistakes ruin its likelihood.
        """
        accuracy, error = self.accuracy_estimate
        if not accuracy - CHANCE_ERRORS * error > self.chance:
            return False
        loss, loss_error = self.negative_log_likelihood
        is_likely = loss + CHANCE_ERRORS * loss_error < (1.0 - MIN_GAIN) * self.entropy
        return is_likely or accuracy > 0.5 * (1.0 + self.chance)

    @property
    def chance(self) -> float:
        """The accuracy of chance: of predicting the most frequent label, or any of all classes."""
        return max(self.majority, 1.0 / len(self.joint))

    @property
    def undecided(self) -> str:
        """Why the noise is not stated, in one sentence; empty where the network classifies."""
        if self.classifies:
            return ""
        accuracy, error = self.accuracy_estimate
        return (
            f"undecided: the network does not classify (accuracy {percent_with_error(accuracy, error)}, chance "
            f"{100 * self.chance:.3g} %), so that its own errors would be counted"
        )

    @property
    def noise(self) -> tuple[float, float]:
        """The share of confident samples with another label, and its standard error.

        NaN where no sample is confident, or the network does not classify: its errors would be counted.
        """
        confident = int(self.joint.sum())
        if not confident or not self.classifies:
            return nan, nan
        share = 1.0 - float(np.trace(self.joint)) / confident
        return share, _deviation(share, confident)


def _deviation(share: float, count: int) -> float:
    """The standard error of a share of `count`; not 0 where the share is 0 or 1."""
    return float(np.sqrt(max(share * (1 - share), 1 / (count + 4)) / count))


def label_noise(problem: Problem) -> LabelNoise:
    """The estimate from one pass over the data in evaluation mode.

    Targets that the loss ignores, or negative ones, are left out. Outputs that are probabilities, rows that sum to 1,
    are taken as they are; all others are logits. Raises ValueError where the problem is not a classification: outputs
    (B, C > 1), whole-number targets (B,) below C.
    """
    read: list[tuple[Tensor, Tensor]] = []  # outputs and targets on the host
    there: list[tuple[Tensor, Tensor]] = []  # and those that are still on the device
    eps = 0.0  # of the precision of the outputs
    with temporary_parameters(problem.model, {}), torch.enable_grad():  # a loss may differentiate by its inputs
        for batch in problem.data:
            outputs = problem.forward(problem.model, batch)
            y = None
            if isinstance(outputs, Tensor) and outputs.dim() == 2:
                y = targets_of(batch)
            if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
                raise ValueError("label noise requires a classifier: outputs (B, C) and whole-number targets (B,)")
            eps = max(eps, torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0)
            there.append((outputs.detach(), y))
            if sum(f.nbytes for f, _ in there) >= MAX_BYTES_THERE:
                read.append(_read(there))
                there = []
    if there:
        read.append(_read(there))
    outputs, y = (torch.cat(parts) for parts in zip(*read, strict=True))
    known = are_classes(y, ignored_by(problem))
    classes = outputs.shape[1]
    if classes < 2 or not bool(known.any()) or int(y[known].max()) >= classes:
        raise ValueError(
            f"label noise requires a classifier: {classes} outputs are no scores of the classes that the targets name"
        )
    outputs = outputs[known]
    p = outputs if _are_probabilities(outputs) else outputs.softmax(1)
    found = confident_learning(p.numpy(), y[known].numpy())
    places = known.nonzero()[:, 0].numpy()
    loss, error = found.negative_log_likelihood
    if not np.isfinite(loss) and p is not outputs:  # a probability of 0 in float64, whose logarithm is finite
        each = F.cross_entropy(in_float64(outputs), y[known], reduction="none")
        loss, error = float(each.mean()), float(each.std(correction=0)) / len(each) ** 0.5
    size = float((p * outputs.abs()).nan_to_num().sum(1).mean())  # of those that count: a mask's -inf does not
    error = float(np.maximum(error, eps * max(loss, size)))  # NaN stays
    return replace(found, suspected_errors=places[found.suspected_errors], negative_log_likelihood=(loss, error))


def _read(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and targets of some batches on the host, for which it waits once each."""
    outputs, targets = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    return in_float64(outputs), targets.long()


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether all rows are >= 0 and sum to 1."""
    sums = outputs.sum(1)
    return bool((outputs >= 0).all()) and bool(((sums - 1.0).abs() <= SUM_TOLERANCE).all())


def confident_learning(p: Array, y: Array) -> LabelNoise:
    """The estimate from probabilities p (N, C) and labels y (N,)."""
    classes = p.shape[1]
    own = p[np.arange(len(y)), y]
    count = np.bincount(y, minlength=classes)
    bar = np.bincount(y, weights=own, minlength=classes) / np.maximum(count, 1)
    bar[count == 0] = np.inf  # of a class without samples nothing is known
    reached = np.where(p >= bar, p, -1.0)
    confident = reached.max(axis=1) >= 0
    predicted = reached.argmax(axis=1)
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (y[confident], predicted[confident]), 1)
    other = np.nonzero(confident & (predicted != y))[0]
    order = np.argsort(own[other] - p[other, predicted[other]], kind="stable")
    others = p.copy()
    others[np.arange(len(y)), y] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        # of a probability near 1 the others' sum has the digits that it lacks itself
        likelihood = np.where(own > 0.5, -np.log1p(-np.minimum(others.sum(axis=1), 0.5)), -np.log(own))
        deviation = float(likelihood.std())  # NaN where one is infinite
    share = count[count > 0] / len(y)
    return LabelNoise(
        joint=joint,
        accuracy=float((p.argmax(axis=1) == y).mean()),
        negative_log_likelihood=(float(likelihood.mean()), deviation / float(np.sqrt(len(y)))),
        entropy=float(-(share * np.log(share)).sum()),
        majority=float(share.max(initial=0.0)),
        suspected_errors=other[order],
        samples=len(y),
    )
