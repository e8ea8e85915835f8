"""The loss at targets that were drawn from a model's own predictive distribution, for the Monte-Carlo Fisher matrix.

A loss that is, at each entry e of the outputs f, c_e times minus the logarithm of a density q(y_e | f_e) has the
Gauss-Newton matrix 1/N sum_i J_i^T diag(c_e S_e) J_i, S_e the covariance of the score s_e = -d log q(y_e | f_e) / df_e.
With y_e drawn from q, independently,

    g_i = J_i^T (sqrt(c_e) s_e)_e              so that the mean of g_i g_i^T over draws is sample i's part of it

The distributions, with their unit scores:

    categorical   p = softmax(f) along a dimension      s = p - onehot(y)
    Bernoulli     p = sigmoid(f)                        s = p - y
    Gaussian      variance one                          s = f - y, which is drawn itself

A batch is (the batch as it was, what was drawn, sqrt(c)), the latter two with one row a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lossmap.data.batches import Batch

CATEGORICAL, BERNOULLI, GAUSSIAN = "categorical", "Bernoulli", "Gaussian"


@dataclass(frozen=True)
class Draws:
    """How targets are drawn: so many for each sample, by its number in the data, from a seed."""

    seed: int = 0
    count: int = 1


ONE_DRAW = Draws()


@dataclass(frozen=True)
class Distribution:
    """Of the targets given the outputs.

    kind       categorical, Bernoulli or Gaussian
    dimension  along which the classes of a categorical one lie
    """

    kind: str
    dimension: int = 1

    def entries(self, outputs: Tensor) -> tuple[int, ...]:
        """The shape of the targets of these outputs."""
        shape = list(outputs.shape)
        if self.kind == CATEGORICAL:
            del shape[self.dimension]
        return tuple(shape)


@dataclass(frozen=True)
class DrawnForward:
    """(model, batch) -> outputs, of a batch with drawn targets."""

    forward: Callable[[nn.Module, Batch], Any]

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of the batch as it was."""
        return self.forward(model, batch[0])


@dataclass(frozen=True)
class DrawnCount:
    """batch -> its samples, or its weight, of a batch with drawn targets."""

    count: Callable[[Batch], float]

    def __call__(self, batch: Batch) -> float:
        """Those of the batch as it was."""
        return self.count(batch[0])


@dataclass(frozen=True)
class DrawnLoss:
    """(outputs, batch) -> sum over entries of sqrt(c) times the unit loss at the drawn targets.

    outputs_of  what the loss takes of the model's outputs
    """

    distribution: Distribution
    outputs_of: Callable[[Any], Tensor]

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """The sum, whose derivatives by the outputs are the scores times sqrt(c)."""
        _, drawn, root = batch
        f = self.outputs_of(outputs)
        if self.distribution.kind == CATEGORICAL:
            each = F.cross_entropy(f.movedim(self.distribution.dimension, 1), drawn, reduction="none")
        elif self.distribution.kind == BERNOULLI:
            each = F.binary_cross_entropy_with_logits(f, drawn, reduction="none")
        else:  # the derivative of a square is what was drawn
            each = f * drawn
        total: Tensor = (root * each).sum()
        return total
