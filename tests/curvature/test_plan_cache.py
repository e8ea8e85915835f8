"""What a probe chose is kept by model, shapes, machine and version; it says what is fast, never what is right."""

import json
import stat
from dataclasses import replace

import pytest
import torch
from torch import nn

from lossmap.curvature import autotune, plan_cache
from lossmap.curvature.autotune import Probe, prepare
from lossmap.curvature.hvp_plan import HvpPlan, ProductCheck
from lossmap.data.problem import Problem


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def probes(monkeypatch):
    """The plans that probes chose; each search takes the next of the clock-free answers."""
    chosen = []

    def best(self, backends):
        backend = "linearized" if "linearized" in backends else "double-backward"
        chosen.append(HvpPlan(backend, 20, seconds_per_sample={"as it was timed": 1e-3}))
        return self.with_plan(chosen[-1])

    monkeypatch.setattr(Probe, "best", best)
    return chosen


def problem(width=8, samples=40, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3, **settings)).eval()
    return Problem.supervised(model, "crossentropy", (torch.randn(samples, 6), torch.arange(samples) % 3))


def entry(cache):
    (file,) = cache.iterdir()
    return file


def test_a_second_process_neither_probes_nor_chooses_otherwise(cache, probes):
    first = prepare(problem(), check=False)
    second = prepare(problem(), check=False)
    assert len(probes) == 1 and replace(first.plan, rounding=None) == replace(second.plan, rounding=None)
    v = torch.randn(first.size)
    assert torch.equal(first.at() @ v, second.at() @ v)
    stored = json.loads(entry(cache).read_text())
    assert stored["plan"]["way"] == "linear" and "rounding" not in stored["plan"]
    assert stored["key"]["torch"] == torch.__version__


def test_another_model_shape_or_number_of_samples_has_an_entry_of_its_own(cache, probes, monkeypatch):
    for own in (problem(), problem(width=9), problem(samples=41), problem(bias=False)):
        prepare(own, check=False)
    prepare(problem(), "all", check=False)
    monkeypatch.setattr(plan_cache, "_machine", lambda device: "another machine")
    prepare(problem(), check=False)
    assert len(probes) == len(list(cache.iterdir())) == 6


def test_an_entry_of_few_products_is_made_anew_for_many(cache, probes):
    own = problem(samples=200)
    for products in (100, 400, 401):
        prepare(own, check=False, products=products)
    assert len(probes) == 2  # 400 are taken from 100; 401 are more than four times as many
    prepare(own, check=False, products=100)
    assert len(probes) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', '{"key": {}, "plan": {"way": "sideways"}}', "\x00" * 50])
def test_a_damaged_entry_counts_as_none(cache, probes, text):
    prepare(problem(), check=False)
    entry(cache).write_text(text)
    assert prepare(problem(), check=False).plan.backend == "linearized"
    assert len(probes) == 2 and json.loads(entry(cache).read_text())["plan"]["way"] == "linear"


@pytest.mark.parametrize(("name", "value"), [("batch", float("inf")), ("tiled", float("inf")), ("rounding", [1])])
def test_an_entry_with_an_impossible_value_counts_as_none(cache, probes, name, value):
    prepare(problem(), check=False)
    stored = json.loads(entry(cache).read_text())
    stored["plan"][name] = value
    entry(cache).write_text(json.dumps(stored))
    prepare(problem(), check=False)
    assert len(probes) == 2 and json.loads(entry(cache).read_text())["plan"].get(name) != value


def test_a_folder_that_cannot_be_written_or_is_a_file_changes_nothing(tmp_path, probes, monkeypatch):
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("LOSSMAP_CACHE", str(place))
        assert prepare(problem(), check=False).plan.batch_size == 20
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


def test_a_plan_whose_products_the_check_rejects_is_not_taken(cache, probes):
    prepare(problem(), check=False)
    wrong = ProductCheck({"linearized": "its product differs"})
    plan = prepare(problem(), check=wrong, plan=None).plan
    assert len(probes) == 2  # the entry says what is fast; the check, that it is wrong
    assert plan.backend == "double-backward"


def test_another_memory_format_is_compared_before_it_is_taken(cache, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).eval()
    own = Problem.supervised(model, "crossentropy", (torch.randn(20, 1, 6, 6), torch.arange(20) % 3))
    start = prepare(own, plan=HvpPlan("linearized", 20), check=False)
    fast, compared = replace(start.plan, memory_format="channels_last"), []
    probe, backends = Probe(start), {"linearized", "double-backward"}
    assert probe.again(fast, backends).plan.memory_format == "channels_last"
    monkeypatch.setattr(autotune.Probe, "agree", staticmethod(lambda *_: compared.append(1) or False))
    monkeypatch.setattr(autotune, "disagreement", lambda *_: "it differs")
    assert probe.again(fast, backends) is None and compared
    assert probe.again(fast, {"double-backward"}) is None


def test_the_folder_is_the_one_that_is_named_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSMAP_CACHE", str(tmp_path / "own"))
    assert plan_cache.folder() == tmp_path / "own"
    monkeypatch.setenv("LOSSMAP_CACHE", "off")
    assert plan_cache.folder() is None
    monkeypatch.delenv("LOSSMAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plan_cache.folder() == tmp_path / "lossmap"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_cache.folder() == tmp_path / ".cache" / "lossmap"


def test_the_probe_ends_where_it_has_taken_its_share_of_the_work(monkeypatch):
    searched = []
    monkeypatch.setattr(autotune, "MIN_PROBE_SECONDS", 0.0)
    monkeypatch.setattr(autotune, "PROBE_SHARE", 0.0)
    search = Probe.search
    monkeypatch.setattr(
        Probe, "search", lambda self, backend, size: searched.append(backend) or search(self, backend, size)
    )
    assert prepare(problem(samples=200), check=False, products=100).plan.backend == "retained-graph"
    assert not searched
    prepare(problem(samples=200), check=False)  # many: all are tried
    assert searched == ["linearized", "double-backward"]
