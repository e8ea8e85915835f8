"""The map of eigenvalues against dense float64 Hessians at every point, and its ways of starting, stopping, failing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import lossmap
from lossmap.curvature.autotune import prepare
from lossmap.data.problem import Problem
from lossmap.geometry.directions import Plane, random_plane
from lossmap.geometry.grid import Grid
from lossmap.interrupt import Interrupted
from lossmap.io.methods import method_note
from lossmap.landscape import eigenvalues
from lossmap.landscape.audit import better
from lossmap.landscape.eigenvalues import EigenvalueMap, Neighbours, continued
from lossmap.landscape.run_survey import survey
from lossmap.linalg import solvers


class Solved:
    """A matrix known whole, with a loss."""

    def __init__(self, entries, loss=1.0):
        self.entries = torch.as_tensor(entries)
        self.size, self.dtype, self.device, self.value = len(entries), self.entries.dtype, torch.device("cpu"), loss

    def __matmul__(self, v):
        return self.entries @ v

    def loss(self):
        return self.value


class Places:
    """In place of a prepared problem: a function from the plane's tensors to a matrix."""

    def __init__(self, make):
        self.make, self.size = make, make(0.0).size

    def at(self, tensors):
        return self.make(float(tensors["w"][0]))


def line():
    return Plane({"w": torch.zeros(2)}, ({"w": torch.tensor([1.0, 0.0])},), ({},))


def small(activation=nn.Tanh, dtype=torch.float64, samples=40):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)).to(dtype)
    x, y = torch.randn(samples, 4, dtype=dtype), torch.randint(3, (samples,))
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.zero_grad()
    return Problem.supervised(net.eval(), "crossentropy", (x, y), batch_size=16)


def dense_ends(problem, tensors):
    """The twin, by another channel: torch.func in float64 and NumPy."""
    x, y = (t.double() if t.is_floating_point() else t for t in problem.data.tensors)
    state = {k: t.double() for k, t in tensors.items()}
    moving = [k for k, t in state.items() if t.dim() > 1]
    sizes = [state[k].numel() for k in moving]

    def loss(theta):
        parts = {k: p.view(state[k].shape) for k, p in zip(moving, theta.split(sizes), strict=True)}
        return nn.functional.cross_entropy(functional_call(problem.model, {**state, **parts}, (x,)), y)

    theta = torch.cat([state[k].reshape(-1) for k in moving])
    return np.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(theta).detach().numpy())


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-3), (torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("certify", ["audit", "each"])
def test_every_point_of_a_plane_is_within_its_bounds_of_the_dense_hessian(dtype, tol, certify):
    problem = small(dtype=dtype)
    plane, grid = random_plane(problem.model, seed=3), Grid.square(-2.0, 2.0, 5)
    measure = EigenvalueMap({"train": prepare(problem, backend="double-backward")}, plane, tol=tol, certify=certify)
    negative = 0
    for i in range(len(grid)):
        reading, truth = measure(grid.point(i)), dense_ends(problem, plane.at(grid.point(i)))
        scale = np.abs(truth).max()
        for end, value in (("max", truth[-1]), ("min", truth[0])):
            assert abs(reading[f"{end}_eig"] - value) <= 10 * tol * scale
            assert np.abs(truth - reading[f"{end}_eig"]).min() <= reading[f"{end}_eig_error"] <= tol * scale
        assert reading["min_eig_limit"] <= truth[0] and truth[-1] <= reading["max_eig_limit"]
        if certify == "each":
            assert reading["max_eig_limit"] - reading["max_eig"] <= 10 * tol * scale * 1.01
        negative += truth[0] < -0.01 * scale
    assert negative > 5  # far from the minimum


def test_a_map_of_a_relu_net_agrees_with_the_dense_hessian_by_every_solver():
    problem = small(nn.ReLU)
    plane = random_plane(problem.model, seed=1)
    for solver in ("lanczos", "eigsh"):
        measure = EigenvalueMap({"train": prepare(problem, backend="double-backward")}, plane, solver=solver, tol=1e-6)
        for point in ((0.0, 0.0), (0.5, -1.0), (0.6, -1.0), (0.7, -1.0)):
            truth = dense_ends(problem, plane.at(point))
            reading = measure(point)
            assert [reading["max_eig"], reading["min_eig"]] == pytest.approx(truth[[-1, 0]], abs=1e-5 * truth[-1])


def test_the_mean_squared_error_of_a_linear_net_has_the_eigenvalues_of_its_data():
    torch.manual_seed(1)
    x, y = torch.randn(30, 5).double(), torch.randn(30, 2).double()
    net = nn.Linear(5, 2, bias=False).double()
    measure = EigenvalueMap(
        {"train": prepare(Problem.supervised(net, "mse", (x, y)), backend="double-backward")},
        random_plane(net),
        tol=1e-9,
    )
    truth = torch.linalg.eigvalsh(2 / (30 * 2) * x.T @ x)
    reading = measure((0.3, 0.4))
    assert [reading["max_eig"], reading["min_eig"]] == pytest.approx([truth[-1].item(), truth[0].item()], rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("told", [{}, {"certify": "each"}, {"solver": "eigsh"}, {"tol": 1e-5}])
@pytest.mark.parametrize("outputs", [2, 3])
def test_several_outputs_give_every_eigenvalue_of_squared_errors_as_many_times(outputs, told, dtype):
    """The Hessian is one copy for each output of the inputs' second moments, the same at all points."""
    torch.manual_seed(0)
    net, x = nn.Linear(40, outputs).to(dtype), (torch.randn(300, 40) * torch.linspace(0.2, 3.0, 40)).to(dtype)
    problem = Problem.supervised(net, "mse", (x, torch.randn(300, outputs, dtype=dtype)))
    moments = torch.linalg.eigvalsh(2 / (300 * outputs) * x.double().T @ x.double()).numpy()
    truth = np.repeat(moments, outputs)
    made = prepare(problem, backend="double-backward")
    line = Plane(dict(net.state_dict()), random_plane(net, axes=1).axes, ({},))
    measure = EigenvalueMap({"train": made}, line, "top:4,bottom:4,abs:3", **told)
    tol = told.get("tol", 1e-3) * truth[-1] + 1e-5 * truth[-1]
    for t in (-0.5, 0.0, 0.5):
        reading = measure((t,))
        assert reading["top_eig"] == pytest.approx(truth[::-1][:4], abs=tol)
        assert reading["bottom_eig"] == pytest.approx(truth[:4], abs=tol)
        assert reading["abs_eig"] == pytest.approx(truth[::-1][:3], abs=tol)
        for name in ("top_eig", "bottom_eig", "abs_eig"):
            assert (np.abs(truth[:, None] - reading[name]).min(0) <= reading[f"{name}_error"]).all()
        if "solver" not in told:
            assert reading["max_eig_limit"] >= truth[-1] and reading["min_eig_limit"] <= truth[0]


def test_the_copies_of_a_neighbor_are_a_start_that_a_check_follows():
    entries = np.diag(np.r_[5.0, 5.0, 4.0, 4.0, np.linspace(-0.2, 0.3, 296)])
    measure = EigenvalueMap({"train": Places(lambda t: Solved(entries))}, line(), "top:3")
    readings = [measure((t,)) for t in (0.0, 0.1, 0.2)]
    for reading in readings:
        assert reading["top_eig"] == pytest.approx([5.0, 5.0, 4.0], abs=5e-3)
    assert max(r["products"] for r in readings[1:]) < 15 < readings[0]["products"]


@pytest.mark.parametrize("certify", ["each", "none", "audit"])
def test_points_that_an_earlier_version_read_without_all_copies_are_read_again(tmp_path, monkeypatch, certify, caplog):
    torch.manual_seed(0)
    net = nn.Linear(30, 2).double()
    x = torch.randn(60, 30).double()
    problem = Problem.supervised(net, "mse", (x, torch.randn(60, 2).double()))
    grid = Grid.line(-1, 1, 5)
    truth = np.repeat(torch.linalg.eigvalsh(x.T @ x / 60).numpy()[::-1][:2], 2)

    def measure():
        return EigenvalueMap(problem, random_plane(net, axes=1), "top:4", tol=1e-4, certify=certify)

    with monkeypatch.context() as earlier:
        for module in (solvers, eigenvalues):
            earlier.setattr(module, "has_places", lambda request: False)
        earlier.setattr(EigenvalueMap, "method", None)
        first = survey(measure(), grid, path=tmp_path / "e.h5", points=[0, 1])
    assert (np.abs(first["top_eig"][:2] - truth) > 10 * first["top_eig_error"][:2])[:, 1:].all()
    assert "; they are measured again when it goes on" in method_note(lossmap.read(tmp_path / "e.h5"))
    surface = survey(measure(), grid, path=tmp_path / "e.h5")
    assert method_note(surface) is None
    assert method_note(survey(measure(), grid, points=[0])) is None  # without a file
    assert "measured by an earlier version, which may have passed over copies of multiple eigenvalues" in caplog.text
    assert surface.outcome == "complete"
    assert (np.abs(surface["top_eig"] - truth) <= surface["top_eig_error"]).all()


def test_a_hessian_of_zeros_has_zero_ends():
    net = nn.Linear(3, 2).double()
    problem = Problem.custom(net, lambda model, batch: model(batch[0]).sum(), (torch.randn(8, 3).double(),))
    reading = EigenvalueMap({"train": prepare(problem, backend="double-backward")}, random_plane(net))((0.0, 1.0))
    assert {reading[f"{end}_eig{what}"] for end in ("max", "min") for what in ("", "_error", "_limit")} == {0.0}
    assert reading["products"] == 1.0


def test_where_the_loss_is_not_finite_the_point_is_done_and_unknown():
    measure = EigenvalueMap({"train": Places(lambda t: Solved(np.eye(3), loss=np.inf))}, line(), "ends,abs:2,trace")
    reading = measure((1.0,))
    assert reading["products"] == 0.0 and np.isnan(reading["max_eig"]) and np.isnan(reading["trace"])
    assert np.isnan(reading["abs_eig"]).all() and reading["abs_eig"].shape == (2,)


def test_a_product_that_is_not_finite_at_a_finite_loss_is_a_failure_of_the_point():
    measure = EigenvalueMap({"train": Places(lambda t: Solved(np.full((3, 3), np.nan)))}, line())
    with pytest.raises(FloatingPointError, match="product 1 is not finite"):
        measure((1.0,))


def rotating(t, n=80):
    """Eigenvectors that turn with t, and eigenvalues that change with it."""
    values = torch.linspace(-0.3, 0.3, n, dtype=torch.float64)
    values[0], values[-1] = -1.0 - 0.1 * t, 3.0 + t
    drawn = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / n**0.5
    turn = torch.linalg.matrix_exp(2.0 * t * (drawn - drawn.T))
    return Solved(turn @ torch.diag(values) @ turn.T)


def test_neighbors_save_products_and_a_straight_line_saves_more(monkeypatch):
    ticks = np.linspace(0.0, 2.0, 21)

    def spent(**told):
        measure = EigenvalueMap({"train": Places(rotating)}, line(), tol=1e-3, **told)
        readings = [measure((float(t),)) for t in ticks]
        assert [r["max_eig"] for r in readings] == pytest.approx(3.0 + ticks, abs=1e-3 * 5)
        return sum(r["products"] for r in readings)

    straight = spent()
    monkeypatch.setattr(eigenvalues, "MIN_COSINE", 2.0)
    beside = spent()
    assert straight < beside < spent(certify="each")


def test_the_continued_vector_follows_the_turn_whatever_the_sign():
    angles = torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64)
    a, b, c = torch.stack([angles.cos(), angles.sin()], 0).unbind(1)
    for sign in (1.0, -1.0):
        ahead = continued(b[:, None], sign * a[:, None])[:, 0]
        assert float(ahead @ c) > 0.9995 and float(ahead.norm()) == pytest.approx(1.0)
    across = continued(torch.eye(2)[:, :1], torch.eye(2)[:, 1:])
    assert torch.equal(across, torch.eye(2)[:, :1])  # a crossing: the nearest is taken as it is


def test_the_nearest_point_is_measured_in_theta_and_the_memory_is_bounded():
    plane = Plane({"w": torch.zeros(2)}, ({"w": torch.tensor([10.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}), ({}, {}))
    neighbours = Neighbours(plane, memory=0)
    assert neighbours.start((0.0, 0.0)) is None
    one, two = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    neighbours.add((0.5, 0.0), one)
    neighbours.add((0.0, 2.0), two)
    assert torch.equal(neighbours.start((0.0, 0.0)), two)
    neighbours.add((9.0, 9.0), torch.full((2, 1), torch.nan))
    for t in range(5):
        neighbours.add((float(t), 7.0), one)
    assert list(neighbours.points) == [(2.0, 7.0), (3.0, 7.0), (4.0, 7.0)]


def test_what_else_may_be_read_stands_in_fields_of_its_own():
    entries = np.diag([5.0, 4.0, -3.0, 1.0, 0.5])
    measure = EigenvalueMap(
        {"train": Places(lambda t: Solved(entries)), "test": Places(lambda t: Solved(2 * entries))},
        line(),
        "top:2,bottom:1,abs:3,trace",
        tol=1e-9,
    )
    reading = measure((0.0,))
    assert set(reading) == {f.name for f in measure.fields}
    assert reading["top_eig"] == pytest.approx([5, 4]) and reading["max_eig"] == pytest.approx(5)
    assert reading["bottom_eig"] == pytest.approx([-3]) and reading["min_eig"] == pytest.approx(-3)
    assert reading["test_abs_eig"] == pytest.approx([10, 8, -6])
    assert reading["test_trace"] == pytest.approx(15.0) and reading["trace_error"] < 1e-10
    assert reading["products"] > 10
    assert {f.extra for f in measure.fields if f.name == "top_eig"} == {("top", 2)}
    assert {f.unit for f in measure.fields} == {"1", "nats per squared unit of theta"}


def test_an_interrupted_point_resumes_to_the_same_reading():
    splits = {"train": Places(rotating), "test": Places(lambda t: rotating(t + 1))}
    whole = EigenvalueMap(splits, line(), "top:3,trace", tol=1e-6)
    wanted = whole((0.5,))
    for after in (0, 5, 12, 20):
        asked = iter([False] * after + [True] + [False] * 1000)
        measure = EigenvalueMap(splits, line(), "top:3,trace", tol=1e-6, stop=lambda asked=asked: next(asked))
        with pytest.raises(Interrupted) as left:
            measure((0.5,))
        assert all(isinstance(v, (int, float, np.ndarray, bool)) for v in left.value.state.values())
        resumed = EigenvalueMap(splits, line(), "top:3,trace", tol=1e-6).resume((0.5,), left.value.state)
        assert {k: np.asarray(v).tolist() for k, v in resumed.items()} == {
            k: np.asarray(v).tolist() for k, v in wanted.items()
        }


def test_the_second_look_has_names_of_its_own_and_does_not_see_the_neighbors():
    told = {"tol": 1e-2, "solver": "eigsh", "settings": {"data": "x"}}
    cheap, cold = (EigenvalueMap({"train": Places(rotating)}, line(), audit=a, **told) for a in (False, True))
    assert (cheap.name, cold.name, cold.settings["solver"]) == ("eigen", "audit", "lanczos")
    assert cheap.auditable and not cold.auditable
    assert not EigenvalueMap({"train": Places(rotating)}, line(), "trace").auditable
    assert cheap.settings["data"] == "x" and cheap.settings["start"] == "neighbour"
    first = cold((0.5,))
    for t in (0.6, 0.7):
        cold((t,))
    assert cold((0.5,)) == first
    assert set(first) == {f"audit_{f.name}" for f in cheap.fields}
    assert first["audit_max_eig_limit"] - first["audit_max_eig"] <= 0.1 * 3.5


def test_a_point_left_among_copies_resumes_to_the_same_reading_with_its_neighbors():
    entries = np.diag(np.r_[5.0, 5.0, 4.0, 4.0, -3.0, np.linspace(-0.2, 0.3, 95)])
    places, which = {"train": Places(lambda t: Solved(entries))}, "top:3,abs:5"
    wanted = EigenvalueMap(places, line(), which)((0.5,))
    for after in range(0, int(wanted["products"]) - 20, 6):
        asked = iter([False] * after + [True] + [False] * 1000)
        with pytest.raises(Interrupted) as left:
            EigenvalueMap(places, line(), which, stop=lambda asked=asked: next(asked))((0.5,))
        assert all(isinstance(v, (int, float, np.ndarray, bool)) for v in left.value.state.values())
        resumed = EigenvalueMap(places, line(), which).resume((0.5,), left.value.state)
        assert {k: np.asarray(v).tolist() for k, v in resumed.items()} == {
            k: np.asarray(v).tolist() for k, v in wanted.items()
        }


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"certify": "some"}, "--certify must be one of audit, each, none; got 'some'"),
        ({"which": "ends,top:3"}, "--which names the same eigenvalues twice: 'ends,top:3'; top:k and bottom:k hold"),
        ({"which": "top:3,top:2"}, "--which names the same eigenvalues twice"),
        ({"which": "top"}, "--which must be ends, top:k, bottom:k or abs:k, e.g. top:5; got 'top'"),
    ],
)
def test_invalid_arguments_are_refused(told, text):
    with pytest.raises(ValueError, match=text):
        EigenvalueMap({"train": Places(rotating)}, line(), **told)


class Scarce:
    """A problem made ready on a machine whose memory bears so many samples at a time."""

    def __init__(self, prepared, room):
        self.prepared, self.room = prepared, room

    @property
    def size(self):
        return self.prepared.size

    @property
    def batch(self):
        return self.prepared.batch

    def at(self, tensors):
        if self.batch > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.prepared.at(tensors)

    def smaller(self):
        less = self.prepared.smaller()
        return None if less is None else Scarce(less, self.room)


@pytest.mark.parametrize("backend", ["linearized", "retained-graph", "double-backward"])
def test_where_memory_runs_out_the_products_are_cut_smaller_and_the_eigenvalues_stay(backend):
    problem = small()
    plane, grid = random_plane(problem.model, seed=3), Grid.line(-1.0, 1.0, 4)
    plane = Plane(plane.origin, plane.axes[:1], plane.recipes[:1])
    ample = survey(EigenvalueMap({"train": prepare(problem, backend=backend)}, plane, tol=1e-8), grid)
    tight = survey(EigenvalueMap({"train": Scarce(prepare(problem, backend=backend), 5)}, plane, tol=1e-8), grid)
    assert tight.outcome == "complete"
    for name in ("max_eig", "min_eig"):
        assert tight[name] == pytest.approx(ample[name], rel=1e-6)
    notes = tight.attributes["eigen_notes"].splitlines()
    assert "CUDA out of memory" in notes[0] and "half the memory for what is kept" in notes[0]
    batches = [int(note.partition("batches of ")[2].split()[0]) for note in notes]
    assert batches[-1] <= 5 and all(b == a // 2 for a, b in pairwise(batches))


def test_where_nothing_is_left_to_give_up_the_point_fails_for_lack_of_memory():
    problem = small()
    plane = random_plane(problem.model)
    surface = survey(EigenvalueMap({"train": Scarce(prepare(problem), 0)}, plane), Grid.square(count=1))
    assert surface.failures[0].reason.startswith("torch.OutOfMemoryError: CUDA out of memory")


def test_what_was_kept_of_other_points_is_let_go_when_memory_runs_out():
    problem = small()
    measure = EigenvalueMap(
        {"train": prepare(problem, backend="double-backward")}, random_plane(problem.model), memory=1 << 20
    )
    measure((0.1, 0.2))
    (solved,) = measure._solved.values()
    assert solved.start((0.1, 0.3)) is not None
    assert "half the memory" in measure.smaller()
    assert solved.start((0.1, 0.3)) is None and solved.memory == measure.memory == 1 << 19


def test_less_memory_keeps_fewer_values_and_at_last_none():
    prepared = prepare(small(), backend="linearized", memory=1000)
    steps = []
    while (prepared := prepared.smaller()) is not None:
        steps.append((prepared.batch, prepared.memory))
    assert steps[-1] == (1, 0) and steps[-2][0] == 1 and steps[-2][1] > 0


def test_a_point_without_a_neighbor_goes_on_until_its_limits_are_near():
    """The smallest eigenvalue lies close to a dense bulk, which a short search takes for the end."""
    tol, n = 1e-2, 400
    values = np.r_[np.linspace(-0.02, 0.1, n - 2), -0.2, 1.0]
    for seed in range(10):
        measure = EigenvalueMap({"train": Places(lambda t: Solved(np.diag(values)))}, line(), tol=tol, seed=seed)
        first = measure((0.0,))
        assert first["max_eig_limit"] - first["max_eig"] <= 10.01 * tol
        assert first["min_eig"] - first["min_eig_limit"] <= 10.01 * tol
        assert measure((0.1,))["products"] <= first["products"]


def test_an_interrupted_point_without_a_neighbor_resumes_to_the_same_reading():
    places = {"train": Places(rotating)}
    truth = EigenvalueMap(places, line(), tol=1e-6)((0.5,))
    asked = iter([False] * 7 + [True] * 100)
    with pytest.raises(Interrupted) as left:
        EigenvalueMap(places, line(), tol=1e-6, stop=lambda: next(asked))((0.5,))
    assert left.value.state["space:certify"] == 1
    resumed = EigenvalueMap(places, line(), tol=1e-6)
    resumed((0.4,))  # a neighbor now, which the interrupted search did not have
    assert resumed.resume((0.5,), left.value.state) == truth


@pytest.mark.parametrize("certify", ["audit", "each"])
def test_the_map_says_where_rounding_was_measured(certify):
    """In float32: at audited points always, and where what the plan has seen could be a part of the bars."""
    problem = small(dtype=torch.float32)
    plane = random_plane(problem.model, axes=1, seed=0)
    factory = prepare(problem)
    cheap = EigenvalueMap({"train": factory}, plane, certify=certify)((0.25,))
    again = EigenvalueMap({"train": factory}, plane, audit=True)((0.25,))
    assert cheap["eigen_rounding_measured"] in (0.0, 1.0) and again["audit_eigen_rounding_measured"] == 1.0
    assert 0.0 < cheap["eigen_rounding"] <= cheap["max_eig_error"]
    further = {n.removeprefix("audit_"): v for n, v in again.items()}
    further |= {"max_eig": 2 * cheap["max_eig"], "min_eig": 0.5 * cheap["min_eig"]}
    assert better(cheap, further)["eigen_rounding"] >= cheap["eigen_rounding"]
    further["min_eig"] = 2 * cheap["min_eig"]
    assert better(cheap, further)["eigen_rounding_measured"] == 1.0


def test_a_map_of_an_earlier_version_is_read_with_unknown_roundings():
    problem = small()
    measure = EigenvalueMap({"train": prepare(problem)}, random_plane(problem.model, axes=1, seed=0), "top:2,bottom:1")
    reading = measure((0.0,))
    assert reading["eigen_rounding_measured"] == 0.0  # float64 has no twin of higher precision
    old = {n: np.atleast_1d(v) for n, v in reading.items() if "rounding" not in n}
    upgraded = measure.upgraded(3, old)
    assert list(upgraded) == list(reading) and np.isnan(upgraded["eigen_rounding"])
    assert np.array_equal(upgraded["top_eig"], reading["top_eig"]) and upgraded["max_eig"] == reading["max_eig"]


def fitted(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    return Problem.supervised(net, "crossentropy", (torch.randn(40, 4, dtype=dtype), torch.arange(40) % 3))


def test_an_exact_trace_of_a_small_map_is_that_of_the_dense_hessian_in_float64():
    problem = fitted()
    plane = random_plane(problem.model, axes=1, seed=1)
    reading = EigenvalueMap(problem, plane, "trace")((0.7,))
    state = {k: t.double() for k, t in plane.at((0.7,)).items()}
    weights = [k for k, t in state.items() if t.dim() > 1]
    (batch,) = list(problem.data.rebatched(40))
    x, y = (t.double() if t.is_floating_point() else t for t in batch)

    def loss(*tensors):
        there = state | dict(zip(weights, tensors, strict=True))
        return nn.functional.cross_entropy(functional_call(problem.model, there, x), y)

    blocks = torch.autograd.functional.hessian(loss, tuple(state[k] for k in weights))
    dense = sum(float(blocks[i][i].reshape(state[k].numel(), -1).trace()) for i, k in enumerate(weights))
    assert reading["trace"] == pytest.approx(dense, rel=1e-12)
    assert abs(reading["trace"] - dense) <= 2 * reading["trace_error"] + 1e-14 * abs(dense)


def test_a_hessian_that_is_zero_but_for_rounding_is_so_within_its_bars():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5, elementwise_affine=False))
    problem = Problem.supervised(net, lambda o, _: o.sum(1).mean(), (torch.randn(40, 6), torch.zeros(40)))
    measure = EigenvalueMap(problem, random_plane(net, axes=1, seed=1), "ends,trace", tol=1e-3)
    for point in (0.0, 0.5):
        reading = measure((point,))
        for name in ("max_eig", "min_eig", "trace"):  # the outputs' sum is 0 whatever the weights
            assert abs(reading[name]) <= reading[f"{name}_error"] < 1e-5


def test_rounding_that_is_not_looked_at_counts_ten_times_in_bars_and_limits():
    problem = fitted()
    plane = random_plane(problem.model, axes=1, seed=1)
    factory = prepare(problem, backend="double-backward")
    readings = []
    for ratio in (0.0, 1e-7):
        planned = replace(factory, plan=replace(factory.plan, rounding=(0.0, ratio)))
        readings.append(EigenvalueMap({"train": planned}, plane, tol=1e-2, certify="none")((0.7,)))
    without, with_it = readings
    more = 10 * 1e-7 * max(abs(without["max_eig"]), abs(without["min_eig"]))
    assert with_it["eigen_rounding_measured"] == 0.0
    assert with_it["max_eig_error"] - without["max_eig_error"] == pytest.approx(more, rel=0.05)
    assert with_it["max_eig_limit"] - without["max_eig_limit"] == pytest.approx(more, rel=0.05)
    assert without["min_eig_limit"] - with_it["min_eig_limit"] == pytest.approx(more, rel=0.05)


class WrongFarAway(torch.autograd.Function):
    """Half the square of w, whose gradient forgets that it depends on w where w is long."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        ctx.slope = w * 1.0
        return 0.5 * w**2

    @staticmethod
    def backward(ctx, g):
        (w,) = ctx.saved_tensors
        return g * torch.where(w.norm() > 5.0, ctx.slope, w)


def test_a_survey_checks_products_at_the_far_corner_of_its_grid(tmp_path):
    class Well(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[0.5, -0.5]]))

        def forward(self, x):
            return x * WrongFarAway.apply(self.w).sum()

    well = Well()
    problem = Problem.custom(well, lambda m, b: m(b).mean(), torch.ones(4, 1))
    plane = Plane({"w": well.w.detach().clone()}, ({"w": torch.tensor([[1.0, 0.0]])},), ({},))
    measure = EigenvalueMap(problem, plane, backend="double-backward", certify="none")
    assert measure((8.0,))["max_eig"] == pytest.approx(0.0, abs=1e-6)  # what is wrong there, and not looked at
    grid = Grid.line(-2, 8, 6)
    surface = survey(measure, grid, path=tmp_path / "line.h5", progress=False)
    assert surface["max_eig"] == pytest.approx(np.ones(6), rel=1e-5)
    assert surface["min_eig"] == pytest.approx(np.ones(6), rel=1e-5)
    again = survey(measure, grid, path=tmp_path / "line.h5", progress=False)  # the same check, the same settings
    assert again.outcome == "complete" and again["max_eig"] == pytest.approx(surface["max_eig"], rel=0)


@pytest.mark.parametrize(("outlier", "speaks"), [(1.0, True), (100.0, False)])
def test_few_samples_without_the_curvature_of_all_do_not_speak_for_its_rounding(outlier, speaks):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 1, bias=False), torch.randn(300, 5)
    x[-1] *= outlier  # in which nearly all of the curvature lies; the few samples are the first 18
    factory = prepare(Problem.supervised(net, "mse", (x, torch.randn(300, 1))), backend="double-backward")
    operator = factory.at()
    pairs = eigenvalues.extremes(operator, "top:1", seed="few")
    assert pairs.values[0] == pytest.approx(2 / 300 * float(torch.linalg.eigvalsh((x.T @ x).double())[-1]), rel=1e-3)
    assert np.isfinite(eigenvalues.rounding_of(operator, pairs)) == speaks


def test_rounding_is_looked_for_over_all_of_not_many_samples():
    factory = prepare(small(dtype=torch.float32, samples=100), backend="double-backward")
    assert factory.few(False).problem.samples == 100
    many = prepare(small(dtype=torch.float32, samples=400), backend="double-backward")
    assert many.few(False).problem.samples == 25
