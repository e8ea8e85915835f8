"""Which parameters an optimizer's state is of, where it has groups of them and names none.

A state dict counts its parameters, group by group. Where each group holds some of the model's parameters in the model's
order, as groups are made nearly always, the shapes of the state decide which: an assignment is certain where it is the
only one that they allow. Weights and biases of one batch norm have one shape, so that two are allowed there: then the
rule decides by which the Trainer of Hugging Face makes its two groups, if the shapes allow what it says.

Source of that rule: `Trainer.get_decay_parameter_names` of transformers 5; older versions looked for biases alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

Shape = tuple[int, ...]
NAMED_AS_NORMS = r"layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)"
WITHOUT_DECAY = (rf"bias|{NAMED_AS_NORMS}", "bias")  # in names, by newer and older versions of the Trainer
MOST_BRANCHES = 4096  # ways to begin that are followed at once; with more, the shapes decide little


def parameters_of_groups(
    groups: Sequence[Mapping[str, Any]], shapes: Sequence[Sequence[Shape | None]], model: nn.Module
) -> list[nn.Parameter]:
    """The model's parameters in the order of the groups' places.

    shapes  of the state of each place, group by group; None where it has none

    Raises ValueError where the shapes allow no assignment, or several of which none is the Trainer's.
    """
    named = dict(model.named_parameters())
    pool = _parameters_of_state(named, sum(map(len, shapes)))
    found, is_only = _in_order(pool, shapes) if pool else (None, False)
    if found and not is_only:
        of_trainer = {names for names in _of_trainer(groups, model) if _fits(names, shapes, named)}
        found, is_only = (next(iter(of_trainer)), True) if len(of_trainer) == 1 else (found, False)
    if found and is_only:
        return [named[name] for name in found]
    what = "shapes fit several orders of the model's parameters" if found else "shapes do not fit the model's order"
    raise ValueError(
        "the optimizer has several groups of parameters, and its state does not name them as the model does: their "
        f"{what}. Make it with named_parameters(), or give the optimizer itself in Python, as preconditioner="
    )


def _parameters_of_state(named: Mapping[str, nn.Parameter], count: int) -> dict[str, Shape]:
    """The shapes of all parameters, or of those that are trained, where these are as many as the state is of."""
    for names in (list(named), [name for name, p in named.items() if p.requires_grad]):
        if len(names) == count:
            return {name: tuple(named[name].shape) for name in names}
    return {}


def _in_order(
    pool: Mapping[str, Shape], shapes: Sequence[Sequence[Shape | None]]
) -> tuple[tuple[str, ...] | None, bool]:
    """Names in the order of the groups' places, and whether no others fit; (None, False) where none do.

    Of each parameter in turn it is one group's next: ways that have taken as many of each group are followed as one.
    """
    ways: dict[tuple[int, ...], tuple[int, Any]] = {(0,) * len(shapes): (1, None)}
    for name, shape in pool.items():
        following: dict[tuple[int, ...], tuple[int, Any]] = {}
        for taken, (count, path) in ways.items():
            for group, at in enumerate(taken):
                if at == len(shapes[group]) or shapes[group][at] not in (None, shape):
                    continue
                after = (*taken[:group], at + 1, *taken[group + 1 :])
                before = following.get(after, (0, None))[0]
                following[after] = (before + count, (path, name, group))
        if len(following) > MOST_BRANCHES:
            return tuple(pool), False  # of too many ways none is told from the others
        ways = following
    if not ways:
        return None, False
    ((count, path),) = ways.values()  # all have taken all
    members: list[list[str]] = [[] for _ in shapes]
    while path is not None:
        path, name, group = path
        members[group].append(name)
    return tuple(name for group in members for name in reversed(group)), count == 1


def _of_trainer(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> Iterator[tuple[str, ...]]:
    """The names as the versions of the Trainer order them, with decay and then without, where groups may be its own."""
    if len(groups) != 2 or groups[1].get("weight_decay") != 0:
        return
    in_norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for pattern in WITHOUT_DECAY:
        spared = [name for name in trained if name in in_norms or re.search(pattern, name.lower())]
        if len(spared) == len(groups[1]["params"]):
            yield tuple([name for name in trained if name not in set(spared)] + spared)


def _fits(names: Sequence[str], shapes: Sequence[Sequence[Shape | None]], named: Mapping[str, nn.Parameter]) -> bool:
    """Whether the parameters of these names, in the order of the places, have their shapes."""
    places = [shape for group in shapes for shape in group]
    return len(names) == len(places) and all(
        shape in (None, tuple(named[name].shape)) for name, shape in zip(names, places, strict=True)
    )
