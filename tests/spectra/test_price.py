"""The price of a spectrum before its tasks are done, and the order in which they are done."""

import time
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.product_time import seconds_of_product
from lossmap.data.problem import Problem
from lossmap.geometry.grid import Grid
from lossmap.landscape.run_survey import survey
from lossmap.landscape.survey_recorder import in_turns
from lossmap.linalg.solver_time import seconds_of_bounds, timed_step
from lossmap.parallel.work_queue import WorkQueue
from lossmap.spectra.price import FIXED_SECONDS, PriceList, expected_costs, price_of
from lossmap.spectra.request import SpectrumRequest, Subject
from lossmap.spectra.tasks import make_tasks


def tasks(**request):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    problem = Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))
    return make_tasks([Subject("net", problem)], SpectrumRequest(**request))


@pytest.fixture(scope="module")
def layered():
    return tasks(dense=100, by="tensor", trace_products=20, density_steps=30, density_probes=2)


def priced(measure):
    """Its prices on a machine where a product takes as many seconds as the operator has rows."""
    return PriceList(measure, timer=lambda operator: float(operator.size))


def test_a_task_costs_its_products_at_the_price_of_its_own_operator(layered):
    costs = {(t.kind, t.name): c for t, c in zip(layered.tasks, expected_costs(layered, priced(layered)), strict=True)}
    assert costs["trace", ""].products == 20 and costs["trace", ""].seconds == 20 * 270
    assert costs["density", "1"].products == 30
    assert (
        costs["block", "2.bias"].products == 3 and costs["block", "2.bias"].seconds == 3 * 30
    )  # the first small block
    assert costs["leak", "0.weight"].seconds == 4 * 303  # of all parameters
    assert costs["gradient", ""].products == 1


@pytest.mark.parametrize(
    ("request_", "rows"),
    [({}, 40), ({"top": 2, "density": False}, 40), ({"density_steps": 40, "density_probes": 1}, 4000)],
)
def test_a_price_is_of_the_right_order(request_, rows, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # others may work on the same cores
    for timed in (timed_step, seconds_of_bounds):
        timed.cache_clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).eval()
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
    problem = Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1)))
    measure = make_tasks([Subject("net", problem)], SpectrumRequest(**request_))
    stated = price_of(
        measure, prices=PriceList(measure, partial(seconds_of_product, clock=time.process_time), counts_solver=True)
    )
    began = time.process_time()
    readings = {name: group for i in range(len(measure.tasks)) for name, group in measure((float(i),)).items()}
    repr(measure.spectra(readings)["net"])
    taken = time.process_time() - began + FIXED_SECONDS
    assert 0.1 * taken <= stated.seconds <= 10 * taken


def test_a_price_adds_up_what_is_left_and_is_shared_by_the_ranks(layered):
    costs = expected_costs(layered, priced(layered))
    price = price_of(layered, workers=2, prices=priced(layered))
    assert price.count == sum(c.products for c in costs) and price.seconds == sum(c.seconds for c in costs)
    assert price.wall == max(price.seconds / 2, max(c.seconds for c in costs)) and price.memory > 1e7
    left = price_of(layered, prices=priced(layered), numbers=[0])
    assert left.count == costs[0].products


def test_what_is_most_of_use_is_done_first(layered):
    order = [layered.tasks[i] for i in layered.priority]
    kinds = [task.kind for task in order]
    assert list(dict.fromkeys(kinds)) == ["ends", "gradient", "trace", "density", "block_ends", "block", "leak"]
    assert [t.name for t in order if t.kind == "block"] == ["0.weight", "2.weight", "0.bias", "2.bias"]
    done = []

    class Recorded(type(layered)):
        def __call__(self, point):
            done.append(int(point[0]))
            return {self.groups[done[-1]]: {"number": np.asarray(point[0])}}

    measure = Recorded(**{name: getattr(layered, name) for name in (f.name for f in fields(layered))})
    assert survey(measure, Grid(np.arange(len(layered.tasks)))).outcome == "complete"
    assert tuple(done) == layered.priority


@pytest.mark.parametrize(("points", "workers"), [(7, 3), (12, 4), (2, 5), (5, 1)])
def test_several_workers_begin_with_the_first_points(points, workers):
    queue = WorkQueue(in_turns(range(points), workers), workers)
    firsts = [int(queue.order[s.low]) for s in queue.segments if len(s)]
    assert sorted(firsts) == list(range(min(points, workers)))
    assert sorted(queue.order.tolist()) == list(range(points))
    for segment in queue.segments:
        assert (np.diff(queue.order[segment.low : segment.high]) > 0).all()
