"""A rehearsal counts the products that the parts themselves say they took, and times by a clock that is handed in."""

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.rounding import STEPS
from lossmap.data.problem import Problem
from lossmap.spectra.cost import products_of, rehearse
from lossmap.spectra.request import SpectrumRequest, Subject
from lossmap.spectra.tasks import make_tasks


def tasks(samples=40, **asked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))
    return make_tasks(
        [Subject("net", Problem.supervised(model, "crossentropy", (x, x[:, :3].argmax(1))))], SpectrumRequest(**asked)
    )


def test_products_are_those_that_the_parts_say_they_took():
    measure = tasks(dense=0, density_error=0.1, trace_products=30, by="tensor", probes=2)
    counted = dict(zip(measure.tasks, products_of(measure, 40), strict=True))
    readings = {group: arrays for i in range(len(measure.tasks)) for group, arrays in measure((float(i),)).items()}
    spectrum, layers = measure.spectra(readings)["net"], measure.layers(readings)["net"]
    of = {kind: sum(n for task, n in counted.items() if task.kind == kind) for kind in {t.kind for t in counted}}
    assert of["trace"] == spectrum.trace.products
    measuring = 2 * STEPS  # of the rounding, once for each operator: density comes first
    assert of["density"] == spectrum.density.products + measuring
    assert of["ends"] == spectrum.top.products + spectrum.bottom.products
    assert of["block"] == sum(block.products + measuring for block in layers.blocks)
    assert of["gradient"] == 1


def test_a_part_costs_its_products_at_the_price_of_one_over_all_samples():
    measure = tasks(samples=400, dense=0, density=False, trace_products=30)
    seconds = iter(np.arange(1000.0) ** 2)  # each interval longer than the last: the median of three counts
    costs, setup = rehearse(measure, lambda: next(seconds), samples=40)
    price = 5.0**2 + 6.0**2 - 2 * 5.0 * 5.0  # of the second timed product: from 5 to 6 on this clock
    assert [c.products for c in costs] == products_of(measure, 40)
    assert [c.seconds for c in costs] == pytest.approx([c.products * price for c in costs])
    assert setup == 9.0**2 - 4 * price
