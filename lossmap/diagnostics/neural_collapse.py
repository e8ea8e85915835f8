"""Neural collapse: how nearly the last features of a classifier form one simplex of class means.

For features h of dimension d (the input of the last linear layer), classes c = 1..C with means mu_c, their mean mu,
the scatter within classes S_W and between them S_B, and the last layer's weight W (C, d), rows w_c:

    nc1   tr(S_W S_B^+) / C                                  spread within against between; 0 collapsed
    nc2   mean |cos(mu_a - mu, mu_b - mu) + 1/(C-1)|, a < b  0 for a simplex: angles as wide and as equal as can be
    nc2_norms   standard deviation / mean of ||mu_c - mu||   0 where all are equally far out
    nc3   || W / |W| - M / |M| ||_F^2                        0 where W is proportional to the centred means M (C, d)
    nc4   share of samples whose nearest class mean is not the class predicted

S_W = 1/N sum_i (h_i - mu_c)(h_i - mu_c)^T, S_B = 1/C sum_c (mu_c - mu)(mu_c - mu)^T, mu the mean of the mu_c.
Two passes over the data; memory: groups d^2 float64. Error bars: jackknife over groups of samples (nc1, nc2, nc3),
binomial (nc4). Source: Papyan, Han and Donoho (2020), doi:10.1073/pnas.2015509117.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf, nan, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from lossmap.data.criteria import are_classes
from lossmap.data.problem import Problem, ignored_by, targets_of, temporary_parameters
from lossmap.diagnostics.activations import first_argument
from lossmap.sums import in_float64

Array = np.ndarray


@dataclass(frozen=True)
class NeuralCollapse:
    """The four numbers with their standard errors, and where the features were taken: the input of `layer`."""

    nc1: float
    nc2: float
    nc2_norms: float
    nc3: float
    nc4: float
    errors: dict[str, float]
    layer: str
    classes: int
    features: int
    samples: int


@dataclass(frozen=True, eq=False)
class Moments:
    """Features of labelled samples, summed up in g groups of samples.

    counts (g, C); sums (g, C, d) of h - centre_c; scatter (g, d, d) of the same; centres (C, d), any near the means
    """

    counts: Array
    sums: Array
    scatter: Array
    centres: Array


def last_linear(model: nn.Module, batch_forward: Callable[[], object]) -> str:
    """The name of the last linear layer that the forward pass calls, of those with as many outputs as the model.

    A layer with adapters (PEFT) is one layer. Raises ValueError where there is none, and where the model's outputs are
    not its alone, as of two heads whose scores are added: then the layer whose input are the features must be named.
    """
    # by the number of outputs the layer called last, and what it returned, in the order of the calls
    called: dict[object, tuple[str, object]] = {}

    def record(name: str, output: object) -> None:
        called.pop(linear[name].out_features, None)
        if isinstance(output, Tensor):
            output = output.detach().clone()  # what follows may write into it
        called[linear[name].out_features] = name, output

    wrapped = [f"{name}." for name, module in model.named_modules() if _is_adapted(module)]
    linear = {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_adapted(module)) and not name.startswith(tuple(wrapped))
    }
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: record(name, output))
        for name, module in linear.items()
    ]
    try:
        with torch.enable_grad():
            outputs = batch_forward()
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(outputs, Tensor) and outputs.dim() == 2:  # others, such as gates, are no last layer
        called = {width: value for width, value in called.items() if width == outputs.shape[1]}
    if not called:
        raise ValueError(
            "the model calls no linear layer with as many outputs as it has itself; name the layer whose input are the "
            "features"
        )
    name, scores = list(called.values())[-1]
    if isinstance(outputs, Tensor) and isinstance(scores, Tensor) and not _rank_alike(outputs, scores):
        raise ValueError(
            f"the model's outputs are not those of its last linear layer, {name!r}, alone; name the layer whose "
            "input are the features"
        )
    return name


def _is_adapted(module: nn.Module) -> bool:
    """Whether this is a linear layer with adapters beside it, as PEFT makes it."""
    return isinstance(getattr(module, "base_layer", None), nn.Linear) and hasattr(module, "out_features")


def _rank_alike(outputs: Tensor, scores: Tensor) -> bool:
    """Whether each sample's outputs rise with its scores (B, C), as through a softmax, or differ by one row alone.

    True for scores of another shape, of which that cannot be said.
    """
    if outputs.dim() != 2 or scores.shape != outputs.shape:
        return True
    outputs, scores = in_float64(outputs.detach()), in_float64(scores.detach())
    rises = outputs.gather(1, scores.argsort(1)).diff(dim=1)
    beside = outputs - scores
    slack = 1e-5 * outputs.abs().amax()
    return not bool((rises < -slack).any() & ((beside - beside[:1]).abs() > slack).any())  # NaN is refused elsewhere


def weight_of(module: nn.Module, h: Tensor) -> Tensor | None:
    """The weight (C, d) of a layer by which it acts on features h (B, d); of one with adapters with theirs."""
    if not _is_adapted(module):
        own = getattr(module, "weight", None)
        return own.detach() if isinstance(own, Tensor) else None
    d = h.shape[1]
    like = next(module.parameters())
    with torch.no_grad():
        steps: Tensor = module(torch.eye(d, dtype=like.dtype, device=like.device)) - module(like.new_zeros(1, d))
    return steps.T


@dataclass(frozen=True, eq=False)
class Labelled:
    """A batch's input of a layer h (B, d) in float64, targets y (B,), predicted classes (B,), and which samples count.

    known  (B,)  whether a sample has a class: targets that the loss ignores, or negative ones, have none
    """

    h: Tensor
    y: Tensor
    predicted: Tensor
    known: Tensor


def features_of(problem: Problem, layer: str) -> Iterator[Labelled]:
    """Batch by batch what a layer is given.

    Raises ValueError where there is no such layer, the problem is not a classification, or, after the last batch, where
    the input of the layer is not finite: no batch waits for the device.
    """
    try:
        module = problem.model.get_submodule(layer)
    except AttributeError:
        raise ValueError(f"the model has no layer named {layer!r}") from None
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        # the layer itself may write into it, or what follows
        lambda _m, args, keywords: inputs.append(first_argument(args, keywords).detach().clone()),
        with_kwargs=True,
    )
    finite: list[Tensor] = []
    try:
        for batch in problem.data:
            inputs.clear()
            with torch.enable_grad():  # a loss may differentiate by its inputs
                outputs = problem.forward(problem.model, batch)
            targets = None
            if isinstance(outputs, Tensor) and outputs.dim() == 2:
                targets = targets_of(batch)
            if not inputs or not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
                raise ValueError(
                    "neural collapse requires a classifier: outputs (B, C), whole-number targets (B,), and a layer "
                    f"that is called; got the layer {layer!r}"
                )
            if inputs[-1].dim() < 2 or len(inputs[-1]) != len(targets):
                raise ValueError(
                    f"the input of the layer {layer!r} has no row for each sample: its shape is "
                    f"{tuple(inputs[-1].shape)}, for {len(targets)} samples; name another layer"
                )
            features = in_float64(inputs[-1].flatten(1))
            finite.append(features.isfinite().all())
            known = are_classes(targets, ignored_by(problem))
            others = (t.to(features.device) for t in (targets.long(), outputs.detach().argmax(1), known))
            yield Labelled(features, *others)
    finally:
        handle.remove()
    if finite and not bool(torch.stack(finite).all()):
        raise ValueError(f"the input of the layer {layer!r} is not finite")


def numbers(moments: Moments, weight: Array) -> dict[str, float]:
    """nc1 to nc3 from moments; weight (C, d). Classes without a sample are left out."""
    counts, sums = moments.counts.sum(0), moments.sums.sum(0)
    there = counts > 0
    shift = sums[there] / counts[there, None]
    means = moments.centres[there] + shift
    within = (moments.scatter.sum(0) - (shift * counts[there, None]).T @ shift) / counts.sum()
    out = means - means.mean(axis=0)
    classes = len(out)
    # tr(S_W S_B^+): through the thin SVD of the C rows, since S_B has rank C - 1 at most
    _, sizes, right = np.linalg.svd(out / sqrt(classes), full_matrices=False)
    if not sizes[0] > 1e-12 * np.linalg.norm(means):  # the means differ by rounding alone: dead features
        return {"nc1": inf, "nc2": nan, "nc2_norms": nan, "nc3": nan}
    nonzero = sizes > sizes[0] * 1e-7
    along = np.einsum("kd,de,ke->k", right[nonzero], within, right[nonzero])
    lengths = np.linalg.norm(out, axis=1)
    unit = out / np.where(lengths > 0, lengths, 1.0)[:, None]
    pairs = (unit @ unit.T)[np.triu_indices(classes, 1)]
    rows = weight[there]
    duality = nan
    if np.linalg.norm(rows) > 0.0:
        duality = float(np.square(rows / np.linalg.norm(rows) - out / np.linalg.norm(out)).sum())
    return {
        "nc1": float((along / sizes[nonzero] ** 2).sum() / classes),
        "nc2": float(np.abs(pairs + 1 / (classes - 1)).mean()),
        "nc2_norms": float(lengths.std() / lengths.mean()),
        "nc3": duality,
    }


def neural_collapse(problem: Problem, *, layer: str | None = None, groups: int = 10) -> NeuralCollapse:
    """Measures neural collapse on the problem's samples, in evaluation mode.

    layer   the layer whose input are the features and whose weight is W; by itself: the last linear one

    Raises ValueError where the problem is no classification, or fewer than two classes have samples.
    """
    with temporary_parameters(problem.model, {}) as model:
        first = next(iter(problem.data))
        name = layer
        if name is None:
            name = last_linear(model, lambda: problem.forward(model, first))
        weight, totals, counts, orders = _first_pass(problem, name, groups)
        there = counts.sum(0) > 0
        centres = totals.sum(0) / counts.sum(0).clamp(min=1)[:, None]
        moments, moved = _second_pass(problem, name, centres, totals, counts, orders)
    estimates = numbers(moments, weight)
    errors = _jackknife(moments, weight)
    samples = int(counts.sum())
    share = errors["nc4"] = nan  # of dead features: all centres are equally near
    if np.isfinite(estimates["nc1"]):
        share, *left_out = moved.tolist()
        # All samples are judged by the same means, whose errors they share: a binomial error alone is too small.
        spread = sqrt((groups - 1) / groups * float(np.square(np.array(left_out) - np.mean(left_out)).sum()))
        errors["nc4"] = max(sqrt(max(share * (1 - share), 1 / (samples + 4)) / samples), spread)
    return NeuralCollapse(
        **estimates,
        nc4=share,
        errors=errors,
        layer=name,
        classes=int(there.sum()),
        features=weight.shape[1],
        samples=samples,
    )


def _groups_of(y: Tensor, known: Tensor, counted: Tensor, groups: int) -> Tensor:
    """The group of each sample (B,), so that each group has its share of each class; of those that count.

    counted  (C,) samples of each class so far, to which these are added
    """
    one_hot = nn.functional.one_hot(y, len(counted)) * known[:, None]
    turn = (one_hot.cumsum(0) - 1 + counted).gather(1, y[:, None])[:, 0]  # which of its class a sample is
    counted += one_hot.sum(0)
    return turn % groups


@dataclass(frozen=True, eq=False)
class _Order:
    """Which samples of a batch count, group after group; on the host, so that taking them waits for no device.

    rows   their places in the batch, sorted by group
    y      (rows,) their classes
    ends   (g + 1,) where each group begins among the rows, and the last one ends
    """

    rows: Tensor
    y: Tensor
    ends: list[int]


def _orders(labels: list[Tensor], known: list[Tensor], classes: int, groups: int) -> list[_Order]:
    """That of each batch, of its labels and of who has one, all read from the device at once.

    Raises ValueError where a label is beyond the classes, or fewer than two of these have samples.
    """
    y, is_class = torch.stack([torch.cat(labels), torch.cat(known).long()]).cpu()
    found = y[is_class.bool()].unique()
    if len(found) and int(found[-1]) >= classes:
        raise ValueError(f"targets range from {int(found[0])} to {int(found[-1])}; the layer has {classes} outputs")
    if len(found) < 2:
        raise ValueError("neural collapse requires samples of two classes or more")
    sizes = [len(batch) for batch in labels]
    counted = torch.zeros(classes, dtype=torch.long)
    orders = []
    for own, mine in zip(y.split(sizes), is_class.bool().split(sizes), strict=True):
        rows = mine.nonzero()[:, 0]
        group = _groups_of(own[rows], torch.ones_like(rows), counted, groups)
        order = group.argsort(stable=True)
        ends = [0, *torch.bincount(group, minlength=groups).cumsum(0).tolist()]
        orders.append(_Order(rows[order], own[rows][order], ends))
    return orders


def _first_pass(problem: Problem, name: str, groups: int) -> tuple[Array, Tensor, Tensor, list[_Order]]:
    """The layer's weight (C, d), by group and class sums of features (g, C, d) and counts (g, C), and the orders."""
    totals, counts, weight = torch.zeros(0), torch.zeros(0), torch.zeros(0)
    counted = torch.zeros(0, dtype=torch.long)
    labels: list[Tensor] = []
    known: list[Tensor] = []
    for batch in features_of(problem, name):
        if not labels:
            own = weight_of(problem.model.get_submodule(name), batch.h)
            if own is None or own.dim() != 2 or own.shape[1] != batch.h.shape[1]:
                raise ValueError(f"the layer {name!r} must have a weight (C, {batch.h.shape[1]}) for its features")
            weight, totals = in_float64(own), batch.h.new_zeros(groups, *own.shape)
            counts, counted = batch.h.new_zeros(groups, len(own)), batch.y.new_zeros(len(own))
        labels.append(batch.y)
        known.append(batch.known)
        # a class beyond the outputs is refused when the pass is over; until then no kernel may meet it
        y, weights = batch.y.clamp(0, len(weight) - 1), batch.known.to(batch.h.dtype)
        cell = _groups_of(y, batch.known, counted, groups) * len(weight) + y
        totals.view(-1, totals.shape[-1]).index_add_(0, cell, batch.h * weights[:, None])
        counts.view(-1).index_add_(0, cell, weights)
    return weight.cpu().numpy(), totals, counts, _orders(labels, known, len(weight), groups)


def _second_pass(
    problem: Problem, name: str, centres: Tensor, totals: Tensor, counted: Tensor, orders: list[_Order]
) -> tuple[Moments, Tensor]:
    """Moments about the centres (C, d), and shares of samples nearer to another class's mean than to that predicted.

    totals, counted, orders  of the first pass. The shares (1 + g,) are those of all samples, and without each group in
                             turn, by the means of the others
    """
    groups, classes, d = totals.shape
    device = centres.device
    sums, scatter = centres.new_zeros(groups, classes, d), centres.new_zeros(groups, d, d)
    others = torch.stack([counted.sum(0), *(counted.sum(0) - counted)])  # (1 + g, C) samples behind each mean
    means = torch.stack([totals.sum(0), *(totals.sum(0) - totals)]) / others.clamp(min=1)[:, :, None]
    distant = torch.where(others > 0, 0.0, torch.inf)
    wrong = centres.new_zeros(1 + groups)
    for batch, order in zip(features_of(problem, name), orders, strict=True):
        rows, y = order.rows.to(device), order.y.to(device)
        h, predicted = batch.h[rows], batch.predicted[rows]
        away = h - centres[y]
        for g, (begin, end) in enumerate(pairwise(order.ends)):
            sums[g].index_add_(0, y[begin:end], away[begin:end])
            scatter[g] += away[begin:end].T @ away[begin:end]
        for k in range(1 + groups):
            is_wrong = (torch.cdist(h, means[k]) + distant[k]).argmin(1) != predicted
            wrong[k] += is_wrong.sum()
            if k:
                wrong[k] -= is_wrong[order.ends[k - 1] : order.ends[k]].sum()
    judged = others.sum(1)
    arrays = (t.cpu().numpy() for t in (counted, sums, scatter, centres))
    return Moments(*arrays), wrong / judged.clamp(min=1)


def _jackknife(moments: Moments, weight: Array) -> dict[str, float]:
    g = len(moments.counts)
    left_out = []
    for k in range(g):
        rest = np.arange(g) != k
        part = Moments(moments.counts[rest], moments.sums[rest], moments.scatter[rest], moments.centres)
        if ((part.counts.sum(0) > 0) == (moments.counts.sum(0) > 0)).all():
            left_out.append(list(numbers(part, weight).values()))
    names = ("nc1", "nc2", "nc2_norms", "nc3")
    if len(left_out) < 2:
        return dict.fromkeys(names, nan)
    table = np.array(left_out)
    table[:, ~np.isfinite(table).all(axis=0)] = np.nan
    spread = np.sqrt((len(table) - 1) / len(table) * np.square(table - table.mean(axis=0)).sum(axis=0))
    return dict(zip(names, spread.tolist(), strict=True))
