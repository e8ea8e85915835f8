"""Gradients that are nothing but rounding are none: a finding rests on no digit that float64 does not have."""

import numpy as np
import torch
from torch import nn

from lossmap import Problem, diagnose
from lossmap.curvature.per_sample_gradients import gradient_covariance, rounded_gradients


class Shifted(nn.Module):
    """A number that is added to all logits: softmax does not see it, and its true gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.shift = nn.Linear(4, 3), nn.Parameter(torch.full((1, 1), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shift


def test_a_tensor_without_a_gradient_but_for_rounding_is_named_and_unbalances_nothing():
    torch.manual_seed(1)
    problem = Problem.supervised(Shifted(), "crossentropy", (torch.randn(60, 4), torch.arange(60) % 3))
    rms = dict(zip(gradient_covariance(problem).names, gradient_covariance(problem).rms, strict=True))
    assert 0 < rms["shift"] < 1e-5 * rms["body.weight"]  # what rounding alone leaves
    assert rounded_gradients(problem) == ("shift",)
    findings = diagnose(problem, examinations=["gradients"]).findings
    assert [f.rule for f in findings if "gradient" in f.rule] == ["no gradient"]
    assert "beyond rounding" in findings[0].evidence and "shift" in findings[0].evidence


def test_a_small_gradient_that_is_there_stays():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        net[2].weight *= 1e-5
    problem = Problem.supervised(net, "crossentropy", (torch.randn(60, 4), torch.arange(60) % 3))
    assert rounded_gradients(problem) == ()
    found = diagnose(problem, examinations=["gradients"]).findings
    assert "unbalanced gradients" in {f.rule for f in found}
    assert np.all(gradient_covariance(problem).rms > 0)
