"""A Problem, and what is made of it, can be sent to another process (submitit, joblib, dask, multiprocessing)."""

import pickle

import torch.nn.functional as F
from product import *
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def own(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


torch.manual_seed(3)
net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
x, y, v = torch.randn(30, 4), torch.randint(0, 2, (30,)), torch.randn(30, 2)
grid = Grid.line(-1, 1, 3)
things = {
    "Problem.supervised by a name": lambda: Problem.supervised(net, "crossentropy", (x, y)),
    "Problem.supervised by a criterion": lambda: Problem.supervised(
        net, nn.CrossEntropyLoss(), DataLoader(TensorDataset(x, y), 10)
    ),
    "Problem.supervised by a function": lambda: Problem.supervised(net, F.mse_loss, (x, v)),
    "Problem.custom": lambda: Problem.custom(net, own, (x, v)),
}
rows = []
for name, make in things.items():
    a = centre(make())
    b, error = attempt(lambda: centre(pickle.loads(pickle.dumps(make()))))
    rows.append((f"{name}: the loss after pickling", error or b, a, error is None and abs(a - b) < 1e-7))
problem = things["Problem.supervised by a name"]()
plane = random_plane(net, axes=1, seed=0)
a = losses(problem, plane)((0.3,))["train_loss"]
b, error = attempt(lambda: pickle.loads(pickle.dumps(losses(problem, plane)))((0.3,))["train_loss"])
rows.append(("the measure of losses", error or b, a, error is None and abs(a - b) < 1e-6))
m = operator(problem)
u = torch.ones(m.size)
b, error = attempt(lambda: pickle.loads(pickle.dumps(operator(problem))) @ u)
rows.append(
    (
        "the operator: norm of a product",
        error or float(b.norm()),
        float((m @ u).norm()),
        error is None and torch.allclose(b, m @ u, atol=1e-6),
    )
)
made = survey(losses(problem, plane), grid)
b, error = attempt(lambda: pickle.loads(pickle.dumps(made))["train_loss"])
rows.append(
    ("a Surface", error or float(b[1]), float(made["train_loss"][1]), error is None and (b == made["train_loss"]).all())
)
from lossmap import survey as public  # the function itself, as people import it

b, error = attempt(lambda: pickle.loads(pickle.dumps(public)))
rows.append(("the function survey", error or "pickled", "pickled", error is None and callable(b)))
judged(rows)
