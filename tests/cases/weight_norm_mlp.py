"""Weight normalised layers: PyTorch's own fused _weight_norm has a wrong second derivative (gradgradcheck fails)."""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from truth import dense, differenced, ends


class Written(nn.Module):
    """The same layer, written out: w = g v / ||v||."""

    def __init__(self, layer):
        super().__init__()
        made = layer.parametrizations.weight
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.g, self.v = (nn.Parameter(p.detach().clone()) for p in (made.original0, made.original1))

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True), self.bias)


torch.manual_seed(12)
x, y = torch.randn(80, 6), torch.randint(0, 3, (80,))
rows = []
for width in (7, 22):
    net = nn.Sequential(weight_norm(nn.Linear(6, width)), nn.Tanh(), weight_norm(nn.Linear(width, 3))).eval()
    plain = nn.Sequential(Written(net[0]), nn.Tanh(), Written(net[2]))
    top, low, tr = ends(dense(plain, lambda f: F.cross_entropy(f(x.double()), y)))
    if width == 7:
        h = differenced(net, lambda m: F.cross_entropy(m(x.double()), y))
        assert abs(ends(h)[0] - top) < 1e-6, "the truths disagree"
    s, error = attempt(
        lambda: spectrum(
            Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)), top=1, bottom=1, density_error=None, dense=100
        )
    )
    if error is None:
        rows += [
            (f"width {width}, largest", largest(s), top, honest(largest(s), top, top)),
            (f"width {width}, smallest", smallest(s), low, honest(smallest(s), low, top)),
            (
                f"width {width}, trace",
                trace_of(s),
                tr,
                trace_of(s)[1] - 0.01 * top <= tr <= trace_of(s)[2] + 0.01 * top,
            ),
            (
                f"width {width}, error bar is of use",
                largest(s)[1],
                "<= 1 % of the largest",
                largest(s)[1] <= 0.01 * top,
            ),
        ]
    else:
        rows.append((f"width {width} refuses", error, top, refused(error, "weight_norm", "second derivative", "twice")))
judged(rows)
