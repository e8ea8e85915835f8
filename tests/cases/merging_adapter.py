"""Adapters that merge into the base weight in eval() (loralib): the survey must neither change the model nor lose the adapter."""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense, ends


class Merging(nn.Linear):
    def __init__(self, i, o, r=2):
        super().__init__(i, o)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(r, i) * 0.6), nn.Parameter(torch.randn(o, r) * 0.6)
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.lora_B @ self.lora_A).data
            self.merged = not mode
        return self

    def forward(self, x):
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.lora_A.T @ self.lora_B.T


class Plain(Merging):
    def train(self, mode=True):
        return nn.Linear.train(self, mode)


def net_of(kind):
    torch.manual_seed(6)
    return nn.Sequential(kind(4, 8), nn.Tanh(), nn.Linear(8, 3))


x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
top = ends(dense(net_of(Plain), lambda f: F.cross_entropy(f(x.double()), y), "lora"))[0]
words = ("eval()", "merge", "evaluation mode", "changes its own parameters", "changes parameters")
net = net_of(Merging).train()
with torch.no_grad():
    before, base = net(x).clone(), net[0].weight.detach().clone()
_, error = attempt(lambda: centre(Problem.supervised(net, nn.CrossEntropyLoss(), (x, y))))
with torch.no_grad():
    after = net(x)
same = torch.equal(base, net[0].weight) and net.training and net[0].training and not net[0].merged
rows = [
    (
        "after a survey the model is as it was",
        error
        or f"outputs moved by {float((after - before).abs().max()):.3g}, merged={net[0].merged}, training={net.training}",
        "untouched",
        (error is None or refused(error, *words)) and same and torch.allclose(before, after, atol=1e-6),
    )
]
net = net_of(Merging).train()
s, error = attempt(
    lambda: spectrum(
        Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)),
        parameters="lora",
        top=1,
        bottom=1,
        trace_products=0,
        density_error=None,
    )
)
rows.append(
    (
        "spectrum by the adapters, model given while training",
        error or largest(s),
        top,
        refused(error, *words, "training") if error else honest(largest(s), top, top),
    )
)
net = net_of(Merging).eval()
s, error = attempt(
    lambda: spectrum(
        Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)),
        parameters="lora",
        top=1,
        bottom=1,
        trace_products=0,
        density_error=None,
    )
)
rows.append(
    (
        "spectrum by the adapters, model in eval()",
        error or largest(s),
        top,
        refused(error, *words) if error else honest(largest(s), top, top),
    )
)
p = random_plane(net_of(Merging), axes=1, seed=1)
at = {k: v for k, v in p.at((0.5,)).items()}
ref = net_of(Plain)
with torch.no_grad():
    true = float(F.cross_entropy(torch.func.functional_call(ref, at, (x,)), y))
net = net_of(Merging).train()
got, error = attempt(
    lambda: losses(Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)), random_plane(net, axes=1, seed=1))((0.5,))[
        "train_loss"
    ]
)
rows.append(
    (
        "loss at a point where the adapters move",
        error or got,
        true,
        refused(error, *words) if error else abs(got - true) < 1e-5,
    )
)
judged(rows)
