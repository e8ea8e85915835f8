"""Matrices made of products with unit vectors: their sums of terms that are all alike round more than others."""

import numpy as np
import torch
from torch import nn

import lossmap


def test_rounding_of_a_convolutions_bias_is_in_the_bars_of_the_whole_matrix():
    torch.manual_seed(0)
    x, y = torch.randn(10, 1, 10, 10), torch.randn(10, 1, 10, 10)
    model = nn.Conv2d(1, 1, 3, padding=1)
    problem = lossmap.Problem.supervised(model, "mse", (x, y))  # the bias has the entry 2 = 1000 * 0.002
    found = lossmap.spectrum(problem, parameters="all", top=3, density_error=None)
    columns = nn.functional.unfold(x.double(), 3, padding=1).transpose(1, 2).reshape(-1, 9)
    design = torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], 1)
    true = np.linalg.eigvalsh((2 / len(design) * design.T @ design).numpy())
    assert np.all(np.abs(found.top.values - true[::-1][:3]) <= found.top.residuals)
    low, high = found.trace.interval()
    assert low <= true.sum() <= high
