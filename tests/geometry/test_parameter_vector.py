"""Flat vectors: there and back, which tensors are meant, and sums in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lossmap.geometry.parameter_vector import Layout, movable_parameters, selected, warn_of_frozen
from lossmap.sums import dot, norm, norm_of

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes=SHAPES)
def test_flattening_is_undone_by_unflattening(shapes):
    named = {f"t{i}": torch.randn(s) for i, s in enumerate(shapes)}
    layout = Layout.of(named)
    flat = layout.flatten(named)
    assert flat.shape == (layout.size,) and layout.size == sum(t.numel() for t in named.values())
    back = layout.unflatten(flat)
    assert list(back) == list(named) and all(torch.equal(back[k], t) for k, t in named.items())
    assert all(torch.equal(a, b) for a, b in zip(layout.split(flat), named.values(), strict=True))


def test_parts_are_views_of_the_vector():
    layout = Layout(("a", "b"), ((2, 2), ()))
    v = torch.zeros(5)
    layout.unflatten(v)["a"][1, 1] = 7.0
    assert v[3] == 7.0 and layout.sizes == (4, 1)


def net():
    return nn.ModuleDict({"first": nn.Linear(2, 3), "bn": nn.BatchNorm1d(3), "second": nn.Linear(3, 1)})


def test_weights_all_and_expressions_select_parameters():
    model = net()
    assert list(selected(model)) == ["first.weight", "second.weight"]
    assert list(selected(model, "all")) == [k for k, _ in model.named_parameters()]
    assert list(selected(model, "second")) == ["second.weight", "second.bias"]
    assert list(selected(model, r"bias$")) == ["first.bias", "bn.bias", "second.bias"]
    assert selected(model)["first.weight"] is model["first"].weight


def test_what_selects_nothing_is_reported_in_one_message():
    with pytest.raises(ValueError, match=r"no parameter matches 'conv'; the model has first\.weight, first\.bias"):
        selected(net(), "conv")
    with pytest.raises(ValueError, match=r"no parameter matches 'weights'; the model has none"):
        selected(nn.ReLU())
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression: missing \)"):
        selected(net(), "(")


def test_a_vector_of_another_length_is_reported_in_one_message():
    with pytest.raises(ValueError, match=r"the vector has shape \(3,\); this layout takes \(4,\)"):
        Layout(("a",), ((2, 2),)).split(torch.ones(3))
    with pytest.raises(KeyError, match="b"):
        Layout(("b",), ((1,),)).flatten({"a": torch.ones(1)})


@pytest.mark.parametrize("entries", [1, 1000, (1 << 20) - 1, 3_000_001])
def test_sums_are_those_of_float64(entries):
    g = torch.Generator().manual_seed(entries)
    a, b = torch.rand(entries, generator=g), torch.rand(entries, generator=g)
    assert dot(a, b) == pytest.approx(float(a.double() @ b.double()), rel=1e-13)
    wide = a.numpy().astype(np.longdouble)  # float64 sums in one sequence are themselves off by 1e-13
    assert norm(a) == pytest.approx(float(np.sqrt((wide * wide).sum())), rel=1e-13)
    assert dot(a.double(), b.double()) == pytest.approx(dot(a, b), rel=1e-13)


def test_the_norm_over_several_tensors_is_that_of_all_entries():
    parts = [torch.randn(3, 4), torch.randn(5), torch.tensor(2.0)]
    assert norm_of(parts) == pytest.approx(norm(torch.cat([p.flatten() for p in parts])), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1.0, 1e200])
def test_a_norm_is_right_where_squares_leave_the_range(scale):
    a = scale * torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert norm(a) == pytest.approx(5 * scale, rel=1e-14)
    assert norm_of([a[:1], a[1:]]) == pytest.approx(5 * scale, rel=1e-14)
    assert norm(torch.zeros(3)) == norm(torch.zeros(0)) == 0.0
    assert math.isnan(norm(torch.tensor([math.nan, 1.0]))) and norm(torch.tensor([math.inf, 1.0])) == math.inf


def test_parameters_in_one_memory_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"'0\.weight' and '2\.weight' lie in one memory"):
        movable_parameters(model)
    flat = torch.randn(20)
    for step, accepted in ((9, True), (6, False)):  # views of one vector, as of a flattened optimizer
        model[0].weight.data, model[2].weight.data = flat[:9].view(3, 3), flat[step : step + 9].view(3, 3)
        if accepted:
            assert len(movable_parameters(model)) == 4
        else:
            with pytest.raises(ValueError, match="in one memory"):
                movable_parameters(model)
    model[2].weight = model[0].weight  # tied as PyTorch knows it
    assert len(movable_parameters(model)) == 3


def test_views_of_one_memory_are_told_by_their_entries():
    def of(first, second):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[0].weight.data, model[2].weight.data = first, second
        return movable_parameters(model)

    wide, square = torch.randn(4, 8), torch.randn(4, 4)
    assert len(of(wide[:, :4], wide[:, 4:])) == 4  # side by side: their ranges overlap, no entry does
    assert len(of(wide[:, ::2], wide[:, 1::2])) == 4
    for first, second in ((square, square.t()), (wide[:, :4], wide[:, 3:7]), (wide[:, 4:], wide[:, ::2])):
        with pytest.raises(ValueError, match=r"'[02]\.weight' and '[02]\.weight' lie in one memory"):
            of(first, second)
    with pytest.raises(ValueError, match=r"entries of the parameter '2\.weight' lie in one memory"):
        of(square, torch.randn(4, 1).expand(4, 4))


def test_a_tied_parameter_is_selected_by_either_name_which_is_said(caplog):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

    model = Tied()
    assert list(selected(model, "head")) == ["table.weight"]
    warn_of_frozen(model, "head", "are counted in the Hessian")
    assert "head.weight is tied to table.weight, which head matches" in caplog.text
    with pytest.raises(ValueError, match="no parameter matches"):
        selected(model, "^(?!table)")  # all but the table, which head.weight is, too
