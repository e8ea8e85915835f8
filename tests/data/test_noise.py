"""Losses that draw at random: fixed realisations, their mean and standard error, the same in every precision."""

import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lossmap import Grid, Problem, losses, random_plane, survey
from lossmap.cli import eigenmap, surface
from lossmap.curvature.autotune import prepare, realization_factories
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data.batches import FixedBatches
from lossmap.data.loss_check import check_loss
from lossmap.data.noise import batch_seed, fixed_noise, mean_over, realizations
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.plotting.figures import draw

USER_FILE = """
import torch
from torch import nn
from lossmap import Problem

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mean, log_variance = self.encode(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decode(code), mean, log_variance

def loss(model, batch):
    output, mean, log_variance = model(batch[0])
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return ((output - batch[0]).square().sum(1) + divergence).mean()

def problem():
    torch.manual_seed(0)
    return Problem.custom(Encoder().eval(), loss, [(torch.randn(20, 6),) for _ in range(2)])
"""


@pytest.fixture(scope="module")
def user():
    scope = {}
    exec(USER_FILE, scope)  # a user's own file
    return scope


@pytest.fixture
def problem(user):
    return check_loss(user["problem"](), report=False)


def own_value(problem, realization, weights):
    """The mean loss with these weights and this seed, by plain PyTorch."""
    total = 0.0
    for batch in problem.data:
        with fixed_noise(batch_seed(realization.noise_seed, batch)):
            total += 20 * problem.loss(realization.forward.function(weights, batch), batch)
    return total / 40


def test_the_mean_and_its_standard_error_are_those_of_the_realisations(user, problem):
    plane = random_plane(problem.model, axes=1)
    single = [losses(p, plane, plan={"batch_size": 9})((0.5,))["train_loss"] for p in realizations(problem, 5)]
    assert len(set(single)) == 5
    reading = losses(problem, plane, plan={"batch_size": 9}, noise_repeats=5)((0.5,))
    assert reading["train_loss"] == pytest.approx(np.mean(single), rel=1e-12)
    assert reading["train_loss_error"] == pytest.approx(np.std(single, ddof=1) / np.sqrt(5), rel=1e-9)
    assert losses(problem, plane, plan={"batch_size": 9})((0.5,))["train_loss"] == single[0]


class Noise(nn.Module):
    """A number for every sample, drawn by the model; another is drawn by `noisy`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        return self.weight * torch.randn_like(x)


def noisy(outputs, targets):
    """The mean of both numbers."""
    return (outputs + torch.randn_like(outputs)).mean()


@pytest.mark.parametrize("content", [torch.zeros, torch.randn])
def test_every_batch_has_numbers_of_its_own_and_so_has_the_loss(content):
    """Of equal batches too, whose numbers were the same: a mean over eight of them had the noise of one."""
    batches = [(content(8, 1), torch.zeros(8, 1)) for _ in range(8)]
    problem = check_loss(Problem.supervised(Noise(), noisy, batches), report=False)
    plane = random_plane(problem.model, axes=1)
    with torch.no_grad():
        outputs = torch.stack([problem.forward(problem.model, batch) for batch in problem.data])
        means = torch.stack([problem.loss(o, batch) / 8 for o, batch in zip(outputs, problem.data, strict=True)])
    assert len(set(outputs.flatten().tolist())) == 64
    assert len({round(float(m - o.mean()), 5) for m, o in zip(means, outputs, strict=True)}) == 8
    assert not torch.allclose(means, 2 * outputs.mean((1, 2)))  # the loss repeats none of the model's numbers
    value = losses(problem, plane, plan={"batch_size": 8})((0.0,))["train_loss"]
    assert value == pytest.approx(float(means.mean()), abs=1e-6)
    reading = losses(problem, plane, plan={"batch_size": 8}, noise_repeats=40)((0.0,))
    spread = reading["train_loss_error"] * np.sqrt(40)
    assert spread == pytest.approx(np.sqrt(2 / 64), rel=0.35)  # that of one batch is sqrt(2 / 8), 2.8 times as much


def test_a_batchs_numbers_depend_on_no_share_copy_or_precision(problem):
    own = [float(problem.total(batch).detach()) for batch in problem.data]
    assert own[0] != own[1]
    shared = [float(part.total(next(iter(part.data))).detach()) for part in (problem.share(r, 2) for r in (0, 1))]
    copied = [float(problem.total(b).detach()) for b in pickle.loads(pickle.dumps(problem.data))]
    moved = [float(problem.total(b).detach()) for b in problem.data.to(dtype=torch.float64).to(dtype=torch.float32)]
    assert shared == copied == moved == own
    fresh = replace(problem, data=FixedBatches(tuple(reversed(problem.data.batches))), checked=False)
    turned = check_loss(fresh, report=False)
    assert [float(turned.total(b).detach()) for b in turned.data] == own[::-1]


def test_the_error_is_that_of_other_seeds_too(user):
    errors, means = [], []
    for seed in range(12):
        measured = check_loss(user["problem"](), seed=100 + seed, report=False)
        reading = losses(measured, random_plane(measured.model, axes=1), plan={"batch_size": 20}, noise_repeats=4)((0,))
        means.append(reading["train_loss"])
        errors.append(reading["train_loss_error"])
    assert 0.4 < np.std(means, ddof=1) / np.sqrt(np.mean(np.square(errors))) < 2.0


def test_the_hessian_of_the_mean_and_the_error_of_its_eigenvalues(problem):
    single = realizations(problem, 4)
    factory = prepare(mean_over(single), backend="double-backward")
    plane = random_plane(problem.model, axes=1)
    measure = EigenvalueMap(
        {"train": factory}, plane, "top:2,bottom:1", realizations={"train": realization_factories(factory, single)}
    )
    reading = measure((0.3,))
    eye = torch.eye(factory.size)
    matrices = [prepare(p, backend="double-backward").at(plane.at((0.3,))) @ eye for p in single]
    values, vectors = torch.linalg.eigh(torch.stack(matrices).mean(0).double())
    assert reading["top_eig"] == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-4)
    for vector, error in (
        (vectors[:, -1], reading["max_eig_noise_error"]),
        (vectors[:, 0], reading["min_eig_noise_error"]),
    ):
        each = [float(vector @ m.double() @ vector) for m in matrices]
        assert error == pytest.approx(np.std(each, ddof=1) / 2, rel=2e-2)
    assert reading["top_eig_noise_error"][0] == reading["max_eig_noise_error"]
    assert {f.name for f in measure.fields} == set(reading)


def test_rounding_is_measured_on_the_same_realisation(problem):
    """PyTorch draws other numbers in float64: the bar of a VAE was a quarter of its eigenvalue."""
    operator = prepare(problem, backend="double-backward").at(measured=True)
    assert 0 < operator.measured.relative < 1e-4


@pytest.mark.parametrize(
    "draw",
    [
        torch.randn_like,
        torch.rand_like,
        lambda x: torch.bernoulli(x),
        lambda x: torch.normal(x, 0.5 * x),
        lambda x: torch.normal(0.0, x),
        lambda x: torch.normal(mean=0.0, std=x),
        lambda x: torch.normal(mean=x, std=x),
        lambda x: torch.normal(0.0, 1.0, (4, 10), dtype=x.dtype),
        lambda x: torch.empty_like(x).normal_(),
        lambda x: torch.empty_like(x).uniform_(-1, 1),
        lambda x: torch.randn(4, 10, dtype=x.dtype),
        lambda x: F.dropout(torch.ones_like(x), 0.5),
        lambda x: torch.distributions.Normal(0 * x, 1 + 0 * x).rsample(),
        lambda x: torch.distributions.Bernoulli(x).sample(),
    ],
)
def test_all_precisions_draw_the_same_numbers(draw):
    x = torch.arange(1, 41).view(4, 10) / 64  # exact in all of them
    drawn = []
    for dtype in (torch.float32, torch.float64):
        with fixed_noise(3):
            drawn.append(draw(x.to(dtype)))
    assert drawn[0].dtype == torch.float32 and drawn[1].dtype == torch.float64
    torch.testing.assert_close(drawn[0].double(), drawn[1], rtol=1e-6, atol=1e-6)
    with fixed_noise(4):
        assert not torch.equal(draw(x), drawn[0])


def test_integers_and_generators_of_ones_own_are_left_alone():
    with fixed_noise(0):
        assert torch.randint(0, 9, (3,)).dtype == torch.int64 and torch.randperm(4).dtype == torch.int64
        own = torch.randn(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(own, torch.randn(20, generator=torch.Generator().manual_seed(1)))


def test_a_loss_that_draws_nothing_has_no_realisations():
    net = nn.Linear(3, 2)
    problem = Problem.supervised(net, "crossentropy", (torch.randn(8, 3), torch.randint(0, 2, (8,))))
    with pytest.raises(ValueError, match="is for a loss that draws at random"):
        losses(problem, random_plane(net, axes=1), noise_repeats=3)
    with pytest.raises(ValueError, match="must be >= 2"):
        realizations(problem, 1)


@pytest.mark.parametrize("command", [surface, eigenmap])
def test_the_command_stores_resumes_and_reports_the_error(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(USER_FILE)
    common = ["--problem", "own.py:problem", "--x=-1:1:3", "--threads", "1"]
    full = [*common, "--noise-repeats", "3", "--surf-file", "full.h5"]
    field, error = "train_loss", "train_loss_error"
    if command is eigenmap:
        field, error = "max_eig", "max_eig_noise_error"
    options = ["--certify", "each", "--no-probe"] if command is eigenmap else ["--no-probe"]
    assert command.main([*full, *options, "--plot"]) == 0
    assert f"largest standard error over 3 realisations of the noise: {field}" in capsys.readouterr().out
    for i in (1, 2):
        command.main([*common, *options, "--noise-repeats", "3", "--surf-file", "part.h5", "--shard", f"{i}/2"])
    shards = sorted(tmp_path.glob("part*.h5"))
    with h5py.File("full.h5") as whole:
        assert "standard error" in whole[error].attrs["long_name"]
        assert (whole[error][...] > 0).all()
        for name in (field, error):
            parts = np.nansum([h5py.File(s)[name][...] for s in shards], axis=0)
            assert np.array_equal(parts, whole[name][...])
    draw("full.h5")
    capsys.readouterr()
    assert command.main([*common, *options, "--surf-file", "full.h5"]) == 2  # another measure
    assert "noise_repeats" in capsys.readouterr().err


def test_survey_takes_the_errors_along(problem):
    result = survey(
        losses(problem, random_plane(problem.model, axes=1), plan={"batch_size": 20}, noise_repeats=2),
        Grid.line(-1, 1, 3),
    )
    assert (result["train_loss_error"] > 0).all()


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 4), nn.Linear(2, 8)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(z), mean, log_variance


def evidence(reduce):
    def loss(model, x):
        decoded, mean, log_variance = model(x)
        each = (decoded - x).square().sum(1) - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return reduce(each)

    return loss


@pytest.mark.parametrize("data", ["tensors", "loader", "given"])
def test_a_sum_that_draws_at_random_is_divided_by_the_samples(data):
    """The loss of a variational autoencoder, as PyTorch's example has it."""
    torch.manual_seed(0)
    x, model = torch.randn(60, 8), Autoencoder()
    given = {"tensors": x, "loader": DataLoader(x, 20), "given": [x[:20], x[20:40], x[40:]]}[data]
    found = []
    for reduce, reduction in ((torch.sum, "mean"), (torch.mean, "mean"), (torch.sum, "sum")):
        problem = check_loss(Problem.custom(model, evidence(reduce), given, reduction=reduction))
        found.append(loss_and_gradient(problem).loss)
        assert any("divided by the samples" in note for note in problem.notes) == (
            reduce is torch.sum and reduction == "mean"
        )
    assert found == pytest.approx(3 * [found[1]], rel=1e-5)


@pytest.mark.parametrize("of", [torch.mean, torch.sum])
def test_a_declared_sum_that_draws_stays_one_and_where_parts_do_not_show_it_that_is_said(of):
    torch.manual_seed(0)

    def loss(net, batch):
        return of(F.cross_entropy(net(batch[0]) + 0.1 * torch.randn(len(batch[0]), 3), batch[1], reduction="none"))

    x, y, net = torch.randn(40, 4), torch.arange(40) % 3, nn.Linear(4, 3)
    checked = check_loss(Problem.custom(net, loss, (x, y), reduction="sum"), report=False)
    assert any("as reduction='sum' says" in note for note in checked.notes) == (of is torch.mean)
    expected = F.cross_entropy(net(x), y).item() / (40 if of is torch.mean else 1)
    assert loss_and_gradient(checked).loss == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_draws_without_effect_say_nothing_against_a_mean_or_a_declared_sum(reduction):
    torch.manual_seed(0)
    of = getattr(torch, reduction)

    def loss(net, batch):
        return of(F.cross_entropy(net(batch[0]), batch[1], reduction="none")) * (1 + 0 * torch.rand(()))

    data = torch.randn(40, 4), torch.arange(40) % 3
    checked = check_loss(Problem.custom(nn.Linear(4, 3), loss, data, reduction=reduction), report=False)
    assert not any("do not show" in note for note in checked.notes)


def test_the_declaration_of_a_loss_that_writes_into_its_batch_is_known():
    torch.manual_seed(0)

    def loss(net, batch):
        batch[0].mul_(2.0)
        return F.cross_entropy(net(batch[0]) + 0.1 * torch.randn(len(batch[0]), 3), batch[1])

    data = torch.randn(40, 4), torch.arange(40) % 3
    notes = check_loss(Problem.custom(nn.Linear(4, 3), loss, data, reduction="sum"), report=False).notes
    assert any("as reduction='sum' says" in note for note in notes)
    assert not any("taken for a mean" in note for note in notes)


def test_an_evidence_lower_bound_whose_weights_are_drawn_once_is_the_sum_that_it_is_said_to_be():
    torch.manual_seed(0)
    x, net = torch.randn(16, 3), nn.Linear(3, 1, bias=False)
    y = x @ net.weight.detach().T + 0.1 * torch.randn(16, 1)

    def loss(net, batch):
        drawn = net.weight + 0.3 * torch.randn(1, 3)
        return 0.5 * (batch[0] @ drawn.T - batch[1]).square().sum() + net.weight.square().sum()

    checked = check_loss(Problem.custom(net, loss, (x, y), reduction="sum"), report=False)
    assert loss_and_gradient(checked).loss < 1.0  # 16 times that of a mean


def test_a_loss_that_draws_and_is_neither_a_sum_nor_a_mean_of_parts_is_said_to_be_none():
    """A sum and a penalty: its mean over batches depends on their size."""
    torch.manual_seed(0)
    x, model = torch.randn(32, 4), nn.Linear(4, 4)

    def loss(net, batch):
        each = (net(batch) + torch.randn(len(batch), 4) - batch).square().sum()
        return each + 50 * net.weight.square().sum()

    for size in (8, 32):
        checked = check_loss(Problem.custom(model, loss, x, batch_size=size), report=False)
        assert any("parts of a batch do not show" in note for note in checked.notes)


@pytest.mark.parametrize("noise", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_a_sum_is_told_from_a_mean_though_their_draws_differ_much(reduce, noise):
    for seed in range(4):
        torch.manual_seed(seed)
        x, model = torch.randn(16, 4), nn.Linear(4, 1)
        problem = Problem.custom(model, lambda m, b: reduce((m(b) + noise * torch.randn(len(b), 1)).square()), x)
        notes = check_loss(problem).notes
        assert any("divided by the samples" in note for note in notes) == (reduce is torch.sum)


def contrastive(model, x):
    """InfoNCE of two noisy views of each sample, the others of the batch as negatives."""
    one, other = (F.normalize(model(x + 0.05 * torch.randn_like(x)), dim=1) for _ in range(2))
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(x)))


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("steps", [0, 300])
def test_a_contrastive_loss_of_random_views_is_no_sum(size, steps):
    """It grows with a batch: of a trained network by its negatives, of another by their logarithm."""
    torch.manual_seed(0)
    x, model = torch.randn(3 * size, 6), nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        contrastive(model, x[torch.randperm(len(x))[:size]]).backward()
        optimizer.step()
    checked = check_loss(Problem.custom(model, contrastive, DataLoader(x, size)), report=False)
    with torch.no_grad():
        draws = [float(contrastive(model, batch)) for batch in x.split(size) for _ in range(50)]
    assert loss_and_gradient(checked).loss == pytest.approx(np.mean(draws), rel=0.3)
    assert not any("is divided by" in note for note in checked.notes)


class Contrastive(nn.Module):
    """The same as a module of somebody's own, summed over the batch."""

    def forward(self, outputs, _):
        one, other = (F.normalize(outputs + 0.05 * torch.randn_like(outputs), dim=1) for _ in range(2))
        return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)), reduction="sum")


def test_a_drawing_module_of_ones_own_is_named_where_parts_do_not_show_what_it_is():
    torch.manual_seed(0)
    x, model = torch.randn(24, 6), nn.Linear(6, 4)
    for loss in (Contrastive(), Contrastive().forward):
        checked = check_loss(Problem.supervised(model, loss, (x, torch.zeros(24)), batch_size=8), report=False)
        assert any("parts of a batch do not show whether the loss" in note for note in checked.notes)


class Graph:
    def __init__(self, x, y, owner):
        self.x, self.y, self.owner = x, y, owner


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, graph):
        nodes = F.dropout(self.layer(graph.x), 0.3)
        return nodes.new_zeros(len(graph.y), 2).index_add(0, graph.owner, nodes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_that_draws_and_has_no_parts_is_said_to_be_taken_for_a_mean(reduction):
    torch.manual_seed(0)
    owners = [torch.arange(graphs).repeat_interleave(3) for graphs in (5, 5, 3)]
    batches = [Graph(torch.randn(len(o), 3), torch.arange(len(o) // 3) % 2, o) for o in owners]
    problem = Problem.custom(
        GraphNet(), lambda m, g: F.cross_entropy(m(g), g.y, reduction="sum"), batches, reduction=reduction
    )
    told = [
        note for note in check_loss(problem, report=False).notes if "where it is a sum, take reduction='sum'" in note
    ]
    assert len(told) == (reduction == "mean")


def test_a_sum_that_draws_is_found_in_sequences_with_the_time_first_and_as_many_steps_as_samples():
    torch.manual_seed(0)
    x, y, layer = torch.randn(21, 7, 4), torch.randn(21, 3), nn.LSTM(4, 3)

    def loss(model, batch):
        outputs, _ = model(batch[0])
        return (F.dropout(outputs[-1], 0.3) - batch[1]).square().sum()

    loader = DataLoader(range(21), 7, collate_fn=lambda rows: (x[rows].transpose(0, 1), y[rows]))
    found = [
        loss_and_gradient(check_loss(Problem.custom(layer, loss, loader, reduction=reduction), report=False)).loss
        for reduction in ("mean", "sum")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
