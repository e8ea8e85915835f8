"""A user's metric gives one number for any cut into batches: as a mean over samples, or of all samples at once."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossmap.data.batches import FixedBatches
from lossmap.data.criteria import Metric, NoNumber
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.landscape.loss import losses


def f1(outputs, targets):
    predicted = outputs.argmax(1) == 1
    return 2 * (predicted & (targets == 1)).sum() / (predicted.sum() + (targets == 1).sum())


def perplexity(outputs, targets):
    return F.cross_entropy(outputs, targets).exp()


def area(outputs, targets):
    """Of the class 1: no number where all samples are of one kind."""
    positive = targets == 1
    if positive.all() or not positive.any():
        raise ValueError("one class alone")
    score = outputs[:, 1]
    return float((score[positive][:, None] > score[~positive]).double().mean())


def among_two(outputs, targets):
    return float((outputs.topk(2).indices == targets[:, None]).any(1).float().mean())


def classifier(samples=50):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3), torch.randn(samples, 5)
    return model, x, (x @ torch.randn(5, 3)).argmax(1)


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("metric", [f1, perplexity, area, among_two])
def test_a_metric_does_not_depend_on_the_batches(metric, size):
    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"own": metric})
    read = losses(problem, random_plane(model, axes=1), plan={"batch_size": size})((0.0,))
    assert read["train_own"] == pytest.approx(float(metric(model(x).detach(), y)), rel=1e-5)


def test_what_is_no_mean_is_said_and_a_mean_is_not():
    model, x, y = classifier()
    metrics = {"f1": f1, "two": among_two, "right": lambda f, y: (f.argmax(1) == y).double().mean()}
    checked = check_loss(Problem.supervised(model, "crossentropy", (x, y), metrics=metrics))
    assert [name for name, metric in checked.metrics.items() if metric.whole] == ["f1"]
    assert [note for note in checked.notes if "metric" in note and "f1" not in note] == []
    assert "the metric f1 is no mean over samples" in checked.notes[-1]


def test_a_metric_that_agrees_where_nothing_is_wrong_is_still_found():
    """All predictions are right here: the value is 1 over any samples."""
    x, y = torch.eye(3).repeat(4, 1) * 9, torch.arange(12) % 3
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = torch.eye(3)

    def macro(f, y):
        return torch.stack([1.0 - ((f.argmax(1) == c) != (y == c)).double().mean() ** 2 for c in range(3)]).mean()

    checked = check_loss(Problem.supervised(model, "crossentropy", (x, y), metrics={"macro": macro}))
    assert checked.metrics["macro"].whole is macro


def test_outputs_of_several_tensors_are_joined_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x):
            return {"mean": self.layer(x)[:, 0], "scale": self.layer(x)[:, 1].exp()}

    def loss(f, y):
        return ((f["mean"] - y) ** 2 / f["scale"]).mean()

    def deviation(f, y):
        return ((f["mean"] - y) ** 2).mean().sqrt()

    torch.manual_seed(0)
    model, x = Two(), torch.randn(30, 5)
    problem = Problem.supervised(model, loss, (x, x[:, 0]), metrics={"rms": deviation})
    read = losses(problem, random_plane(model, axes=1), plan={"batch_size": 4})((0.0,))
    with torch.no_grad():
        assert read["train_rms"] == pytest.approx(float(deviation(model(x), x[:, 0])), rel=1e-5)


def test_a_metric_of_several_numbers_is_refused_before_the_survey():
    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"all": lambda f, y: f.argmax(1) == y})
    with pytest.raises(NoNumber, match=r"all: a metric must be one number, the mean over the batch; got shape \(16,\)"):
        check_loss(problem)


def fails(outputs, targets):
    raise KeyError("no such class")


def wants_many(outputs, targets):
    if len(outputs) < 40:
        raise ValueError("too few samples")
    return (outputs.argmax(1) == targets).double().mean()


@pytest.mark.parametrize("plan", [None, {"batch_size": 8}])
def test_a_metric_that_always_fails_is_named_before_the_first_point(plan):
    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"broken": fails})
    with pytest.raises(ValueError, match="the metric broken fails: KeyError: 'no such class'"):
        losses(problem, random_plane(model, axes=1), plan=plan)


@pytest.mark.parametrize("metric", [fails, Metric(lambda f, batch: fails(f, batch[1]), "1", "own")])
def test_also_where_batches_are_not_cut_or_it_is_a_sum_of_its_own(metric):
    model, x, y = classifier(12)
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"broken": metric})
    with pytest.raises(ValueError, match="the metric broken fails: KeyError"):
        check_loss(replace(problem, data=FixedBatches(((x, y),))))


@pytest.mark.parametrize("plan", [None, {"batch_size": 8}])
def test_a_metric_that_fails_on_few_samples_alone_is_taken_over_all(plan):
    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"many": wants_many})
    read = losses(problem, random_plane(model, axes=1), plan=plan)((0.0,))
    assert read["train_many"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))


def test_a_metric_that_changes_the_outputs_is_refused():
    def doubled(outputs, targets):
        return outputs.mul_(2.0).mean()

    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"doubled": doubled, "two": among_two})
    with pytest.raises(ValueError, match="the metric doubled changes the outputs in place"):
        check_loss(problem)


def test_a_team_does_not_share_a_metric_of_all_samples():
    model, x, y = classifier()
    problem = Problem.supervised(model, "crossentropy", (x, y), metrics={"f1": f1})
    with pytest.raises(ValueError, match="--team 1"):
        losses(problem, random_plane(model, axes=1), plan={"batch_size": 8}, total=lambda t: 2 * t)
