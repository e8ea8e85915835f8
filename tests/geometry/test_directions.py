import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lossmap.geometry import directions
from lossmap.geometry.directions import (
    IGNORES,
    NORMS,
    DrawnAxis,
    Plane,
    difference,
    from_vector,
    line_between,
    normalised,
    origin_of,
    plane_through,
    projected,
    random_axis,
    random_plane,
)
from lossmap.geometry.parameter_vector import Layout
from lossmap.sums import norm


def net():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def test_filter_normalisation_gives_each_filter_the_norm_of_the_models():
    model = net()
    plane = random_plane(model, norm="filter")
    for axis in plane.axes:
        for name in ("0.weight", "3.weight"):
            ours, theirs = axis[name].flatten(1).norm(dim=1), plane.origin[name].flatten(1).norm(dim=1)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_the_other_normalisations_do_what_their_names_say():
    origin = origin_of(net())
    drawn = random_axis(origin, 0, 0, norm="none")
    for name, w in origin.items():
        if w.dim() <= 1:
            continue
        d = drawn[name]
        made = {how: normalised(drawn, origin, how, "biasbn")[name] for how in ("layer", "weight", "dfilter", "dlayer")}
        assert norm(made["layer"]) == pytest.approx(norm(w), rel=1e-5)
        assert norm(made["dlayer"]) == pytest.approx(1.0, rel=1e-5)
        torch.testing.assert_close(made["weight"], d * w)
        torch.testing.assert_close(made["dfilter"].flatten(1).norm(dim=1), torch.ones(d.shape[0]))
        for vector in (made["layer"], made["dlayer"]):
            assert torch.cosine_similarity(vector.flatten(), d.flatten(), dim=0) == pytest.approx(1.0, abs=1e-5)


def test_biasbn_ignored_means_zero_there_and_none_a_copy_of_the_weights_as_in_the_original():
    origin = origin_of(net(), states=True)
    ignored, copied = random_axis(origin, 0, 0, ignore="biasbn"), random_axis(origin, 0, 0, ignore="none")
    for name, w in origin.items():
        if w.dim() <= 1:
            assert not ignored[name].any()
            assert torch.equal(copied[name], w)


def test_the_same_seed_gives_the_same_plane_and_other_seeds_another():
    model = net()
    assert random_plane(model, seed=3).digest == random_plane(model, seed=3).digest
    assert random_plane(model, seed=3).digest != random_plane(model, seed=4).digest


@pytest.mark.parametrize("ignore", IGNORES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_axis_that_is_drawn_at_every_reading_is_the_one_that_is_held(norm, ignore, monkeypatch):
    model = net()
    held = random_plane(model, seed=3, norm=norm, ignore=ignore, states=True)
    monkeypatch.setattr(directions, "MAX_HELD_ENTRIES", 0)
    monkeypatch.setattr(directions, "ENTRIES_AT_ONCE", 20)  # two filters at a time
    drawn = pickle.loads(pickle.dumps(random_plane(model, seed=3, norm=norm, ignore=ignore, states=True)))
    assert all(isinstance(axis, DrawnAxis) for axis in drawn.axes) and drawn.to("cpu").axes == drawn.axes
    assert drawn.digest == held.digest and not isinstance(drawn.to(dtype=torch.float64).axes[0], DrawnAxis)
    for name, value in drawn.at((0.3, -0.7)).items():
        assert torch.equal(value, held.at((0.3, -0.7))[name])
    assert drawn.lengths == pytest.approx(held.lengths, rel=1e-12)
    assert drawn.cosine == pytest.approx(held.cosine, rel=1e-9)


def test_an_axis_that_is_drawn_at_every_reading_refuses_what_one_that_is_held_does(monkeypatch):
    monkeypatch.setattr(directions, "MAX_HELD_ENTRIES", 0)
    with pytest.raises(ValueError, match="norm must be one of"):
        random_plane(net(), norm="filters")
    some = random_plane(net(), parameters="3.weight")
    assert not some.axes[0]["0.weight"].any() and some.axes[0]["3.weight"].any()


def test_the_origin_stays_where_it_was_when_the_model_is_trained(monkeypatch):
    monkeypatch.setattr("lossmap.copies.MIN_LAZY_BYTES", 0)
    model = net()
    before = model[3].weight.tolist()
    plane = random_plane(model)
    model[3].weight.data.add_(1.0)
    assert plane.origin["3.weight"].tolist() == before != model[3].weight.tolist()


def test_default_directions_are_nearly_orthogonal():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10))
    assert abs(random_plane(model).cosine) < 0.05
    assert random_plane(model, axes=1).cosine is None


def test_states_move_running_statistics_and_weights_do_not():
    model = net()
    assert "1.running_mean" in random_plane(model, states=True).origin
    assert "1.running_mean" not in random_plane(model).origin
    assert "1.num_batches_tracked" not in random_plane(model, states=True).origin


def test_a_line_between_models_is_at_each_of_them():
    a, b = net(), net()
    line = line_between(a, b)
    for point, model in (((0.0,), a), ((1.0,), b)):
        for name, p in model.named_parameters():
            torch.testing.assert_close(line.at(point)[name], p.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16])
def test_models_that_span_no_line_or_plane_are_refused(precision):
    a, b = (nn.Linear(30, 20).to(precision) for _ in range(2))

    def beyond(factor):
        """The model on the line from a (0) to b (1), in their precision."""
        ends = ((name, a.state_dict()[name].double(), b.state_dict()[name].double()) for name in a.state_dict())
        return {name: (one + factor * (other - one)).to(precision) for name, one, other in ends}

    for x, y, name in ((a, b, "x"), (b, a, "y"), (a, a, "x")):
        with pytest.raises(ValueError, match=f"{name} has the weights of the model at the origin"):
            plane_through(a, x, y)
    for x, y in ((b, b), (b, beyond(0.5)), (b, beyond(-7.0)), (beyond(0.3), beyond(200.0)), (beyond(200.0), b)):
        with pytest.raises(ValueError, match="the three models lie on one line, but for the rounding"):
            plane_through(a, x, y)
    with pytest.raises(ValueError, match="both models have the same weights: there is no line between them"):
        line_between(a, a.state_dict())
    # a thousandth beside the line, where the cosine is 1 to six digits, is beside it
    if precision != torch.bfloat16:
        near = {name: w + 1e-3 * torch.rand_like(w) for name, w in b.state_dict().items()}
        plane = plane_through(a, b, near)
        assert plane.cosine > 1 - 1e-5 and torch.allclose(plane.at((0.0, 1.0))["weight"], near["weight"])
        head = {**b.state_dict(), "weight": a.weight.detach() * 1e6}  # which stands still
        assert plane_through(a, head, {**near, "weight": a.weight}, parameters="bias").lengths[0] > 0.0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32])
def test_models_that_moved_by_some_roundings_each_their_own_way_span_a_plane(precision):
    """As after a short training in bfloat16: the end of one axis lies far beside the line along the other."""
    torch.manual_seed(0)
    a = nn.Linear(30, 20).to(precision)
    step = 2.5 * torch.finfo(precision).eps
    x, y = (
        {n: w + step * w.norm() / w.numel() ** 0.5 * torch.randn_like(w) for n, w in a.state_dict().items()}
        for _ in "xy"
    )
    plane = plane_through(a, x, y)
    assert abs(plane.cosine) < 0.2


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32])
def test_models_that_differ_in_a_few_weights_or_one_layer_span_a_plane(precision):
    """What rounds the weights that stand still has no part in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 90), nn.Linear(90, 10)).to(precision)
    a = model.state_dict()

    def moved(name, scale):
        return {**a, name: a[name] + scale * torch.randn_like(a[name]) * a[name].abs().float().mean()}

    def single(row, relative):
        weight = a["1.weight"].clone()
        weight[row, 0] *= 1.0 + relative
        return {**a, "1.weight": weight}

    whole = {n: moved(n, 0.05)[n] for n in a}
    for x, y in ((single(1, 0.01), single(2, 0.01)), (whole, moved("1.weight", 0.05)), (whole, single(3, 0.1))):
        for one, other in ((x, y), (y, x)):
            assert all(plane_through(model, one, other).lengths)
    with pytest.raises(ValueError, match="the three models lie on one line, but for the rounding"):
        plane_through(model, whole, {n: torch.lerp(a[n], whole[n], 0.3) for n in a})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_no_end_of_a_line(value):
    a, b, broken = (nn.Linear(4, 3) for _ in range(3))
    broken.weight.data[0, 0] = value
    for make in (lambda: line_between(a, broken), lambda: plane_through(a, b, broken)):
        with pytest.raises(ValueError, match="the axis's tensor 'weight' holds values that are not finite"):
            make()


def test_the_middle_of_two_large_models_in_float64_lies_on_their_line():
    torch.manual_seed(0)
    a, b = (nn.Linear(1000, 1000).double() for _ in range(2))
    for t in (0.3, -0.4, 0.5):
        with pytest.raises(ValueError, match="the three models lie on one line, but for the rounding"):
            plane_through(a, b, {n: torch.lerp(w, b.state_dict()[n], t) for n, w in a.state_dict().items()})


def test_a_random_direction_that_moves_nothing_is_refused():
    bias = nn.Module()
    bias.w = nn.Parameter(torch.ones(3))
    zeros = nn.Linear(3, 2)
    nn.init.zeros_(zeros.weight)
    for model in (bias, zeros):
        with pytest.raises(ValueError, match="nothing moves along a random direction of norm 'filter' and ignore"):
            random_plane(model)
    assert random_plane(bias, norm="none", ignore="none").lengths[0] > 0.0
    assert random_plane(zeros, norm="none").lengths[0] > 0.0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_planes_of_coarse_precisions_pass_through_their_models_to_the_bit(precision):
    a, b, c = (net().to(precision) for _ in range(3))
    plane = plane_through(a, b, c)
    for point, model in (((1.0, 0.0), b), ((0.0, 1.0), c)):
        there = plane.at(point)
        assert all(torch.equal(there[name], p) for name, p in model.named_parameters())


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_a_point_is_origin_plus_its_axes_and_projects_back_onto_itself(x, y):
    plane = random_plane(net()).to(dtype=torch.float64)
    there = plane.at((x, y))
    name = "3.weight"
    torch.testing.assert_close(there[name], plane.origin[name] + x * plane.axes[0][name] + y * plane.axes[1][name])
    (back_x, back_y), residual = projected(plane, there)
    assert (back_x, back_y) == pytest.approx((x, y), abs=1e-9)
    assert residual < 1e-9


def test_axes_that_are_neither_orthogonal_nor_of_length_one_project_right():
    origin = {"w": torch.zeros(3, 2)}
    x = {"w": torch.tensor([[3.0, 0], [0, 0], [0, 0]])}
    y = {"w": torch.tensor([[1.0, 2], [0, 0], [0, 0]])}
    plane = Plane(origin, (x, y), ({}, {}))
    (a, b), residual = projected(plane, {"w": torch.tensor([[4.0, 2], [5, 0], [0, 0]])})
    assert (a, b) == pytest.approx((1.0, 1.0))
    assert residual == pytest.approx(5.0)


def test_a_vector_over_some_parameters_is_zero_elsewhere():
    origin = origin_of(net())
    layout = Layout.of({"3.weight": origin["3.weight"]})
    axis = from_vector(torch.arange(48.0), layout, origin)
    assert torch.equal(axis["3.weight"].flatten(), torch.arange(48.0))
    assert not axis["0.weight"].any()


def test_an_axis_without_length_has_no_cosine():
    zeros = {"w": torch.zeros(2, 2)}
    assert math.isnan(Plane({"w": torch.ones(2, 2)}, (zeros, zeros), ({}, {})).cosine)


def test_what_does_not_fit_together_is_said():
    model = net()
    with pytest.raises(ValueError, match=r"no tensor named '0\.weight'"):
        line_between(model, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(5, 2, 3, 3\); the model's has \(3, 2, 3, 3\)"):
        difference(origin_of(model), {**origin_of(model), "0.weight": torch.zeros(5, 2, 3, 3)})
    with pytest.raises(ValueError, match=r"norm must be one of .*; got 'filters'"):
        random_plane(model, norm="filters")
    with pytest.raises(ValueError, match="ignore must be one of biasbn, none; got 'bn'"):
        random_plane(model, ignore="bn")
    with pytest.raises(ValueError, match="settings must be one for each of 2 axes"):
        random_plane(model, norm=["filter"])
    plane = random_plane(model)
    with pytest.raises(ValueError, match="the point has 1 coordinates; this plane has 2 axes"):
        plane.at((0.0,))
    with pytest.raises(ValueError, match="one axis or two; got 3"):
        Plane(plane.origin, (plane.axes[0],) * 3, ())
    with torch.no_grad():
        model[3].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"'3\.weight' holds values that are not finite"):
        random_plane(model)


def adapted():
    """A model whose body is frozen, with batch norm in the trained head."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("ignore", ["biasbn", "none"])
def test_only_the_trainable_parameters_move_and_they_move_as_they_would_among_all(ignore):
    model = adapted()
    some = random_plane(model, ignore=ignore, states=True, parameters="trainable")
    every = random_plane(model, ignore=ignore, states=True)
    for mine, full in zip(some.axes, every.axes, strict=True):
        assert not mine["0.weight"].any() and not mine["0.bias"].any()
        assert all(torch.equal(mine[k], full[k]) for k in full if not k.startswith("0."))
    assert [recipe["parameters"] for recipe in some.recipes] == ["trainable"] * 2
    assert "parameters" not in every.recipes[0]  # planes of all are those of former versions


def test_buffers_move_with_the_parameters_of_their_own_module_alone():
    axis = random_plane(adapted(), 1, ignore="none", states=True, parameters=r"^[24]\.").axes[0]
    assert not axis["3.running_var"].any() and axis["2.weight"].any()


def test_a_line_between_two_models_moves_the_chosen_parameters_alone():
    torch.manual_seed(1)
    a, b = adapted(), adapted()
    end = line_between(a, b, parameters="trainable").at((1.0,))
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    for name, w in end.items():
        expected = ours[name] if name.startswith("0.") else theirs[name]
        torch.testing.assert_close(w, expected.detach())


def test_frozen_parameters_that_move_are_reported_once_with_their_number(caplog):
    random_plane(adapted())
    assert [r.message.split(" are frozen")[0] for r in caplog.records] == [
        "30 of the 87 parameters that move with the plane"
    ]
    caplog.clear()
    random_plane(adapted(), parameters="trainable")
    random_plane(adapted().requires_grad_(False))  # for evaluation alone: nothing is trained that could be meant
    assert not caplog.records


def test_a_direction_along_which_nothing_moves_is_refused():
    model = adapted().requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters of the model are frozen"):
        random_plane(model, parameters="trainable")
    model[2].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"nothing moves along this direction.*ignore 'none' alone"):
        random_plane(model, parameters="trainable")
    assert random_plane(model, ignore="none", parameters="trainable").axes[0]["2.bias"].any()


def test_a_name_that_matches_outside_of_what_bears_it_is_reported(caplog):
    model = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in (1, 10)})
    random_plane(model, axes=1, parameters="layer1")
    assert [r.message for r in caplog.records] == [
        "tensors outside of layer1 match it, too, and move with the plane: layer10.weight, layer10.bias; '^layer1\\.' "
        "selects that name alone"
    ]
    caplog.clear()
    for alone in (r"^layer1\.", r"^layer1\.weight$", "layer1.", "layer10", "all"):
        random_plane(model, axes=1, parameters=alone)
    assert not caplog.records
    random_plane(nn.ParameterList([nn.Parameter(torch.ones(2, 2)) for _ in range(11)]), axes=1, parameters="1")
    assert "outside of 1 match it, too, and move with the plane: 10; '^1$'" in caplog.text


def test_a_recipe_says_how_much_of_the_other_model_stands_at_its_end():
    a, b = adapted(), adapted()
    with_statistics, same_body = copy.deepcopy(b), copy.deepcopy(b)
    with_statistics[3].running_mean += 1.0
    with_statistics[3].num_batches_tracked += 1
    for net, scale in ((with_scale := copy.deepcopy(with_statistics), 2.0), (with_its_own := copy.deepcopy(a), 1.0)):
        net.register_buffer("scale", torch.tensor(scale))
    same_body[0].load_state_dict(a[0].state_dict())
    for other, how, end in (
        (b, {}, "model"),
        (b, {"parameters": ".*"}, "model"),
        (b, {"ignore": "biasbn"}, "part"),
        (b, {"parameters": "weights"}, "part"),
        (b, {"parameters": "trainable"}, "part"),
        (same_body, {"parameters": "trainable"}, "model"),
        (with_statistics, {}, "all but running statistics"),
        (with_statistics, {"states": True}, "model"),
        (with_statistics, {"states": True, "parameters": "weights"}, "part"),
        (dict(with_statistics.named_parameters()), {}, "model"),
    ):
        assert line_between(a, other, **how).recipes[0]["ends_at"] == end
    assert line_between(with_its_own, with_scale).recipes[0]["ends_at"] == "weights"
    ends = [recipe["ends_at"] for recipe in plane_through(a, same_body, with_statistics).recipes]
    assert ends == ["model", "all but running statistics"]
