"""A custom autograd Function that keeps an intermediate on ctx: the well known memory saving Swish (pytorch#58509).

Its first derivative is right; differentiated twice, PyTorch is wrong in silence, since ctx.gate hangs on no graph.
"""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import differenced, ends


class KeptSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.gate = torch.sigmoid(x)
        ctx.save_for_backward(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ctx.gate * (1 + x * (1 - ctx.gate))


class Swish(nn.Module):
    def forward(self, x):
        return KeptSwish.apply(x)


torch.manual_seed(31)
x, y = torch.randn(70, 7), torch.randint(0, 4, (70,))
net = nn.Sequential(nn.Linear(7, 9), Swish(), nn.Linear(9, 4)).eval()
top, low, tr = ends(differenced(net, lambda m: F.cross_entropy(m(x.double()), y)))
problem = Problem.supervised(net, nn.CrossEntropyLoss(), (x, y))
rows = []
s, error = attempt(lambda: spectrum(problem, top=1, bottom=1, density_error=None))
if error is None:
    rows += [
        ("spectrum, largest", largest(s), top, honest(largest(s), top, top)),
        ("spectrum, smallest", smallest(s), low, honest(smallest(s), low, top)),
        (
            "spectrum, trace and its interval",
            trace_of(s),
            tr,
            trace_of(s)[1] - 0.01 * top <= tr <= trace_of(s)[2] + 0.01 * top,
        ),
    ]
else:
    rows.append(("spectrum refuses", error, top, refused(error, "KeptSwish", "twice", "second derivative")))
r, error = attempt(lambda: eigenvalues(problem, random_plane(net, axes=1, seed=0))[0])
if error is None:
    got = (r["max_eig"], r["max_eig_error"])
    rows.append(("map of eigenvalues, max_eig", got, top, honest(got, top, top)))
else:
    rows.append(("map of eigenvalues refuses", error, top, refused(error, "KeptSwish", "twice", "second derivative")))
judged(rows)
