"""InfoNCE: the loss of a batch is no sum over its samples, so other batches than the loader's give another loss."""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from truth import dense, ends

torch.manual_seed(3)
net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
z = torch.randn(160, 5)
w = z + 0.2 * torch.randn(160, 5)


def loss(model, batch):
    a, b = (F.normalize(model(t), dim=1) for t in batch)
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


cut = [(z[i : i + 20], w[i : i + 20]) for i in range(0, 160, 20)]
with torch.no_grad():
    true = sum(float(loss(net, b)) for b in cut) / 8
top, low, _ = ends(dense(net, lambda f: sum(loss(f, [t.double() for t in b]) for b in cut) / 8))
make = lambda: Problem.custom(net, loss, DataLoader(TensorDataset(z, w), 20))
words = ("batch", "sum over", "mean over")
rows = []
got, error = attempt(lambda: centre(make()))
rows.append(("surface at the centre", error or got, true, refused(error, *words) if error else abs(got - true) < 1e-4))
r, error = attempt(lambda: eigenvalues(make(), random_plane(net, axes=1, seed=0))[0])
rows.append(
    (
        "map of eigenvalues, max_eig",
        error or (r["max_eig"], r["max_eig_error"]),
        top,
        refused(error, *words) if error else honest((r["max_eig"], r["max_eig_error"]), top, top),
    )
)
s, error = attempt(lambda: spectrum(make(), top=1, bottom=1, density_error=None))
rows.append(
    ("spectrum, largest", error or largest(s), top, refused(error, *words) if error else honest(largest(s), top, top))
)
judged(rows)
