"""Tensors that an earlier pass made of the weights are refused by name; what is made of constants is not."""

import functools

import pytest
import torch
from torch import nn

from lossmap import Problem, losses, random_plane
from lossmap.data.loss_check import check_loss

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3
KEPT = {}


class Product(nn.Module):
    """A weight that is a product of two."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 4))

    def weight(self):
        return self.left @ self.right

    def forward(self, x):
        return x @ self.weight().T


class Property(Product):
    @functools.cached_property
    def product(self):
        return super().weight().detach()

    def weight(self):
        return self.product


class Attribute(Product):
    product = None

    def weight(self):
        if self.product is None:
            self.product = super().weight()
        return self.product


class Dictionary(Product):
    def __init__(self):
        super().__init__()
        self.kept = {}

    def weight(self):
        if "w" not in self.kept:
            self.kept["w"] = super().weight()
        return self.kept["w"]


class Global(Product):
    def weight(self):
        if "w" not in KEPT:
            KEPT["w"] = super().weight()
        return KEPT["w"]


class Constants(Product):
    """A scale that it needs, one that it makes in the first pass, and an anchor that is a buffer."""

    made = None

    def __init__(self):
        super().__init__()
        self.scale = torch.full((4,), 1.5)
        self.register_buffer("anchor", self.left.detach().clone())

    def forward(self, x):
        if self.made is None:
            self.made = torch.arange(4.0)
        return super().forward(x * self.scale.to(x) + self.made.to(x)) + (self.left - self.anchor).square().sum()


@pytest.mark.parametrize(
    "kind, name", [(Property, "product"), (Attribute, "product"), (Dictionary, "kept"), (Global, "KEPT")]
)
def test_a_tensor_made_of_the_weights_is_refused_once_it_is_there(kind, name):
    KEPT.clear()
    model = kind().eval()
    problem = Problem.supervised(model, "crossentropy", (X, Y))
    plane = random_plane(model, axes=1)
    plain = Product()
    plain.load_state_dict(plane.at((0.5,)))
    truth = float(nn.functional.cross_entropy(plain(X), Y).detach())
    assert losses(problem, plane, plan={"batch_size": 12})((0.5,))["train_loss"] == pytest.approx(truth, rel=1e-5)
    with torch.no_grad():
        model(X)
    with pytest.raises(ValueError, match=rf"the model keeps {name}, which an earlier pass made of its weights"):
        check_loss(Problem.supervised(model, "crossentropy", (X, Y)))
    assert vars(model).get(name, KEPT) is not None  # the model is as it was


def test_constants_are_no_reason():
    model = Constants().eval()
    model(X)
    assert check_loss(Problem.supervised(model, "crossentropy", (X, Y))).notes == ()
