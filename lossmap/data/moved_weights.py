"""Weights far from those of a model, at which a loss is looked at a second time.

Where a layer is 0, as a head or the last layer of a residual branch at the beginning, nothing that stands before it
reaches the loss: neither dropout nor the coupling of a batch shows at the model's own weights, and at every other point
of a survey they do.

    theta' = theta + s z        z of standard normal numbers, s half the root mean square of the tensor, and for small
                                tensors half of 1/sqrt(fan in) at least
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from lossmap.seeding import normal

SHARE = 0.5
BLOCK = 1 << 18  # numbers that are in float64 at a time


def moved_weights(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point parameters of a model moved at random, by name, in their own precision; always the same."""
    moved: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point() or not p.numel():
                continue
            # nothing of the tensor's size beside the result: one embedding can be a third of a language model
            squares = sum(float(part.double().square().sum()) for part in torch.split(p.reshape(-1), BLOCK))
            rms = sqrt(squares / p.numel())
            size = max(rms, 1 / sqrt(max(p[0].numel(), 1)) if p.dim() else 0.0)
            z = normal(p.numel(), "moved weights", name).view(p.shape).to(p.device)
            if p.dtype == torch.float64:
                z = z.double()
            moved[name] = z.mul_(SHARE * size).add_(p).to(p.dtype)
    return moved
