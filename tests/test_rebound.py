"""Hooks and patched methods that close over the model see its copy where that is evaluated."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.data.borrow import copy_of


class Plain(nn.Module):
    """Two layers; what a hook or a patch does to them is written out in `forward`, by name."""

    def __init__(self, patch=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.kept = nn.Linear(4, 4), nn.Linear(4, 3), []
        self.patch = patch

    def forward(self, x):
        z = self.first(x)
        if self.patch == "patched layer":
            z = torch.sin(z)
        if self.patch == "kept by a hook":
            self.kept[:] = [z]
        h = torch.tanh(z)
        if self.patch in ("hook reads a layer", "hook reads a parameter"):
            h = h + 0.3 * h @ self.first.weight
        outputs = self.second(h)
        return 1.5 * outputs if self.patch == "patched model" else outputs


def patched(patch):
    """The same, by functions that close over the model."""
    model = Plain()
    first, second, kept = model.first, model.second, model.first.weight
    plain = model.forward
    if patch == "patched model":
        model.forward = lambda x: 1.5 * plain(x)
    elif patch == "patched layer":
        first.forward = lambda x: torch.sin(F.linear(x, first.weight, first.bias))
    elif patch == "hook reads a layer":
        second.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.3 * inputs[0] @ model.first.weight,))
    elif patch == "hook reads a parameter":
        second.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.3 * inputs[0] @ kept,))
    else:
        first.register_forward_hook(lambda module, inputs, outputs: model.kept.append(outputs))
    return model


def loss(model, batch):
    value = F.cross_entropy(model(batch[0]), batch[1]) + 0.1 * sum(z.square().mean() for z in model.kept)
    model.kept.clear()
    return value


class Kept:
    def __init__(self, function):
        self.function = function


def layer_by(place, layer, weight):
    """Something by which a model may run a layer of its own, and how it does so."""

    def by_default(x, layer=layer):
        return layer(x)

    def by_keyword(x, *, kept=(layer,)):
        return kept[0](x)

    def by_attribute(x):
        return by_attribute.layer(x)

    @functools.lru_cache
    def by_cache():
        return layer

    by_attribute.layer, by_name = layer, {"kept": [layer]}
    return {
        "list": ([lambda x: layer(x)], lambda kept, x: kept[0](x)),
        "tuple": ((lambda x: layer(x),), lambda kept, x: kept[0](x)),
        "object": (Kept(lambda x: layer(x)), lambda kept, x: kept.function(x)),
        "partial": (functools.partial(lambda y, x: layer(x), None), lambda kept, x: kept(x)),
        "partial of a weight": (functools.partial(F.linear, weight=weight, bias=layer.bias), lambda kept, x: kept(x)),
        "variable": (lambda x: by_name["kept"][0](x), lambda kept, x: kept(x)),
        "default": (by_default, lambda kept, x: kept(x)),
        "keyword": (by_keyword, lambda kept, x: kept(x)),
        "attribute": (by_attribute, lambda kept, x: kept(x)),
        "cache": (by_cache, lambda kept, x: kept()(x)),
    }[place]


PLACES = [
    "list", "tuple", "object", "partial", "partial of a weight", "variable", "default", "keyword", "attribute", "cache",
]  # fmt: skip


class RunsALayer(nn.Module):
    def __init__(self, place):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.kept, self.run = layer_by(place, self.first, self.first.weight)

    def forward(self, x):
        return self.second(torch.tanh(self.run(self.kept, x)))


@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_runs_its_layers_by_functions_is_surveyed_as_one_that_calls_them(place, caplog):
    data = torch.randn(20, 4), torch.arange(20) % 3
    found, known = (lossmap.Problem.supervised(m, "crossentropy", data) for m in (RunsALayer(place), Plain()))
    a, b = (lossmap.spectrum(p, parameters="all", density_error=None) for p in (found, known))
    for value, true in ((a.largest, b.largest), (a.smallest, b.smallest)):
        assert abs(value[0] - true[0]) <= value[1] + true[1]
    assert not caplog.text
    twin = copy_of(found.model).double()
    assert twin(data[0].double()).dtype == torch.float64
    assert torch.allclose(twin(data[0].double()).float(), found.model(data[0]), atol=1e-6)


def test_what_is_kept_on_a_parameter_stands_on_that_of_the_copy():
    class Scaled(Plain):
        def forward(self, x):
            return self.second(torch.tanh(self.first(x) * self.first.weight.scale[0]))

    model, data = Scaled(), (torch.randn(20, 4), torch.arange(20) % 3)
    model.first.weight.scale = [0.5]
    twin = copy_of(model, torch.float64)
    assert twin.first.weight.scale == [0.5]
    assert twin.first.weight.scale is not model.first.weight.scale
    found = lossmap.spectrum(lossmap.Problem.supervised(model, "crossentropy", data), density_error=None)
    assert found.largest[1] < 1e-4


PATCHES = ["patched model", "patched layer", "hook reads a layer", "hook reads a parameter", "kept by a hook"]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patched_model_is_surveyed_as_the_same_without_patches(patch, caplog):
    data = torch.randn(20, 4), torch.arange(20) % 3
    found, known = (lossmap.Problem.custom(m, loss, data) for m in (patched(patch), Plain(patch)))
    a, b = (lossmap.spectrum(p, parameters="all", density_error=None) for p in (found, known))
    for value, true in ((a.largest, b.largest), (a.smallest, b.smallest)):
        assert abs(value[0] - true[0]) <= value[1] + true[1]
    assert a.largest[1] < 1e-4
    line, grid = lossmap.random_plane(found.model, axes=1, seed=0), lossmap.Grid.line(-1, 1, 3)
    a, b = (lossmap.survey(lossmap.losses(p, line), grid) for p in (found, known))
    assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
    assert not found.model.kept
    assert "holds the model itself" not in caplog.text
    assert "not compared" not in caplog.text


def test_functions_that_see_nothing_of_the_model_and_their_variables_are_shared():
    model, seen = Plain(), []
    calls = 0

    def count(module, inputs, outputs):
        nonlocal calls
        calls += 1
        seen.append(outputs)

    model.first.register_forward_hook(count)
    twin = copy_of(model)
    assert list(twin.first._forward_hooks.values()) == [count]
    twin(torch.zeros(1, 4))
    assert calls == 1 and len(seen) == 1


def test_a_function_that_sees_itself_and_one_that_is_not_there_yet():
    model = Plain()

    def halved(x, depth=0):
        return model.second(x / 2) if depth else halved(x, 1) + (later(x) if depth > 1 else 0)

    model.forward = halved
    twin = copy_of(model)
    twin.second.weight.data.zero_()
    assert torch.equal(twin(torch.ones(1, 4)), twin.second.bias[None])
    assert not torch.equal(model(torch.ones(1, 4)), model.second.bias[None])
    later = abs
