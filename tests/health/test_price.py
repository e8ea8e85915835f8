"""What of an examination fits into a time."""

import torch

import lossmap
from lossmap.health.price import fit_examination, parts_of_examination


def test_what_cannot_be_cut_and_takes_more_than_the_budget_is_said():
    model = torch.nn.Linear(4, 3)
    problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
    for seconds, is_said in ((1e-6, True), (1e6, False)):
        names = ("hessian", "gradients")
        fit = fit_examination(problem, problem, parts_of_examination(12, None), names, "weights", None, seconds)
        assert any("the examinations beside the Hessian alone take" in cut for cut in fit.cuts) is is_said
