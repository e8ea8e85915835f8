"""A loss whose digits rounding takes is remarked on at its small values; one that keeps them is not."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap import Grid, Plane, Problem, losses, survey
from lossmap.landscape import rounding_remarks

LOGITS = torch.tensor([[14.0, 0.0, 1.0], [0.5, 15.0, 0.0], [1.0, 0.0, 13.0], [16.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 1, 2, 0])


def by_hand(outputs, labels):
    """Cross entropy as log-sum-exp less the target's logit: two numbers near 14 whose difference is near 1e-6."""
    return (outputs.exp().sum(1).log() - outputs[torch.arange(len(labels)), labels]).mean()


def noisy(outputs, labels):
    """Random, and without cancellation."""
    return F.mse_loss(outputs + 1e-3 * torch.randn_like(outputs), LOGITS.to(outputs))


class Table(nn.Module):
    """Outputs (4, 3) that are the weights, one row for each sample."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(LOGITS.clone())

    def forward(self, rows):
        return self.weight[rows]


class Single(Table):
    """The same, of which no copy in another precision runs."""

    def forward(self, rows):
        if self.weight.dtype != torch.float32:
            raise TypeError("float32 alone")
        return self.weight[rows]


def line(loss, model=Table, dtype=torch.float32):
    """The weights times 1 + x: the loss falls from log 3 at x = -1."""
    net = model().to(dtype)
    origin = {"weight": net.weight.detach().clone()}
    problem = Problem.supervised(net, loss, (torch.arange(4), LABELS))
    plane = Plane(origin, (dict(origin),), ({"kind": "own"},))
    return survey(losses(problem, plane, plan={"batch_size": 4}), Grid.line(-1, 0, 5))


@pytest.mark.parametrize("model", [Table, Single])
def test_a_loss_that_cancels_is_remarked_on_once_with_both_values(model):
    result = line(by_hand, model)
    true = float(by_hand(LOGITS.double(), LABELS))
    assert abs(result["train_loss"][-1] - true) > 0.01 * true  # rounded indeed
    note = result.attributes["loss_notes"]
    assert f"{true:.6g} in float64" in note and "at (0) " in note and note.count("in float64") == 1


@pytest.mark.parametrize(
    ("loss", "dtype"), [(F.cross_entropy, torch.float32), (noisy, torch.float32), (by_hand, torch.float64)]
)
def test_a_loss_that_keeps_its_digits_is_not(loss, dtype):
    attributes = line(loss, dtype=dtype).attributes
    assert "in float64" not in str(attributes.get("loss_notes", ""))


def test_points_are_looked_at_where_the_loss_is_a_tenth_of_the_smallest_before(monkeypatch, caplog):
    looked = []

    def seen(problem, state, lowered):
        looked.append(float(state["weight"][0, 0]) / 14)
        if len(looked) == 2:
            raise TypeError("no other precision")
        return 1.0, 1.0, 4

    monkeypatch.setattr(rounding_remarks, "_in_two_precisions", seen)
    with caplog.at_level(logging.INFO, "lossmap"):
        line(F.cross_entropy)  # log 3, 0.06, 2e-3, 5e-5, 2e-6
    assert looked == [0.0, 1.0]  # coarse to fine, and all between are larger
    assert "not measured in another precision (no other precision)" in caplog.text
