"""A mixture of experts that routes by nonzero(): the shapes within depend on values, so a trace fits one place alone."""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense, ends


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(self, x):
        p = self.gate(x).softmax(1)
        best, out = p.argmax(1), x.new_zeros(len(x), 4)
        for k, expert in enumerate(self.experts):
            mine = (best == k).nonzero()[:, 0]
            out = out.index_add(0, mine, p[mine, k : k + 1] * expert(x[mine]).tanh())
        return out


torch.manual_seed(1)
x, y = torch.randn(90, 5), torch.randint(0, 4, (90,))
net = Experts().eval()
problem, plane = Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)), random_plane(net, axes=1, seed=0)
rows = []
for way in ("auto", "linearized"):
    made = EigenvalueMap({"train": prepared(problem, backend=way)}, plane, certify="none")
    for at in (-1.5, 0.0, 2.0):
        there = Experts()
        there.load_state_dict(net.state_dict() | dict(plane.at((at,))))
        top = ends(dense(there, lambda f: F.cross_entropy(f(x.double()), y)))[0]
        r, error = attempt(lambda: made((at,)))
        got = None if error else (r["max_eig"], r["max_eig_error"])
        rows.append((f"{way}, point {at}: max_eig", error or got, top, error is None and honest(got, top, top)))
judged(rows)
