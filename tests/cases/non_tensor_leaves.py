"""Batches with leaves that are no tensors: graphs in a list, UserDicts, a task's name, a number. None may stand for all of them."""

from collections import UserDict
from dataclasses import dataclass

import torch.nn.functional as F
from product import *
from torch import nn


@dataclass
class Graph:
    x: torch.Tensor
    edges: torch.Tensor
    y: torch.Tensor


class GNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, g):
        h = self.a(g.x)
        return self.b(torch.tanh(h.index_add(0, g.edges[1], h[g.edges[0]])).mean(0, keepdim=True))


class Encoded(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 2)

    def forward(self, batch):
        return self.l(batch["x"])


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.h = nn.ModuleDict({"left": nn.Linear(3, 2), "right": nn.Linear(3, 2)})

    def forward(self, x, task):
        return self.h[task](x)


torch.manual_seed(19)
x, y = torch.randn(12, 3), torch.randint(0, 2, (12,))
graphs = [
    (Graph(torch.randn(k, 3), torch.randint(0, k, (2, 2 * k)), torch.randint(0, 2, (1,))), i)
    for i, k in enumerate((4, 5, 6, 7, 8))
]
pairs = [(g, g.y) for g, _ in graphs]
dicts = [(UserDict(x=x[i : i + 4], y=y[i : i + 4]), torch.arange(i, i + 4)) for i in (0, 4, 8)]
only = [UserDict(x=x[i : i + 4], labels=y[i : i + 4]) for i in (0, 4, 8)]
tasks = [(x[:6], "left", y[:6]), (x[6:], "right", y[6:])]
numbers = [(x[:6], y[:6], 0.5), (x[6:], y[6:], 4.0)]
cases = {
    "graphs with a target, supervised": (GNN(), pairs, lambda n: Problem.supervised(n, nn.CrossEntropyLoss(), pairs), lambda n, b: F.cross_entropy(n(b[0]), b[1])),
    "graphs with a target, own loss": (GNN(), pairs, lambda n: Problem.custom(n, lambda m, b: F.cross_entropy(m(b[0]), b[1]), pairs), lambda n, b: F.cross_entropy(n(b[0]), b[1])),
    "graphs that hold their target, own loss with a count": (GNN(), [g for g, _ in graphs], lambda n: Problem.custom(n, lambda m, g: (F.cross_entropy(m(g), g.y), 1), [g for g, _ in graphs]), lambda n, g: F.cross_entropy(n(g), g.y)),
    "(UserDict, ids), own loss": (Encoded(), dicts, lambda n: Problem.custom(n, lambda m, b: F.cross_entropy(m(b[0]), b[0]["y"]), dicts), lambda n, b: F.cross_entropy(n(b[0]), b[0]["y"])),
    "UserDicts, own loss": (Encoded(), only, lambda n: Problem.custom(n, lambda m, b: F.cross_entropy(m(b), b["labels"]), only), lambda n, b: F.cross_entropy(n(b), b["labels"])),
    "a task's name for each batch": (Heads(), tasks, lambda n: Problem.supervised(n, nn.CrossEntropyLoss(), tasks), lambda n, b: F.cross_entropy(n(b[0], b[1]), b[2])),
    "a number for each batch": (nn.Linear(3, 2), numbers, lambda n: Problem.custom(n, lambda m, b: b[2] * F.cross_entropy(m(b[0]), b[1]), numbers), lambda n, b: b[2] * F.cross_entropy(n(b[0]), b[1])),
}  # fmt: skip
rows = []
for name, (net, batches, make, of) in cases.items():
    net.eval()
    with torch.no_grad():
        true = sum(float(of(net, b)) for b in batches) / len(batches)
    for what, read_ in (
        ("surface", lambda: centre(make(net))),
        (
            "spectrum's loss",
            lambda: float(spectrum(make(net), top=1, bottom=1, trace_products=0, density_error=None).loss),
        ),
    ):
        got, error = attempt(read_)
        must_work = name.startswith(("UserDicts", "graphs that hold"))
        right = (
            (
                refused(error, "no tensor", "not a tensor", "not tensors", "other than tensors", "leaf", "leaves")
                and not must_work
            )
            if error
            else abs(got - true) < 1e-5
        )
        rows.append((f"{name}: {what}", error or got, true, right))
judged(rows)
