"""Batches that make no sense in parts: every measure reads them as given, and equals dense truth."""

import gc
import warnings
import weakref
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, pad_sequence

import lossmap
from lossmap.curvature.autotune import prepare
from lossmap.curvature.gradient import mean_loss
from lossmap.data import datasets
from lossmap.data.batch_structure import open_batch
from lossmap.data.batches import FixedBatches, Resident, Streamed, read_into_memory
from lossmap.data.datasets import digest
from lossmap.data.loaders import as_batches, source_of
from lossmap.data.loss_check import check_loss
from lossmap.data.problem import Problem
from lossmap.data.sample_count import samples_in

# torch warns of its own compiler, with which products are traced
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


@dataclass
class Graph:
    x: torch.Tensor
    edges: torch.Tensor
    y: torch.Tensor
    name: str


class Loose:
    """An object as libraries of graphs have them: attributes that come and go."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, g):
        h = self.a(g.x)
        return self.b(torch.tanh(h.index_add(0, g.edges[1], h[g.edges[0]])).mean(0, keepdim=True))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(8, 4), nn.Linear(4, 4)

    def forward(self, ids):
        return self.o(torch.tanh(self.e(ids)))


class Full(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, edges):
        h = self.a(x)
        return self.b(torch.tanh(h.index_add(0, edges[1], h[edges[0]])))


class Neighbors(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, means):
        return self.b(torch.tanh(means @ self.a(x)))


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"left": nn.Linear(3, 2), "right": nn.Linear(3, 2)})

    def forward(self, x, task):
        return self.heads[task](x)


def graph(k, kind):
    g = torch.Generator().manual_seed(k)
    x, edges = torch.randn(k, 3, generator=g), torch.randint(0, k, (2, 2 * k), generator=g)
    y = torch.randint(0, 2, (1,), generator=g)
    return Graph(x, edges, y, f"g{k}") if kind is Graph else Loose(x=x, edges=edges, y=y, name=f"g{k}")


def own_target(model, g):
    return F.cross_entropy(model(g), g.y), 1


def tokens(model, batch):
    outputs = model(batch["ids"]).flatten(0, 1)
    return F.cross_entropy(outputs, batch["labels"].flatten()), int((batch["labels"] >= 0).sum())


def heat(model, batch):
    inner, edge = batch
    inner = inner.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(inner).sum(), inner, create_graph=True)
    return (slope[:, 1] - slope[:, 0] - inner[:, 0]).square().mean() + model(edge).square().mean()


def scaled(model, batch):
    x, y, weight = batch
    return weight * F.cross_entropy(model(x), y)


def padded():
    texts = [torch.randint(1, 8, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 5, 5, 11, 4)]
    return [
        {
            "ids": pad_sequence(texts[i : i + 2], batch_first=True),
            "labels": pad_sequence([t % 4 for t in texts[i : i + 2]], batch_first=True, padding_value=-100),
        }
        for i in (0, 2, 4)
    ]


def points(n, seed):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


G = torch.Generator().manual_seed(9)
X, Y = torch.randn(12, 3, generator=G), torch.randint(0, 2, (12,), generator=G)
EDGES = torch.randint(0, 12, (2, 30), generator=G)
GRAPHS = [graph(k, Graph) for k in (4, 5, 6, 7)]
LOOSE = [graph(k, Loose) for k in (4, 5, 6)]


def cross_entropy_of(model, batch):
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


def by_key(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


PARTS = [(points(12, 1), points(5, 2)), (points(9, 3), points(4, 4))]
ENCODED = [UserDict(x=X[i : i + 4], y=Y[i : i + 4]) for i in (0, 4, 8)]

NODES, CLASSES = torch.randn(24, 3, generator=G), torch.randint(0, 2, (24,), generator=G)
MEANS = (torch.rand(24, 24, generator=G) > 0.8).float() / 5
SPARSE = [(NODES[:n], MEANS[:n, :n].to_sparse(), CLASSES[:n]) for n in (20, 24)]
with warnings.catch_warnings():  # PyTorch calls them beta
    warnings.simplefilter("ignore")
    ROWS = MEANS.to_sparse_csr()

# name: model, data, own loss (None: supervised by cross entropy), (loss, weight) of a batch by hand
KINDS = {
    "graphs": (GraphNet, GRAPHS, own_target, lambda m, g: (F.cross_entropy(m(g), g.y), 1)),
    "graphs beside targets": (
        GraphNet,
        [(g, g.y) for g in GRAPHS],
        None,
        lambda m, b: (F.cross_entropy(m(b[0]), b[1]), 1),
    ),
    "objects": (GraphNet, LOOSE, own_target, lambda m, g: (F.cross_entropy(m(g), g.y), 1)),
    "a full graph": (Full, [(X, EDGES, Y)], None, lambda m, b: (cross_entropy_of(m, b), 1)),
    "sparse edges": (Neighbors, SPARSE, cross_entropy_of, lambda m, b: (cross_entropy_of(m, b), len(b[2]))),
    "sparse rows": (
        Neighbors,
        [(NODES, ROWS, CLASSES)],
        None,
        lambda m, b: (cross_entropy_of(m, b), 1),
    ),
    "a matrix of edges": (Neighbors, (NODES, MEANS, CLASSES), None, lambda m, b: (cross_entropy_of(m, b), 1)),
    "padded": (Tagger, padded(), tokens, tokens),
    "mappings": (lambda: nn.Linear(3, 2), ENCODED, by_key, lambda m, b: (by_key(m, b), 4)),
    "unequal parts": (
        lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)),
        PARTS,
        heat,
        lambda m, b: (heat(m, b), 1),
    ),
    "names": (
        Heads,
        [(X[:5], "left", Y[:5]), (X[5:], "right", Y[5:])],
        None,
        lambda m, b: (cross_entropy_of(m, b), len(b[0])),
    ),
    "numbers": (
        lambda: nn.Linear(3, 2),
        [(X[:5], Y[:5], 0.5), (X[5:], Y[5:], 4.0)],
        scaled,
        lambda m, b: (scaled(m, b), len(b[0])),
    ),
}


def problem_of(kind):
    make, data, loss, _ = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    if loss is None:
        return lossmap.Problem.supervised(model, "crossentropy", data)
    return lossmap.Problem.custom(model, loss, data)


class Within(nn.Module):
    """A function of the model as a module, so that `functional_call` reaches the model's tensors."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self):
        return self.function(self.model)


def truth(kind, names):
    """Loss and Hessian (n, n) of the weighted mean over the batches by these parameters, in float64."""
    problem = problem_of(kind)
    model, by_hand = problem.model.double().eval(), KINDS[kind][3]
    batches = list(problem.data.to(dtype=torch.float64))
    total = sum(by_hand(model, b)[1] for b in batches)
    state = {f"model.{k}": p.detach() for k, p in model.named_parameters()}
    sizes = [state[f"model.{k}"].numel() for k in names]
    flat = torch.cat([torch.empty(0, dtype=torch.float64), *(state[f"model.{k}"].reshape(-1) for k in names)])

    def loss(theta):
        parts = torch.split(theta, sizes)
        moved = {f"model.{k}": p.view_as(state[f"model.{k}"]) for k, p in zip(names, parts, strict=True)}
        within = Within(model, lambda m: sum(v * w for v, w in (by_hand(m, b) for b in batches)) / total)
        return functional_call(within, {**state, **moved}, ())

    hessian = torch.autograd.functional.hessian(loss, flat) if names else flat
    return float(loss(flat).detach()), hessian


def weights_of(model):
    return [k for k, p in model.named_parameters() if p.dim() > 1]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_spectra_are_those_of_the_batches_as_given(kind):
    problem = problem_of(kind)
    loss, hessian = truth(kind, weights_of(problem.model))
    values = torch.linalg.eigvalsh(hessian)
    plane = lossmap.random_plane(problem.model, 1)
    assert lossmap.losses(problem, plane)((0.0,))["train_loss"] == pytest.approx(loss, rel=1e-5)
    result = lossmap.spectrum(problem, top=2, bottom=1, density_error=None)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    scale = float(values.abs().max())
    for (value, error), exact in ((result.largest, values[-1]), (result.smallest, values[0])):
        assert abs(value - float(exact)) <= error + 1e-6 * scale


@pytest.mark.parametrize("backend", ["linearized", "retained-graph", "double-backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_has_the_same_product_or_leaves_it_to_double_backward(kind, backend):
    problem = problem_of(kind)
    _, hessian = truth(kind, weights_of(problem.model))
    try:
        operator = prepare(problem, "weights", backend=backend).at()
    except ValueError as error:
        assert backend == "linearized" and "linear" in str(error), error
        return
    v = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(operator @ v, (hessian @ v.double()).float(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_team_deals_whole_batches_and_has_the_same_sums(kind):
    problem = problem_of(kind)
    batches = list(problem.data)
    ranks = min(2, len(batches))
    alone = sum(float(problem.total(b).detach()) for b in problem.data)
    shares = [problem.share(rank, ranks) for rank in range(ranks)]
    assert sum(float(s.total(b).detach()) for s in shares for b in s.data) == pytest.approx(alone, rel=1e-6)
    if isinstance(problem.data, FixedBatches):  # equal mappings can be cut
        with pytest.raises(ValueError, match="fewer batches than ranks"):
            problem.share(0, len(batches) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_layers_and_runs_read_them_too(kind, tmp_path):
    problem = problem_of(kind)
    names = weights_of(problem.model)
    _, hessian = truth(kind, names)
    values = torch.linalg.eigvalsh(hessian)
    plane = lossmap.random_plane(problem.model, 1)
    reading = lossmap.EigenvalueMap(problem, plane, certify="none")((0.0,))
    scale = float(values.abs().max())
    assert abs(reading["max_eig"] - float(values[-1])) <= reading["max_eig_error"] + 1e-6 * scale
    layers = lossmap.layer_spectra(problem, density_error=None, probes=0, whole=False)
    first = next(block for block in layers.blocks if block.name == names[0])
    size = dict(problem.model.named_parameters())[names[0]].numel()
    own = torch.linalg.eigvalsh(hessian[:size, :size])
    assert float(first.values[-1]) == pytest.approx(float(own[-1]), rel=1e-3, abs=1e-6 * scale)
    torch.save(problem.model.state_dict(), tmp_path / "epoch_1.pt")
    run = lossmap.run_dynamics([tmp_path / "epoch_1.pt"], problem, path=tmp_path / "run.h5", top=2)
    assert run["eigenvalue"][0, 0] == pytest.approx(float(values[-1]), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_health_reads_what_it_can_and_names_what_it_cannot(kind):
    diagnosis = lossmap.diagnose(problem_of(kind))
    text = repr(diagnosis)
    assert "Error" not in text and "Traceback" not in text
    assert diagnosis.measurements.spectrum is not None
    assert diagnosis.measurements.spectrum.loss == pytest.approx(truth(kind, [])[0], rel=1e-5)


def test_they_are_kept_with_a_word_and_never_cut(caplog):
    data = read_into_memory(padded())
    assert isinstance(data, FixedBatches) and data.rebatched(1) is data and len(data.batches) == 3
    assert "kept as given, uncut, since their tensors have different shapes beyond the first dimension" in caplog.text
    caplog.clear()
    read_into_memory([(X[:4], Y[:4]), (X[4:], Y[4:])])
    assert not caplog.text


def test_equal_widths_give_the_same_as_batches_that_are_cut():
    model = nn.Linear(3, 2)
    cut = lossmap.Problem.custom(model, by_key, [dict(b) for b in ENCODED])
    given = lossmap.Problem.custom(model, by_key, ENCODED)
    a, b = (lossmap.spectrum(p, density_error=None) for p in (cut, given))
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert a.values == pytest.approx(b.values, rel=1e-4, abs=1e-7)


def test_batches_of_arrays_are_batches_of_tensors():
    arrays = [(X[:5].numpy(), Y[:5].numpy().astype("uint16")), (X[5:].numpy(), Y[5:].numpy().astype("uint16"))]
    data = read_into_memory(iter(arrays))
    inputs, targets = next(iter(data.rebatched(12)))
    assert torch.equal(inputs, X) and torch.equal(targets, Y)


def test_a_batch_counts_by_its_targets_and_once_where_its_parts_differ():
    open_batch(LOOSE[0])  # as what reads a batch does
    assert samples_in((GRAPHS[0], torch.zeros(3))) == 3
    assert samples_in(PARTS[0]) == 1
    assert samples_in({"a": X, "b": Y}) == 12
    assert samples_in([Loose(x=X[:4], y=Y[:1]), Loose(x=X[:6], y=Y[:1]), Loose(x=X[:3], edges=Y)]) == 3
    assert samples_in([Loose(x=X[:4], y=Y[:4]), Loose(x=X[:6], edges=X[:2], y=Y[:6])]) == 10
    assert samples_in([Loose(x=X[:4], y=Y[0]), Loose(x=X[:6], label=2)]) == 2  # graphs with a label each
    assert samples_in(Loose(x=X[:4], y=Y[0])) == samples_in({"x": X[:4], "y": Y[0]}) == samples_in((X[:4], Y[0])) == 1
    assert samples_in({"x": X[:4], "scale": Y[0]}) == samples_in((X[:4], X[:4], torch.tensor(0.5))) == 4  # no targets
    assert samples_in((X[:4], torch.tensor(0.5))) == samples_in((X[:4], 0.5)) == 1  # a sequence and its value
    assert samples_in({"x": X, "table": X[:5], "labels": Y}) == samples_in(Loose(x=X, edges=X[:2], targets=Y)) == 12
    assert samples_in(Loose(x=X, num_graphs=3)) == samples_in(Loose(x=X, ends=[4, 8, 12], batch_size=3)) == 3


BOXES = [{"boxes": X[:k], "labels": Y[:k]} for k in (1, 3, 2)]
IMAGES = [torch.zeros(1, 5, width) for width in (4, 6, 5)]


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((IMAGES, BOXES), 3),  # tuple(zip(*samples)), as of detection
        ((tuple(IMAGES), tuple(BOXES), ("a", "b", "c")), 3),
        ({"images": IMAGES, "targets": BOXES}, 3),
        (list(zip(IMAGES, BOXES, strict=True)), 3),  # collate_fn=list
        ([{"image": i, "boxes": b["boxes"]} for i, b in zip(IMAGES, BOXES, strict=True)], 3),
        ([(IMAGES[0], BOXES[0])], 1),
        ((IMAGES, [X[:3, :1], X[:3], X[:2]]), 3),
        (([X[:3], X[:2]], [X[:3], X[:2]]), 1),  # two samples of two parts, or two parts of two samples
        ((IMAGES, BOXES[:2]), 1),
        (([X, X], [Y, Y]), 12),  # two inputs and two targets of twelve samples
        (
            list(zip(X, Y, strict=True)),
            12,
        ),  # samples with a label each: the width of their inputs is no number of samples
        (tuple(zip(X, Y, strict=True)), 12),
        ([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)], 12),
        ([(X[0], Y[0])], 1),
        ((tuple(X), tuple(Y)), 12),  # the same, by tuple(zip(*samples))
        ({"x": list(X), "y": list(Y)}, 12),
        ((X, {"temperature": torch.tensor(2.0)}), 12),  # a number beside a tensor of samples
        ((X, {"temperature": 2.0}), 12),
        ([(x, int(y)) for x, y in zip(X, Y, strict=True)], 12),  # the same lists of samples, with numbers and words
        ([(x, "cat") for x in X], 12),
        ([{"x": x, "y": float(y)} for x, y in zip(X, Y, strict=True)], 12),
        ([(f"name {i}", x, 1) for i, x in enumerate(X)], 12),
        ([(Loose(x=X[:4]), 0), (Loose(x=X[:4]), 1)], 2),
        ([(x, np.int64(y)) for x, y in zip(X, Y, strict=True)], 12),
        ((list(X), [np.float32(0.5), *Y.tolist()[1:]]), 12),
        ((list(X), Y.tolist()), 12),
        ((IMAGES, ["cat", "dog", "cat"]), 3),
        (UserDict(x=list(X), y=[0.5, 1, *Y.tolist()[2:]]), 12),
        (Loose(inputs=list(X), classes=Y.tolist()), 12),
        ({"x": X, "lengths": [5, 7], "labels": [0, 1]}, 2),  # two sequences, end to end
        ((X, [0, 1]), 2),
        ((pack_sequence([X[:7]]), [1]), 1),
        ({"x": pack_sequence([X[:7], X[:4], X[:4]]), "y": Y[:3]}, 3),
        (pack_sequence([X[:7], X[:4], X[:4]]), 3),
        ({"a": {"x": X, "scale": Y[0]}, "b": {"x": X, "scale": Y[0]}}, 12),
    ],
)
def test_samples_of_batches_of_lists_are_counted_where_they_can_be_told(batch, samples):
    assert samples_in(batch) == samples


def in_pairs(x, y):
    return list(zip(x, y, strict=True))


def in_dicts(x, y):
    return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]


def in_columns(x, y):
    return list(x), list(y)


def in_a_dict_of_columns(x, y):
    return {"x": list(x), "y": list(y)}


def rows_of(batch):
    """The samples of a batch of lists, as pairs."""
    if isinstance(batch, dict):
        return list(zip(*batch.values(), strict=True))
    if isinstance(batch[0], dict):
        return [tuple(sample.values()) for sample in batch]
    return list(batch if isinstance(batch[0], tuple) else zip(*batch, strict=True))


def error_of_rows(model, batch):
    return torch.stack([(model(x).mean() - y.mean()) ** 2 for x, y in rows_of(batch)]).mean()


ALIKE = [(torch.randn(3, generator=G), torch.randn(3, generator=G)) for _ in range(12)]
RAGGED = [(torch.randn(2 + i % 3, 3, generator=G), torch.randn(1 + i % 2, 3, generator=G)) for i in range(12)]


@pytest.mark.parametrize("reduction", ["mean", "sum that nobody declared"])
@pytest.mark.parametrize("batch_of", [in_pairs, in_dicts, in_columns, in_a_dict_of_columns])
@pytest.mark.parametrize("samples", [ALIKE, RAGGED], ids=["of one shape", "ragged"])
@pytest.mark.parametrize("ends", [(0, 5, 10, 12), (0, 2, 5, 10, 12)])
def test_samples_in_lists_count_once_each_whatever_the_lengths_of_their_tensors(samples, ends, batch_of, reduction):
    batches = [batch_of(*zip(*samples[a:b], strict=True)) for a, b in pairwise(ends)]
    model = nn.Linear(3, 1)

    def loss(model, batch):
        mean = error_of_rows(model, batch)
        return mean if reduction == "mean" else mean * len(rows_of(batch))

    problem = check_loss(lossmap.Problem.custom(model, loss, batches))
    assert problem.samples == 12
    value = lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(error_of_rows(model, samples).item(), rel=1e-5)


@pytest.mark.parametrize(
    "batch_of",
    [
        lambda x, y: {"scale": torch.tensor(1.0), "weights": [1.0, 2.0, 0.5], "x": list(x), "y": list(y)},
        lambda x, y: {"inputs": {"x": list(x)}, "y": tuple(y)},
        lambda x, y: Loose(x=list(x), y=list(y), name="part"),
        lambda x, y: {"x": list(x), "y": torch.stack(y)},
        lambda x, y: {"x": torch.stack(x), "y": [{"y": each, "size": torch.ones(len(y))} for each in y]},
    ],
)
def test_samples_in_lists_are_found_within_others_and_beside_numbers(batch_of, caplog):
    def loss(model, batch):
        parts = vars(batch) if isinstance(batch, Loose) else batch
        targets = [each["y"] if isinstance(each, dict) else each for each in parts["y"]]
        return error_of_rows(model, (parts["inputs"]["x"] if "inputs" in parts else parts["x"], targets))

    batches = [batch_of(*zip(*ALIKE[a:b], strict=True)) for a, b in pairwise((0, 5, 10, 12))]
    problem = check_loss(lossmap.Problem.custom(nn.Linear(3, 1), loss, batches))
    assert problem.samples == 12 and "not a mean over its samples" not in caplog.text
    assert mean_loss(problem) == pytest.approx(error_of_rows(problem.model, ALIKE).item(), rel=1e-5)


@pytest.mark.parametrize("batch_of", [in_pairs, in_columns])
def test_a_loader_tells_how_many_samples_stand_in_lists_of_one_length(batch_of):
    loader = torch.utils.data.DataLoader(ALIKE, 4, collate_fn=lambda rows: batch_of(*zip(*rows, strict=True)))
    assert lossmap.Problem.custom(nn.Linear(3, 1), error_of_rows, loader).samples == 12
    one_by_one = torch.utils.data.DataLoader([(X[:5], Y[:5]), (X[5:], Y[5:])], 1, collate_fn=lambda rows: rows)
    assert read_into_memory(one_by_one).samples == 2  # lists of one


def time_first(rows):
    x, y = zip(*rows, strict=True)
    return pad_sequence(list(x)), torch.tensor([len(each) for each in x]), torch.stack(y)


class MeanOverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, lengths):
        seen = torch.arange(len(x))[:, None] < lengths
        return self.b((torch.tanh(self.a(x)) * seen[..., None]).sum(0) / lengths[:, None])


def test_a_pair_of_sequences_with_the_time_first_and_their_classes_is_no_mistake():
    class Last(nn.Linear):
        def forward(self, x):
            return super().forward(x[-1])

    model, batches = Last(3, 2), [(torch.randn(t, b, 3, generator=G), Y[:b]) for t, b in ((5, 6), (3, 4))]
    problem = lossmap.Problem.supervised(model, "crossentropy", batches)
    total = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in batches)
    assert mean_loss(problem) == pytest.approx(total / 10, rel=1e-6)


@pytest.mark.parametrize("budget", [None, 100], ids=["in memory", "streamed"])
def test_sequences_with_the_time_first_count_by_their_classes_also_where_they_are_streamed(budget):
    rows = [(torch.randn(2 + i // 4, 3, generator=G), Y[i % 12]) for i in range(21)]
    loader = torch.utils.data.DataLoader(rows, 8, collate_fn=time_first)
    model = MeanOverTime()
    problem = lossmap.Problem.supervised(model, "crossentropy", as_batches(loader, budget=budget))
    each = [F.cross_entropy(model(x[:, None], torch.tensor([len(x)])), y[None]) for x, y in rows]
    value = lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


@pytest.mark.parametrize("batch_of", [in_pairs, in_columns, in_a_dict_of_columns])
def test_samples_in_lists_count_once_each_where_they_are_streamed(batch_of):
    samples = [(torch.randn(3, generator=G), torch.randn(3, generator=G)) for _ in range(21)]
    loader = torch.utils.data.DataLoader(samples, 8, collate_fn=lambda rows: batch_of(*zip(*rows, strict=True)))
    problem = lossmap.Problem.custom(nn.Linear(3, 1), error_of_rows, as_batches(loader, budget=100))
    value = lossmap.losses(problem, lossmap.random_plane(problem.model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(error_of_rows(problem.model, samples).item(), rel=1e-5)


@pytest.mark.parametrize("steps", [(6,), (2, 3, 4, 6, 7)], ids=["of one length", "of several"])
def test_a_loader_whose_batches_are_tensors_with_the_time_first_is_named(steps, caplog):
    rows = [torch.zeros(steps[i // 4 % len(steps)], 3) for i in range(11)]

    def loader(**options):
        return torch.utils.data.DataLoader(rows, 4, collate_fn=pad_sequence, **options)

    data = read_into_memory(loader())
    assert "the batches count " in caplog.text and "hold 4, 3 samples" in data.doubt in caplog.text
    caplog.clear()
    assert read_into_memory(loader(drop_last=True)).doubt in caplog.text
    assert "left out 3 of 11 samples" in caplog.text


@pytest.mark.parametrize("batch_of", [in_pairs, in_columns, in_dicts])
def test_lists_of_as_many_channels_as_boxes_are_not_cut(batch_of):
    """Three channels, and three boxes in each image: all tensors have one first dimension, that of no sample."""
    g = torch.Generator().manual_seed(3)
    images, boxes = torch.randn(4, 3, 5, 5, generator=g), torch.randn(4, 3, generator=g)
    model = nn.Conv2d(3, 2, 3)

    def loss(model, batch):
        return torch.stack([(model(x[None]).mean() - y.mean()) ** 2 for x, y in rows_of(batch)]).mean()

    problem = lossmap.Problem.custom(model, loss, [batch_of(images[i : i + 2], boxes[i : i + 2]) for i in (0, 2)])
    value = lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(loss(model, in_pairs(images, boxes)).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((torch.zeros(5, 7, 3), Y[:7]), 7),  # the time first
        ((torch.zeros(5, 7, 3), torch.full((7,), 5), Y[:7]), 7),
        ((X, EDGES), 1),
        (Loose(x=X, edges=EDGES, y=Y, batch_size=4), 4),  # four nodes, and their sampled neighbours
    ],
)
def test_samples_are_counted_by_classes_at_the_end_and_by_the_batch_size_that_an_object_has(batch, samples):
    assert samples_in(open_batch(batch)) == samples


def test_a_first_batch_without_weight_and_a_rank_without_any_are_no_reason_to_refuse_others():
    model = nn.Linear(3, 2)
    batches = [(X[:4], "a"), (X[4:8], "b"), (X[8:], "c")]

    def weighed(model, batch):
        counts = batch[1] != "a"
        return model(batch[0]).square().mean() * counts, 4 * counts

    problem = lossmap.Problem.custom(model, weighed, batches)
    truth = model(X[4:]).square().mean().item()
    assert lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"] == pytest.approx(truth)
    none, others = problem.share(0, 3), [problem.share(rank, 3) for rank in (1, 2)]
    assert none.weight == 0 and problem.samples == sum(each.weight for each in others) == 8
    sums = torch.tensor([sum(float(each.total(each.data.batches[0]).detach()) for each in others), 8.0, 0.0])
    assert mean_loss(none, total=lambda message: message + sums) == pytest.approx(truth)
    with pytest.raises(ValueError, match="every batch has weight 0"):
        mean_loss(none)
    assert problem.first_that_counts(batches)[1] == "b" and problem.first_that_counts(batches[:1])[1] == "a"
    operator = prepare(check_loss(problem, report=False), "weights", distant=False, products=200)
    hessian = (2 / 8) * torch.kron(torch.eye(2), X[4:].T @ X[4:]) / 2
    torch.testing.assert_close(operator.at() @ torch.ones(6), hessian.sum(1))
    assert operator.plan.rounding is not None  # measured over a batch that counts


@pytest.mark.parametrize("ends", [(0, 5, 7, 12), (0, 6, 12), (0, 12)])
@pytest.mark.parametrize(
    "batch_of",
    [
        lambda x, y: (list(x), y),
        lambda x, y: {"x": list(x), "labels": y},
        lambda x, y: list(zip(x, y, strict=True)),
        lambda x, y: [{"x": a, "y": b} for a, b in zip(x, y, strict=True)],
        lambda x, y: Loose(x=x.flatten(0, 1), y=y),
        lambda x, y: Loose(x=x.flatten(0, 1), values=y, num_graphs=len(y)),
        lambda x, y: {"x": pack_sequence(list(x)), "y": y},
    ],
)
def test_the_mean_over_sequences_with_numbers_as_targets_is_that_over_all_of_them(batch_of, ends, caplog):
    series, values = torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(2)), [0.5 * i for i in range(12)]
    batches = [batch_of(series[a:b], values[a:b]) for a, b in pairwise(ends)]
    model = nn.Linear(3, 1)

    def error(x, y):
        return ((model(x).mean((1, 2)) - torch.tensor(y)) ** 2).mean()

    def loss(model, batch):
        if isinstance(batch, list):  # of samples
            x, y = zip(*(row.values() if isinstance(row, dict) else row for row in batch), strict=True)
        else:
            parts = batch.__dict__ if isinstance(batch, Loose) else batch
            x, y = list(parts.values() if isinstance(parts, dict) else parts)[:2]
        if isinstance(x, PackedSequence):
            x = pad_packed_sequence(x, batch_first=True)[0]
        return error(torch.stack(x) if isinstance(x, (list, tuple)) else x.reshape(-1, 6, 3), list(y))

    problem = lossmap.Problem.custom(model, loss, batches)
    line = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(0, 1, 2))
    assert problem.samples == 12
    assert line["train_loss"][0] == pytest.approx(error(series, values).item(), rel=1e-5)
    if len(ends) == 4:
        assert "by its samples (5, 2, 5)" in caplog.text


@pytest.mark.parametrize("as_loader", [False, True])
def test_a_list_stays_a_list_where_batches_are_kept_as_given(as_loader):
    samples = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    batches = [samples[:5], samples[5:]]
    if as_loader:
        batches = torch.utils.data.DataLoader(samples, batch_size=5, collate_fn=list)
    model = nn.Linear(3, 2)

    def loss(model, batch):
        assert isinstance(batch, list) and isinstance(batch[0], dict)
        return F.cross_entropy(model(torch.stack([s["x"] for s in batch])), torch.stack([s["y"] for s in batch]))

    problem = lossmap.Problem.custom(model, loss, batches)
    found = lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert found == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-6)
    assert lossmap.spectrum(problem, parameters="all", density_error=None).largest[1] < 1e-3


def test_batches_whose_parts_have_one_length_by_chance_are_named(caplog):
    """Sequences with the time first, (T, B), beside numbers (B,): in one batch T = B."""
    values = Y.float()
    read_into_memory([(torch.zeros(t, b), values[:b]) for t, b in ((5, 7), (6, 6), (4, 7))])
    assert "by its samples (1, 6, 1)" in caplog.text and "1 of these batches count by their samples" in caplog.text
    caplog.clear()
    read_into_memory([(X[:5], Y[:5], "left"), (X[5:], Y[5:], "right")])
    read_into_memory(PARTS)
    assert "of these batches" not in caplog.text


def test_a_detection_loss_counts_by_images_and_not_by_batches():
    model = torch.nn.Linear(1, 1)
    batches = [(IMAGES[:2], BOXES[:2]), (IMAGES[2:], BOXES[2:])]

    def loss(model, batch):
        images, boxes = batch
        means = [(model(i.mean().reshape(1, 1)) - b["boxes"].sum()) ** 2 for i, b in zip(images, boxes, strict=True)]
        return torch.stack(means).mean()

    problem = lossmap.Problem.custom(model, loss, batches)
    assert problem.samples == 3
    each = [loss(model, ([i], [b])).item() for i, b in zip(IMAGES, BOXES, strict=True)]
    line = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(model, axes=1)), lossmap.Grid.line(0, 1, 2))
    assert line["train_loss"][0] == pytest.approx(sum(each) / 3)


def test_other_data_have_another_digest_also_where_only_a_name_differs():
    one = read_into_memory([(X[:5], "left", Y[:5]), (X[5:], "right", Y[5:])])
    other = read_into_memory([(X[:5], "right", Y[:5]), (X[5:], "left", Y[5:])])
    assert digest(one) != digest(other) == digest(other)


def test_sparse_batches_have_a_digest_of_their_entries():
    other = torch.sparse_csr_tensor(ROWS.crow_indices(), ROWS.col_indices(), 2 * ROWS.values(), ROWS.shape)
    digests = {digest(read_into_memory([(NODES, edges, CLASSES)])) for edges in (ROWS, ROWS.clone(), other)}
    assert len(digests) == 2


def test_a_part_that_the_model_does_not_bear_is_named_and_the_batches_stay_whole():
    checked = check_loss(problem_of("a matrix of edges"))
    assert len(checked.data.batches) == 1
    assert "fails on a part of a batch (mat1 and mat2 shapes" in checked.notes[0]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # no fault of the cut
        check_loss(lossmap.Problem.supervised(nn.Linear(4, 2), "crossentropy", (NODES, CLASSES)))


def test_a_nested_tensor_is_refused_by_name():
    nested = torch.nested.nested_tensor([X[:5], X[5:]], layout=torch.jagged)
    with pytest.raises(ValueError, match="holds a nested tensor"):
        read_into_memory([(nested, Y[:2])])


def test_inputs_and_targets_of_different_numbers_are_a_mistake():
    with pytest.raises(ValueError, match=r"same number of samples; got first dimensions \[11, 12\]"):
        lossmap.Problem.supervised(nn.Linear(3, 2), "crossentropy", (X, Y[:11]))


def test_one_object_or_mapping_is_the_only_batch():
    torch.manual_seed(0)
    net = GraphNet()
    alone, listed = (lossmap.Problem.custom(net, own_target, data) for data in (GRAPHS[0], GRAPHS[:1]))
    plane = lossmap.random_plane(net, 1)
    assert lossmap.losses(alone, plane)((0.0,)) == lossmap.losses(listed, plane)((0.0,))
    data = read_into_memory(UserDict(x=X, y=Y))
    assert data.samples == 12 and isinstance(next(iter(data.rebatched(5))), UserDict)
    with pytest.raises(ValueError, match="data must be tensors, a Dataset or batches; got int"):
        read_into_memory(3)


class Storage:
    """Where a graph of PyG keeps its tensors, which asks its graph how many nodes it has; its name cannot be set."""

    def __init__(self, owner, tensors):
        self.tensors, self.owner = tensors, weakref.ref(owner)
        self.__dict__["name"] = "all"

    @property
    def name(self):
        return self.__dict__["name"]


class Stored:
    """A graph as PyG's: its tensors in a storage, moved as a whole, iterated over by names and values."""

    def __init__(self, **tensors):
        self.stores = {"all": Storage(self, tensors)}

    def __getattr__(self, name):
        try:
            return self.__dict__["stores"]["all"].tensors[name]
        except KeyError:
            raise AttributeError(name) from None

    def __iter__(self):
        return iter(self.stores["all"].tensors.items())

    def __len__(self):
        return len(self.stores["all"].tensors)

    def __getitem__(self, name):
        return getattr(self, name)

    def to(self, device):
        raise NotImplementedError

    @property
    def nodes(self):
        return len(self.stores["all"].owner().x)


def nodes_in_all(model, graph):
    return F.cross_entropy(model(graph), graph.y) * graph.nodes


def test_a_graph_that_can_be_iterated_over_is_one_batch_and_its_parts_know_it():
    def graph():
        return Stored(x=GRAPHS[0].x, edges=GRAPHS[0].edges, y=GRAPHS[0].y)

    torch.manual_seed(0)
    net = GraphNet()
    plane = lossmap.random_plane(net, 1)
    truth = float(F.cross_entropy(net(GRAPHS[0]), GRAPHS[0].y).detach()) * len(GRAPHS[0].x)
    for data in (graph(), [graph()], source_of(graph(), "data")):  # the graph that was given is gone when it is read
        problem = lossmap.Problem.custom(net, nodes_in_all, data)
        gc.collect()
        assert lossmap.losses(problem, plane)((0.0,))["train_loss"] == pytest.approx(truth, rel=1e-6)


def test_an_object_that_refers_to_itself_is_refused_by_name():
    class Node:
        """A part of a tree that knows its parent."""

    node = Node()
    node.x, node.parent = X, node
    with pytest.raises(ValueError, match="holds a Node that refers to itself"):
        read_into_memory([node])


def ragged_batches():
    """Padded sequences of three widths, the rows of a batch of several lengths."""
    g = torch.Generator().manual_seed(4)
    texts = [torch.randint(1, 8, (length,), generator=g) for length in (3, 7, 5, 2, 6, 4, 4)]
    parts = texts[:3], texts[3:5], texts[5:]
    return [
        {
            "ids": pad_sequence(list(part), batch_first=True),
            "labels": pad_sequence([text % 4 for text in part], batch_first=True, padding_value=-100),
        }
        for part in parts
    ]


def sum_over_tokens(model, batch):
    return F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def tokens_of(batch):
    return int((batch["labels"] >= 0).sum())


@pytest.mark.parametrize("cut", ["kept", "cut"])
@pytest.mark.parametrize("weight", ["tokens", "none"])
def test_a_sum_that_nobody_declared_is_divided_by_its_weights_or_samples(cut, weight):
    batches = ragged_batches() if cut == "kept" else ragged_batches()[:1]
    model = Tagger()
    total = sum(sum_over_tokens(model, b).item() for b in batches)
    if weight == "tokens":
        found = Problem.custom(model, lambda m, b: (sum_over_tokens(m, b), tokens_of(b)), batches)
        number, word = sum(map(tokens_of, batches)), "weights that it gives"
    else:
        found = Problem.custom(model, sum_over_tokens, batches)
        number, word = sum(len(b["ids"]) for b in batches), "samples"
    checked = check_loss(found)
    assert any(f"divided by the {word}" in note for note in checked.notes), checked.notes
    value = lossmap.losses(checked, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(total / number, rel=1e-5)


@pytest.mark.parametrize("widths", [(4, 7, 5), (4,)])
def test_an_undeclared_sum_over_numbers_that_are_no_tokens_is_found_in_the_precision_of_its_check(widths):
    g = torch.Generator().manual_seed(6)
    batches = [(torch.randn(3, w, 2, generator=g), torch.randn(3, w, 1, generator=g)) for w in widths]
    model = nn.Linear(2, 1)

    def step(model, batch):
        return {"loss": (F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel())}

    checked = check_loss(Problem.custom(model, step, batches))
    assert any("divided by the weights" in note for note in checked.notes), checked.notes
    expected = sum(step(model, b)["loss"][0].item() for b in batches) / sum(b[1].numel() for b in batches)
    value = lossmap.losses(checked, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(expected, rel=1e-5)


def test_a_mean_over_tokens_without_its_weight_is_reported_and_one_with_it_is_not():
    def mean(model, batch):
        return F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten())

    plain = check_loss(Problem.custom(Tagger(), mean, ragged_batches()))
    assert any("a mean over tokens or nodes is right where the loss returns" in note for note in plain.notes)
    weighted = check_loss(Problem.custom(Tagger(), lambda m, b: (mean(m, b), tokens_of(b)), ragged_batches()))
    assert weighted.notes == ()


def test_a_dict_of_a_training_step_is_taken_by_its_loss():
    def step(model, batch):
        return {"loss": (sum_over_tokens(model, batch) / tokens_of(batch), tokens_of(batch)), "log": 1}

    model, batches = Tagger(), ragged_batches()
    expected = sum(sum_over_tokens(model, b).item() for b in batches) / sum(map(tokens_of, batches))
    problem = Problem.custom(model, step, batches)
    assert lossmap.losses(problem, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"] == pytest.approx(expected)
    wrong = Problem.custom(model, lambda m, b: {"value": 1}, batches)
    with pytest.raises(ValueError, match="got a dict without the entry loss, but value"):
        wrong.total(batches[0])


def test_graphs_of_several_kinds_of_nodes_are_one_batch_each_and_count_by_their_number_in_a_loader():
    data = pytest.importorskip("torch_geometric.data")
    loader = pytest.importorskip("torch_geometric.loader")
    g = torch.Generator().manual_seed(2)

    def graph(users, items):
        made = data.HeteroData()
        made["user"].x, made["item"].x = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
        ends = [torch.randint(count, (2 * users,), generator=g) for count in (users, items)]
        made["user", "buys", "item"].edge_index = torch.stack(ends)
        return made

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, graph):
            source, target = graph["user", "buys", "item"].edge_index
            h = graph["item"].x.index_add(0, target, graph["user"].x[source])
            kind = graph["item"].get("batch", torch.zeros(len(h), dtype=torch.long))
            sums = torch.zeros(int(kind.max()) + 1, 2, dtype=h.dtype).index_add(0, kind, torch.tanh(self.a(h)))
            return sums.square().sum(1)

    def loss(model, graph):
        return model(graph).mean()

    model, graphs = Net(), [graph(3, 2), graph(5, 4), graph(4, 3)]
    alone = [loss(model, each).item() for each in graphs]
    line = lossmap.random_plane(model, axes=1)
    for given, expected in (
        (graphs[1], alone[1]),
        (loader.DataLoader(graphs, 2), sum(alone) / 3),  # two graphs, then one
    ):
        problem = Problem.custom(model, loss, given)
        assert lossmap.losses(problem, line)((0.0,))["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("held", ["alone", "dict", "tuple", "pair"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_sum_over_graphs_of_a_loader_of_torch_geometric_is_told_from_a_mean(reduction, held):
    data = pytest.importorskip("torch_geometric.data")
    g, model = torch.Generator().manual_seed(6), nn.Linear(3, 2)
    graphs = [
        data.Data(x=torch.randn(n, 3, generator=g), y=torch.tensor([n % 2]), name=f"graph {n}") for n in (4, 5, 7, 6, 4)
    ]

    def together(graphs):
        made = data.Batch.from_data_list(graphs)
        forms = {"alone": made, "dict": {"graph": made, "y": made.y}, "tuple": (made, made.y)}
        return forms[held] if held in forms else (made, data.Batch.from_data_list(graphs), made.y)

    def loss(model, batch):
        graph = batch if held == "alone" else batch["graph"] if held == "dict" else batch[0]
        y = graph.y if held == "alone" else batch["y"] if held == "dict" else batch[-1]
        h = torch.tanh(model(graph.x))
        outputs = h.new_zeros(graph.num_graphs, 2).index_add(0, graph.batch, h)
        return F.cross_entropy(outputs, y, reduction=reduction)

    batches = torch.utils.data.DataLoader(graphs, 2, collate_fn=together)
    problem = check_loss(Problem.custom(model, loss, batches), report=False)
    truth = [F.cross_entropy(model(each.x).tanh().sum(0), each.y[0]).item() for each in graphs]
    assert loss_at_origin(problem) == pytest.approx(sum(truth) / 5, rel=1e-5)
    assert any("returns the sum over the batch" in note for note in problem.notes) == (reduction == "sum")


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("declared", [{}, {"reduction": "sum"}])
def test_pairs_of_graphs_in_two_batches_of_torch_geometric_count_once(size, declared):
    data, loader = pytest.importorskip("torch_geometric.data"), pytest.importorskip("torch_geometric.loader")
    g, model = torch.Generator().manual_seed(7), nn.Linear(3, 2)
    pairs = [
        tuple(data.Data(x=torch.randn(n, 3, generator=g)) for n in sizes)
        for sizes in ((4, 5), (3, 6), (7, 2), (4, 4), (5, 5))
    ]

    def outputs(model, graph):
        h = torch.tanh(model(graph.x))
        return h.new_zeros(graph.num_graphs, 2).index_add(0, graph.batch, h)

    def loss(model, pair):
        one, other = pair
        return F.mse_loss(outputs(model, one), outputs(model, other), reduction="sum")

    batches = loader.DataLoader(pairs, size)
    assert [samples_in(batch) for batch in as_batches(batches)] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    problem = check_loss(Problem.custom(model, loss, batches, **declared), report=False)
    truth = [(model(a.x).tanh().sum(0) - model(b.x).tanh().sum(0)).square().sum().item() for a, b in pairs]
    assert loss_at_origin(problem) == pytest.approx(sum(truth) / 5, rel=1e-5)


class OfDgl:
    """Graphs in one, as DGL has them, where a single one is no other than one put together."""

    def __init__(self, graphs):
        self.nodes, self.sizes = torch.cat(graphs), [len(x) for x in graphs]

    @property
    def batch_size(self):
        return len(self.sizes)

    def batch_num_nodes(self):
        return torch.tensor(self.sizes)

    def to(self, device):
        return self


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("declared", [{}, {"reduction": "sum"}])
@pytest.mark.parametrize("is_read", [True, False], ids=["from a loader", "from a list"])
def test_pairs_of_graphs_in_two_batches_as_of_dgl_count_once(size, declared, is_read):
    g, model = torch.Generator().manual_seed(7), nn.Linear(3, 2)
    pairs = [tuple(torch.randn(n, 3, generator=g) for n in sizes) for sizes in ((4, 5), (3, 6), (7, 2), (4, 4), (5, 5))]

    def outputs(model, graph):
        parts = torch.tanh(model(graph.nodes)).split(graph.batch_num_nodes().tolist())
        return torch.stack([part.sum(0) for part in parts])

    def loss(model, pair):
        one, other = pair
        each = (outputs(model, one) - outputs(model, other)).square().sum(1)
        return each.sum() if declared else each.mean()

    batches = torch.utils.data.DataLoader(
        pairs, size, collate_fn=lambda rows: tuple(map(OfDgl, zip(*rows, strict=True)))
    )
    data = as_batches(batches if is_read else list(batches))
    assert [samples_in(batch) for batch in data] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    problem = check_loss(Problem.custom(model, loss, data, **declared), report=False)
    truth = [(model(a).tanh().sum(0) - model(b).tanh().sum(0)).square().sum().item() for a, b in pairs]
    assert loss_at_origin(problem) == pytest.approx(sum(truth) / 5, rel=1e-5) and not problem.notes
    alone = [OfDgl([x]) for x in pairs[0]]
    assert samples_in(open_batch(alone)) == 2  # a list of two graphs


def points_of_sets(ends):
    """All points of several sets, and the number of its set for each: (points, sets) in batches of several sets."""
    lengths = [3, 2, 5, 4, 2, 6, 3, 1, 7, 2, 4]
    points = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(8))
    sets = [list(points.split(lengths))[a:b] for a, b in pairwise(ends)]
    owners = [[i for i, points in enumerate(s) for _ in points] for s in sets]
    return [(torch.cat(s), torch.tensor(owner)) for s, owner in zip(sets, owners, strict=True)]


def mean_over_sets(model, batch):
    points, owner = batch
    sums = torch.zeros(int(owner.max()) + 1, 2, dtype=points.dtype).index_add(0, owner, model(points))
    return (sums / owner.bincount()[:, None]).square().mean()  # 0 / 0 of a set without a point


@pytest.mark.parametrize("ends", [(0, 5, 9, 11), (0, 11)])
def test_a_loss_of_nan_on_parts_of_a_batch_is_evaluated_on_batches_as_given(ends):
    model, batches = nn.Linear(3, 2), points_of_sets(ends)

    def weighed(model, batch):
        return mean_over_sets(model, batch), int(batch[1].max()) + 1

    expected = mean_over_sets(model, points_of_sets((0, 11))[0]).item()
    checked = check_loss(Problem.custom(model, weighed, batches))
    assert lossmap.losses(checked, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"] == pytest.approx(expected)
    assert "each counts by the weight that the loss gives" in checked.notes[0]
    points = ", ".join(str(len(points)) for points, _ in batches)
    assert f"its samples ({points})" in check_loss(Problem.custom(model, mean_over_sets, batches)).notes[0]


@pytest.mark.parametrize("width", [3, 4])
def test_rows_given_one_by_one_are_kept_whole_also_where_as_many_are_looked_at_as_a_row_is_long(width):
    rows, model = torch.randn(11, width, generator=torch.Generator().manual_seed(8)), nn.Linear(width, 2)
    checked = check_loss(Problem.custom(model, lambda model, row: model(row).square().mean(), list(rows)))
    value = lossmap.losses(checked, lossmap.random_plane(model, axes=1))((0.0,))["train_loss"]
    assert value == pytest.approx(model(rows).square().mean().item(), rel=1e-5)


def test_a_sampler_without_a_length_is_read_to_its_end():
    class Odd(torch.utils.data.Sampler):
        def __init__(self):
            pass

        def __iter__(self):
            return iter(range(1, 12, 2))

    data = torch.utils.data.TensorDataset(X, Y)
    problem = Problem.supervised(nn.Linear(3, 2), "crossentropy", torch.utils.data.DataLoader(data, 4, sampler=Odd()))
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(problem.model(X[1::2]), Y[1::2]).item(), rel=1e-5)


def test_sequences_with_the_time_first_count_by_targets_that_are_no_classes_too(caplog):
    x, y = torch.randn(4, 12, 3, generator=torch.Generator().manual_seed(5)), torch.linspace(-1, 1, 12)[:, None]
    batches = [(x[:, a:b], y[a:b]) for a, b in ((0, 4), (4, 11), (11, 12))]  # the time and the samples of one are 4
    model = nn.Sequential(nn.RNN(3, 1), LastStep())
    problem = Problem.supervised(model, "mse", batches)
    assert mean_loss(problem) == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-5)
    assert "by its samples (4, 7, 1)" in caplog.text and "perhaps by chance" not in caplog.text


class LastStep(nn.Module):
    def forward(self, outputs):
        return outputs[0][-1]


def test_lists_of_one_image_count_once_also_where_it_has_as_many_channels_as_boxes():
    batches = [([torch.zeros(3, 4, 4)], [{"boxes": torch.zeros(boxes, 4)}]) for boxes in (2, 3, 1)]
    assert [samples_in(batch) for batch in read_into_memory(batches)] == [1, 1, 1]


def test_inputs_with_targets_and_with_weights_beside_them_are_no_lists_of_samples():
    batches = [(X[:7], Y[:7]), (X[7:], Y[7:], torch.ones(5))]
    assert [samples_in(batch) for batch in read_into_memory(batches)] == [7, 5]


def test_targets_in_a_list_of_single_numbers_are_one_tensor():
    model = nn.Linear(3, 2)
    problem = Problem.supervised(model, "crossentropy", [(X[:7], list(Y[:7])), (X[7:], list(Y[7:]))])
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)


class Pair(tuple):
    """Inputs and targets by name, as a class of somebody's own."""

    @property
    def y(self):
        return self[1]

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


def test_tuples_of_a_class_of_their_own_are_batches_of_it():
    model, batches = nn.Linear(3, 2), [Pair(X[:7], Y[:7]), Pair(X[7:], Y[7:])]
    problem = Problem.custom(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch.y), batches)
    assert problem.samples == 12 and isinstance(next(iter(problem.rebatched(5).data)), Pair)
    assert mean_loss(problem) == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)


SEQUENCES = [torch.randn(n, 3, generator=G) for n in (5, 7, 3, 4, 6, 2)]


def error_of_sequence(model, sequence):
    return (model(sequence).sum() - 1) ** 2


def mean_of_sequences(model, batch):
    return torch.stack([error_of_sequence(model, sequence) for sequence in batch]).mean()


def loss_at_origin(problem):
    return lossmap.losses(problem, lossmap.random_plane(problem.model, axes=1))((0.0,))["train_loss"]


def takes_out(model, batch):
    n, total = len(batch), 0
    while batch:
        total = total + error_of_sequence(model, batch.pop())
    return total / n


def puts_in(model, batch):
    batch.append(batch[0])
    return mean_of_sequences(model, batch[:-1])


def exchanges(model, batch):
    batch[0] = batch[0] * 1
    batch.reverse()
    return mean_of_sequences(model, batch)


@pytest.mark.parametrize("loss", [takes_out, puts_in, exchanges])
def test_a_loss_may_change_the_lists_of_its_batch(loss):
    model = nn.Linear(3, 1)
    problem = lossmap.Problem.custom(model, loss, torch.utils.data.DataLoader(SEQUENCES, 2, collate_fn=list))
    before = [len(batch) for batch in problem.data]
    for _ in range(2):
        assert loss_at_origin(problem) == pytest.approx(mean_of_sequences(model, SEQUENCES).item(), rel=1e-5)
    assert problem.samples == 6 and [len(batch) for batch in problem.data] == before


def test_a_loss_may_change_dicts_and_objects_of_its_batch():
    def loss(model, batch):
        targets = batch.pop("labels")
        batch["x"] = batch["x"] * 2
        batch["part"].x = batch["part"].x * 2
        batch["seen"].append(1)
        return ((model(batch["x"] / 2) - targets) ** 2).mean() + 0 * batch["part"].x.sum() + (len(batch["seen"]) - 1)

    model, y = nn.Linear(3, 1), torch.randn(12, 1, generator=G)
    data = [{"x": X[a:b], "labels": y[a:b], "part": Loose(x=X[:2]), "seen": []} for a, b in pairwise((0, 5, 12))]
    problem = lossmap.Problem.custom(model, loss, data)
    assert problem.samples == 12
    for _ in range(2):
        assert loss_at_origin(problem) == pytest.approx(F.mse_loss(model(X), y).item(), rel=1e-5)
    assert set(data[0]) == {"x", "labels", "part", "seen"} and data[0]["part"].x.equal(X[:2])


def test_a_model_and_a_criterion_may_change_lists_of_inputs_and_targets():
    class OfList(nn.Linear):
        def forward(self, parts, factors):
            return super().forward(parts.pop()) * factors.pop()

    def criterion(outputs, targets):
        return F.mse_loss(outputs, targets.pop("y"))

    model, y = OfList(3, 1), torch.randn(12, 1, generator=G)
    data = [(([X[a:b]], [2.0]), {"y": y[a:b]}) for a, b in pairwise((0, 5, 12))]
    problem = lossmap.Problem.supervised(model, criterion, data)
    truth = F.mse_loss(2 * F.linear(X, model.weight, model.bias), y).item()
    for _ in range(2):
        assert loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"batch_size": 1, "collate_fn": list}, [1] * 6),
        ({"batch_size": 1, "collate_fn": lambda rows: [row * 1 for row in rows]}, [1] * 6),
        ({"batch_size": 1, "collate_fn": lambda rows: {"q": tuple(rows)}}, [1] * 6),
        ({"batch_sampler": [[0], [1, 2], [3, 4, 5]], "collate_fn": list}, [1, 2, 3]),
        ({"batch_size": 1, "collate_fn": lambda rows: rows[0]}, [5, 7, 3, 4, 6, 2]),  # each sample is a batch
    ],
)
def test_a_loader_of_single_sequences_tells_that_they_are_samples(options, counts):
    def loss(model, batch):
        batch = batch["q"] if isinstance(batch, dict) else batch
        return mean_of_sequences(model, [batch] if isinstance(batch, torch.Tensor) else batch)

    loader = torch.utils.data.DataLoader(SEQUENCES, **options)
    data = as_batches(loader)
    assert data.samples == sum(counts)
    if isinstance(data, FixedBatches):
        assert [samples_in(batch) for batch in data.batches] == counts
        model = nn.Linear(3, 1)
        value = loss_at_origin(lossmap.Problem.custom(model, loss, loader))
        assert value == pytest.approx(mean_of_sequences(model, SEQUENCES).item(), rel=1e-5)


class Tagged(list):
    def __init__(self, entries, tag, weights=None):
        super().__init__(entries)
        self.tag, self.weights = tag, weights


class Weighted(tuple):
    def __new__(cls, entries, weights):
        made = super().__new__(cls, entries)
        made.weights = weights
        return made


@pytest.mark.parametrize(
    "batch_of",
    [
        lambda rows: Tagged(rows, "train"),
        lambda rows: Tagged(rows, "train", torch.ones(len(rows))),
        lambda rows: Weighted(rows, torch.ones(len(rows))),
    ],
)
def test_lists_and_tuples_of_a_class_with_attributes_stay_whole(batch_of):
    def loss(model, batch):
        weights = torch.ones(len(batch)) if batch.weights is None else batch.weights
        assert type(batch) is type(batch_of([])) and getattr(batch, "tag", "train") == "train"
        return torch.stack([w * error_of_sequence(model, q) for w, q in zip(weights, batch, strict=True)]).mean()

    model = nn.Linear(3, 1)
    problem = lossmap.Problem.custom(model, loss, [batch_of(SEQUENCES[:2]), batch_of(SEQUENCES[2:])])
    assert problem.samples == 6
    assert loss_at_origin(problem) == pytest.approx(mean_of_sequences(model, SEQUENCES).item(), rel=1e-5)
    assert lossmap.spectrum(problem, top=1).values[0] > 0


def test_pairs_of_a_loader_stay_the_lists_that_it_makes():
    def loss(model, batch):
        y = batch.pop()
        return F.mse_loss(model(*batch), y)

    model, y = nn.Linear(3, 1), torch.randn(12, 1, generator=G)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), 5)
    problem = lossmap.Problem.custom(model, loss, loader)
    assert loss_at_origin(problem) == pytest.approx(F.mse_loss(model(X), y).item(), rel=1e-5)


def test_targets_that_are_lists_of_rows_are_a_tensor_for_losses_of_pytorch():
    model, y = nn.Linear(3, 2), torch.randn(12, 2, generator=G)
    problem = lossmap.Problem.supervised(model, "mse", [(X[:5], list(y[:5])), (X[5:], list(y[5:]))])
    assert loss_at_origin(problem) == pytest.approx(F.mse_loss(model(X), y).item(), rel=1e-5)
    with pytest.raises(ValueError, match="make no tensor"):
        lossmap.Problem.supervised(model, "mse", [(X[:2], [y[0], y[1, :1]])])


def test_a_tuple_of_single_samples_is_put_together_as_a_list_of_them_is():
    model = nn.Linear(3, 2)
    samples = [(x, int(k)) for x, k in zip(X, Y, strict=True)]
    values = [
        loss_at_origin(lossmap.Problem.supervised(model, "crossentropy", kind(samples))) for kind in (list, tuple)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("loader_of", [
    lambda data: torch.utils.data.DataLoader(data, 1, collate_fn=lambda rows: rows[0]),
    lambda data: torch.utils.data.DataLoader(
        data, 2, collate_fn=lambda rows: tuple(map(torch.cat, zip(*rows, strict=True)))
    ),
])  # fmt: skip
def test_samples_that_are_batches_by_themselves_are_read_as_the_loader_gives_them(loader_of, monkeypatch):
    loader = loader_of([(X[a:b], Y[a:b]) for a, b in pairwise((0, 4, 8, 12))])
    source = source_of(loader, "data")
    assert source.samples == 12 and source.fetch(range(12))[0].equal(X)
    with pytest.raises(ValueError, match="more than the memory"):  # and never streamed, a sample for a batch
        as_batches(loader, budget=1000)


class AtOnce(torch.utils.data.Dataset):
    """Samples that are read many at once, as a pair of tensors."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    def __getitems__(self, indices):
        return self.x[indices], self.y[indices]


class Parts(torch.utils.data.IterableDataset):
    """Samples that are batches of 3 by themselves."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return zip(self.x.split(3), self.y.split(3), strict=True)


class OwnIterator(torch.utils.data.DataLoader):
    def _get_iterator(self):
        return ((x, y) for x, y in super()._get_iterator())


class Delegating(torch.utils.data.DataLoader):
    def __getattr__(self, name):
        return getattr(self.dataset, name)


def as_they_are(samples):
    return samples


@pytest.mark.parametrize(
    "loader_of",
    [
        lambda x, y: torch.utils.data.DataLoader(AtOnce(x, y), 5, collate_fn=as_they_are),
        lambda x, y: torch.utils.data.DataLoader(AtOnce(x, y), batch_sampler=[range(8), range(8, 11)], collate_fn=list),
        lambda x, y: torch.utils.data.DataLoader(
            Parts(x, y), 2, collate_fn=lambda rows: list(map(torch.cat, zip(*rows, strict=True)))
        ),
        lambda x, y: OwnIterator(torch.utils.data.TensorDataset(x, y), 4),
        lambda x, y: Delegating(torch.utils.data.TensorDataset(x, y), 4),
    ],
)
def test_pairs_of_inputs_and_targets_count_their_rows_however_a_loader_makes_them(loader_of):
    model, x, y = nn.Linear(3, 2), X[:11], torch.randn(11, 2, generator=G)
    problem = lossmap.Problem.supervised(model, "mse", loader_of(x, y))
    assert problem.samples == 11
    assert loss_at_origin(problem) == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-5)
    problem = lossmap.Problem.custom(model, lambda m, batch: F.mse_loss(m(batch[0]), batch[1]), loader_of(x, y))
    assert loss_at_origin(problem) == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-5)


def test_samples_that_are_read_many_at_once_are_streamed_as_the_loader_reads_them():
    data = as_batches(torch.utils.data.DataLoader(AtOnce(X, Y), 5, collate_fn=as_they_are), budget=1000)
    assert isinstance(data, Streamed) and data.samples == 12
    assert torch.cat([x for x, _ in data]).equal(X) and torch.cat([y for _, y in data]).equal(Y)


def test_a_collate_that_draws_draws_the_same_where_it_is_asked_twice():
    def masked(rows):
        return [row * (torch.rand(1) > 0.5) for row in rows]

    torch.manual_seed(3)
    truth = [masked([row]) for row in SEQUENCES]
    torch.manual_seed(3)
    data = read_into_memory(torch.utils.data.DataLoader(SEQUENCES, 1, collate_fn=masked, generator=G))
    assert [batch[0].tolist() for batch in data] == [row.tolist() for (row,) in truth]


class Scaled(dict):
    def __init__(self, x, y, scale=1.0):
        super().__init__(x=x, y=y)
        self.scale = scale


class Ordered(OrderedDict):
    pass


class ByEither(dict):
    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


class Mirrored(dict):
    def __init__(self, **entries):
        super().__init__(entries)
        vars(self).update(entries)


class WithDefault(defaultdict):
    pass


@dataclass
class Mapped(Mapping):
    x: torch.Tensor
    y: torch.Tensor
    scale: float = 1.0

    def __getitem__(self, name):
        return getattr(self, name)

    def __iter__(self):
        return iter(("x", "y"))

    def __len__(self):
        return 2


class InSlots:
    __slots__ = ("__scale", "x")

    def __init__(self, x, y, scale=1.0):
        self.x, self.y, self.__scale = x, y, scale

    @property
    def scale(self):
        return self.__scale

    def __getitem__(self, name):
        return getattr(self, name)


class WithAttributes(InSlots):
    pass


@pytest.mark.parametrize(
    "batch_of",
    [
        Scaled,
        lambda x, y, scale: with_attributes(Ordered(x=x, y=y), scale=scale),
        lambda x, y, scale: with_attributes(Scaled(x, y), scale=scale * torch.ones(())),
        lambda x, y, scale: ByEither(x=x, y=y, scale=scale),
        lambda x, y, scale: Mirrored(x=x, y=y, scale=scale * torch.ones(())),
        lambda x, y, scale: with_attributes(WithDefault(partial(float, "nan"), x=x, y=y), scale=scale),
        Mapped,
        WithAttributes,
    ],
)
def test_batches_of_classes_with_entries_attributes_and_slots_keep_them(batch_of):
    def loss(model, batch):
        if isinstance(batch, defaultdict):
            assert batch["w"] != batch["w"]
        if isinstance(batch, ByEither):
            batch["x"] = 1 * batch.x
            assert batch.x is batch["x"]
        return batch.scale * F.mse_loss(model(batch["x"]), batch["y"])

    model, y = nn.Linear(3, 1), torch.randn(12, 1, generator=G)
    problem = lossmap.Problem.custom(model, loss, [batch_of(X[:4], y[:4], 1.0), batch_of(X[4:], y[4:], 3.0)])
    truth = (4 * F.mse_loss(model(X[:4]), y[:4]) + 24 * F.mse_loss(model(X[4:]), y[4:])) / 12
    for _ in range(2):
        assert loss_at_origin(problem) == pytest.approx(truth.item(), rel=1e-5)


def with_attributes(batch, **attributes):
    vars(batch).update(attributes)
    return batch


def test_named_tuples_with_attributes_that_pytorch_leaves_out_are_refused_by_name():
    class Pair(namedtuple("Pair", "x y")):
        @cached_property
        def width(self):
            return self.x.shape[1]

    batch, pairs = Pair(X, X[:, :1]), [Pair(X[:4], X[:4, :1]), Pair(X[4:], X[4:, :1])]
    assert batch.width == 3 and as_batches([batch]).samples == 12  # a property that was read is made anew
    with pytest.raises(ValueError, match=r"a Pair, a named tuple with attributes beside its fields \(scale\)"):
        lossmap.Problem.custom(
            nn.Linear(3, 1), lambda m, b: b.scale * m(b.x).mean(), [with_attributes(pairs[0], scale=2.0)]
        )


class Flag:
    def __init__(self):
        self.is_set, self.seen = False, set()


def through_two_names(model, batch):
    batch.a[0] = 2 * batch.a[0]
    return F.mse_loss(model(batch.b[0]), batch.y)


def through_two_entries(model, batch):
    first, second, y = batch
    first["x"] = 2 * first["x"]
    return F.mse_loss(model(second["x"]), y)


def through_two_tensors(model, batch):
    batch["a"].mul_(2)
    return F.mse_loss(model(batch["b"]), batch["y"])


def through_a_view(model, batch):
    batch["x"].mul_(2)
    return F.mse_loss(model(torch.stack(batch["rows"])), batch["y"])


def by_identity(model, batch):
    return F.mse_loss(model(batch["b"] * (2 if batch["a"] is batch["b"] else 1)), batch["y"])


def once_by_a_flag(model, batch):
    if not batch.flag.is_set and not batch.flag.seen:
        batch.x, batch.flag.is_set = 2 * batch.x, True
        batch.flag.seen.add("x")
    return F.mse_loss(model(batch.x), batch.y)


def by_an_array(model, batch):
    batch.scale *= 2
    return F.mse_loss(model(batch.x * float(batch.scale[0])), batch.y)


ONE_FLAG = Flag()
SHARED = {
    "two attributes": (through_two_names, lambda x, y, a: Loose(a=a, b=a, y=y)),
    "two entries": (through_two_entries, lambda x, y, a: ({"x": x},) * 2 + (y,)),
    "a tensor": (through_two_tensors, lambda x, y, a: {"a": x, "b": x, "y": y}),
    "identity": (by_identity, lambda x, y, a: {"a": x, "b": x, "y": y}),
    "views": (through_a_view, lambda x, y, a: {"x": x, "rows": list(x), "y": y}),
    "a flag": (once_by_a_flag, lambda x, y, a: Loose(x=x, y=y, flag=Flag())),
    "one flag": (once_by_a_flag, lambda x, y, a: Loose(x=x, y=y, flag=ONE_FLAG)),
    "an array": (by_an_array, lambda x, y, a: Loose(x=x, y=y, scale=np.ones(1))),
    "an attribute": (once_by_a_flag, lambda x, y, a: with_attributes(Scaled(x, y), x=x, y=y, flag=Flag())),
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", SHARED)
def test_what_stands_in_a_batch_under_two_names_is_one_thing_and_fresh_at_every_call(kind, number):
    loss, batch_of = SHARED[kind]
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    pairs = [torch.randn(5, 4, dtype=torch.float64, generator=g).split((3, 1), 1) for _ in range(number)]
    batches = [batch_of(x.clone(), y.clone(), [x.clone()]) for x, y in pairs]
    sizes = [w.numel() for w in (model[0].weight, model[2].weight)]

    def mean(theta):
        w, v = theta.split(sizes)
        state = {"0.weight": w.view(4, 3), "2.weight": v.view(1, 4)}
        parts = [functional_call(model, state, (2 * x,)) for x, _ in pairs]
        return sum(F.mse_loss(part, y) for part, (_, y) in zip(parts, pairs, strict=True)) / number

    theta = torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()])
    hessian = torch.autograd.functional.hessian(mean, theta)
    problem = lossmap.Problem.custom(model, loss, batches)
    for _ in range(2):
        assert loss_at_origin(problem) == pytest.approx(mean(theta).item(), rel=1e-12)
    for backend in ("linearized", "retained-graph", "double-backward"):
        operator = prepare(check_loss(problem, report=False), "weights", backend=backend).at()
        torch.testing.assert_close(operator @ torch.ones_like(theta), hessian.sum(1), rtol=1e-9, atol=1e-9)
    assert not ONE_FLAG.is_set


def test_writes_that_another_tensor_of_the_batch_shows_are_refused_by_name():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="writes into its inputs, whose memory is that of the targets"):
        check_loss(lossmap.Problem.supervised(model, "mse", (X, X)))
    check_loss(lossmap.Problem.supervised(model, "mse", (X, X.clone())))

    def shifted(model, batch):
        x, y = batch
        x[:, 1] = 0
        return F.mse_loss(model(x), y)

    linear = nn.Linear(2, 2)
    batches = [(part[:, :-1], part[:, 1:]) for part in (X[:6].clone(), X[6:].clone())]
    with pytest.raises(ValueError, match="two tensors of which are views of one memory"):
        check_loss(lossmap.Problem.custom(linear, shifted, batches))
    apart = [(part[:, :2], part[:, 2:]) for part in (X[:6].clone(), X[6:].clone())]  # no number is in both
    check_loss(lossmap.Problem.custom(nn.Linear(2, 1), shifted, apart))
    check_loss(lossmap.Problem.custom(linear, lambda m, b: F.mse_loss(m(b[0]), b[1]), batches))  # nothing is written


def test_batches_with_a_tensor_under_two_names_do_not_join_with_others():
    x, y = X[:4].clone(), X[4:8].clone()
    joined = as_batches([{"a": x, "b": x}, {"a": y, "b": y}])
    assert joined.tensors["a"] is joined.tensors["b"] and len(joined.tensors["a"]) == 8
    assert isinstance(as_batches([{"a": x, "b": x}, {"a": y, "b": y.clone()}]), FixedBatches)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [b], lambda b: (b,)])
def test_lists_dicts_and_objects_that_refer_to_themselves_are_refused_in_whatever_they_stand(wrap):
    node, entries, table = Loose(x=X), [X], {"x": X}
    node.me, table["me"] = node, table
    entries.append(entries)
    for batch in (node, entries, table):
        with pytest.raises(ValueError, match="that refers to itself; give what the loss needs of it"):
            as_batches(wrap(batch))


def test_a_recursion_error_of_the_users_own_data_stays_what_it_is():
    class Endless(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self[index]

    with pytest.raises(RecursionError):
        as_batches(Endless())


class OverTime(nn.Module):
    """One number for each sequence of (T, N, 3), which depends on the order of its steps."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.RNN(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.cell(x)[0][-1])[:, 0]


@pytest.mark.parametrize("shapes", [[(6, 4)] * 3, [(6, 4), (6, 5), (6, 2)], [(6, 4), (5, 5), (7, 2)], [(5, 5)]])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_sum_over_sequences_with_the_time_first_is_told_from_a_mean(shapes, reduction):
    g, model = torch.Generator().manual_seed(5), OverTime()
    batches = [(torch.randn(t, n, 3, generator=g), torch.randn(n, generator=g)) for t, n in shapes]

    def error(model, batch, reduction=reduction):
        return F.mse_loss(model(batch[0]), batch[1], reduction=reduction)

    problem = check_loss(lossmap.Problem.custom(model, error, batches), report=False)
    truth = sum(error(model, b, "sum").item() for b in batches) / sum(n for _, n in shapes)
    assert loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)
    assert any("returns the sum over the batch" in note for note in problem.notes) == (reduction == "sum")


@pytest.mark.parametrize("shapes", [[(6, 4)] * 3, [(6, 4), (6, 5), (6, 2)], [(6, 4), (5, 5), (7, 2)], [(5, 5)]])
def test_a_sum_over_the_steps_of_sequences_with_the_time_first_is_divided_by_the_sequences(shapes):
    g, model = torch.Generator().manual_seed(5), LastOfPadded()
    batches = [(torch.randn(t, n, 3, generator=g), torch.randint(3, (t, n), generator=g)) for t, n in shapes]

    def error(model, batch):
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum")

    truth = sum(error(model, b).item() for b in batches) / sum(n for _, n in shapes)
    by_outputs = lambda f, y: F.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="sum")
    for given in (
        lossmap.Problem.custom(model, error, batches),
        lossmap.Problem.supervised(model, by_outputs, batches),
    ):
        problem = check_loss(given, report=False)
        assert loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)
        assert any("returns the sum over the batch" in note for note in problem.notes)


def test_a_result_says_by_what_its_batches_count_where_nothing_but_their_structure_shows_it():
    def whole_batches_alone(model, batch):
        x, border, _ = batch
        if len(x) < 4:
            raise ValueError("no part of a batch")
        return model(x).square().mean() + model(border).mean()

    def weighted(model, batch):
        return whole_batches_alone(model, batch), len(batch[0])

    model, batches = nn.Linear(3, 1), [(X[:n], X[:2], Y[:n]) for n in (4, 6, 5)]
    assert not check_loss(lossmap.Problem.custom(model, weighted, batches), report=False).notes
    (note,) = check_loss(lossmap.Problem.custom(model, whole_batches_alone, batches), report=False).notes
    assert "counts by its samples as its structure shows them (4, 6, 5)" in note and "return (mean, weight)" in note
    assert not check_loss(lossmap.Problem.custom(model, whole_batches_alone, batches[1:2] * 3), report=False).notes


class LastOfPadded(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cells(x)[0])


def tags_by_sequence(model, batch):
    """The mean over sequences, the time first, of the mean over each one's steps."""
    x, tags, *_ = batch.values() if isinstance(batch, Mapping) else batch
    each = F.cross_entropy(model(x).flatten(0, 1), tags.flatten(), reduction="none").view(tags.shape)
    return (each.sum(0) / (tags >= 0).sum(0)).mean()


def classes_by_sequence(model, batch):
    x, classes, *_ = batch.values() if isinstance(batch, Mapping) else batch
    return F.cross_entropy(model(x)[len(x) // 2], classes)


def tagged(rows):
    x, tags = zip(*rows, strict=True)
    return pad_sequence(x), pad_sequence(tags, padding_value=-100)


def classed(rows):
    return torch.stack([x for x, _ in rows], 1), torch.stack([tags[0] for _, tags in rows])


@pytest.mark.parametrize(
    "batch_of",
    [
        tuple,
        list,
        lambda p: dict(zip("ab", p, strict=True)),
        lambda p: UserDict(a=p[0], b=p[1]),
        lambda p: {"a": p[0], "b": p[1], "name": ["a word"] * p[0].shape[1]},
        lambda p: {"a": p[0].numpy(), "b": p[1].numpy()},
    ],
)
@pytest.mark.parametrize(
    ("steps", "collate", "error"),
    [
        (lambda i: 6, tagged, tags_by_sequence),
        (lambda i: 2 + i // 2, tagged, tags_by_sequence),
        (lambda i: 2 + i % 3, tagged, tags_by_sequence),  # of three steps in the batch of three, too
        (lambda i: 4, classed, classes_by_sequence),
    ],
)
@pytest.mark.parametrize("size", [4, 1])
def test_batches_with_the_time_first_count_by_what_their_loader_says(batch_of, steps, collate, error, size):
    g = torch.Generator().manual_seed(2)
    rows = [(torch.randn(steps(i), 3, generator=g), torch.randint(3, (steps(i),), generator=g)) for i in range(11)]
    model = LastOfPadded()
    loader = torch.utils.data.DataLoader(rows, size, collate_fn=lambda rows: batch_of(collate(rows)))
    problem = lossmap.Problem.custom(model, error, loader)
    assert problem.samples == 11 == sum(problem.share(rank, 2).samples for rank in (0, 1))
    truth = sum(error(model, collate([row])).item() for row in rows) / 11
    assert loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)
    summed = lossmap.Problem.custom(model, lambda m, b: error(m, b) * batch_count(b), loader)
    for each, notes in ((problem, 0), (summed, int(size > 1))):  # of one sequence the sum is its mean
        checked = check_loss(each, report=False)
        assert len(checked.notes) == notes and mean_loss(checked) == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("steps", [(6,), (2, 3, 5, 4)], ids=["of one length", "of several"])
def test_a_loader_of_a_command_with_the_time_first_is_counted_alike(steps, monkeypatch):
    g = torch.Generator().manual_seed(2)
    lengths = [steps[i % len(steps)] for i in range(11)]
    rows = [(torch.randn(n, 3, generator=g), torch.randint(3, (n,), generator=g)) for n in lengths]
    loader = torch.utils.data.DataLoader(
        rows, 4, collate_fn=lambda r: dict(zip(("input", "y"), tagged(r), strict=True))
    )
    monkeypatch.setattr(datasets, "resolve_callable", lambda name: lambda split: loader)
    read = datasets.load("a.py:loader", "train")
    assert isinstance(read, FixedBatches) and [samples_in(batch) for batch in read] == [4, 4, 3]
    model = LastOfPadded()
    truth = sum(tags_by_sequence(model, tagged([row])).item() for row in rows) / 11
    assert mean_loss(lossmap.Problem.custom(model, tags_by_sequence, read)) == pytest.approx(truth, rel=1e-5)
    with pytest.raises(ValueError, match="the samples are no rows of the tensors"):
        Resident(next(iter(read)), 4)


def test_samples_that_are_batches_of_unequal_parts_stay_these():
    parts = [(X[:n], X[n:, :2]) for n in (4, 5, 7)]
    loader = torch.utils.data.DataLoader(parts, 1, collate_fn=lambda rows: rows[0])
    for data in (as_batches(loader), source_of(loader, "a factory")):
        assert isinstance(data, FixedBatches) and [samples_in(batch) for batch in data] == [1, 1, 1]


def batch_count(batch):
    return next(iter(batch.values() if isinstance(batch, Mapping) else batch)).shape[1]


def test_the_curvature_of_batches_with_the_time_first_is_that_of_the_mean_over_samples():
    g = torch.Generator().manual_seed(2)
    rows = [(torch.randn(2 + i // 2, 3, generator=g), torch.randint(3, (2 + i // 2,), generator=g)) for i in range(11)]
    model = LastOfPadded()
    loader = torch.utils.data.DataLoader(rows, 4, collate_fn=lambda r: dict(zip(("seq", "y"), tagged(r), strict=True)))
    found = lossmap.spectrum(lossmap.Problem.custom(model, tags_by_sequence, loader), parameters="all", top=1)
    exact = LastOfPadded().double()
    exact.load_state_dict(model.state_dict())
    names, values = zip(*exact.named_parameters(), strict=True)
    sizes = [v.numel() for v in values]

    def mean(flat):
        parts = flat.split(sizes)
        given = {n: p.view_as(v) for n, p, v in zip(names, parts, values, strict=True)}
        call = partial(functional_call, exact, given)
        each = [tags_by_sequence(call, tagged([(x.double(), tags)])) for x, tags in rows]
        return torch.stack(each).mean()

    theta = torch.cat([v.detach().flatten() for v in values])
    truth = torch.linalg.eigvalsh(torch.autograd.functional.hessian(mean, theta))[-1].item()
    assert found.largest[0] == pytest.approx(truth, rel=1e-4)


def test_batches_that_do_not_show_their_samples_count_by_what_their_loader_says():
    """Nodes and edges of several graphs in one, and nothing beside that there is one of for each graph."""
    graphs = [torch.randn(3 + i % 2, 3, generator=G) for i in range(5)]

    def joined(graphs):
        edges = [torch.stack([torch.arange(len(g)), torch.arange(len(g)).roll(1)]) for g in graphs]
        return {"nodes": torch.cat(graphs), "edges": torch.cat(edges, 1), "share": torch.tensor(1 / len(graphs))}

    def energy(model, batch):
        sent, received = batch["edges"]
        return (model(batch["nodes"]).square().sum() + (sent - received).square().sum()) * batch["share"]

    model = nn.Linear(3, 1)
    problem = lossmap.Problem.custom(model, energy, torch.utils.data.DataLoader(graphs, 2, collate_fn=joined))
    truth = (
        sum(
            energy(model, b).item() * n
            for b, n in ((joined(graphs[:2]), 2), (joined(graphs[2:4]), 2), (joined(graphs[4:]), 1))
        )
        / 5
    )
    assert problem.samples == 5 and loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)


def test_a_report_says_that_batches_may_count_otherwise_than_they_should():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

        def forward(self, batch):
            return self.head(self.cells(batch["seq"])[1][-1])

    def padded(samples):  # the time first
        return {"seq": pad_sequence([s for s, _ in samples]), "cls": torch.tensor([c for _, c in samples])}

    def mean(model, batch):
        return F.cross_entropy(model(batch), batch["cls"])

    torch.manual_seed(0)
    samples = [(torch.randn(2 + i % 3, 3), i % 3) for i in range(11)]
    batches = list(torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=padded))
    for loss, is_told in ((mean, True), (lambda m, b: (mean(m, b), len(b["cls"])), False)):
        text = " ".join(str(lossmap.spectrum(lossmap.Problem.custom(Last(), loss, batches), top=1)).split())
        assert ("one length, perhaps by chance" in text) == is_told


@pytest.mark.parametrize("error", [tags_by_sequence, classes_by_sequence])
def test_samples_of_none_that_a_collate_leaves_out_do_not_count(error):
    g = torch.Generator().manual_seed(2)
    rows = [(torch.randn(6, 3, generator=g), torch.randint(3, (6,), generator=g)) for i in range(19)]
    collate = tagged if error is tags_by_sequence else classed
    broken = [None if i in (3, 9, 10) else row for i, row in enumerate(rows)]
    loader = torch.utils.data.DataLoader(broken, 8, collate_fn=lambda r: collate([row for row in r if row is not None]))
    model = LastOfPadded()
    problem = lossmap.Problem.custom(model, error, loader)
    assert problem.samples == 16
    truth = sum(error(model, collate([row])).item() for row in broken if row is not None) / 16
    assert loss_at_origin(problem) == pytest.approx(truth, rel=1e-5)


def test_rows_beside_tensors_of_other_lengths_do_not_count_by_samples_that_were_left_out(caplog):
    rows = [(x, y) for x, y in zip(X, Y, strict=True)]

    def collate(rows):
        x, y = zip(*(row for row in rows if row[1] != 1), strict=True)
        return torch.stack(x), torch.stack(y), torch.ones(11)

    batches = as_batches(torch.utils.data.DataLoader(rows, 8, collate_fn=collate))
    assert [samples_in(batch) for batch in batches] == [1] * len(batches.batches)
    assert "once" in caplog.text


def by_arrays(model, batch):
    p = next(model.parameters())
    x, y = torch.from_numpy(batch[0]).to(p.dtype), torch.from_numpy(batch[1])
    return F.cross_entropy(model(x), y)


def by_a_method_of_arrays(model, batch):
    p = next(model.parameters())
    return F.cross_entropy(model(torch.tensor(batch[0].astype("float32")).to(p.dtype)), torch.from_numpy(batch[1]))


def by_a_mistake(model, batch):
    return F.cross_entropy(model(batch[0].nothing()), batch[1])


@pytest.mark.parametrize("loss", [by_arrays, by_a_method_of_arrays])
def test_a_loss_that_takes_the_arrays_of_its_loader_gets_arrays(loss):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(24, 4), torch.randint(0, 3, (24,))
    batches = [(x[i : i + 8].numpy(), y[i : i + 8].numpy()) for i in range(0, 24, 8)]
    loader = torch.utils.data.DataLoader(range(24), 8, collate_fn=lambda rows: (x[rows].numpy(), y[rows].numpy()))
    plain = lossmap.spectrum(Problem.supervised(net, "crossentropy", (x, y)), top=1, density_error=None)
    for data in (batches, loader):
        problem = Problem.custom(net, loss, data)
        s = lossmap.spectrum(problem, top=1, density_error=None)
        assert s.loss == pytest.approx(plain.loss, rel=1e-6)
        assert s.top.values[0] == pytest.approx(plain.top.values[0], rel=1e-5)
        surface = lossmap.survey(lossmap.losses(problem, lossmap.random_plane(net, axes=1)), lossmap.Grid.line(0, 1, 2))
        assert surface["train_loss"][0] == pytest.approx(plain.loss, rel=1e-6)


def test_a_mistake_with_a_tensor_is_no_wish_for_arrays():
    net, data = nn.Linear(4, 3), (torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'nothing'"):
        lossmap.spectrum(Problem.custom(net, by_a_mistake, data), top=1, density_error=None)
