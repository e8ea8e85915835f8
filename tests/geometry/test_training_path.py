import numpy as np
import pytest
import torch
from torch import nn

from lossmap.geometry.directions import Plane, origin_of
from lossmap.geometry.parameter_vector import Layout
from lossmap.geometry.training_path import (
    half_spacings,
    pca_plane,
    principal_axes,
    random_walk_shares,
    rounding_of_path,
    stored_precisions,
    trajectory,
)
from lossmap.report.path import origin_on_path


def walk(steps, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(6, 5)
    states, state = [], origin_of(model)
    for _ in range(steps):
        state = {k: t + torch.randn_like(t) for k, t in state.items()}
        states.append(state)
    return states[-1], states


def test_principal_axes_equal_the_singular_vectors_of_the_path():
    origin, states = walk(9)
    layout = Layout.of(origin)
    matrix = torch.stack([layout.flatten(s) - layout.flatten(origin) for s in states]).double()
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    found = principal_axes(origin, states, 2)
    for i, axis in enumerate(found.axes):
        v = layout.flatten(axis).double()
        assert float(v.norm()) == pytest.approx(1.0, abs=1e-5)
        assert abs(float(v @ rows[i])) == pytest.approx(1.0, abs=1e-5)
        assert found.explained[i] == pytest.approx(float(values[i] ** 2 / (values**2).sum()), rel=1e-6)


def test_the_shadow_of_the_path_ends_at_zero_and_keeps_true_lengths():
    origin, states = walk(9)
    found = principal_axes(origin, states, 2)
    shadow = trajectory(Plane(origin, found.axes, ({}, {})), states)
    assert shadow["x"][-1] == pytest.approx(0, abs=1e-6)
    layout = Layout.of(origin)
    for i, state in enumerate(states):
        length = float((layout.flatten(state) - layout.flatten(origin)).norm())
        seen = (shadow["x"][i] ** 2 + shadow["y"][i] ** 2 + shadow["residual"][i] ** 2) ** 0.5
        assert seen == pytest.approx(length, rel=1e-5, abs=1e-6)


def test_a_path_with_too_few_dimensions_is_refused_with_its_number():
    origin, states = walk(2)
    with pytest.raises(
        ValueError,
        match="2 checkpoints that span 1 dimension beyond rounding; it has no more principal axes than that; got 2",
    ):
        principal_axes(origin, states, 2)


def test_principal_axes_of_chosen_parameters_are_the_singular_vectors_of_their_own_path():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    run = [{k: p.detach() + torch.randn_like(p) for k, p in model.named_parameters()} for _ in range(5)]
    plane = pca_plane(model, run, parameters=r"^1\.")
    origin = torch.cat([p.detach().flatten() for p in model[1].parameters()])
    offsets = torch.stack([torch.cat([s["1.weight"].flatten(), s["1.bias"]]) for s in run]) - origin
    right = torch.linalg.svd(offsets).Vh
    for i, axis in enumerate(plane.axes):
        assert not axis["0.weight"].any() and not axis["0.bias"].any()
        v = torch.cat([axis["1.weight"].flatten(), axis["1.bias"]])
        assert abs(float(v @ right[i])) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("checkpoints", "origin"), [(2, -1), (3, -1), (5, -1), (20, -1), (20, 0), (20, 7)])
def test_shares_of_a_random_walk_are_those_of_simulated_ones(checkpoints, origin):
    torch.manual_seed(0)
    steps = torch.randn(checkpoints, 40_000, dtype=torch.float64)
    walk = steps.cumsum(0)
    path = [{"w": w - walk[origin]} for w in walk]
    count = min(2, checkpoints - 1)
    simulated = principal_axes({"w": torch.zeros(40_000, dtype=torch.float64)}, path, count).explained
    expected = random_walk_shares(checkpoints, origin=origin)
    assert simulated == pytest.approx(expected[:count], abs=0.01)
    assert np.isnan(expected[count:]).all()


def test_a_long_walk_about_its_end_has_the_shares_of_brownian_motion():
    assert random_walk_shares(2000) == pytest.approx((8 / np.pi**2, 8 / (9 * np.pi**2)), abs=1e-3)
    assert all(np.isnan(random_walk_shares(1)))


def test_a_path_that_does_not_meet_the_origin_is_compared_with_no_random_walk():
    origin, states = walk(6)
    for model, place in ((origin, 5), (states[2], 2), (walk(1, seed=1)[0], None)):
        axes = principal_axes(model, states, 2).axes
        found = trajectory(Plane(model, axes, ({}, {})), states)
        assert origin_on_path(found) == place
    assert all(np.isnan(random_walk_shares(6, origin=None)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_path_on_a_line_spans_no_plane_of_rounding(dtype):
    torch.manual_seed(0)
    model = nn.Linear(300, 30).to(dtype)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    step = {name: 1e3 * torch.finfo(dtype).eps * torch.randn_like(p) for name, p in weights.items()}
    line = [{name: (p + t * step[name]).to(dtype) for name, p in weights.items()} for t in (-3.0, -2.0, -1.0, -0.5)]
    with pytest.raises(ValueError, match="4 checkpoints that span 1 dimension beyond rounding"):
        pca_plane(model, line)
    beside = {name: (p + 0.1 * step[name].flip(-1)).to(dtype) for name, p in weights.items()}
    assert pca_plane(model, [*line, beside]).recipes[1]["explained_variance_ratio"] > 1e-5


def test_a_path_of_a_few_weights_spans_its_plane_in_bfloat16():
    """What rounds the weights that stand still has no part in it."""
    torch.manual_seed(0)
    model = nn.Linear(300, 30).bfloat16()

    def moved(rows):
        weight = model.weight.detach().clone()
        weight[rows, 0] *= 1.1
        return {"weight": weight, "bias": model.bias.detach()}

    plane = pca_plane(model, [moved([1, 2]), moved([2]), model.state_dict()])
    assert [bool(axis["weight"][:, 0].any()) for axis in plane.axes] == [True, True]
    assert not any(bool(axis["weight"][:, 1:].any()) for axis in plane.axes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_of_a_path_that_is_not_finite_is_named_by_its_number(value):
    origin, states = walk(5)
    name = next(iter(states[2]))
    states[2] = {**states[2], name: torch.full_like(states[2][name], value)}
    with pytest.raises(ValueError, match="checkpoint 3 of 5 on the path holds values that are not finite"):
        principal_axes(origin, states, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [3, 20, 100])
def test_the_rounding_of_stored_weights_is_bounded_and_is_no_principal_axis(dtype, count):
    torch.manual_seed(0)
    start, across = torch.randn(3, 40, 50, dtype=torch.float64), torch.randn(2, 40, 50, dtype=torch.float64)
    start[0, 0] *= 1e-6  # subnormal in float16
    along = [s / count for s in range(count)]

    def stored(turn, dtype=dtype):  # a second tensor stands still, and is large
        path = [{"w": start[0] + t * across[0] + turn * t * t * across[1], "still": 1e3 * start[1]} for t in along]
        return path, [{name: t.to(dtype) for name, t in state.items()} for state in path]

    path, kept = stored(0.0)
    origin = {name: t.float() for name, t in kept[-1].items()}  # as a model in float32 holds them
    found = rounding_of_path(origin, kept)
    actual = np.array([float((a["w"] - b["w"].double()).norm()) for a, b in zip(path, kept, strict=True)])
    assert (actual <= found).all() and (found < 4 * actual).all()
    coarse = rounding_of_path({name: t.to(dtype) for name, t in origin.items()}, [dict(s) for s in path])
    assert coarse == pytest.approx(found, rel=1e-2)  # a model of that precision rounds them itself
    converted = [{name: t.float() for name, t in state.items()} for state in kept]
    assert rounding_of_path(origin, converted) == pytest.approx(found, rel=1e-3)
    with pytest.raises(ValueError, match=f"{count} checkpoints that span 1 dimension beyond rounding"):
        principal_axes(origin, kept, 2)
    path, bent = stored(0.3)
    truth = torch.stack([(state["w"] - path[-1]["w"]).flatten() for state in path])
    found = principal_axes({name: t.float() for name, t in bent[-1].items()}, bent, 2)
    values = torch.linalg.svdvals(truth) ** 2
    assert found.explained[0] == pytest.approx(float(values[0] / values.sum()), abs=1e-3)


def test_a_tensor_as_layers_begin_is_not_taken_for_one_that_was_converted_from_a_coarser_precision():
    path = [{"scale": torch.ones(500), "bias": torch.zeros(20)} for _ in range(3)]
    assert stored_precisions(path) == [{"scale": torch.float32, "bias": torch.float32}] * 3
    like = path[0]["scale"]
    assert torch.equal(half_spacings(like, like, torch.float32), like.double() * torch.finfo(torch.float32).eps / 2)


def test_small_tensors_that_were_converted_are_known_by_the_others_and_along_the_path():
    draws = torch.Generator().manual_seed(0)
    path = [{"w": torch.randn(1, 6, generator=draws).half().float(), "b": torch.ones(1)} for _ in range(8)]
    assert stored_precisions(path) == [{"w": torch.float16, "b": torch.float16}] * 8
    path[3]["w"] += 1e-5  # a checkpoint that was not converted
    assert [at["w"] for at in stored_precisions(path)] == [torch.float32 if t == 3 else torch.float16 for t in range(8)]


def test_a_run_in_float32_that_begins_at_a_model_in_bfloat16_was_not_rounded():
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(40, 50, generator=draws).bfloat16().float()
    across = torch.randn(2, 40, 50, generator=draws)
    path = [{"w": start + 1e-4 * (t * across[0] + t * t * across[1])} for t in range(6)]
    assert stored_precisions(path) == [{"w": torch.float32}] * 6
    offsets = torch.stack([(state["w"] - path[-1]["w"]).flatten().double() for state in path])
    values = torch.linalg.svdvals(offsets) ** 2
    assert principal_axes(path[-1], path, 2).explained == pytest.approx((values[:2] / values.sum()).tolist(), rel=1e-4)
