"""Logistic regressions fitted to a loss of about 1e-6: convex, so no eigenvalue is negative, whatever float32 rounds.

Truth: convexity of cross entropy in a linear model; and the float64 Hessian X^T diag(p(1-p)) X in closed form.
"""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense, ends

torch.manual_seed(5)
x = torch.randn(80, 4)
y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()
x = x + (2 * y[:, None] - 1) * 1.5 * torch.tensor([1.0, -2.0, 0.5, 0.0]) / 2.3
rows = []
for classes in (2, 3):
    net = nn.Linear(4, classes)
    o = torch.optim.LBFGS(net.parameters(), max_iter=60)

    def step():
        o.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    o.step(step)  # separable: the longer, the larger; then its length is set so that the loss is 1e-6
    low, high, held = 0.0, 50.0, {k: v.clone() / v.norm() for k, v in net.state_dict().items()}
    for _ in range(60):
        middle = (low + high) / 2 * 20
        with torch.no_grad():
            net.weight.copy_(held["weight"] * middle)
            net.bias.zero_()
            low, high = (
                ((low + high) / 2, high)
                if float(F.cross_entropy(net.double()(x.double()), y)) > 1e-6
                else (low, (low + high) / 2)
            )
        net.float()
    loss = float(F.cross_entropy(net(x), y))
    net.eval()
    top, low, tr = ends(dense(net, lambda f: F.cross_entropy(f(x.double()), y)))
    assert low > -1e-12
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), (x, y))
    for size in (256, 1):
        s, error = attempt(lambda: spectrum(problem, top=2, bottom=2, density_error=None, trace_products=0, dense=size))
        if error:
            rows.append(
                (
                    f"loss {loss:.0e}, {classes} classes, dense={size}",
                    error,
                    low,
                    refused(error, "precision", "rounding"),
                )
            )
            continue
        a, b = largest(s)
        rows.append(
            (f"loss {loss:.0e}, {classes} classes, dense={size}: largest", (a, b), top, honest((a, b), top, top))
        )
        a, b = smallest(s)
        rows.append(
            (
                f"loss {loss:.0e}, {classes} classes, dense={size}: smallest within its bar",
                (a, b),
                low,
                abs(a - low) <= b + 2e-3 * top,
            )
        )
        told = " ".join(words_of(s).split())
        bends = any(w in told for w in ("indefinite", "no minimum", "saddle", "bends down"))
        rows.append((f"loss {loss:.0e}, {classes} classes, dense={size}: told to bend down", bends, False, not bends))
judged(rows)
