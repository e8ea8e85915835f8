"""Tensors in the memory of a parameter: refused where the loss reads them, and nowhere else."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap

KEPT = ["attribute", "list", "buffer", "whole"]


class Keeps(nn.Module):
    def __init__(self, kept, alias=True, read=True):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.head, self.kept, self.read = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3), kept, read
        part = self.weight.data if kept == "whole" else self.weight.data[2:]
        part = part if alias else part.clone()
        if kept == "buffer":
            self.register_buffer("tail", part)
        else:
            self.tail = [part] if kept == "list" else part

    def forward(self, x):
        outputs = self.head(torch.tanh(x @ self.weight.T))
        if not self.read:
            return outputs
        tail = self.tail[0] if self.kept == "list" else self.tail
        return outputs + (x @ tail[-3:].T)


def survey(model, loss="crossentropy"):
    problem = lossmap.Problem.supervised(model, loss, (torch.randn(20, 4), torch.arange(20) % 3))
    return lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(-1, 1, 3))


@pytest.mark.parametrize("kept", KEPT)
def test_what_lies_in_the_memory_of_a_parameter_is_refused_where_it_is_read(kept):
    model = Keeps(kept)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"tail.* lies in the memory of the parameter 'weight'"):
        survey(model)
    assert torch.equal(model.weight, before)
    tail = model.tail[0] if kept == "list" else model.tail
    assert tail.data_ptr() == (model.weight if kept == "whole" else model.weight[2:]).data_ptr()
    for harmless in (Keeps(kept, alias=False), Keeps(kept, read=False)):
        survey(harmless)


@pytest.mark.parametrize("way", ["attribute", "hook", "default", "partial"])
def test_what_a_function_of_the_model_sees_is_refused_too(way):
    def model(tail):
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        part = {"alias": net[2].weight.data, "copy": net[2].weight.data.clone(), "itself": net[2].weight}[tail]
        if way == "attribute":
            net[2].scale = lambda h: h * part.sum()
            net[2].forward = lambda h: net[2].scale(F.linear(h, net[2].weight))
        elif way == "hook":
            net[2].register_forward_hook(lambda module, inputs, outputs: outputs * part.sum())
        elif way == "default":
            net[2].register_forward_hook(lambda module, inputs, outputs, w=part: outputs * w.sum())
        else:
            net[2].register_forward_hook(partial(lambda w, module, inputs, outputs: outputs * w.sum(), part))
        return net

    message = r"which a function of the model sees, lies in the memory of the parameter '2\."
    with pytest.raises(ValueError, match=message):
        survey(model("alias"))
    survey(model("copy"))
    survey(model("itself"))


def test_a_loss_that_keeps_one_is_refused_too():
    model = Keeps("attribute", alias=False)
    anchors = [p.detach() for p in model.parameters()]  # not of their own memory

    def anchored(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(a.square().sum() for a in anchors)

    with pytest.raises(ValueError, match="anchors lies in the memory of the parameter"):
        survey(model, anchored)
    anchors[:] = [a.clone() for a in anchors]
    survey(model, anchored)


def test_parts_of_one_memory_are_no_aliases():
    flat = torch.randn(40)
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(flat[:12].view(3, 4))
    model.register_buffer("scale", flat[12:15])
    model.flat = flat  # all of it, which no pass reads
    model.forward = lambda x: F.linear(x, model.weight, model.bias) * model.scale
    survey(model)


class KeepsAnArray(Keeps):
    def __init__(self, is_copied):
        super().__init__("attribute", alias=False)
        array = self.weight.detach().numpy()
        self.tail = array.copy() if is_copied else array

    def forward(self, x):
        return self.head(torch.tanh(x @ self.weight.T)) + x @ torch.from_numpy(self.tail)[2:].T


def test_an_array_in_the_memory_of_a_parameter_is_refused_too():
    model = KeepsAnArray(is_copied=False)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"tail lies in the memory of the parameter 'weight'"):
        survey(model)
    assert torch.equal(model.weight, before) and (model.tail == before.numpy()).all()
    model.weight.data.zero_()
    assert not model.tail.any()
    survey(KeepsAnArray(is_copied=True))


class KeepsAStorage(Keeps):
    def __init__(self, kind, is_copied):
        super().__init__("attribute", alias=False)
        tensor = self.weight.detach().clone() if is_copied else self.weight
        self.tail = getattr(tensor, kind)()

    def forward(self, x):
        tail = torch.empty(0).set_(self.tail, 0, self.weight.shape, self.weight.stride())
        return self.head(torch.tanh(x @ self.weight.T)) + x @ tail[2:].T


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["untyped_storage", "storage"])
def test_the_storage_of_a_parameter_is_refused_too(kind):
    with pytest.raises(ValueError, match=r"tail lies in the memory of the parameter 'weight'"):
        survey(KeepsAStorage(kind, is_copied=False))
    survey(KeepsAStorage(kind, is_copied=True))


def test_a_view_with_its_graph_is_refused_by_its_name():
    model = Keeps("attribute", alias=False)
    model.tail = model.weight[2:]
    with pytest.raises(ValueError, match="tail is a view of the parameter 'weight'"):
        survey(model)
