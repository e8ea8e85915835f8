"""The price of a map, a run and an examination before their work: against the processor time that they then take.

How many products a search takes is an expectation, and differs by network: times are compared for equally many.
"""

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.dynamics import price as run_price
from lossmap.dynamics.checkpoint_curvature import CheckpointCurvature
from lossmap.geometry.directions import random_plane
from lossmap.geometry.grid import Grid
from lossmap.health import price as health_price
from lossmap.health.diagnose import diagnose
from lossmap.landscape import price as map_price
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.linalg.solver_time import seconds_of_bounds, seconds_of_step, timed_step

ROWS = 64


@pytest.fixture(autouse=True)
def processor_time(monkeypatch):
    """Others may work on the same cores."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    for module in (map_price, run_price, health_price):
        for name in ("seconds_of_product", "seconds_of_first"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, partial(getattr(module, name), clock=time.process_time))
    for timed in (timed_step, seconds_of_bounds):
        timed.cache_clear()
    yield
    for timed in (timed_step, seconds_of_bounds):
        timed.cache_clear()


def problem(width):
    """A net of 64 samples whose products are quick beside what a search takes with their results."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 5)).eval()
    x = torch.randn(ROWS, 20, generator=torch.Generator().manual_seed(1))
    return Problem.supervised(model, "crossentropy", (x, x[:, :5].argmax(1)))


@pytest.mark.parametrize("width", [20, 3000])
def test_the_price_of_a_map_of_eigenvalues_holds_what_its_searches_take_themselves(width):
    net = problem(width)
    measure = EigenvalueMap(net, random_plane(net.model, axes=1), certify="none")
    measure((0.5,))  # what loads and traces once
    grid = Grid(np.linspace(-0.4, 0.4, 5))
    stated = map_price.price_of_eigenvalues(measure.prepared, "ends", "none", len(grid))
    began = time.process_time()
    products = sum(measure((float(x),))["products"] for x in grid.x)
    taken = (time.process_time() - began) * stated.count / products
    assert 0.1 * taken <= stated.seconds <= 10 * taken  # 5 for 176 s before; figures are in the benchmarks
    if width > 1000:
        assert stated.beside > 0.1 * stated.seconds


def test_the_price_of_a_run_holds_what_its_searches_take_themselves(tmp_path):
    net = problem(1500)
    files = {}
    for step in range(2):
        files[float(step)] = tmp_path / f"{step}.pt"
        torch.save(net.model.state_dict(), files[float(step)])
    measure = CheckpointCurvature(net, files, store_vectors=lambda *_: None, top=5)
    measure((0.0,))
    stated = run_price.price_of_run(measure, 1)
    began = time.process_time()
    products = measure((1.0,))["products"]
    taken = (time.process_time() - began) * stated.count / products
    assert 0.1 * taken <= stated.seconds <= 10 * taken  # 5 for 176 s before; figures are in the benchmarks
    assert stated.beside > 0.1 * stated.seconds


def test_the_price_of_an_examination_holds_what_its_searches_take_themselves():
    net = problem(1500)
    n = sum(p.numel() for p in net.model.parameters() if p.dim() > 1)
    parts = health_price.parts_of_examination(n, 0.05)
    diagnose(net, examinations=["hessian"], density_error=None)  # what loads and traces once
    clock = time.process_time
    stated = health_price.price_of_examination(net, net, parts, ["hessian"], "weights", clock=clock)
    began = clock()
    spectrum = diagnose(net, examinations=["hessian"]).measurements.spectrum
    taken = (clock() - began) * parts.products / spectrum.products
    assert 0.1 * taken <= stated.seconds <= 10 * taken  # 5 for 176 s before; figures are in the benchmarks
    assert stated.beside > 0.1 * stated.seconds


def test_later_steps_of_a_search_in_a_large_space_take_longer_and_those_in_a_small_one_do_not():
    spans = {256: 1.0, 65536: 3.0}
    made = iter(
        [0.0, 24.0, 24.0, 48.0, 48.0, 90.0, 0.0, 72.0, 72.0, 144.0, 0.0, 99.0]
    )  # three searches of 24 steps of either size
    clock = partial(next, made)
    assert seconds_of_step(200_000, torch.float32, 48, clock=clock) == pytest.approx(
        spans[256] + (spans[65536] - spans[256]) * 200_000 / 65536 * 2
    )
    assert seconds_of_step(200, torch.float32, 48, clock=lambda: 0.0) == 0.0
