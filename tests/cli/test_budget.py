"""--budget: fitted by measured product times, which are handed in here; stored, and the same when a run goes on."""

import time
from importlib import import_module

import pytest
import torch

from lossmap import zoo
from lossmap.cli.__main__ import main as lossmap
from lossmap.io.read import read
from lossmap.parallel import command_clock
from lossmap.parallel.world import World
from lossmap.report.price import Price

SUBJECT = ["--model", "mlp", "--samples", "32", "--hvp-backend", "double-backward", "--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def price(monkeypatch, seconds):
    """Let products take so long, wherever they are timed."""
    for module in ("spectra.price", "dynamics.price", "health.price", "landscape.price"):
        monkeypatch.setattr(f"lossmap.{module}.seconds_of_product", lambda operator: seconds)
    monkeypatch.setattr("lossmap.spectra.price.PriceList.seconds", lambda self, task: seconds)


def test_a_spectrum_is_fitted_once_and_goes_on_as_it_was_fitted(monkeypatch, capsys):
    price(monkeypatch, 1.0)
    work = ["spectrum", *SUBJECT, "--budget", "170s", "--surf-file", "s.h5"]
    assert lossmap([*work, "--stop-after", "0.001"]) == 75
    out, err = capsys.readouterr()
    assert (
        "--budget 170s: " in out
        and " are left, a fifth in reserve: " in out
        and "products of the trace; no density" in out
    )
    assert "products of 1 s" in err
    fitted = read("s.h5").settings["measures"]["spectrum"]
    assert fitted["budget"] == 170.0 and 6 <= fitted["trace_products"] < 60 and not fitted["density"]
    price(monkeypatch, 1e-6)  # now the machine is faster: nothing changes
    assert lossmap(["resume", "s.h5"]) == 0
    assert "--budget" not in capsys.readouterr().out
    settings = read("s.h5").settings["measures"]["spectrum"]
    assert settings["trace_products"] == fitted["trace_products"] and settings["budget"] == 170.0
    assert lossmap(work) == 0
    assert lossmap([*work[:-3], "300s", *work[-2:]]) == 2
    assert "budget is 170.0 in the file, 300.0 asked for" in capsys.readouterr().err


def test_ranks_that_share_a_core_get_as_much_into_twice_the_time(monkeypatch, capsys):
    price(monkeypatch, 1.0)
    fitted = {}
    for crowding, budget in ((1.0, "170s"), (2.0, "340s")):
        monkeypatch.setattr(World.start(), "crowding", crowding)
        work = ["spectrum", *SUBJECT, "--budget", budget, "--stop-after", "0.001", "--surf-file", f"{budget}.h5"]
        assert lossmap(work) == 75
        assert f"products of {crowding:g} s" in capsys.readouterr().err
        stored = read(f"{budget}.h5").settings["measures"]["spectrum"]
        fitted[crowding] = [stored["trace_products"], stored["max_products"], stored["density"]]
    assert abs(fitted[1.0][0] - fitted[2.0][0]) <= 6 and fitted[1.0][1:] == fitted[2.0][1:]


def test_a_map_that_takes_longer_is_refused_with_what_would_fit(monkeypatch, capsys, here):
    monkeypatch.setattr("lossmap.landscape.price.seconds_of_pass", lambda *_: 60.0)
    work = ["surface", *SUBJECT[:4], "--x=-1:1:21", "--device", "cpu", "--no-probe", "--surf-file", "m.h5"]
    assert lossmap([*work, "--budget", "10m"]) == 2
    text = capsys.readouterr().err
    assert "21 points take about 21 min; of --budget 10m " in " ".join(text.split())
    assert " are left, a fifth of it in reserve; about 7 points would fit, or 3 ranks, or --samples with 3" in text
    assert lossmap([*work, "--budget", "25m"]) == 2  # the reserve does not fit
    assert list(here.iterdir()) == []
    assert lossmap([*work, "--budget", "2h"]) == 0
    assert lossmap([*work, "--budget", "10m"]) == 0  # nothing is left to compute


def test_a_map_is_computed_nevertheless_with_yes(monkeypatch):
    monkeypatch.setattr("lossmap.landscape.price.seconds_of_pass", lambda *_: 60.0)
    work = ["surface", *SUBJECT[:4], "--x=-1:1:3", "--device", "cpu", "--no-probe", "--budget", "2s", "--yes"]
    assert lossmap(work) == 0


def test_a_run_is_fitted_at_every_checkpoint_and_goes_on_as_it_was(monkeypatch, capsys, caplog, here):
    for step in range(2):
        torch.save(zoo.build("mlp", seed=step).state_dict(), here / f"step{step}.pt")
    price(monkeypatch, 1.0)
    work = ["dynamics", "step0.pt", "step1.pt", *SUBJECT, "--top", "1", "--full-spectrum", "--surf-file", "run.h5"]
    assert lossmap([*work, "--budget", "8m"]) == 0
    assert "the budget holds at each checkpoint: 1 probe of" in caplog.text
    assert "the budget holds no null of halves" in caplog.text
    assert all("null_halves" not in group.arrays for group in read("run.h5").groups.values())
    stored = read("run.h5").settings["measures"]["along"]
    assert stored["budget"] == 480.0 and stored["effort"]["density_probes"] == 1
    assert "about" in capsys.readouterr().err
    price(monkeypatch, 100.0)
    assert lossmap([*work, "--budget", "8m"]) == 0
    assert read("run.h5").settings["measures"]["along"]["effort"] == stored["effort"]
    assert lossmap(work) == 2  # without a budget it is another run
    assert "budget" in capsys.readouterr().err


def test_an_examination_says_what_was_cut(monkeypatch, capsys):
    price(monkeypatch, 1.0)
    work = ["health", *SUBJECT[:4], "--device", "cpu", "--examinations", "hessian", "--no-held-out"]
    assert lossmap([*work, "--budget", "3m"]) == 0
    out, err = capsys.readouterr()
    assert "--budget 3m: " in err and " are left, a fifth in reserve" in err
    assert "budget: " in out and "products of the trace; no density" in " ".join(out.split())
    assert "health without --budget: about" in err


def test_what_was_imported_and_prepared_counts(monkeypatch, capsys):
    price(monkeypatch, 1.0)
    work = ["spectrum", *SUBJECT, "--budget", "170s", "--stop-after", "0.001", "--surf-file"]
    fitted = {}
    for name, before in (("early", 0.0), ("late", 90.0), ("over", 200.0)):
        began = command_clock.command_began
        monkeypatch.setattr("lossmap.cli.spectrum.command_began", lambda before=before, began=began: began() - before)
        assert lossmap([*work, f"{name}.h5"]) == 75
        fitted[name] = capsys.readouterr().out
    products = {name: int(text.split(" products of the trace")[0].split()[-1]) for name, text in fitted.items()
                if " products of the trace" in text}  # fmt: skip
    assert "late" not in products and products["early"] > 6
    assert (
        "over before the work, by start and preparation alone; the least of it is done nevertheless" in fitted["over"]
    )
    price_line = "more than the budget: the ends alone take 24 products, and it holds 0"
    assert price_line in fitted["over"] and price_line not in fitted["late"]


def test_a_command_begins_with_the_process_that_is_started_for_it(monkeypatch):
    monkeypatch.setattr("lossmap.parallel.command_clock.IMPORTED", -5.0)
    monkeypatch.setattr("lossmap.cli.__main__.IMPORTED", -5.0)
    taken = []
    monkeypatch.setattr("lossmap.cli.spectrum.main", lambda words: taken.append(command_clock.command_began()) or 0)
    monkeypatch.setattr("sys.argv", ["lossmap", "spectrum"])
    monkeypatch.setattr("lossmap.cli.__main__._imported_for_good", import_module)
    assert lossmap() == 0 and taken == [-5.0]
    now = time.monotonic()
    assert lossmap(["spectrum"]) == 0 and taken[1] >= now  # called within a process that does other work, too
    assert command_clock.command_began() >= taken[1]  # and what comes after it has a clock of its own


@pytest.mark.parametrize("text", ["soon", "0", "10x"])
def test_a_budget_that_is_no_time_is_named(text, capsys):
    assert lossmap(["spectrum", *SUBJECT, "--budget", text]) == 2
    assert "--budget must be a time > 0, such as 90s, 10m, 2h or 1h30m" in capsys.readouterr().err


def test_sharpness_is_fitted_once_and_goes_on_as_it_was_fitted(monkeypatch, capsys):
    each = {"product": 1.0, "gradient": 1.0, "pass": 1.0}
    monkeypatch.setattr("lossmap.landscape.sharpness_cost._seconds_by_kind", lambda *_: each)
    work = ["sharpness", *SUBJECT[:4], "--device", "cpu", "--budget", "4m", "--surf-file", "s.h5"]
    assert lossmap([*work, "--stop-after", "0.001"]) == 75
    out = capsys.readouterr().out
    assert "--budget 4m: " in out and "pairs of random points in place of 20" in out
    assert "ascent steps in place of 20" in out and "products of the trace in place of 60" in out
    fitted = read("s.h5").settings["measures"]["sharpness"]
    assert fitted["budget"] == 240.0 and 4 <= fitted["draws"] < 20 and 6 <= fitted["trace_products"] < 60
    each.update(dict.fromkeys(each, 1e-6))  # now the machine is faster: nothing changes
    assert lossmap(["resume", "s.h5"]) == 0
    assert "--budget" not in capsys.readouterr().out
    stored = read("s.h5").settings["measures"]["sharpness"]
    assert [stored[name] for name in ("draws", "steps", "trace_products")] == [
        fitted[name] for name in ("draws", "steps", "trace_products")
    ]
    assert lossmap([*work[:-3], "5m", *work[-2:]]) == 2
    assert "budget is 240.0 in the file, 300.0 asked for" in capsys.readouterr().err


def test_a_line_is_fitted_once_and_goes_on_as_it_was_fitted(monkeypatch, capsys, here):
    for i in range(2):
        torch.save(zoo.build("mlp", seed=i).state_dict(), here / f"{i}.pt")
    seconds = [0.5]
    monkeypatch.setattr("lossmap.landscape.price.seconds_of_pass", lambda *_: seconds[0])
    monkeypatch.setattr(
        "lossmap.landscape.curves.price_of_bend", lambda problem, line, recipe: Price(1, 0.1 * recipe.steps, 0)
    )
    work = ["connect", "0.pt", "1.pt", *SUBJECT[:4], "--device", "cpu", "--curve", "bezier", "--surf-file", "c.h5"]
    assert lossmap([*work, "--budget", "40s"]) == 0  # of 25 points and 1000 steps: 25 s and 100 s
    out = capsys.readouterr().out
    assert "steps of the curve's training in place of 1,000" in out and "points in place of 25" in out
    surface = read("c.h5")
    points, steps = len(surface.grid.x), surface.settings["measures"]["loss"]["curve"]["steps"]
    assert 7 <= points < 25 and 100 <= steps < 1000 and points + 0.1 * steps <= 0.8 * 40
    assert f"trained in {steps} steps" in out
    seconds[0] = 1e-6
    assert lossmap([*work, "--budget", "40s"]) == 0
    assert lossmap(["resume", "c.h5"]) == 0
    assert len(read("c.h5").grid.x) == points
    assert lossmap(work) == 2  # without a budget it is another line
    assert "c.h5" in capsys.readouterr().err
