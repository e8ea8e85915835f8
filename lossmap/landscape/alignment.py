"""Permutations of one network's units that bring it nearest to another, its function unchanged: git re-basin.

weights      Maximise the sum over tensors of <W_A, P W_B>, that is, minimise the distance of both, over the
             permutations P of all groups: coordinate descent, one group after another, each solved exactly as an
             assignment. Every descent ends in a local maximum; the best of several is taken. The first starts from
             what the inputs fix, group by group in the order of the forward pass: it recovers a permuted copy exactly
             where the units differ in what the groups before them fix.
activations  Maximise <Z_A, P Z_B> for each group alone, Z (units, samples times places) the outputs of the layers
             that make its units, over all samples: one assignment for each group, exact. Of several layers (skip
             connections) the sum, each divided by |Z_A| |Z_B|.

Source of both: Ainsworth et al. (2023), arXiv:2209.04836.

Price: an assignment of n units takes O(n^3); its matrix O(n times weights), or a pass over the data of each network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, sqrt
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lossmap.data.batch_writes import with_copied_batches
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.keywords import checked_keywords
from lossmap.landscape.alignment_check import refuse_other_outputs
from lossmap.landscape.permutation_groups import OUTPUT, PermutationGroups, Use, permutation_groups, spread
from lossmap.report.text import count
from lossmap.sums import in_float64

NONE, WEIGHTS, ACTIVATIONS = ALIGNMENTS = ("none", "weights", "activations")
METHODS = {WEIGHTS: "weight matching", ACTIVATIONS: "activation matching"}
STARTS = 4  # descents, the best of which is taken
MAX_SWEEPS = 100  # over all groups
ROUNDING = 1e-12  # relative: what sums in another order may differ by


@dataclass(frozen=True)
class Alignment:
    """A network brought near to another by permutations of its units.

    state           the permuted tensors by name
    permutations    by group: (units,) which unit stands at each place now
    fixed           by layer whose units have to stay: why
    before, after   distance of the parameters from the other network's
    method          weights or activations
    """

    state: Mapping[str, Tensor] = field(repr=False)
    permutations: Mapping[str, Tensor] = field(repr=False)
    fixed: Mapping[str, str]
    before: float
    after: float
    method: str = WEIGHTS

    @property
    def units(self) -> int:
        """Number of units that could move."""
        return sum(len(order) for order in self.permutations.values())

    @property
    def moved(self) -> int:
        """Number of units that stand elsewhere now."""
        return sum(int((order != torch.arange(len(order))).sum()) for order in self.permutations.values())

    def describe(self) -> str:
        """What was done, in one sentence."""
        groups = count(len(self.permutations), "group")
        text = (
            f"aligned by {METHODS[self.method]}: {self.moved} of {count(self.units, 'unit')} in {groups} "
            f"moved, distance {self.before:.4g} before, {self.after:.4g} after"
        )
        held = {name: why for name, why in self.fixed.items() if why != OUTPUT}  # which never move in any network
        if not held:
            return text
        name, why = next(iter(held.items()))
        return f"{text}; the units of {count(len(held), 'layer')} stay, such as those of {name} ({why})"


@checked_keywords
def align(
    problem: Problem,
    other: Mapping[str, Tensor] | nn.Module,
    *,
    method: str = WEIGHTS,
    starts: int = STARTS,
    seed: int = 0,
) -> Alignment:
    """Permute the units of another network of the same architecture, its function unchanged, to lie near a model's.

    Args:
        problem: the model to come near to, with data of whose first batch one forward is traced.
        other: the other network: a module, or its tensors by name (a state dict).
        method: `weights`: the distance of both networks' parameters is made least; `activations`: that of their
            layers' outputs over the data.
        starts: number of descents of weight matching, the best of which is taken.
        seed: of the orders in which weight matching visits the groups of units.

    Returns:
        An `Alignment`: `state` to be loaded, `permutations`, and the distances `before` and `after`.

    Raises:
        ValueError: for a model that cannot be traced, whose units cannot move, or that computes something else than
            its trace says; names or shapes that differ; an unknown method; tensors or outputs that are not finite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(9, 4), torch.arange(9) % 3))
        >>> order = torch.randperm(6)
        >>> copy = {k: v.clone() for k, v in model.state_dict().items()}
        >>> copy["0.weight"], copy["0.bias"] = copy["0.weight"][order], copy["0.bias"][order]
        >>> copy["2.weight"] = copy["2.weight"][:, order]
        >>> lossmap.align(problem, copy).after  # the same network with its units in another order
        0.0

    """
    if method not in METHODS:
        raise ValueError(f"the method of an alignment must be one of {', '.join(METHODS)}; got {method!r}")
    problem = with_copied_batches(problem, next(iter(problem.data)))
    model = problem.model
    groups = permutation_groups(problem)
    tensors = other.state_dict() if isinstance(other, nn.Module) else other
    own = {name: in_float64(p.detach()).cpu() for name, p in model.named_parameters()}
    missing = [u.name for uses in groups.uses.values() for u in uses if u.name not in tensors]
    if missing:
        raise ValueError(f"no tensor named {missing[0]} in the network to be aligned")
    # in the model's precision, in which the line leads to them: distances are its length
    theirs = {n: in_float64(t.detach()).cpu() for n, t in _in_precision_of(model, tensors).items() if n in own}
    unlike = next((n for n, t in theirs.items() if t.shape != own[n].shape), None)
    if unlike is not None:
        raise ValueError(f"{unlike} has the shape {tuple(theirs[unlike].shape)}, not {tuple(own[unlike].shape)}")
    if method == ACTIVATIONS:
        found = _matched_activations(problem, groups, tensors)
    else:
        for whose, numbers in (("that is to be aligned", theirs), ("to come near to", own)):
            if name := next((n for n, t in numbers.items() if not bool(t.isfinite().all())), None):
                raise ValueError(f"{name} of the network {whose} is not finite: weights cannot be matched")
        found = _matched_weights(groups, own, theirs, starts, seed)
    state = groups.permuted(tensors, found)
    refuse_other_outputs(problem, _in_precision_of(model, tensors), _in_precision_of(model, state))
    moved = {n: in_float64(t.detach()).cpu() for n, t in _in_precision_of(model, state).items() if n in theirs}
    return Alignment(state, found, groups.fixed, _distance(own, theirs), _distance(own, moved), method)


def _matched_weights(
    groups: PermutationGroups, own: Mapping[str, Tensor], other: Mapping[str, Tensor], starts: int, seed: int
) -> dict[str, Tensor]:
    """The best permutations of several descents."""
    matching = _Matching(groups, own, other)
    best, score = matching.run(0, torch.Generator().manual_seed(seed))
    for start in range(1, starts):
        found, value = matching.run(start, torch.Generator().manual_seed(seed + start))
        if value > score + ROUNDING * abs(value):
            best, score = found, value
    return best


def _matched_activations(problem: Problem, groups: PermutationGroups, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutations by what the units say, of all samples."""
    layers = [name for of_group in groups.layers.values() for name in of_group]
    theirs = _in_precision_of(problem.model, other)
    inner: dict[str, Tensor] = {}
    squares = dict.fromkeys(layers, torch.zeros(2, dtype=torch.float64))
    for batch in problem.data:
        own, others = (_outputs_of(problem, layers, tensors, batch) for tensors in ({}, theirs))
        for name in layers:
            a, b = own[name], others[name]
            inner[name] = inner.get(name, 0) + a @ b.T
            squares[name] = squares[name] + torch.stack([a.square().sum(), b.square().sum()])
    found = {}
    for group, of_group in groups.layers.items():
        gains = torch.zeros(groups.sizes[group], groups.sizes[group], dtype=torch.float64)
        for name in of_group:
            scale = float(squares[name].prod().sqrt())
            if not 0 < scale < inf:
                if scale == 0:
                    continue  # a layer that says nothing
                raise ValueError(f"outputs of {name} are not finite: activations cannot be matched")
            gains += inner[name] / scale
        found[group] = torch.as_tensor(linear_sum_assignment(gains.numpy(), maximize=True)[1])
    return found


def _outputs_of(
    problem: Problem, layers: Collection[str], tensors: Mapping[str, Tensor], batch: Any
) -> dict[str, Tensor]:
    """(units, samples times places) in float64: the outputs of layers by name, of the model with these tensors."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, _: Any, output: Tensor) -> None:
        dim = -1 if isinstance(layer, (nn.Linear, nn.Embedding)) else 1
        kept = output.detach().clone()  # what follows may write into it, as nn.ReLU(inplace=True) does
        outputs[name] = in_float64(kept.movedim(dim, 0).flatten(1)).cpu()

    with ExitStack() as stack:
        stack.enter_context(temporary_parameters(problem.model, tensors))
        stack.enter_context(torch.no_grad())
        for name in layers:
            hook = problem.model.get_submodule(name).register_forward_hook(partial(keep, name))
            stack.callback(hook.remove)
        problem.forward(problem.model, batch)
    return outputs


class _Matching:
    """Coordinate descent over the permutations of two networks' groups."""

    def __init__(self, groups: PermutationGroups, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        self.own, self.other = own, other
        # running statistics are no parameters: they move, but do not decide
        uses = {g: tuple(u for u in of_group if u.name in own) for g, of_group in groups.uses.items()}
        self.groups = replace(groups, uses=uses)
        self.by_name: dict[str, list[tuple[str, Use]]] = {}
        for group, of_group in uses.items():
            for use in of_group:
                self.by_name.setdefault(use.name, []).append((group, use))
        self.orders: dict[str, Tensor] = {}

    def run(self, start: int, chance: torch.Generator) -> tuple[dict[str, Tensor], float]:
        """Permutations at a local maximum, and the inner product there.

        start  0: from what the inputs fix; 1: from the units as they stand; more: from a random order
        """
        names, sizes = list(self.groups.sizes), self.groups.sizes
        self.orders = {
            g: torch.randperm(n, generator=chance) if start > 1 else torch.arange(n) for g, n in sizes.items()
        }
        if start == 0:  # of each what the inputs and the groups before it say
            for i, group in enumerate(names):
                self._improve(group, names[:i])
        for _ in range(MAX_SWEEPS):
            sweep = [names[i] for i in torch.randperm(len(names), generator=chance).tolist()] if start else names
            changes = [self._improve(group, names) for group in sweep]  # all of them: one may be stuck, the next not
            if not any(changes):
                break
        moved = self.groups.permuted(self.other, self.orders)
        return self.orders, float(sum((self.own[n] * moved[n]).sum() for n in self.other))

    def _gains(self, group: str, known: Collection[str]) -> Tensor:
        """(units, units): what unit j of the other gains at place i, by tensors whose other groups are known."""
        size = self.groups.sizes[group]
        total = torch.zeros(size, size, dtype=torch.float64)
        for use in self.groups.uses[group]:
            beside = [(g, u) for g, u in self.by_name[use.name] if u.dim != use.dim]
            if not all(g in known for g, _ in beside):
                continue
            a, b = self.own[use.name], self.other[use.name]
            for g, u in beside:
                b = b.index_select(u.dim, spread(self.orders[g], u.inner))
            rows = [t.movedim(use.dim, 0).reshape(size, -1) for t in (a, b)]
            total += rows[0] @ rows[1].T
        return total

    def _improve(self, group: str, known: Collection[str]) -> bool:
        """Solve one group's assignment; whether it is better than before by more than rounding."""
        matrix = self._gains(group, known).numpy()
        places, order = linear_sum_assignment(matrix, maximize=True)
        before = matrix[places, self.orders[group].numpy()].sum()
        if not matrix[places, order].sum() > before + ROUNDING * abs(matrix).sum():
            return False
        self.orders[group] = torch.as_tensor(order)
        return True


def _in_precision_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that the model has, each in the precision in which it has it."""
    own = {n: t.dtype for n, t in (*model.named_parameters(), *model.named_buffers())}
    return {n: t.to(own[n]) for n, t in tensors.items() if n in own}


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sqrt(float(sum((a[n] - t).square().sum() for n, t in b.items())))
