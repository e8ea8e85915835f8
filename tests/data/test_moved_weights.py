"""Weights moved at random: how far, always the same, and at the price of the result alone."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lossmap.data.moved_weights import SHARE, moved_weights


class Largest(TorchDispatchMode):
    """Adds up the bytes of all new tensors, in units of a size."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not any(made is a for a in args) and "view" not in str(function):
            self.made.append(made.numel() * made.element_size())
        return made


def test_tensors_are_moved_by_a_share_of_their_size_and_always_alike():
    net = nn.Sequential(nn.Linear(200, 100), nn.LayerNorm(100))
    moved = moved_weights(net)
    for name, p in net.named_parameters():
        step = (moved[name] - p).square().mean().sqrt()
        rms = p.detach().square().mean().sqrt()
        assert abs(step / (SHARE * max(rms, 1 / (p[0].numel() ** 0.5))) - 1) < 0.4
        assert moved[name].dtype == p.dtype and torch.equal(moved[name], moved_weights(net)[name])
    assert {t.dtype for t in moved_weights(net.half()).values()} == {torch.float16}
    double = moved_weights(nn.Linear(2, 2).double())["weight"]
    assert double.dtype == torch.float64 and not torch.equal(double, double.float().double())


def test_nothing_of_a_tensors_size_is_made_beside_the_result():
    net = nn.Embedding(6000, 100)  # an embedding may be a third of a language model
    with Largest() as largest:
        moved_weights(net)
    assert sum(size >= net.weight.nbytes for size in largest.made) == 1
