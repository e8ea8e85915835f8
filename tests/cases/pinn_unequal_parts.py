"""A physics informed net whose interior, boundary and initial points are different in number: the README promises PINNs."""

from product import *
from torch import nn
from truth import dense, ends

torch.manual_seed(17)
net = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 1)).eval()
inner, edge, start = (
    torch.rand(60, 2),
    torch.cat([torch.randint(0, 2, (8, 1)).float(), torch.rand(8, 1)], 1),
    torch.cat([torch.rand(5, 1), torch.zeros(5, 1)], 1),
)


def heat(model, batch):
    a, b, c = batch
    a = a.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(model(a).sum(), a, create_graph=True)
    (xx,) = torch.autograd.grad(g[:, 0].sum(), a, create_graph=True)
    return (
        ((g[:, 1] - 0.1 * xx[:, 0]) ** 2).mean()
        + (model(b) ** 2).mean()
        + ((model(c)[:, 0] - torch.sin(3 * c[:, 0])) ** 2).mean()
    )


true = float(heat(net, (inner, edge, start)))
top, low, _ = ends(dense(net, lambda f: heat(f, (inner.double(), edge.double(), start.double()))))
rows = []
for name, data in (
    ("a tuple of three parts", (inner, edge, start)),
    ("a list of one such batch", [(inner, edge, start)]),
    ("a dict of the parts", None),
):
    loss = heat if data is not None else lambda m, b: heat(m, (b["inner"], b["edge"], b["start"]))
    given = data if data is not None else {"inner": inner, "edge": edge, "start": start}
    got, error = attempt(lambda: centre(Problem.custom(net, loss, given)))
    rows.append((f"{name}: surface", error or got, true, error is None and abs(got - true) < 1e-5))
    s, error = attempt(
        lambda: spectrum(Problem.custom(net, loss, given), top=1, bottom=1, trace_products=0, density_error=None)
    )
    rows.append(
        (f"{name}: spectrum, largest", error or largest(s), top, error is None and honest(largest(s), top, top))
    )
judged(rows)
