"""What of sharpness, and of a line between networks, fits into a time: never more than asked for."""

from itertools import pairwise
from math import ceil

import pytest
import torch

import lossmap
from lossmap.landscape import connect_budget, sharpness_budget
from lossmap.landscape.sharpness_cost import expected_costs
from lossmap.landscape.sharpness_request import SharpnessRequest
from lossmap.landscape.sharpness_tasks import SharpnessSubject, make_sharpness_tasks

EACH = {0: {"product": 1.0, "gradient": 0.5, "pass": 0.25}}


@pytest.fixture(scope="module")
def tasks():
    torch.manual_seed(0)
    problem = lossmap.Problem.supervised(torch.nn.Linear(40, 3), "mse", (torch.randn(8, 40), torch.randn(8, 3)))
    return make_sharpness_tasks([SharpnessSubject("", problem)], SharpnessRequest())


@pytest.mark.parametrize("workers", [1, 4])
def test_sharpness_takes_no_longer_and_more_time_holds_no_less(tasks, workers):
    fits = []
    for seconds in (0.0, 30.0, 60.0, 100.0, 200.0, 400.0, 1e4):
        fit = sharpness_budget.fit_request(tasks, seconds, workers, EACH)
        costs = [c.seconds for c in expected_costs(sharpness_budget.with_request(tasks, fit.request), seconds=EACH)]
        wall = max(sum(costs) / workers, max(costs))
        assert wall <= 0.8 * seconds or "longer than what is left" in fit.cuts[-1]
        fits.append(fit.request)
    assert fits[-1] == tasks.request
    for less, more in pairwise(fits):
        for name in ("draws", "steps", "trace_products", "critical"):
            assert getattr(less, name) <= getattr(more, name)
        more.check()
    assert (fits[0].draws, fits[0].steps, fits[0].trace_products, fits[0].critical) == (0, 0, 0, False)


def test_what_was_not_asked_for_is_not_fitted_in():
    torch.manual_seed(0)
    problem = lossmap.Problem.supervised(torch.nn.Linear(4, 3), "mse", (torch.randn(8, 4), torch.randn(8, 3)))
    request = SharpnessRequest(draws=0, steps=3, starts=1, critical=False, trace_products=0)
    few = make_sharpness_tasks([SharpnessSubject("", problem)], request)
    for seconds in (0.0, 20.0, 1e4):
        fit = sharpness_budget.fit_request(few, seconds, each=EACH)
        assert (fit.request.draws, fit.request.critical, fit.request.trace_products) == (0, False, 0)
        assert not any(word in " ".join(fit.cuts) for word in ("average", "critical", "trace"))


@pytest.mark.parametrize("steps", [0, 60, 1000])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("beside", [0.0, 9.0])
def test_a_line_takes_no_longer_than_its_time(steps, workers, beside):
    for seconds in (0.0, 10.0, 30.0, 60.0, 1e4):
        fit = connect_budget.fit_connection(
            25, steps, point_seconds=1.0, step_seconds=0.1, seconds=seconds, beside=beside, workers=workers
        )
        wall = beside + ceil(fit.points / workers) + 0.1 * fit.steps
        assert wall <= 0.8 * seconds or "longer than what is left" in fit.cuts[-1]
        assert 7 <= fit.points <= 25 and min(steps, 100) <= fit.steps <= steps
    assert (fit.points, fit.steps, fit.cuts) == (25, steps, ())
