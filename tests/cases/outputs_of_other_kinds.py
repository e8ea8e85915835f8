"""Whole-number targets do not make an argmax of the outputs an accuracy: one logit, one dimension, dicts, tuples."""

import torch.nn.functional as F
from product import *
from torch import nn


class Net(nn.Module):
    def __init__(self, give, width=1):
        super().__init__()
        self.l, self.give = nn.Linear(4, width), give

    def forward(self, x):
        return self.give(self.l(x))


torch.manual_seed(14)
x, y, counts = torch.randn(70, 4), torch.randint(0, 2, (70,)), torch.poisson(torch.ones(70)).long()
bce = lambda o, t: F.binary_cross_entropy_with_logits(o.reshape(-1), t.to(o.dtype))
cases = {
    "one logit (N, 1)": (Net(lambda z: z), bce, y, lambda n: 100 * float(((n(x)[:, 0] > 0) == (y > 0)).float().mean())),
    "one logit (N,)": (Net(lambda z: z[:, 0]), bce, y, lambda n: 100 * float(((n(x) > 0) == (y > 0)).float().mean())),
    "counts, Poisson, (N,)": (Net(lambda z: z[:, 0]), lambda o, t: F.poisson_nll_loss(o, t.to(o.dtype)), counts, None),
    "dict of logits": (
        Net(lambda z: {"logits": z}, 2),
        lambda o, t: F.cross_entropy(o["logits"], t),
        y,
        lambda n: 100 * float((n(x)["logits"].argmax(1) == y).float().mean()),
    ),
    "tuple of logits and features": (
        Net(lambda z: (z, z.tanh()), 2),
        lambda o, t: F.cross_entropy(o[0], t),
        y,
        lambda n: 100 * float((n(x)[0].argmax(1) == y).float().mean()),
    ),
}
rows = []
for name, (net, loss, t, accuracy) in cases.items():
    net.eval()
    with torch.no_grad():
        true = float(loss(net(x), t))
        acc = None if accuracy is None else accuracy(net)
    made, error = attempt(
        lambda: survey(losses(Problem.supervised(net, loss, (x, t)), random_plane(net, axes=1)), Grid.line(-1, 1, 3))
    )
    got = None if error else float(made["train_loss"][1])
    rows.append((f"{name}: loss", error or got, true, error is None and abs(got - true) < 1e-5))
    if error is None:
        told = float(made["train_acc"][1]) if "train_acc" in made.fields else None
        rows.append(
            (
                f"{name}: accuracy, if one is told",
                told,
                acc,
                told is None or (acc is not None and abs(told - acc) < 1e-4),
            )
        )
judged(rows)
