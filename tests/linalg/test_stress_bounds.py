"""A reduced form of benchmarks/stress_bounds.py: violated bounds of an eigenmap, counted against dense Hessians."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "stress_bounds.py"


@pytest.fixture(scope="module")
def stress():
    spec = importlib.util.spec_from_file_location("stress_bounds", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "relu", "convolution"])
def test_bounds_hold_at_points_reached_from_their_neighbors(stress, name):
    truth = None
    for tol in (1e-2, 1e-3):
        counts, truth = stress.count(name, tol, 5, torch.float32, 24, truth, backend="double-backward")
        assert counts.error == 0, counts.where
        assert counts.limit_max <= 1 and counts.limit_min <= 1
        assert counts.missed_repaired <= counts.missed_warm <= 3
        assert counts.products_warm <= counts.products_cold + 1.0  # the points are far apart
