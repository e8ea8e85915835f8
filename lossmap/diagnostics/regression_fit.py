"""Whether a network that predicts numbers is better than the mean of its targets.

    e_i = |f(x_i) - y_i|^2 / outputs,   v_i = |y_i - mean(y)|^2 / outputs      share explained = 1 - mean(e) / mean(v)

It is better where mean(v - e) is above zero by two standard errors, sample by sample. The mean of the targets is that
of the samples judged, which nobody could have predicted: of few held-out samples the comparison is the harder one.

Letters: N samples. Price: a forward pass over the data, and a look at the targets before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch
from lossmap.data.criteria import SupervisedLoss
from lossmap.data.problem import Problem, targets_of, temporary_parameters
from lossmap.sums import in_float64

NO_NUMBERS = "a regression has numbers as targets, of the outputs' shape"
BETTER_ERRORS = 2.0  # standard errors by which a network must be better than the targets' mean
LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)  # and `mse`


@dataclass(frozen=True)
class RegressionFit:
    """Squared errors beside the variance of the targets, both means over samples and outputs.

    error     mean squared error, and its standard error, which is at least the rounding of the outputs
    variance  of the targets about their mean, output by output
    gain      mean of variance less squared error, and its standard error over samples
    """

    error: tuple[float, float]
    variance: float
    gain: tuple[float, float]
    samples: int

    @property
    def is_better(self) -> bool:
        """Whether the network is better than the targets' mean beyond its error."""
        gain, error = self.gain
        return gain > BETTER_ERRORS * error


def regression_fit(problem: Problem) -> RegressionFit:
    """The comparison, from one pass in evaluation mode.

    Raises ValueError where the problem is no regression: a loss of differences (mse, L1, Huber), targets (N, ...) of
    the outputs' shape, numbers, at least two samples; and where outputs or targets are not finite.
    """
    loss = problem.loss.loss if isinstance(problem.loss, SupervisedLoss) else None
    if loss != "mse" and not isinstance(loss, LOSSES):
        raise ValueError("a regression has the loss mse, or PyTorch's L1, smooth L1 or Huber loss")
    total, count = torch.zeros(()), 0
    for batch in problem.data:
        y = _targets(batch)
        if count and y.shape[1:] != total.shape:
            raise ValueError("the targets of a regression have one shape in all batches")
        total, count = total + y.sum(0), count + len(y)
    mean = total / count
    by_batch: list[Tensor] = []
    with temporary_parameters(problem.model, {}), torch.enable_grad():  # a loss may differentiate by its inputs
        for batch in problem.data:
            found, y = problem.forward(problem.model, batch), _targets(batch)
            if not isinstance(found, Tensor) or y.shape != found.shape:
                raise ValueError(NO_NUMBERS)
            eps, found = torch.finfo(found.dtype).eps, in_float64(found.detach())
            y = y.to(found.device)
            off, spread = found - y, y - mean.to(y.device)
            parts = (off.square(), spread.square(), 2 * eps * (off * found).abs())
            by_batch.append(torch.stack([part.reshape(len(y), -1).mean(1) for part in parts]))
    errors, spread, rounding = torch.cat(by_batch, 1).cpu()
    if count < 2 or not bool(torch.isfinite(errors + spread).all()):
        raise ValueError("a regression is judged by two samples and more, with finite outputs and targets")
    value, error = _mean(errors)
    error = max(error, float(rounding.mean()))
    return RegressionFit((value, error), float(spread.mean()), _mean(spread - errors), count)


def _targets(batch: Batch) -> Tensor:
    """The targets of a batch in float64, (N, ...). Raises ValueError where they are no numbers."""
    y = targets_of(batch)
    if not isinstance(y, Tensor) or not y.is_floating_point() or not y.dim():
        raise ValueError(NO_NUMBERS)
    return in_float64(y.detach())


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of (N,), and its standard error."""
    return float(values.mean()), float(values.std(correction=1)) / len(values) ** 0.5
