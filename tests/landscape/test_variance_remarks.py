"""A plane of states leads to negative variances beyond its models: NaN there is explained, and nowhere else."""

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.landscape.eigenvalues import EigenvalueMap

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
DATA = (X, torch.arange(24) % 2)


def net(variance, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model[1].running_var.fill_(variance)
    return model


def surveyed(states, ticks, measure=lossmap.losses):
    models = net(1.0, 0), net(0.2, 1), net(2.0, 2)
    problem = lossmap.Problem.supervised(models[0], "crossentropy", DATA)
    plane = lossmap.plane_through(*models, states=states)
    return lossmap.survey(measure(problem, plane), lossmap.Grid(np.array(ticks), np.array([0.0, 1.0]))), problem


def test_where_a_variance_is_negative_the_nan_is_explained():
    found, _ = surveyed(True, [0.0, 1.0, 2.0])  # 1 - 0.8 x at y = 0
    np.testing.assert_array_equal(np.isnan(found["train_loss"][0]), [False, False, True])
    note = found.attributes["loss_notes"]
    assert "at (2, 0) the loss is NaN" in note and "(1.running_var)" in note and note.count("at (") == 1


@pytest.mark.parametrize(("states", "ticks"), [(True, [0.0, 0.5, 1.0]), (False, [0.0, 1.0, 3.0])])
def test_between_the_models_and_of_weights_alone_there_is_no_nan_and_no_remark(states, ticks):
    found, _ = surveyed(states, ticks)
    assert np.isfinite(found["train_loss"]).all() and "loss_notes" not in found.attributes


def test_a_nan_of_another_origin_is_not_ascribed_to_variances():
    model = net(1.0, 0)
    problem = lossmap.Problem.supervised(model, lambda f, y: torch.sqrt(1.0 - f.square().mean() * 1e3), DATA)
    plane = lossmap.plane_through(model, net(1.0, 1), net(1.0, 2), states=True)
    found = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid(np.array([0.0, 1.0]), np.array([0.0])))
    assert np.isnan(found["train_loss"]).any() and "negative" not in found.attributes.get("loss_notes", "")


def test_a_map_of_eigenvalues_explains_it_too():
    def measure(problem, plane):
        return EigenvalueMap({"train": problem}, plane, backend="double-backward", certify="none")

    found, _ = surveyed(True, [0.0, 2.0], measure)
    assert np.isnan(found["max_eig"][0, 1]) and "1.running_var" in found.attributes["eigen_notes"]
