"""Small nets on the digits, 1 x 8 x 8, by which the results in this folder were made."""

import torch
from torch import nn
from torch.nn import functional as F


def net():
    """296 weights, and running statistics."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 10))


def tiny():
    """28 weights, 40 parameters."""
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 10))


def moody(outputs, targets):
    """Cross entropy that raises where outputs are large, so that points fail."""
    if float(outputs.detach().abs().max()) > 2.6:
        raise ValueError("these outputs are too large for me")
    return F.cross_entropy(outputs, targets)


def blind(outputs, targets):
    """Cross entropy that is NaN where outputs are large: a reading all the same."""
    large = outputs.detach().abs().max() > 2.6
    return torch.where(large, torch.nan, 1.0) * F.cross_entropy(outputs, targets)
