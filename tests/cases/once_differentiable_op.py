"""An operation marked once_differentiable (custom CUDA operations are): torch.autograd.grad does not raise, it loses a term."""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.autograd.function import once_differentiable
from truth import dense, ends


class Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * torch.sigmoid(ctx.saved_tensors[0])


class Act(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


torch.manual_seed(5)
x, y = torch.randn(60, 6), torch.randint(0, 3, (60,))
rows = []
for width in (8, 40):  # read whole, and by Lanczos
    a, b = nn.Linear(6, width), nn.Linear(width, 3)
    top, low, tr = ends(dense(nn.Sequential(a, Act(F.softplus), b), lambda f: F.cross_entropy(f(x.double()), y)))
    net = nn.Sequential(a, Act(Softplus.apply), b).eval()
    s, error = attempt(
        lambda: spectrum(Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)), top=1, bottom=1, density_error=None)
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
        ]
    else:
        rows.append(
            (
                f"width {width} refuses",
                error,
                top,
                refused(error, "once_differentiable", "twice", "second derivative", "Softplus"),
            )
        )
judged(rows)
