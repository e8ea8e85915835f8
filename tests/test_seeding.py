"""Chance made from its purpose alone."""

import torch

from lossmap.seeding import generator, normal, signs


def test_the_same_purpose_draws_the_same_numbers():
    assert torch.equal(normal(5, "direction", 0, "a"), normal(5, "direction", 0, "a"))
    assert not torch.equal(normal(5, "direction", 0, "a"), normal(5, "direction", 1, "a"))
    assert not torch.equal(normal(5, "a", "b"), normal(5, "ab"))


def test_it_does_not_depend_on_the_global_generator_nor_disturb_it():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = normal(5, "x")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(a, normal(5, "x")) and generator("x").device.type == "cpu"


def test_moments_are_those_of_the_normal_curve_and_of_coins():
    n, s = normal(200_000, "moments"), signs(200_000, "moments")
    assert n.dtype == s.dtype == torch.float32
    assert abs(float(n.mean())) < 0.01 and abs(float(n.var()) - 1) < 0.01
    assert set(s.unique().tolist()) == {-1.0, 1.0} and abs(float(s.mean())) < 0.01
