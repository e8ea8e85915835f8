"""Retraining with an L2 term: the shift of its own curvature, the order of the strengths, the model left alone."""

import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.spectra.l2_path import add_l2, retrained_spectra
from lossmap.spectra.spectrum import spectrum


def make_problem():
    torch.manual_seed(0)
    x = torch.randn(24, 4, dtype=torch.float64)
    targets = x @ torch.randn(4, 1, dtype=torch.float64)
    return Problem.supervised(nn.Linear(4, 1, dtype=torch.float64).eval(), "mse", (x, targets))


def test_the_term_shifts_both_ends_by_its_strength_and_nothing_else():
    plain = spectrum(make_problem(), top=2, trace_products=0, density_error=None)
    shifted = add_l2(plain, 0.25)
    assert shifted.largest == (plain.largest[0] + 0.25, plain.largest[1])
    assert shifted.smallest == (plain.smallest[0] + 0.25, plain.smallest[1])
    assert shifted.loss == plain.loss


def test_of_a_quadratic_loss_every_strength_gives_its_own_shift_in_ascending_order():
    problem = make_problem()
    before = {name: p.clone() for name, p in problem.model.state_dict().items()}
    plain = spectrum(problem, top=1, trace_products=0, density_error=None)
    spectra = retrained_spectra(problem, [0.5, 0.0, 0.1], epochs=2)
    for strength, s in zip([0.0, 0.1, 0.5], spectra, strict=True):  # its Hessian is the same at all weights
        assert abs(s.largest[0] - (plain.largest[0] + strength)) < 1e-6
        assert abs(s.smallest[0] - (plain.smallest[0] + strength)) < 1e-6
    assert all(torch.equal(p, before[name]) for name, p in problem.model.state_dict().items())
    assert len({s.loss for s in spectra}) == 3  # they were trained, with different terms
