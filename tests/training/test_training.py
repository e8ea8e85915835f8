"""The trainer: the same bits after an interruption, exact steps, checkpoints that other programs read."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from lossmap import zoo
from lossmap.data.batches import Resident, Streamed
from lossmap.data.checkpoints import checkpoints_in, load_into, load_state
from lossmap.data.datasets import load
from lossmap.data.problem import Problem
from lossmap.training import Recipe, Recorder, ends, readings, save, steps_per_epoch, train


def digits(model, samples=200, split="train", **options):
    return Problem.supervised(model, "crossentropy", load("digits", split, samples=samples, **options))


class Dropping(nn.Module):
    """Batch norm and dropout: what a resumed run can get wrong."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10)
        )

    def forward(self, x):
        return self.net(x)


def dropping():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Dropping()


def bits(model):
    return {k: t.clone() for k, t in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("recipe", [
    Recipe(epochs=3, batch_size=32, rate=0.05),
    Recipe(epochs=3, batch_size=32, rate=0.01, optimizer="adam", schedule="step", augment="shift-flip"),
], ids=["sgd", "adam"])  # fmt: skip
@pytest.mark.parametrize("stopped_after", [1, 7, 8, 20])
def test_a_run_that_is_stopped_and_taken_up_ends_with_the_same_bits(tmp_path, recipe, stopped_after):
    whole = dropping()
    history = train(digits(whole), recipe, folder=tmp_path / "whole")
    parts = dropping()
    steps = iter(range(1, 1000))
    first = train(digits(parts), recipe, folder=tmp_path / "parts", stop=lambda: next(steps) == stopped_after)
    assert first.stopped == (stopped_after < 21) and first.steps == stopped_after
    torch.rand(17)  # whatever happens in between
    fresh = dropping()
    second = train(digits(fresh), recipe, folder=tmp_path / "parts")
    assert second.losses == history.losses and not second.stopped
    assert same(bits(whole), bits(fresh))
    assert same(load_state(history.checkpoints[-1]), load_state(second.checkpoints[-1]))


def test_without_a_folder_the_same_net_comes_out(tmp_path):
    a, b = dropping(), dropping()
    recipe = Recipe(epochs=2, batch_size=64)
    train(digits(a), recipe)
    train(digits(b), recipe, folder=tmp_path)
    assert same(bits(a), bits(b))


def test_resident_and_streamed_samples_train_alike():
    a, b = dropping(), dropping()
    recipe = Recipe(epochs=2, batch_size=64)
    one, other = digits(a), digits(b, budget=0)
    assert isinstance(one.data, Resident) and isinstance(other.data, Streamed)
    assert train(one, recipe).losses == train(other, recipe).losses


def test_checkpoints_are_named_as_people_count_and_read_by_others(tmp_path):
    model = dropping()
    history = train(digits(model), Recipe(epochs=2, batch_size=32), folder=tmp_path, every=5)
    assert [p.name for p in history.checkpoints] == [f"step_{s:06d}.pt" for s in (0, 5, 10, 14)]
    assert checkpoints_in(tmp_path) == list(history.checkpoints)
    other = dropping()
    load_into(other, history.checkpoints[-1])
    assert same(bits(model), bits(other))
    load_into(other, history.checkpoints[0])
    assert same(bits(dropping()), bits(other))
    held = torch.load(history.checkpoints[-1], weights_only=True)
    assert held["step"] == 14 and held["losses"].tolist() == list(history.losses)
    assert json.loads(held["recipe"])["batch_size"] == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in history.checkpoints]  # nothing left beside


def test_a_finished_run_is_not_trained_again(tmp_path):
    recipe = Recipe(epochs=1, batch_size=64)
    train(digits(dropping()), recipe, folder=tmp_path)
    model, seen = dropping(), []
    history = train(digits(model), recipe, folder=tmp_path, observers=[lambda *a: seen.append(a)])
    assert not seen and history.steps == 4 and not history.stopped
    assert same(bits(model), load_state(history.checkpoints[-1]))


def test_a_run_of_other_settings_is_refused_by_name(tmp_path):
    recipe = Recipe(epochs=1, batch_size=64)
    train(digits(dropping()), recipe, folder=tmp_path)
    with pytest.raises(ValueError, match=r"a run of other settings \(rate: 0\.1 there, 0\.2 here\); name another"):
        train(digits(dropping()), Recipe(epochs=1, batch_size=64, rate=0.2), folder=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(the data\)"):
        train(digits(dropping(), samples=100), recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="a run of another model"):
        train(digits(zoo.build("mlp")), recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a run already, up to step_000004"):
        train(digits(dropping()), recipe, folder=tmp_path, resume=False)
    torch.save({"a": 1}, tmp_path / "step_000009.pt")
    with pytest.raises(ValueError, match=r"step_000009\.pt is not a checkpoint of this trainer"):
        train(digits(dropping()), recipe, folder=tmp_path)


def test_one_step_is_the_gradient_step():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    model = nn.Linear(3, 2)
    w = model.weight.detach().clone()
    gradient = torch.autograd.grad(nn.functional.mse_loss(model(x), y), model.weight)[0]
    recipe = Recipe(epochs=1, batch_size=8, rate=0.3, momentum=0.0, weight_decay=0.01, schedule="constant")
    train(Problem.supervised(model, "mse", (x, y)), recipe)
    torch.testing.assert_close(model.weight.detach(), w - 0.3 * (gradient + 0.01 * w))


def test_least_squares_are_solved():
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    model = nn.Linear(3, 1)
    recipe = Recipe(epochs=60, batch_size=16, rate=0.05, weight_decay=0.0)
    history = train(Problem.supervised(model, "mse", (x, y)), recipe)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), atol=1e-4, rtol=0)
    assert len(history.epoch_losses()) == 60 and history.epoch_losses()[-1] < 1e-6


def test_a_problem_of_your_own_is_trained():
    model = nn.Linear(2, 1)
    problem = Problem.custom(model, lambda m, b: ((m(b) - 1.0) ** 2).mean(), torch.randn(32, 2))
    train(problem, Recipe(epochs=30, batch_size=8, rate=0.1, weight_decay=0.0))
    assert readings(problem)["loss"] < 0.01 and set(readings(problem)) == {"loss"}


def test_an_epoch_passes_over_every_sample_once():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].tolist())
            return x * self.w

    x = torch.arange(10.0)[:, None]
    train(Problem.supervised(Watching(), "mse", (x, x)), Recipe(epochs=2, batch_size=3, rate=1e-4))
    assert [len(batch) for batch in seen] == [3, 3, 4] * 2  # a last batch of one sample is joined to the one before
    flat = [v for batch in seen for v in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert steps_per_epoch(10, 3) == 3 and steps_per_epoch(11, 3) == 4 and steps_per_epoch(1, 3) == 1


def test_rates_follow_their_schedule():
    assert [Recipe(schedule="constant").rate_at(s) for s in (0, 0.7)] == [0.1, 0.1]
    assert Recipe().rate_at(0) == 0.1 and math.isclose(Recipe().rate_at(0.5), 0.05) and Recipe().rate_at(1) < 1e-12
    steps = Recipe(schedule="step", milestones=(0.5, 0.8))
    np.testing.assert_allclose([steps.rate_at(s) for s in (0, 0.49, 0.5, 0.9)], [0.1, 0.1, 0.01, 0.001])


def test_augmented_images_are_shifted_ones():
    from lossmap.training.trainer import _augmented

    x = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(500, 1, 8, 8)
    y = torch.zeros(500)
    out, targets = _augmented((x, y), Recipe(augment="shift"), 3)
    assert _augmented([x, y], Recipe(augment="shift"), 3)[0].equal(out)  # as loaders make pairs
    assert targets is y and out.shape == x.shape
    padded = nn.functional.pad(x[0, 0], (1, 1, 1, 1))
    allowed = {tuple(padded[r : r + 8, c : c + 8].flatten().tolist()) for r in range(3) for c in range(3)}
    assert {tuple(image.flatten().tolist()) for image in out} == allowed
    mirrored, _ = _augmented((x, y), Recipe(augment="shift-flip"), 3)
    both = {tuple(image.flatten().tolist()) for image in mirrored}
    flipped = {tuple(torch.tensor(a).view(8, 8).flip(1).flatten().tolist()) for a in allowed}
    assert both == allowed | flipped
    assert not torch.equal(out, _augmented((x, y), Recipe(augment="shift"), 4)[0])
    with pytest.raises(ValueError, match=r"augmentation needs batches \(images, targets\)"):
        _augmented((x[:, 0], y), Recipe(augment="shift"), 3)


def test_chance_outside_is_left_alone_and_the_model_left_in_evaluation_mode():
    before = torch.random.get_rng_state()
    model = dropping()
    train(digits(model), Recipe(epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_readings_are_means_over_samples_in_evaluation_mode():
    model = dropping().train()
    problem = digits(model)
    one, other = readings(problem), readings(problem.rebatched(7))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6) and one["acc"] == other["acc"] and model.training


@pytest.mark.slow
def test_the_demo_pair_learns_the_digits_and_the_skips_help():
    accuracy = {}
    for name in ("resnet20-w8", "resnet20-w8-noshort"):
        model = zoo.build(name, seed=0)
        train(Problem.supervised(model, "crossentropy", load("digits")), Recipe())
        accuracy[name] = readings(Problem.supervised(model, "crossentropy", load("digits", "test")))["acc"]
    assert accuracy["resnet20-w8"] >= 97.0 and 88.0 <= accuracy["resnet20-w8-noshort"] < accuracy["resnet20-w8"]


def test_a_loss_that_blows_up_is_an_error_with_its_step(tmp_path):
    model = nn.Linear(2, 1)
    x = 1e3 * torch.randn(64, 2)
    with pytest.raises(
        FloatingPointError, match=r"the loss is (inf|nan) at step \d+, at a rate of .*: take a smaller one"
    ):
        train(Problem.supervised(model, "mse", (x, x[:, :1])), Recipe(rate=1e3, epochs=200), folder=tmp_path)
    assert not model.training and checkpoints_in(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam; got 'lbfgs'"),
        ({"schedule": "up"}, "schedule must be one of constant, cosine, step"),
        ({"augment": "cut"}, "augment must be one of none, shift, shift-flip"),
        ({"epochs": 0}, "epochs and batch_size must be >= 1"),
        ({"rate": 0.0}, "rate must be > 0"),
        ({"momentum": 1.0}, "momentum >= 0 and < 1"),
    ],
)
def test_an_invalid_recipe_is_refused_in_one_message(options, text):
    with pytest.raises(ValueError, match=text):
        Recipe(**options)


def test_what_cannot_be_trained_is_reported_in_one_message(tmp_path):
    with pytest.raises(ValueError, match="every must be >= 1; got 0"):
        train(digits(dropping()), folder=tmp_path, every=0)
    frozen = dropping().requires_grad_(False)
    with pytest.raises(ValueError, match="the model has no parameter to train"):
        train(digits(frozen))

    class Other:
        samples, batch_size = 3, 3

    with pytest.raises(TypeError, match="training needs Resident or Streamed data; got Other"):
        train(digits(dropping()).with_data(Other()))


def test_a_saved_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(AttributeError, match=r"local|pickle"):
        save({"f": lambda: 1}, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_leaves_checkpoints_from_a_loop_of_your_own(tmp_path):
    model = dropping().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recorder = Recorder(tmp_path, every=2)
    for x, y in digits(model).data.rebatched(40):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder(model, loss)
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step_000002.pt", "step_000004.pt"]
    with (tmp_path / "record.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"] and float(rows[1]["loss"]) == recorder.records[1]["loss"]
    assert model.training
    fresh = dropping()
    load_into(fresh, tmp_path / "step_000004.pt")


def test_a_recorder_reads_curvature_and_leaves_no_trace(tmp_path):
    torch.manual_seed(0)
    model = zoo.build("mlp", seed=0)
    plain = zoo.build("mlp", seed=0)
    fixed = digits(model, samples=64)
    recorder = Recorder(tmp_path, every=3, curvature=ends(fixed))
    recipe = Recipe(epochs=2, batch_size=64)
    train(digits(model), recipe, observers=[recorder.observe])
    train(digits(plain), recipe)
    assert same(bits(model), bits(plain))
    assert [r["step"] for r in recorder.records] == [3, 6] and not list(tmp_path.glob("*.pt"))
    for record in recorder.records:
        assert record["max_eig"] > 0 and record["max_eig"] > record["min_eig"]
        assert record["condition"] == abs(record["max_eig"] / record["min_eig"])
    with (tmp_path / "record.csv").open() as file:
        assert next(csv.reader(file)) == ["step", "loss", "max_eig", "min_eig", "condition"]


def test_a_record_has_the_numbers_that_the_first_one_had_not(tmp_path):
    numbers = iter([{}, {"max_eig": 2.0}, {"max_eig": 3.0}])
    recorder = Recorder(tmp_path, every=1, curvature=lambda model: next(numbers))
    for loss in (3.0, 2.0, 1.0):
        recorder(nn.Linear(1, 1), loss)
    with (tmp_path / "record.csv").open() as file:
        assert [row["max_eig"] for row in csv.DictReader(file)] == ["nan", "2.0", "3.0"]


def test_the_recorded_ends_are_those_of_a_dense_hessian():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    torch.manual_seed(0)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 2, (20,))
    problem = Problem.supervised(model, "crossentropy", (x, y))
    names = [k for k, p in model.named_parameters() if p.dim() > 1]
    shapes = [dict(model.named_parameters())[k].shape for k in names]
    start = torch.cat([dict(model.named_parameters())[k].detach().flatten() for k in names])

    def loss(v):
        parts = torch.split(v, [s.numel() for s in shapes])
        given = {k: p.view(s) for k, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

    dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, start))
    got = ends(problem, tol=1e-8)(model)
    assert got["max_eig"] == pytest.approx(float(dense[-1]), rel=1e-6)
    assert got["min_eig"] == pytest.approx(float(dense[0]), rel=1e-6)


def test_a_recorder_says_what_it_cannot_record(tmp_path):
    with pytest.raises(ValueError, match="every must be >= 1; got 0"):
        Recorder(tmp_path, every=0)
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(ValueError, match="the model at step 1 has entries that are not finite: weight"):
        Recorder(tmp_path, every=1)(model, 0.0)
