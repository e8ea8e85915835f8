"""Class weights and ignore_index in a function (lambda) in place of a criterion: a weighted mean, which no cut into batches keeps.

Right is one objective for surface and spectrum alike: the mean over one batch of all samples (as nn.CrossEntropyLoss(weight=...)
gives it), or the mean over the loader's own batches; or a refusal. Not a number of the batch that a probe happens to choose.
"""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from truth import dense, ends

N = 600
torch.manual_seed(8)
x, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
y[::5][torch.rand(N // 5) < 0.8] = -1
weight = torch.tensor([0.2, 1.0, 15.0])
f = lambda o, t: F.cross_entropy(o, t, weight=weight.to(o.dtype), ignore_index=-1)
net = nn.Linear(4, 3).eval()
words, rows = ("mean over", "batch"), []
one = ends(dense(net, lambda g: f(g(x.double()), y)))[0]
for size in (2, 50, N):
    cuts = [slice(i, i + size) for i in range(0, N, size)]
    with torch.no_grad():
        value = {"whole": float(f(net(x), y)), "own": sum(float(f(net(x[c]), y[c])) for c in cuts) / len(cuts)}
    h = {"whole": one, "own": ends(dense(net, lambda g: sum(f(g(x[c].double()), y[c]) for c in cuts) / len(cuts)))[0]}
    make = lambda: Problem.supervised(net, f, DataLoader(TensorDataset(x, y), size))
    found = {
        f"surface, the probe's batch is {b or 'its own'}": attempt(lambda: centre(make(), batch=b))
        for b in (None, 64, 512)
    }
    s, other = attempt(lambda: spectrum(make(), top=1, bottom=1, trace_products=0, density_error=None))
    fits = {
        k: [refused(e, *words) if e else abs(v - value[k]) < 1e-4 for v, e in found.values()]
        + [refused(other, *words) if other else honest(largest(s), h[k], h[k])]
        for k in h
    }
    best = "whole" if sum(fits["whole"]) >= sum(fits["own"]) else "own"
    told = [(k, e or v, value) for k, (v, e) in found.items()] + [("spectrum, largest", other or largest(s), h)]
    for (what, gives, true), right in zip(told, fits[best]):
        rows.append(
            (
                f"loader of {size}: {what}",
                gives,
                f"{true['whole']:.5f} as one batch, {true['own']:.5f} over own batches; one of them throughout",
                right,
            )
        )
judged(rows)
