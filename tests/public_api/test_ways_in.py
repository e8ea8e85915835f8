"""One network by every way in: cut or as given, wrapped, compiled, with outputs as Hugging Face returns them.

All have the same loss, the same direction of a seed and the same eigenvalues: those of a formula and its dense Hessian.
"""

from collections import UserDict
from types import SimpleNamespace

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

import lossmap
from lossmap.data.batches import FixedBatches

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    # torch's compiler, of PyTorch's own functions for products of vectors with derivatives
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
SIZES = (7, 11, 12)
PARTS = list(zip(X.split(SIZES), Y.split(SIZES), strict=True))


class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class WithLogits(Net):
    """Its outputs as a model of Hugging Face returns them, and its loss where it is given labels."""

    def forward(self, input, labels=None):
        logits = super().forward(input)
        return ModelOutput(logits=logits) if labels is None else ModelOutput(loss=own(logits, labels), logits=logits)


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self(x), y)


def own(outputs, targets):
    return F.cross_entropy(outputs, targets)


def step(module, batch):
    return module.training_step(batch, 0), len(batch[1])


def named(model, batch):
    return F.cross_entropy(model(batch[0]), batch[2])


def supervised(model, data=(X, Y), loss="crossentropy", **options):
    return lossmap.Problem.supervised(model, loss, data, **options)


WAYS = {
    "tensors": lambda: supervised(Net()),
    "cut into sevens": lambda: supervised(Net(), batch_size=7),
    "a loader": lambda: supervised(Net(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 8)),
    "unequal batches": lambda: supervised(Net(), PARTS),
    "single samples": lambda: supervised(Net(), [(x, int(y)) for x, y in zip(X, Y, strict=True)]),
    "dicts": lambda: supervised(Net(), [{"input": x, "labels": y} for x, y in PARTS]),
    "mappings": lambda: supervised(Net(), [UserDict(input=x, labels=y) for x, y in PARTS]),
    "a criterion": lambda: supervised(Net(), loss=nn.CrossEntropyLoss()),
    "a loss of one's own": lambda: supervised(Net(), loss=own),
    "as given": lambda: lossmap.Problem.custom(Net(), named, [(x, f"part {len(x)}", y) for x, y in PARTS]),
    "a sum": lambda: lossmap.Problem.custom(
        Net(), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), PARTS, reduction="sum"
    ),
    "logits": lambda: supervised(WithLogits()),
    "the model's own loss": lambda: lossmap.Problem.custom(
        WithLogits(), lambda m, b: (m(**b).loss, len(b["labels"])), [{"input": x, "labels": y} for x, y in PARTS]
    ),
    "Lightning": lambda: supervised(Task()),
    "Lightning's step": lambda: lossmap.Problem.custom(Task(), step, PARTS),
    "compiled": lambda: supervised(torch.compile(Net(), backend="eager")),
    "DataParallel": lambda: supervised(nn.DataParallel(Net())),
    "in training mode": lambda: supervised(Net().train()),
}


@pytest.fixture(scope="module")
def truth():
    """The loss, the eigenvalues of its dense Hessian by the weights, in float64; the direction; the loss along it."""
    net = Net().double()
    names = [name for name, p in net.named_parameters() if p.dim() > 1]
    state = {name: p.detach() for name, p in net.named_parameters()}

    def loss(point):
        h = torch.tanh(X.double() @ point["0.weight"].T + point["0.bias"])
        logits = h @ point["2.weight"].T + point["2.bias"]
        return (torch.logsumexp(logits, 1) - logits[torch.arange(len(Y)), Y]).mean()

    def of(theta):
        parts = torch.split(theta, [state[name].numel() for name in names])
        return loss(state | {name: part.view_as(state[name]) for name, part in zip(names, parts, strict=True)})

    theta = torch.cat([state[name].reshape(-1) for name in names])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, theta))
    direction = lossmap.random_plane(Net(), 1, seed=4).axes[0]
    along = float(loss({name: p + 0.5 * direction[name].double() for name, p in state.items()}))
    return SimpleNamespace(loss=float(loss(state)), values=values, direction=direction, along=along)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_leads_to_the_same_numbers(way, truth):
    problem = WAYS[way]()
    plane = lossmap.random_plane(problem.model, 1, seed=4)
    for (name, mine), theirs in zip(plane.axes[0].items(), truth.direction.values(), strict=True):
        assert torch.equal(mine, theirs), name
    losses = lossmap.losses(problem, plane)
    assert losses((0.0,))["train_loss"] == pytest.approx(truth.loss, rel=2e-6)
    assert losses((0.5,))["train_loss"] == pytest.approx(truth.along, rel=2e-6)
    pairs = lossmap.eigenpairs(lossmap.hessian(problem), "abs:3", tol=1e-5)
    expected = truth.values[truth.values.abs().argsort(descending=True)[:3]]
    assert sorted(map(float, pairs.values)) == pytest.approx(sorted(map(float, expected)), abs=5e-6)
    assert isinstance(problem.data, FixedBatches) == (way == "as given")
