"""A function with reduction='sum': taken for a mean and multiplied by the batch's samples again; and a regulariser in a sum."""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

N = 600
torch.manual_seed(4)
x, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
net = nn.Linear(4, 3).eval()
decay = lambda m: 0.3 * sum((p**2).sum() for p in m.parameters())
with torch.no_grad():
    mean, total = float(F.cross_entropy(net(x), y)), float(F.cross_entropy(net(x), y, reduction="sum"))
    penalty = float(decay(net))
words, rows = ("sum", "mean over", "batch"), []
f = lambda o, t: F.cross_entropy(o, t, reduction="sum")
g = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum") + decay(m)
for size in (6, N):
    load = lambda: DataLoader(TensorDataset(x, y), size)
    own = total / (N // size)  # the mean over the loader's own batches
    for b in (None, 64, 512):
        got, error = attempt(lambda: centre(Problem.supervised(net, f, load()), batch=b))
        right = refused(error, *words) if error else min(abs(got / v - 1) for v in (mean, total, own)) < 1e-4
        rows.append(
            (
                f"supervised, loader of {size}, the probe's batch is {b or 'its own'}",
                error or got,
                f"{mean:.5f} a sample, {total:.2f} in all, or {own:.3f} over own batches",
                right,
            )
        )
    once, many = mean + penalty / N, mean + penalty / size
    for b in (None, 64, 512):
        got, error = attempt(lambda: centre(Problem.custom(net, g, load(), reduction="sum"), batch=b))
        right = refused(error, *words) if error else min(abs(got / v - 1) for v in (once, many)) < 1e-4
        rows.append(
            (
                f"custom, a sum with a regulariser inside, loader of {size}, the probe's batch is {b or 'its own'}",
                error or got,
                f"{once:.5f} as one batch or {many:.5f} over own batches",
                right,
            )
        )
judged(rows)
