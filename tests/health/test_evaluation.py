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


def surveyed(problem, tmp_path, measure):
    plane = lossmap.random_plane(problem.model, axes=1)
    return lossmap.survey(measure(problem, plane), lossmap.Grid.line(-1, 1, 3), path=tmp_path / "s.h5")


def connected(problem, tmp_path):
    other = nn.Linear(4, 2)
    return lossmap.connect(problem, other, points=3, path=tmp_path / "s.h5")


def followed(problem, tmp_path):
    for step in (1, 2):
        torch.save(nn.Linear(4, 2).state_dict(), tmp_path / f"net_{step}.pt")
    return lossmap.run_dynamics([tmp_path / "net_1.pt", tmp_path / "net_2.pt"], problem, path=tmp_path / "s.h5", top=2)


FILES = {
    "surface": lambda problem, folder: surveyed(problem, folder, lossmap.losses),
    "eigenmap": lambda problem, folder: surveyed(problem, folder, lossmap.EigenvalueMap),
    "connection": connected,
    "dynamics": followed,
}


@pytest.mark.parametrize("measure", FILES)
def test_what_is_printed_of_points_says_how_the_loss_is_evaluated_as_their_file_does(measure, tmp_path):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(12, 4)
    result = FILES[measure](lossmap.Problem.custom(net, noisy, x), tmp_path)
    for each in (result, lossmap.read(tmp_path / "s.h5")):
        assert SENTENCE in " ".join(repr(each).split())
    (tmp_path / "s.h5").unlink()
    usual = FILES[measure](lossmap.Problem.custom(net, plain, x), tmp_path)
    assert "evaluation" not in repr(usual)


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
