"""commands_by_batches.py FOLDER TEAM: every command over every kind of batch, by a team of so many ranks; as JSON.

The kinds are problems, named by `--problem commands_by_batches.py:KIND`; `tests/cli/test_batches_matrix.py` reads them.
"""

import contextlib
import functools
import io
import json
import sys
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import lossmap.parallel.world as worlds
from lossmap import read
from lossmap.cli.__main__ import main
from lossmap.parallel.world import World


@dataclass
class Graph:
    x: torch.Tensor
    edges: torch.Tensor
    y: torch.Tensor


class GraphNet(nn.Module):
    """Messages along the edges; of a graph as a whole with `pooled`."""

    def __init__(self, pooled):
        super().__init__()
        self.pooled, self.a, self.b = pooled, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, edges):
        h = self.a(x)
        h = torch.tanh(h.index_add(0, edges[1], h[edges[0]]))
        return self.b(h.mean(0, keepdim=True) if self.pooled else h)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(8, 3), nn.Linear(3, 4)

    def forward(self, ids):
        return self.o(torch.tanh(self.e(ids)))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"left": nn.Linear(3, 2), "right": nn.Linear(3, 2)})

    def forward(self, x, task):
        return self.heads[task](x)


CHANCE = torch.Generator().manual_seed(9)
X, Y = torch.randn(12, 3, generator=CHANCE), torch.randint(0, 2, (12,), generator=CHANCE)
EDGES = torch.randint(0, 12, (2, 30), generator=CHANCE)
GRAPHS = [Graph(X[: 2 + k], torch.arange(2 + k).repeat(2).view(2, -1).roll(1, 1), Y[k : k + 1]) for k in range(5)]
TEXTS = [torch.arange(length) % 7 + 1 for length in (3, 7, 5, 4, 6, 2)]
PADDED = [
    {
        "ids": pad_sequence(TEXTS[i : i + 2], batch_first=True),
        "labels": pad_sequence([t % 4 for t in TEXTS[i : i + 2]], batch_first=True, padding_value=-100),
    }
    for i in (0, 2, 4)
]
PARTS = [(X[:6, :2], X[6:9, 1:]), (X[2:10, :2], X[:2, 1:])]


OTHER = 1.5  # times the weights: the other end of a line
RADIUS = 0.1  # of the ball in which the loss rises


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def of_pair(model, batch):
    *inputs, y = batch
    return F.cross_entropy(model(*inputs), y)


def of_dict(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def of_tokens(model, batch):
    outputs = model(batch["ids"]).flatten(0, 1)
    return F.cross_entropy(outputs, batch["labels"].flatten()), int((batch["labels"] >= 0).sum())


def of_graph(model, graph):
    return F.cross_entropy(model(graph.x, graph.edges), graph.y), 1


def heat(model, batch):
    inside, edge = batch
    inside = inside.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(inside).sum(), inside, create_graph=True)
    return (slope[:, 1] - slope[:, 0]).square().mean() + (model(edge) - 1).square().mean()


# name: what it is, the model, the batches, the loss, and the weight of each batch
KINDS = {
    "plain": ("tuples of tensors", mlp, [(X[:8], Y[:8]), (X[8:], Y[8:])], of_pair, (8, 4)),
    "dicts": ("dicts", mlp, [{"x": X[i : i + 6], "y": Y[i : i + 6]} for i in (0, 6)], of_dict, (6, 6)),
    "padded": ("dicts padded each to their own width", Tagger, PADDED, of_tokens, (10, 9, 8)),
    "graphs": ("a list of graphs", lambda: GraphNet(True), GRAPHS, of_graph, (1,) * 5),
    "parts": (
        "unequal parts of a physics-informed loss",
        lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)), PARTS, heat, (1, 1),
    ),
    "full": ("one full graph", lambda: GraphNet(False), [(X, EDGES, Y)], of_pair, (12,)),
    "strings": ("tuples with strings", Heads, [(X[:5], "left", Y[:5]), (X[5:], "right", Y[5:])], of_pair, (5, 7)),
    "mappings": (
        "`UserDict`s, as `BatchEncoding`", mlp, [UserDict(x=X[i : i + 6], y=Y[i : i + 6]) for i in (0, 6)], of_dict,
        (6, 6),
    ),
}  # fmt: skip


def problem_of(kind):
    _, make, batches, loss, _ = KINDS[kind]
    torch.manual_seed(0)
    return make(), batches, loss


for _kind in KINDS:
    globals()[_kind] = functools.partial(problem_of, _kind)


def double_backward(*words):
    return (*words, "--hvp-backend", "double-backward")


def surface(folder, own, team):
    words = ("surface", *own, *team, "--x=0:0.5:2", "--no-probe", "--surf-file", str(folder / "surface.h5"))
    return words, lambda: read(folder / "surface.h5")["train_loss"].tolist()


def plane(folder, own, team):
    words = ("plane", *own, *team, "--xdir", "hessian:max", "--x=0:1:2", "--dir-file", str(folder / "plane.h5"))

    def result():
        with h5py.File(folder / "plane.h5") as file:
            return {name: tensor[()].ravel().tolist() for name, tensor in file["directions/x"].items()}

    return words, result


def eigenmap(folder, own, team):
    words = ("eigenmap", *own, *team, "--x=0:0:1", "--certify", "none", "--no-probe", "--surf-file")

    def result():
        values = read(folder / "eigenmap.h5")
        return [float(values[name][0]) for name in ("max_eig", "min_eig", "max_eig_error", "min_eig_error")]

    return double_backward(*words, str(folder / "eigenmap.h5")), result


def spectrum(folder, own, team):
    words = ("spectrum", *own, *team, "--layers", "tensor", "--top", "1", "--bottom", "1")
    words += ("--density-probes", "1", "--density-steps", "2", "--no-probe", "--surf-file")

    def result():
        value = read(folder / "spectrum.h5")["spectrum/train"]
        return [value.loss, *value.largest, *value.smallest]

    return double_backward(*words, str(folder / "spectrum.h5")), result


def layers(folder, own, team):
    """The blocks that the same command has just computed."""

    def result():
        return {block.name: float(block.values.max()) for block in read(folder / "spectrum.h5")["layers/train"].blocks}

    there = (folder / "spectrum.h5").exists()  # what is refused makes none, and is refused again
    return () if there else spectrum(folder, own, team)[0], result


def dynamics(folder, own, team):
    words = ("dynamics", str(folder / "run"), *own, "--top", "1", "--surf-file", str(folder / "dynamics.h5"))
    return double_backward(*words), lambda: read(folder / "dynamics.h5")["eigenvalue"].ravel().tolist()


def health(folder, own, team):
    words = ("health", *own, "--examinations", "hessian", "--json", str(folder / "health.json"))

    def result():
        numbers = json.loads((folder / "health.json").read_text())["numbers"]
        return [numbers[name]["value"] for name in ("loss", "largest_eigenvalue", "smallest_eigenvalue")]

    return words, result


def sharpness(folder, own, team):
    words = (
        "sharpness",
        *own,
        *team,
        "--radius",
        f"absolute:{RADIUS}",
        "--draws",
        "0",
        "--ascent-steps",
        "1",
        "--starts",
        "1",
    )
    words += ("--no-critical", "--trace-products", "6", "--no-probe", "--surf-file", str(folder / "sharpness.h5"))

    def result():
        value = read(folder / "sharpness.h5")
        return [value.loss, value.largest, value.largest_error, value.balls[0].sam]

    return words, result


def connect(folder, own, team):
    ends = (str(folder / "run" / "step_1.pt"), str(folder / "other.pt"))
    words = ("connect", *ends, *own, *team, "--points", "3", "--no-probe", "--surf-file", str(folder / "connect.h5"))
    return words, lambda: read(folder / "connect.h5")["train_loss"].tolist()


def estimate(folder, own, team):
    words = ("estimate", "--json", "--", "surface", *own, *team, "--x=0:1:9", "--no-probe", "--surf-file")
    return (*words, str(folder / "estimate.h5")), lambda: True


COMMANDS = (surface, plane, eigenmap, spectrum, layers, dynamics, health, sharpness, connect, estimate)


def cell(command, kind, folder, team):
    """The command's result, or what it refuses with: {"value": ...} or {"refused": sentence}."""
    own = ("--problem", f"{Path(__file__).resolve()}:{kind}")
    words, result = command(folder, own, () if team == 1 else ("--team", str(team)))
    out, err = io.StringIO(), io.StringIO()
    world = World.start()
    if command is health:  # it makes a world of its own, for rank 0 alone
        worlds._world = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words)) if words else 0
    finally:
        worlds._world = world
    if world.rank != 0:
        return None
    if code == 0:
        return {"value": result()}
    return {"code": code, "refused": err.getvalue().strip().splitlines()[-1:], "said": out.getvalue()[-500:]}


def cells(folder, team):
    """All cells, {kind: {command: cell}}; every rank of the team calls it."""
    values = {}
    for kind in KINDS:
        home = folder / f"{kind}-{team}"
        (home / "run").mkdir(parents=True, exist_ok=True)
        state = problem_of(kind)[0].state_dict()
        torch.save(state, home / "run" / "step_1.pt")
        torch.save({name: t * OTHER for name, t in state.items()}, home / "other.pt")
        values[kind] = {command.__name__: cell(command, kind, home, team) for command in COMMANDS}
    return values


if __name__ == "__main__":
    leave, World.leave = World.leave, lambda self, code=0: code  # MPI ends once, after the last command
    values = cells(Path(sys.argv[1]), int(sys.argv[2]))
    if World.start().rank == 0:
        print("\n" + json.dumps(values), flush=True)
    sys.exit(leave(World.start()))
