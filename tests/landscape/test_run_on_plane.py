"""A training path on its plane against closed forms: losses, projections, cosines, learning rates, the report."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lossmap
from lossmap.data.checkpoints import load_checkpoint
from lossmap.geometry.training_path import random_walk_shares
from lossmap.landscape.run_on_plane import project_run
from lossmap.report.path import origin_on_path, path_report


def quadratic(curvatures):
    """A loss of 1/2 sum_i c_i w_i^2 over the weights of one layer."""
    model = nn.Linear(len(curvatures), 1, bias=False).double()
    x = torch.diag(torch.tensor(curvatures, dtype=torch.float64).sqrt()) * (len(curvatures) / 2) ** 0.5
    return lossmap.Problem.supervised(model, "mse", (x, torch.zeros(len(curvatures), 1, dtype=torch.float64)))


def descent(curvatures, start, rate, steps):
    w, path = torch.tensor([start], dtype=torch.float64), []
    for _ in range(steps):
        path.append({"weight": w.clone()})
        w = w - rate * torch.tensor(curvatures, dtype=torch.float64) * w
    return path


def files(count):
    return [Path(f"{i}.pt") for i in range(count)]


def test_steps_of_gradient_descent_have_cosine_one_and_losses_are_those_of_the_formula():
    c, path = [1.0, 3.0, 0.5], descent([1.0, 3.0, 0.5], [1.0, 1.0, 2.0], 0.3, 5)
    problem = quadratic(c)
    problem.model.load_state_dict(path[-1])
    plane = lossmap.pca_plane(problem.model, path)
    found = project_run(plane, problem, files(5), path)
    assert found["cosine"][:-1] == pytest.approx(np.ones(4)) and np.isnan(found["cosine"][-1])
    truth = [float((torch.tensor(c) * s["weight"] ** 2).sum() / 2) for s in path]
    assert found["loss"] == pytest.approx(np.array(truth), rel=1e-6)
    for t in range(5):  # the loss at the projection, by another channel
        there = plane.at((found["x"][t], found["y"][t]))["weight"]
        expected = float((torch.tensor(c) * there**2).sum() / 2)
        assert found["plane_loss"][t] == pytest.approx(expected, rel=1e-6)
    assert found["residual"].max() > 1e-3 and "learning_rate" not in found


def test_uphill_and_sideward_steps_are_counted_and_seen():
    problem = quadratic([1.0, 1.0])
    path = [
        {"weight": torch.tensor([w], dtype=torch.float64)} for w in ([1.0, 0.0], [1.5, 0.0], [1.5, 0.4], [0.0, 0.0])
    ]
    problem.model.load_state_dict(path[-1])
    found = project_run(lossmap.pca_plane(problem.model, path), problem, files(4), path, [0.1, 0.1, 0.01, 0.01])
    assert found["cosine"][:2] == pytest.approx([-1.0, 0.0], abs=1e-9) and found["cosine"][2] == pytest.approx(1.0)
    text = path_report(found.arrays, random_walk_shares(4))
    assert "the loss rises at 2 of 3 steps, by 0.705 in all" in text
    assert "the learning rate drops before checkpoint 2" in text
    assert "of a random walk of as many checkpoints: " in text
    assert text.splitlines()[-1].split() == ["3", "0", "0", "0", "0", "0", "-"]


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_step_is_compared_with_the_gradient_of_what_it_moves(is_frozen, caplog):
    torch.manual_seed(0)
    body, head = nn.Linear(6, 5), nn.Linear(5, 3)
    model = nn.Sequential(body, nn.ReLU(), head)
    x, y = torch.randn(40, 6), torch.arange(40) % 3
    path = []
    for _ in range(4):  # descent of the head alone, then one step of all
        path.append({name: t.detach().clone() for name, t in model.state_dict().items()})
        trained = list(model.parameters())[0 if len(path) == 3 else 2 :]
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), trained)
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p -= 0.1 * g
    body.requires_grad_(not is_frozen)
    model.load_state_dict(path[-1])
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    found = project_run(lossmap.pca_plane(model, path), problem, files(4), path)
    assert found["cosine"][:3] == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)
    assert "over the tensors that a step moves; 2 of 4 stand still in some, such as 0.weight" in caplog.text


class OwnDraws(nn.Module):
    """Drops whole samples in training, by no layer of PyTorch."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1) < 0.5) if self.training else x


class WithBatchNormHeld(nn.Sequential):
    """Trains its batch norm in evaluation mode, as is usual in fine-tuning."""

    def train(self, mode=True):
        super().train(mode)
        for module in self:
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class Refused(nn.Module):
    """Gives an auxiliary output beside in training mode."""

    def forward(self, x):
        return (x, x) if self.training else x


@pytest.mark.parametrize(
    ("layer", "kind", "is_other"),
    [
        (nn.BatchNorm1d(5), nn.Sequential, True),
        (nn.BatchNorm1d(5, track_running_stats=False), nn.Sequential, False),
        (nn.BatchNorm1d(5), WithBatchNormHeld, False),
        (nn.Dropout(0.5), nn.Sequential, True),
        (nn.Dropout(0.0), nn.Sequential, False),
        (nn.LayerNorm(5), nn.Sequential, False),
        (OwnDraws(), nn.Sequential, True),
        (Refused(), nn.Sequential, True),
    ],
)
def test_a_gradient_that_is_another_in_training_mode_is_said_to_be_that_of_evaluation(layer, kind, is_other):
    torch.manual_seed(0)
    model = kind(nn.Linear(6, 5), copy.deepcopy(layer), nn.Linear(5, 3))
    x, y, path = torch.randn(40, 6), torch.arange(40) % 3, []
    model.train()
    is_refused = isinstance(layer, Refused)
    for _ in range(4):  # plain descent with all samples, in training mode
        path.append({name: t.detach().clone() for name, t in model.state_dict().items()})
        output = model.eval()(x) if is_refused else model(x)
        gradients = torch.autograd.grad(nn.functional.cross_entropy(output, y), tuple(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.05 * g
    model.load_state_dict(path[-1])
    model.eval()
    model[0].train()  # a mode of its own, which is put back
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seed = torch.random.get_rng_state()
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    found = project_run(lossmap.pca_plane(model, path), problem, files(4), path)
    assert is_refused or (found["cosine"][:3] == pytest.approx(np.ones(3), abs=1e-4)) is not is_other
    assert found.attributes.get("other_in_training", False) is is_other
    text = path_report(found.arrays, random_walk_shares(4), other_in_training=is_other)
    assert ("evaluation mode, and in training mode another" in text) is is_other
    assert [m.training for m in model] == [True, False, False] and torch.equal(torch.random.get_rng_state(), seed)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_the_same_checkpoint_twice_makes_no_tensor_stand_still(caplog):
    path = descent([1.0, 3.0, 0.5], [1.0, 1.0, 2.0], 0.3, 3)
    path = [path[0], path[1], path[1], path[2]]
    problem = quadratic([1.0, 3.0, 0.5])
    problem.model.load_state_dict(path[-1])
    found = project_run(lossmap.pca_plane(problem.model, path), problem, files(4), path)
    assert found["cosine"] == pytest.approx([1.0, np.nan, 1.0, np.nan], nan_ok=True) and not caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cosine_lies_within_its_error_of_that_of_the_weights_before_they_were_stored(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(60, 6).double(), torch.arange(60) % 3
    seen = []
    for rate in torch.finfo(dtype).eps * torch.tensor([1.0, 20.0, 50.0, 1e3, 1e4]):
        trained, stored, truth = copy.deepcopy(model), [], []
        for t in range(4):
            exact = {name: w.detach().clone() for name, w in trained.state_dict().items()}
            stored.append({name: w.to(dtype) for name, w in exact.items()})
            pushed = [torch.randn_like(p) * (t == 1) for p in trained.parameters()]  # a step that is not downhill
            gradients = torch.autograd.grad(nn.functional.cross_entropy(trained(x), y), tuple(trained.parameters()))
            moved = [-rate * (g + q * g.norm()) for g, q in zip(gradients, pushed, strict=True)]
            with torch.no_grad():
                for p, s in zip(trained.parameters(), moved, strict=True):
                    p += s
            model.load_state_dict({name: w.double() for name, w in stored[-1].items()})
            there = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), tuple(model.parameters()))
            s, g = (torch.cat([part.flatten() for part in parts]) for parts in (moved, there))
            truth.append(float(-(s @ g) / s.norm() / g.norm()))
        single = copy.deepcopy(model).float() if dtype != torch.float32 else model
        problem = lossmap.Problem.supervised(single, "crossentropy", (x.to(next(single.parameters()).dtype), y))
        found = project_run(lossmap.random_plane(single), problem, files(4), stored)
        for cosine, error, true in zip(found["cosine"][:3], found["cosine_error"][:3], truth[:3], strict=True):
            assert error == 2 if np.isnan(cosine) else abs(cosine - true) <= error + 1e-5
            seen.append(error)
        text = path_report(found.arrays, ())
        worst = max(e for e in [0, *found["cosine_error"][:3]] if e < 2)
        assert (f"; by rounding of the stored weights wrong by up to {worst:.2g}" in text) is bool(worst > 0.02)
        lost = int((found["cosine_error"][:3] == 2).sum())
        assert (f"; {lost} of the steps have no cosine: rounding of the stored weights may be" in text) is (lost > 0)
        assert np.isnan(found["cosine_error"][3]) and (found["rounding"] > 0).all()
    assert max(seen) == 2 and min(seen) < 1e-3 and any(0.02 < error < 1 for error in seen)


def test_rows_that_no_sample_reads_add_no_rounding():
    torch.manual_seed(0)
    x, y = torch.arange(40) % 4, torch.arange(40) % 3
    errors = []
    for rows in (4, 4000):  # of the same four, and large ones beside them
        model = nn.Sequential(nn.Embedding(rows, 5), nn.Linear(5, 3))
        with torch.no_grad():
            model[0].weight.fill_(10.0)[:4] = torch.linspace(-1, 1, 20).view(4, 5)
            model[1].weight.copy_(torch.linspace(-1, 1, 15).view(3, 5).cos())
            model[1].bias.zero_()
        path = []
        for _ in range(3):
            path.append({name: w.detach().to(torch.float16) for name, w in model.state_dict().items()})
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), tuple(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= 0.1 * g
        problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
        errors.append(project_run(lossmap.random_plane(model), problem, files(3), path)["cosine_error"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3, nan_ok=True) and errors[0][0] < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cosine_lies_within_its_error_where_a_steep_direction_is_all_that_rounding_leaves_of_the_gradient(dtype):
    """Plain descent far along a valley: the step is straight downhill, and the gradient at rounded weights is not."""
    torch.manual_seed(0)
    steep = torch.tensor([300.0, 1.0, 0.1, 0.1], dtype=torch.float64)
    x = (torch.linalg.qr(torch.randn(40, 4, dtype=torch.float64))[0] * 20**0.5) * steep.sqrt()
    best, start = torch.tensor([1.3, -0.7, 0.4, 2.1]).double(), torch.tensor([1.1, 0.2, 1.9, 0.3]).double()
    rate, times = 1 / 300, torch.arange(0, 12_000, 1_000)[:, None]
    path = best + (start - best) * (1 - rate * steep) ** times
    model = nn.Linear(4, 1, bias=False)
    problem = lossmap.Problem.supervised(model, "mse", (x.float(), (x @ best)[:, None].float()))
    stored = [{"weight": w[None].to(dtype)} for w in path]
    found = project_run(lossmap.random_plane(model), problem, files(12), stored)
    step, gradient = path.diff(dim=0), steep * (path[:-1] - best)
    truth = -(step * gradient).sum(1) / step.norm(dim=1) / gradient.norm(dim=1)
    is_there = np.isfinite(found["cosine"][:-1])
    gaps, errors = abs(found["cosine"][:-1] - truth.numpy()), found["cosine_error"][:-1]
    assert is_there.sum() >= 2 and (gaps <= errors)[is_there].all() and (errors[~is_there] == 2).all()
    assert gaps[is_there].max() > 0.01  # the rounding is seen


def test_a_row_that_padding_holds_still_is_no_part_of_the_gradient():
    torch.manual_seed(0)
    text, y = torch.randint(1, 6, (30, 8)), torch.arange(30) % 3
    text[:, 4:] = 0

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.table(x).mean(1))

    model, path = Text(), []
    for _ in range(3):
        path.append({name: w.detach().clone() for name, w in model.state_dict().items()})
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(text), y), tuple(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.5 * g
    problem = lossmap.Problem.supervised(model, "crossentropy", (text, y))
    found = project_run(lossmap.random_plane(model), problem, files(3), path)
    assert found["cosine"][:2] == pytest.approx(np.ones(2), abs=1e-6)


def test_shares_about_another_model_are_of_distances_and_those_of_a_part_say_so():
    problem = quadratic([1.0, 1.0])
    path = [{"weight": torch.tensor([w], dtype=torch.float64)} for w in ([9.0, 0.0], [9.1, 1.0], [9.0, 2.0])]
    problem.model.load_state_dict({"weight": torch.zeros(1, 2, dtype=torch.float64)})
    found = project_run(lossmap.pca_plane(problem.model, path), None, files(3), path, [])
    walk = random_walk_shares(3, origin=origin_on_path(found.arrays))
    share = np.linalg.svd([[9.0, 0.0], [9.1, 1.0], [9.0, 2.0]], compute_uv=False) ** 2
    expected = f"axis 1 has {100 * share[0] / share.sum():.1f} % of the squared distances of the path from the origin, "
    assert path_report(found.arrays, walk).startswith(expected + "which is no checkpoint of it\naxis 2 has ")
    problem.model.load_state_dict(path[-1])
    found = project_run(lossmap.pca_plane(problem.model, path), None, files(3), path, [])
    text = path_report(found.arrays, random_walk_shares(3), "weights")
    assert text.startswith("axis 1 explains ") and " % of the path of the parameters that move (weights) (of " in text


def test_the_loss_of_a_checkpoint_is_that_with_its_own_running_statistics():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    states = []
    for shift in (3.0, 1.0, 0.0):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        net[1].running_mean += shift
        states.append({name: t.clone() for name, t in net.state_dict().items()})
    problem = lossmap.Problem.supervised(net, "crossentropy", (x, y))
    found = project_run(lossmap.pca_plane(net, states), problem, files(3), states)
    for state, loss in zip(states, found["loss"], strict=True):
        net.load_state_dict(state)
        net.eval()
        assert loss == pytest.approx(float(nn.functional.cross_entropy(net(x), y).detach()), rel=1e-5)


def test_a_loss_without_a_gradient_leaves_the_cosines_out(caplog):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return (x @ self.w).detach()

    net = Rounded()
    path = [{"w": torch.ones(2, 2) * s} for s in (3.0, 2.0, 1.0)]
    problem = lossmap.Problem.supervised(net, "mse", (torch.eye(2), torch.zeros(2, 2)))
    found = project_run(lossmap.pca_plane(net, path, axes=1), problem, files(3), path)
    assert np.isnan(found["cosine"]).all() and np.isfinite(found["loss"]).all()
    assert "cosine" not in path_report(found.arrays, random_walk_shares(3)).split("\n\n")[0]


@pytest.mark.parametrize(
    ("beside", "rate"),
    [
        ({"optimizer": {"state": {}, "param_groups": [{"lr": 0.05}]}}, 0.05),
        ({"optimizer_state_dict": {"param_groups": [{"lr": torch.tensor(0.1)}]}}, 0.1),
        ({"optimizer_states": [{"param_groups": [{"lr": 0.2}]}]}, 0.2),
        ({"optimizer": {"param_groups": []}}, np.nan),
        ({"epoch": 3}, np.nan),
    ],
)
def test_the_learning_rate_beside_a_checkpoint_is_read(tmp_path, beside, rate):
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), **beside}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").learning_rate == pytest.approx(rate, nan_ok=True)


def test_a_rate_that_falls_all_the_time_has_no_drops():
    arrays = {"loss": np.ones(9), "cosine": np.full(9, np.nan), "step": np.arange(9.0), "residual": np.zeros(9)}
    arrays |= {"explained_variance_ratio": np.array([1.0]), "x": np.zeros(9), "learning_rate": 0.8 ** np.arange(9)}
    report = path_report(arrays, (0.8, 0.1))
    assert "drops" not in report and "the learning rate falls step by step, from 1 to 0.168" in report


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0.1, 0.1, 0.01, 0.01, 0.001], "the learning rate drops before checkpoint 2, 4"),
        ([0.1, 0.01], "the learning rate drops before checkpoint 1"),
        ([0.1, 0.1, np.nan, np.nan, 0.01, 0.01], "the learning rate drops before checkpoint 4"),
        (0.1 * 0.9 ** np.arange(9), "the learning rate falls step by step, from 0.1 to 0.043"),  # not by the last bit
        ([0.1, 0.1, 0.1], ""),
        ([np.nan, np.nan], ""),
    ],
)
def test_drops_of_the_learning_rate_are_told_of_short_runs_and_over_gaps(rates, said):
    n = len(rates)
    arrays = {"step": np.arange(n), "loss": np.ones(n), "cosine": np.full(n, np.nan), "residual": np.zeros(n)}
    arrays |= {"x": np.zeros(n), "learning_rate": np.asarray(rates)}
    report = path_report(arrays | {"explained_variance_ratio": np.array([1.0])}, (0.8, 0.1))
    assert said in report and ("learning rate" in report) == bool(said)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"], [4, 8, 8]),  # of the step that stands in it
        (["checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors"], [500, 1000]),
        (["epoch=1-acc=0.71.ckpt", "epoch=2-acc=0.65.ckpt"], [1, 2]),
        (["init.pt", "epoch_3.pt"], [0, 3]),
        (["step_20.pt", "step_40.pt", "final.pt"], [20, 40, 41]),
        (["a.pt", "b.pt", "c.pt"], [0, 1, 2]),
    ],
)
def test_steps_are_those_of_the_run(tmp_path, names, steps):
    path = descent([1.0, 3.0], [1.0, 1.0], 0.3, len(names))
    for name, state in zip(names, path, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(state | ({"global_step": 8} if "ckpt" in name else {}), tmp_path / name)
    problem = quadratic([1.0, 3.0])
    problem.model.load_state_dict(path[-1])
    plane = lossmap.Plane(path[-1], ({"weight": torch.tensor([[1.0, 0.0]], dtype=torch.float64)},), ({},))
    assert project_run(plane, problem, [tmp_path / name for name in names], path)["step"].tolist() == steps
