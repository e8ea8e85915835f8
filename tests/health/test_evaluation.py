"""How an unusual loss is evaluated stands in the reports and files of every measure, not on the screen alone."""

import pytest
import torch
from torch import nn

import lossmap

SENTENCE = "the loss draws at random: each batch has random numbers of its own"


def noisy(model, batch):
    return (model(batch + 0.1 * torch.randn_like(batch)) ** 2).mean()


def plain(model, batch):
    return (model(batch) ** 2).mean()


SHORT = {"radius": {"absolute": 0.05}, "draws": 2, "starts": 1, "ascent_steps": 1}
MEASURES = {
    "sharpness": lambda problem: lossmap.sharpness(problem, **SHORT),
    "layers": lambda problem: lossmap.layer_spectra(problem),
    "health": lambda problem: lossmap.diagnose(problem),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_the_report_and_the_file_say_how_the_loss_is_evaluated(measure, tmp_path):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(12, 4)
    result = MEASURES[measure](lossmap.Problem.custom(net, noisy, x))
    result.save(tmp_path / "r.h5")
    for each in (result, lossmap.read(tmp_path / "r.h5")):
        assert SENTENCE in " ".join(repr(each).split())
    usual = MEASURES[measure](lossmap.Problem.custom(net, plain, x))
    assert "evaluation" not in repr(usual)
    assert "at random" not in " ".join(repr(usual).split())
