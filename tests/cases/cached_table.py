"""A table (rotary cosines, a causal mask) that is built in the first forward pass and kept: after a survey the model must train."""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense, ends


class Rotary(nn.Module):
    def __init__(self, by_weights):
        super().__init__()
        self.e, self.q, self.o, self.table, self.by = (
            nn.Embedding(7, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 4),
            None,
            by_weights,
        )

    def forward(self, ids):
        h = self.e(ids)
        if self.table is None or len(self.table) < ids.shape[1]:
            of = h.dtype if self.by else torch.get_default_dtype()
            self.table = torch.cos(
                torch.arange(ids.shape[1], dtype=of)[:, None] * torch.linspace(0.2, 1.1, 6, dtype=of)
            )
        return self.o(
            torch.tanh(self.q(h) * self.table[: ids.shape[1]].to(h.dtype if not self.by else self.table.dtype)).mean(1)
        )


torch.manual_seed(0)
ids, y = torch.randint(0, 7, (30, 5)), torch.randint(0, 4, (30,))
rows = []
for by in (False, True):
    kind = "kept in the weights' precision" if by else "kept, cast at each use"
    net = Rotary(by).eval()
    true = ends(dense(Rotary(True).eval() if by else net, lambda f: F.cross_entropy(f(ids), y)))[0] if not by else None
    if by:
        twin = Rotary(True).double().eval()
        twin.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
        true = ends(dense(twin, lambda f: F.cross_entropy(f(ids), y)))[0]
    net.table = None
    problem = Problem.supervised(net, nn.CrossEntropyLoss(), (ids, y))
    _, error = attempt(lambda: centre(problem))
    rows.append((f"{kind}: surface", error or "done", "done", error is None))
    train = lambda: F.cross_entropy(net.train()(ids), y).backward() or "trains"
    got, error = attempt(train)
    rows.append((f"{kind}: the model trains afterwards", error or got, "trains", error is None))
    net.eval(), net.zero_grad()
    s, error = attempt(lambda: spectrum(problem, top=1, bottom=1, trace_products=0, density_error=None, dense=4))
    rows.append(
        (f"{kind}: spectrum, largest", error or largest(s), true, error is None and honest(largest(s), true, true))
    )
    got, error = attempt(train)
    rows.append((f"{kind}: the model trains after that too", error or got, "trains", error is None))
judged(rows)
