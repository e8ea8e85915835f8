"""Running statistics of batch norm, and of instance norm, estimated anew for a model's present parameters.

    mean, var of each channel: the average over batches of the batch's mean and (unbiased) variance, as in training

Between two networks the statistics of neither fit: the activations of interpolated weights have other means and
variances, which alone can make a barrier. The average over equal batches is that of PyTorch with `momentum=None`; which
instance norms take for 0, so that theirs is 1 over the number of calls so far.
Price: one forward pass over the batches. Sources: Izmailov et al. (2018), arXiv:1803.05407 (batch norm after averaging
weights); Jordan et al. (2023), arXiv:2211.08403 (its part in barriers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lossmap.data.batches import Batch


def norms_with_statistics(model: nn.Module) -> list[_NormBase]:
    """The batch and instance norms of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


class _CountedCalls:
    """A hook that makes the momentum of a norm that of the plain average over its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, norm: Any, inputs: Any) -> None:
        self.calls += 1
        norm.momentum = 1.0 / self.calls


def recompute_statistics(model: nn.Module, batches: Iterable[Batch], forward: Callable[[Any, Batch], Any]) -> None:
    """Replace the running statistics by those of the batches, at the model's present parameters.

    forward  (model, batch) -> whatever; all modules but these norms stay in the mode that they are in

    The model is to be borrowed (`temporary_parameters`): its buffers are written to.
    """
    norms = norms_with_statistics(model)
    momenta, modes = [norm.momentum for norm in norms], [norm.training for norm in norms]
    others = [norm for norm in norms if not isinstance(norm, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(_CountedCalls()) for norm in others]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the batches
            norm.train()
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum, mode in zip(norms, momenta, modes, strict=True):
            norm.momentum = momentum
            norm.train(mode)
