"""Losses that draw at random in evaluation mode too: F.dropout without training=, a VAE's reparametrisation.

Right is a refusal that says so, or the same numbers at every look (common random numbers).
"""

import torch.nn.functional as F
from product import *
from torch import nn


class Always(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(F.dropout(torch.relu(self.a(x)), 0.4))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.d = nn.Linear(5, 4), nn.Linear(2, 5)

    def forward(self, x):
        mean, log = self.e(x).chunk(2, 1)
        return self.d(mean + torch.randn_like(mean) * (0.5 * log).exp()), mean, log


def elbo(model, batch):
    out, mean, log = model(batch[0])
    return F.mse_loss(out, batch[0]) - 0.05 * (1 + log - mean**2 - log.exp()).sum(1).mean()


torch.manual_seed(2)
x, y, z = torch.randn(60, 4), torch.randint(0, 3, (60,)), torch.randn(50, 5)
words = ("random", "twice", "differs", "deterministic", "stochastic", "another value", "dropout")
rows = []
for name, problem in (
    ("F.dropout", Problem.supervised(Always().eval(), nn.CrossEntropyLoss(), (x, y))),
    ("VAE", Problem.custom(VAE().eval(), elbo, (z,))),
):
    line = lambda: [
        float(v)
        for v in survey(losses(problem, random_plane(problem.model, axes=1)), Grid.line(-1, 1, 3))["train_loss"]
    ]
    (a, error), (b, _) = attempt(line), attempt(line)
    right = refused(error, *words) if error else max(abs(p - q) for p, q in zip(a, b)) < 1e-6
    rows.append((f"{name}: a surface, twice", error or (a, b), "the same twice, or a refusal that says random", right))
    reading = lambda: eigenvalues(problem, random_plane(problem.model, axes=1, seed=0))[0]
    (a, error), (b, _) = attempt(reading), attempt(reading)
    right = (
        refused(error, *words)
        if error
        else b is not None
        and abs(a["max_eig"] - b["max_eig"]) <= a["max_eig_error"] + b["max_eig_error"] + 2e-3 * abs(a["max_eig"])
    )
    rows.append(
        (
            f"{name}: max_eig, twice",
            error or (a["max_eig"], a["max_eig_error"], b and b["max_eig"]),
            "the same twice within the bars, or a refusal that says random",
            right,
        )
    )
    s, error = attempt(lambda: spectrum(problem, top=1, bottom=1, density_error=None))
    right = (
        refused(error, "random", "twice", "deterministic", "stochastic", "another value", "dropout") if error else True
    )
    if error is None:
        t = spectrum(problem, top=1, bottom=1, density_error=None)
        right = abs(largest(s)[0] - largest(t)[0]) <= largest(s)[1] + largest(t)[1] + 2e-3 * abs(largest(s)[0])
    rows.append(
        (
            f"{name}: spectrum",
            error or largest(s),
            "as above; not the words `no mean over samples`, which lead astray",
            right,
        )
    )
judged(rows)
