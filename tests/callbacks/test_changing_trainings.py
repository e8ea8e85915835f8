"""Trainings that change on the way, or wrap their optimizer, and numbers out of range."""

import csv
import math

import pytest
import torch
from torch import nn

import lossmap
from lossmap.callbacks import CurvatureMonitor
from lossmap.callbacks.loggers import CsvLog
from lossmap.diagnostics.step_rule import step_rule

X = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(12, 3).sin()
Y = torch.arange(12) % 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def monitor_of(model, optimizer, **options):
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    return CurvatureMonitor(problem, optimizer, every=1, max_overhead=None, **options)


def hessian(model):
    """Dense, of the parameters that are trained, by a function of the flat vector."""
    moving = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in moving.values()]

    def loss(theta):
        tensors = [t.reshape(p.shape) for t, p in zip(theta.split(sizes), moving.values(), strict=True)]
        outputs = torch.func.functional_call(model, dict(zip(moving, tensors, strict=True)), (X,))
        return nn.functional.cross_entropy(outputs, Y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.reshape(-1) for p in moving.values()]))


def test_layers_that_are_unfrozen_and_frozen_again_are_followed(caplog):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model[0].requires_grad_(False)
    monitor = monitor_of(model, optimizer, tol=1e-6)
    for step in range(3):
        model[0].requires_grad_(step == 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        reading = monitor.step()
        eigenvalues = torch.linalg.eigvalsh(hessian(model))
        assert reading["max_eig"] == pytest.approx(float(eigenvalues[-1]), abs=1e-5)
        assert reading["min_eig"] == pytest.approx(float(eigenvalues[0]), abs=1e-5)
        assert reading["trace"] == pytest.approx(float(eigenvalues.sum()), abs=5 * reading["trace_error"] + 1e-6)
    texts = [r.getMessage() for r in caplog.records]
    assert sum("from here on the Hessian is of 4 tensors, no longer of 2" in text for text in texts) == 1
    assert not any("no curvature was measured" in text for text in texts)


class Lookahead(torch.optim.Optimizer):
    """As people write it: every other step goes half the way back, so that its threshold is not that of the inner."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})


def test_an_optimizer_around_another_has_no_threshold_of_that_one_but_for_the_trainers_wrappers():
    lightning = pytest.importorskip("lightning.pytorch.core.optimizer")
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    named = dict(model.named_parameters())
    rule = step_rule(Lookahead(inner), named)
    assert math.isnan(rule.threshold) and "no stability threshold is known for Lookahead" in rule.reason
    assert step_rule(lightning.LightningOptimizer(inner), named).threshold == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 2.5}, "every must be a whole number >= 1; got 2.5"),
        ({"every": float("nan")}, "every must be a whole number >= 1; got nan"),
        ({"tol": 0.0}, "tol must be between 0 and 1; got 0.0"),
        ({"max_products": 1}, "max_products must be >= 2; got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, text):
    model = net()
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    with pytest.raises(ValueError, match=text):
        CurvatureMonitor(problem, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize("kind", ["name", "schedule"])
def test_what_is_no_optimizer_is_refused(kind):
    model = net()
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 3)
    with pytest.raises(TypeError, match="optimizer must be one of PyTorch's kind"):
        monitor_of(model, {"name": "sgd", "schedule": schedule}[kind])


def trained(model, optimizer, monitor, steps, rates=()):
    for k, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = rates[k] if rates else 0.1
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        monitor.step(step)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_threshold_that_the_first_reading_had_not(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = monitor_of(model, optimizer, trace_products=0, loggers=tmp_path / "readings.csv")
    trained(model, optimizer, monitor, range(1, 4), rates=[0.0, 0.1, 0.2])
    rows = rows_of(tmp_path / "readings.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["stability_threshold"]) for row in rows] == pytest.approx([math.nan, 20.0, 10.0], nan_ok=True)
    assert [float(row["max_eig"]) for row in rows] == monitor.surface["max_eig"].tolist()


def test_a_full_disk_leaves_no_half_row_and_does_not_end_a_training(tmp_path, caplog, monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = CsvLog(tmp_path / "readings.csv")
    monitor = monitor_of(model, optimizer, trace_products=0, loggers=[table], path=tmp_path / "training.h5")
    trained(model, optimizer, monitor, [1])

    class Full(csv.DictWriter):
        def writerow(self, row):
            half = ",".join(map(str, row.values()))
            table.path.write_text(table.path.read_text() + half[: len(half) // 2])
            raise OSError(28, "No space left on device")

    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lossmap.callbacks.loggers.csv.DictWriter", Full)
        patch.setattr("lossmap.callbacks.history.write_surface", refuse)
        trained(model, optimizer, monitor, [2])
    trained(model, optimizer, monitor, [3])
    assert [row["step"] for row in rows_of(table.path)] == ["1", "2", "3"]
    assert [float(row["max_eig"]) for row in rows_of(table.path)] == monitor.surface["max_eig"].tolist()
    assert "a logger of curvature fails: OSError" in caplog.text and "step 2: the readings could not" in caplog.text
    monkeypatch.setattr("lossmap.callbacks.history.write_surface", refuse)
    caplog.clear()
    monitor.close()
    assert "the readings could not be written: [Errno 28]" in caplog.text


def test_steps_that_are_counted_by_twos_or_begin_anew(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    problem = lossmap.Problem.supervised(model, "crossentropy", (X, Y))
    monitor = CurvatureMonitor(problem, optimizer, every=5, max_overhead=None, trace_products=0)
    trained(model, optimizer, monitor, range(102, 122, 2))  # resumed; Lightning counts the steps of both optimizers
    assert monitor.surface.grid.x.tolist() == [106, 110, 116, 120]
    assert "comes after step" not in caplog.text
    trained(model, optimizer, monitor, range(1, 6))
    assert "step 5 comes after step 120: steps are counted over the whole training" in caplog.text


def test_a_reading_inside_inference_mode_is_that_outside():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = monitor_of(model, optimizer)
    expected = monitor.measure()["max_eig"]
    with torch.inference_mode():
        assert monitor.measure()["max_eig"] == pytest.approx(expected, rel=1e-6)


def test_checkpoints_of_another_training_are_named(tmp_path, caplog):
    def run(steps):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        caplog.clear()
        trained(model, optimizer, monitor_of(model, optimizer, trace_products=0, checkpoints=tmp_path), steps)
        return "holds checkpoints of another training" in caplog.text

    assert not run([1, 2])
    assert not run([3, 4])  # resumed
    assert run([1]) and "(step_000001.pt, ..., step_000004.pt)" in caplog.text
    assert run([3]) and "(step_000004.pt)" in caplog.text


def test_a_table_that_was_taken_away_is_written_anew_and_a_number_named_step_changes_no_step(tmp_path):
    table = CsvLog(tmp_path / "readings.csv")
    table({"loss": 1.0}, 1)
    (tmp_path / "readings.csv").unlink()
    table({"loss": 0.5, "step": 9.0}, 2)
    assert rows_of(tmp_path / "readings.csv") == [{"step": "1", "loss": "1.0"}, {"step": "2", "loss": "0.5"}]


@pytest.mark.parametrize("added", [{}, {"threshold": 2.0}])
def test_rows_that_another_process_writes_into_the_table_are_never_lost(tmp_path, caplog, added):
    path = tmp_path / "readings.csv"
    table = CsvLog(path)
    table({"loss": 1.0}, 1)
    with path.open("a", newline="") as file:
        file.write("7,0.25\r\n")
    table({"loss": 0.5, **added}, 2)
    table({"loss": 0.1, **added}, 3)
    assert rows_of(path) == [{"step": "1", "loss": "1.0"}, {"step": "7", "loss": "0.25"}]
    assert [row["step"] for row in rows_of(tmp_path / "readings-2.csv")] == ["1", "2", "3"]
    assert f"another process has written into {path}: the readings of this training are in" in caplog.text
    other = CsvLog(path)  # of a later training
    other({"loss": 3.0}, 1)
    table({"loss": 0.0, **added}, 4)
    assert f"{path} was there before: the readings of this training are in" in caplog.text
    assert [len(rows_of(tmp_path / f"readings{i}.csv")) for i in ("", "-2", "-3")] == [2, 4, 1]


def test_rows_that_come_while_a_column_is_added_are_not_lost(tmp_path, monkeypatch):
    path = tmp_path / "readings.csv"
    table = CsvLog(path)
    table({"loss": 1.0}, 1)

    class Slow(csv.DictWriter):
        def writerows(self, rows):
            with path.open("a", newline="") as file:
                file.write("7,0.25\r\n")
            super().writerows(rows)

    monkeypatch.setattr("lossmap.callbacks.loggers.csv.DictWriter", Slow)
    table({"loss": 0.5, "threshold": 2.0}, 2)
    assert [row["step"] for row in rows_of(path)] == ["1", "7"]
    assert [row["step"] for row in rows_of(tmp_path / "readings-2.csv")] == ["1", "2"]
