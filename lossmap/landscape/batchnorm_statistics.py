"""Running statistics of batch norm, estimated anew for the parameters that a model has at present.

    mean, var of each channel: the average over batches of the batch's mean and (unbiased) variance, as in training

Between two networks the statistics of neither fit: the activations of interpolated weights have other means and
variances, which alone can make a barrier. The average over equal batches is that of PyTorch with `momentum=None`.
Price: one forward pass over the batches. Sources: Izmailov et al. (2018), arXiv:1803.05407 (batch norm after averaging
weights); Jordan et al. (2023), arXiv:2211.08403 (its part in barriers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossmap.data.batches import Batch


def norms_with_statistics(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def recompute_statistics(model: nn.Module, batches: Iterable[Batch], forward: Callable[[Any, Batch], Any]) -> None:
    """Replace the running statistics by those of the batches, at the model's present parameters.

    forward  (model, batch) -> whatever; all modules but the batch norms stay in the mode that they are in

    The model is to be borrowed (`temporary_parameters`): its buffers are written to.
    """
    norms = norms_with_statistics(model)
    momenta, modes = [norm.momentum for norm in norms], [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the batches
            norm.train()
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)
    finally:
        for norm, momentum, mode in zip(norms, momenta, modes, strict=True):
            norm.momentum = momentum
            norm.train(mode)
