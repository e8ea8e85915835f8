"""What stands in the place of a model or of its loss, and is none, is refused in a sentence that says what to give."""

from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from torch import nn

from lossmap.data.checks import tried_on_samples
from lossmap.data.problem import Problem

X = torch.linspace(-1, 1, 18).reshape(6, 3)
Y = torch.arange(6) % 2


def net():
    return nn.Linear(3, 2)


def by_batch(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def of_outputs(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (nn.Linear, by_batch, r"the model Linear is a class; give an instance, such as Linear\(\)"),
        (net, by_batch, r"must be a torch\.nn\.Module; got function; is it net\(\), what it returns"),
        ([X], by_batch, r"must be a torch\.nn\.Module; got list$"),
        (net(), "crossentropy", r"a function \(model, batch\); got 'crossentropy': .* Problem\.supervised"),
        (net(), nn.CrossEntropyLoss(), r"a function \(model, batch\); got CrossEntropyLoss: .* Problem\.supervised"),
        (net(), [(X, Y)], r"a function \(model, batch\); got list"),
    ],
)
def test_what_is_no_model_or_no_loss_of_one(model, loss, words):
    with pytest.raises(ValueError, match=words):
        Problem.custom(model, loss, [(X, Y)])


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # of torch itself
def test_a_program_of_torch_export():
    """Copies and modules put together anew have an `eval`, which changes nothing: they stay in training mode."""
    program = torch.export.export(nn.Sequential(net(), nn.BatchNorm1d(2)).train(), (X,))
    live = program.module()
    models = [live, nn.Sequential(live), deepcopy(live), nn.Sequential(deepcopy(live))]
    with suppress(RuntimeError):  # PyTorch 2.6 cannot put this one together
        models.append(torch.export.unflatten(program))
    for model in models:
        with pytest.raises(ValueError, match=r"a program of torch\.export, .*; give the module that it was"):
            Problem.supervised(model, "crossentropy", (X, Y))


def test_a_loss_of_model_and_batch_among_outputs_and_targets():
    with pytest.raises(ValueError, match=r"called with outputs and targets; one of model and batch is for Problem\.c"):
        tried_on_samples(Problem.supervised(net(), by_batch, (X, Y)), "train")
    assert tried_on_samples(Problem.supervised(net(), of_outputs, (X, Y)), "train").samples == 6


def test_images_whose_channels_come_last():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    images = torch.rand(6, 8, 8, 3)
    model(images.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"channels come last\? x\.permute\(0, 3, 1, 2\) puts them first"):
        tried_on_samples(Problem.supervised(model, "crossentropy", (images, Y)), "train")
    first = Problem.supervised(model, "crossentropy", (images.permute(0, 3, 1, 2), Y))
    assert tried_on_samples(first, "train").samples == 6
