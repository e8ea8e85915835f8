"""A spectrum fitted into a time: by prices that are handed in, so that the fit is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.spectra.budget import MARGIN, fit_request, settings_of, stored_fit
from lossmap.spectra.price import PriceList, expected_costs, price_of
from lossmap.spectra.request import SpectrumRequest, Subject
from lossmap.spectra.tasks import make_tasks


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3)).eval()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))


def measure_of(problem, labels=("net",), **request):
    return make_tasks([Subject(label, problem) for label in labels], SpectrumRequest(**request))


def seconds_each(measure, seconds):
    return PriceList(measure, timer=lambda operator: seconds)


@pytest.mark.parametrize("seconds", [5.0, 50.0, 200.0, 5000.0])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_fits_is_expected_to_take_no_longer(problem, seconds, workers):
    measure = measure_of(problem, by="tensor", dense=50)
    fit = fit_request(measure, seconds, workers, seconds_each(measure, 1.0))
    price = price_of(make_tasks(measure.subjects, fit.request), workers, seconds_each(measure, 1.0))
    assert price.wall <= seconds or any("more than the budget" in cut for cut in fit.cuts)
    assert bool(fit.cuts) == (seconds * workers < 1500)


def test_layers_come_last_and_the_largest_stay(problem):
    measure = measure_of(problem, by="tensor", dense=50, density=False, tol=0.1)
    whole = measure_of(problem, dense=50, density=False, tol=0.1)
    others = sum(c.seconds for c in expected_costs(whole, seconds_each(whole, 1.0)))
    layers = {
        t.name: c.seconds
        for t, c in zip(measure.tasks, expected_costs(measure, seconds_each(measure, 1.0)), strict=True)
        if t.kind == "block"
    }
    room = others + 32 + layers["2.weight"] + layers["0.weight"] + 1
    fit = fit_request(measure, (room + 20) / MARGIN, 1, seconds_each(measure, 1.0))
    assert fit.cuts == ("not what the blocks of layers leave out", "the 2 largest of 6 layers")
    tasks = make_tasks(measure.subjects, fit.request)
    assert {t.name for t in tasks.tasks if t.kind == "block"} == {"2.weight", "0.weight"}
    readings = {
        group: arrays
        for i, t in enumerate(tasks.tasks)
        if t.kind.startswith("block")
        for group, arrays in tasks((float(i),)).items()
    }
    layers = tasks.layers(readings)["net"]
    assert [b.name for b in layers.blocks] == ["0.weight", "2.weight"] and layers.off_diagonal_energy is None
    assert "the 2 largest of 6 blocks, as many as the budget holds" in " ".join(repr(layers).split())
    assert fit_request(measure, others, 1, seconds_each(measure, 1.0)).request.by is None


@pytest.mark.parametrize("workers", [1, 2])
def test_as_many_layers_are_read_as_the_price_line_has_room_for(problem, monkeypatch, workers):
    monkeypatch.setattr("lossmap.spectra.price.seconds_of_step", lambda *_: 0.2)
    monkeypatch.setattr("lossmap.spectra.price.density_seconds", lambda *_: (5.0, 5.0))
    measure = measure_of(problem, by="tensor", dense=50)
    prices = PriceList(measure, timer=lambda operator: 1.0, counts_solver=True)

    def wall(request):
        tasks = make_tasks(measure.subjects, request)
        return price_of(tasks, workers, replace(prices, tasks=tasks)).wall

    counts = set()
    for seconds in range(300, 1100, 20):
        request = fit_request(measure, seconds, workers, prices).request
        count = (request.layer_limit or 6) if request.by else 0
        counts.add(count)
        if count:
            assert wall(request) <= MARGIN * seconds
        if count < 6:
            assert wall(replace(request, by="tensor", probes=0, layer_limit=count + 1)) > MARGIN * seconds
    assert counts >= {0, 2, 6} and len(counts) >= 4


def test_several_matrices_share_the_time(problem):
    one, two = measure_of(problem), measure_of(problem, ("a", "b"))
    alone = fit_request(one, 250, 1, seconds_each(one, 1.0)).request
    shared = fit_request(two, 500, 1, seconds_each(two, 1.0)).request
    assert alone == shared and alone.density_probes


def test_a_resumed_run_takes_the_stored_fit(problem):
    measure = measure_of(problem, by="tensor", dense=50)
    request = fit_request(measure, 600, 1, seconds_each(measure, 1.0)).request
    assert request != measure.request
    stored = {k: list(v) if isinstance(v, tuple) else v for k, v in settings_of(request).items()}  # as JSON has it
    assert stored_fit(measure.request, stored) == request
    assert "layer_limit" not in settings_of(measure.request)  # as in files of version 0.1
    assert np.isfinite(stored["trace_products"])


def test_a_diagonal_goes_with_the_trace_that_it_is_made_of_and_is_named(problem):
    measure = measure_of(problem, diagonal=True)
    fit = fit_request(measure, 15 / MARGIN, 1, seconds_each(measure, 1.0))
    assert not fit.request.trace_products and not fit.request.diagonal
    assert "no diagonal" in fit.cuts
    assert stored_fit(measure.request, settings_of(fit.request)) == fit.request
