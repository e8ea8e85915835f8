"""A loss that underflows far from the origin is remarked on where it does; a true 0 is not."""

import torch
from torch import nn

from lossmap import Grid, Plane, Problem, losses, survey
from lossmap.landscape.eigenvalues import EigenvalueMap

X = torch.linspace(0.5, 1.5, 12).view(12, 1)


def squared(model, batch):
    """A likelihood, not its logarithm: exp(-w^2 x^2), which is 1 at the origin and 0 in float32 from w = 30 on."""
    return torch.exp(-(model(batch) ** 2)).mean()


def margin(model, batch):
    """Truly 0 from w = 2 on."""
    return torch.relu(1 - model(batch)).mean()


def line(loss):
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    plane = Plane({"weight": torch.zeros(1, 1)}, ({"weight": torch.ones(1, 1)},), ({"kind": "own"},))
    return Problem.custom(net, loss, X), plane


def test_the_first_point_where_the_loss_underflows_is_named_and_stored():
    problem, plane = line(squared)
    result = survey(losses(problem, plane, plan={"batch_size": 5}), Grid.line(0, 80, 3))
    assert result["train_loss"][0] == 1 and list(result["train_loss"][1:]) == [0, 0]
    note = result.attributes["loss_notes"]
    assert "at (80) the loss of a few samples is exactly 0 where exp underflows" in note and note.count("at (") == 1


def test_a_map_of_eigenvalues_says_so_too():
    problem, plane = line(squared)
    measure = EigenvalueMap({"train": problem}, plane, backend="double-backward", certify="none")
    result = survey(measure, Grid.line(0, 80, 3))
    assert result["max_eig"][2] == 0 and "exp underflows" in result.attributes["eigen_notes"]


def test_a_loss_that_is_truly_zero_is_not_remarked_on():
    problem, plane = line(margin)
    result = survey(losses(problem, plane, plan={"batch_size": 5}), Grid.line(0, 80, 3))
    assert list(result["train_loss"][1:]) == [0, 0] and "loss_notes" not in result.attributes
