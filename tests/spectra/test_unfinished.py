"""What `lossmap.read` gives of a spectrum whose tasks are not all done: the parts that came."""

import signal

import numpy as np
import pytest

import lossmap
from lossmap.cli.__main__ import main
from lossmap.spectra.tasks import SpectrumTasks

WORK = ["spectrum", "--model", "mlp", "--samples", "64", "--hvp-backend", "double-backward", "--density-steps", "10"]
WORK += ["--density-probes", "4", "--trace-products", "12", "--top", "2", "--device", "cpu", "--surf-file", "s.h5"]


@pytest.fixture
def until(tmp_path, monkeypatch):
    """The command in a folder of its own, interrupted during the first task of some kind; None: it ends."""
    monkeypatch.chdir(tmp_path)
    real = SpectrumTasks.__call__

    def run(kind, *more):
        def task(self, point):
            if self.tasks[int(point[0])].kind == kind:
                signal.raise_signal(signal.SIGINT)
            return real(self, point)

        monkeypatch.setattr(SpectrumTasks, "__call__", task)
        return main([*WORK, *more])

    return run


def test_the_parts_that_are_there_are_those_of_the_finished_spectrum(until):
    for kind, there in (("ends", {"top", "bottom"}), ("trace", {"top", "bottom", "trace"})):
        assert until(kind) == 75
        so_far = lossmap.read("s.h5")
        assert isinstance(so_far, lossmap.Spectrum) and lossmap.read("s.h5", lossmap.Spectrum).label == so_far.label
        assert {n for n in ("top", "bottom", "trace", "density") if getattr(so_far, n) is not None} == there
        assert "unfinished: " in so_far.notes[-1] and "still to come: " in so_far.notes[-1]
        assert "density" in so_far.notes[-1].partition("still to come")[2] and "unfinished" in repr(so_far)
        assert (so_far.size, so_far.samples, so_far.unit, so_far.matrix) == (3392, 64, "nats", "hessian")
    assert until(None) == 0
    whole = lossmap.read("s.h5")
    assert np.array_equal(whole.top.values, so_far.top.values)
    assert np.array_equal(whole.errors, so_far.errors) and repr(whole.trace) == repr(so_far.trace)
    assert whole.density is not None and whole.loss == so_far.loss and not whole.notes
    assert whole.label == so_far.label and whole.precision == so_far.precision


def test_layers_that_are_there_are_those_of_the_finished_file_with_its_noise_floor(until):
    more = ["--layers", "tensor", "--no-density", "--dense-limit", "40"]
    assert until("leak", *more) == 75
    so_far = lossmap.read("s.h5")
    assert list(so_far) == ["spectrum/train", "layers/train"]
    layers = lossmap.read("s.h5", lossmap.BlockSpectra)
    assert "6 of 6 layers are there" in layers.notes[-1] and repr(layers) == repr(so_far["layers/train"])
    assert until(None, *more) == 0
    whole = lossmap.read("s.h5", lossmap.BlockSpectra)
    for block in layers.blocks:
        same = whole[block.name]
        assert np.array_equal(block.values, same.values) and block.tensors == same.tensors
        assert (block.floor, block.kind, block.error) == (same.floor, same.kind, same.error)


def test_without_what_sets_their_noise_floor_there_are_no_layers(until):
    assert until("block_ends", "--layers", "tensor", "--no-density", "--dense-limit", "40") == 75
    assert isinstance(lossmap.read("s.h5"), lossmap.Spectrum)


def test_a_file_without_any_part_is_what_it_was_and_names_the_command(until):
    assert main([*WORK, "--stop-after", "0.001"]) == 75
    assert isinstance(lossmap.read("s.h5"), lossmap.Surface)
    with pytest.raises(ValueError, match=r"holds a Surface, which is unfinished: lossmap resume s\.h5"):
        lossmap.read("s.h5", lossmap.Topology)
