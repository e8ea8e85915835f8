"""Models whose copies are other functions: a copy loses what the model keeps by its identity, or leaves out."""

import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn

import lossmap

SCALES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Scaled(nn.Module):
    """Two layers, the first scaled by what `scale` finds, else by 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def scale(self):
        return 0.5

    def forward(self, x):
        return self.second(torch.tanh(self.scale() * self.first(x)))


class ByIdentity(Scaled):
    def __init__(self):
        super().__init__()
        self.scales = {id(self.first.weight): 0.5}

    def scale(self):
        return self.scales.get(id(self.first.weight), 1.0)


class ByWeakReference(Scaled):
    def __init__(self):
        super().__init__()
        SCALES[self] = 0.5

    def scale(self):
        return SCALES.get(self, 1.0)


class LeavesOut(Scaled):
    def __init__(self):
        super().__init__()
        self.kept = 0.5

    def __setstate__(self, state):
        self.__dict__.update(state, kept=1.0)

    def scale(self):
        return self.kept


class OnTheParameter(Scaled):
    """Copies follow it, but no other tensor in the parameter's place has it."""

    def __init__(self):
        super().__init__()
        self.first.weight.scale = 0.5

    def scale(self):
        return getattr(self.first.weight, "scale", 1.0)


LOSSY = [ByIdentity, ByWeakReference, LeavesOut]


def problem_of(model):
    return lossmap.Problem.supervised(model, "crossentropy", (torch.randn(24, 4), torch.arange(24) % 3))


def test_the_reason_why_rounding_is_not_measured_is_a_warning_once(caplog):
    problem = problem_of(ByIdentity())
    for _ in range(2):
        lossmap.spectrum(problem, density_error=None)
    assert sum("rounding is not measured" in r.message for r in caplog.records if r.levelname == "WARNING") == 1


@pytest.mark.parametrize("kind", LOSSY)
def test_what_needs_no_copy_is_that_of_the_model(kind, caplog):
    found, known = (problem_of(kind()), problem_of(Scaled()))
    a, b = (lossmap.spectrum(p, parameters="all", density_error=None) for p in (found, known))
    for value, true in ((a.largest, b.largest), (a.smallest, b.smallest)):
        assert abs(value[0] - true[0]) <= value[1] + true[1]
    assert a.largest[1] < 1e-3
    assert "a copy of the model, as copy.deepcopy makes it, is another function" in caplog.text
    assert "in that precision" not in caplog.text
    blocks, true_blocks = (lossmap.layer_spectra(p, probes=0, density_error=None) for p in (found, known))
    for block in blocks.blocks:
        assert block.largest == pytest.approx(true_blocks[block.name].largest, abs=1e-5)


@pytest.mark.parametrize("kind", LOSSY)
def test_what_evaluates_copies_refuses_them(kind, tmp_path):
    model = kind()
    torch.save(model.state_dict(), tmp_path / "step_1.pt")
    with pytest.raises(ValueError, match=r"a copy of the model, .* is another function"):
        lossmap.run_dynamics([tmp_path], problem_of(model), path=tmp_path / "run.h5", top=1)


class Registered(Scaled):
    """Its scale stands in a table of its own, in which copies do not stand."""

    table: ClassVar[dict[int, float]] = {}

    def __init__(self):
        super().__init__()
        self.table[id(self)] = 1.7

    def forward(self, x):
        return self.table[id(self)] * super().forward(x)


def test_a_copy_that_does_not_run_is_refused_by_name(tmp_path):
    model = Registered()
    torch.save(model.state_dict(), tmp_path / "step_1.pt")
    with pytest.raises(
        ValueError, match=r"a copy of the model, .* does not run where the model does \(KeyError: \d+\)"
    ):
        lossmap.run_dynamics([tmp_path], problem_of(model), path=tmp_path / "run.h5", top=1)
    assert lossmap.spectrum(problem_of(model), parameters="all", density_error=None).largest[1] < 1e-3


@pytest.mark.parametrize("kind", [*LOSSY, OnTheParameter])
@pytest.mark.parametrize("backend", ["auto", "retained-graph", "linearized"])
def test_no_backend_takes_other_tensors_in_the_place_of_parameters_for_them(kind, backend):
    found, known = problem_of(kind()), problem_of(Scaled())
    settings = {"parameters": "all", "density_error": None, "trace_products": 0, "dense": 2}
    a = lossmap.spectrum(found, backend=backend, **settings)
    b = lossmap.spectrum(known, backend="double-backward", **settings)
    for value, true in ((a.largest, b.largest), (a.smallest, b.smallest)):
        assert abs(value[0] - true[0]) <= value[1] + true[1]
