"""A frozen body: the landscape of fine-tuning is that of the parameters that are trained (requires_grad)."""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense, ends

torch.manual_seed(10)
net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).eval()
net[0].requires_grad_(False)
x, y = torch.randn(50, 6), torch.randint(0, 3, (50,))
problem = Problem.supervised(net, nn.CrossEntropyLoss(), (x, y))
top, low, tr = ends(dense(net, lambda f: F.cross_entropy(f(x.double()), y), "2."))
rows = []
s, error = attempt(lambda: spectrum(problem, parameters="trainable", top=1, bottom=1, density_error=None))
if error is None:
    rows += [
        ("spectrum(parameters='trainable'): dimension", s.size, 30, s.size == 30),
        ("its largest", largest(s), top, honest(largest(s), top, top)),
    ]
else:
    rows.append(("spectrum(parameters='trainable')", error, top, False))


def moved(**told):
    return {k: float(v.norm()) for k, v in random_plane(net, axes=1, seed=0, **told).axes[0].items()}


default, _ = attempt(moved)
trained, error = attempt(lambda: moved(parameters="trainable"))
still = [m is not None and m.get("0.weight", 0.0) == 0.0 and m.get("2.weight", 0.0) > 0.0 for m in (default, trained)]
rows.append(
    (
        "a random plane that leaves the frozen body still (by default, or by parameters='trainable')",
        error or trained or default,
        "0.weight is not moved",
        any(still),
    )
)
judged(rows)
