"""Whether a loss holds the model itself, by a closure or a global name, beside the model that it is given.

    def loss(outputs, targets): return cross_entropy(outputs, targets) + sum(p.norm() for p in MODEL.parameters())

At points of a survey that is right, since the model itself is moved. Over a copy (in another precision, at a
checkpoint) such a loss is that of the copy in part or not at all, and so are its derivatives.
So it is where the loss reads what the last pass left in the model, `MODEL.aux`. Price: one sample forward and back and
four passes more, or a batch where the loss does not run on one; of PyTorch's own losses one pass. The model's own code
may hold it too, where a copy's does not follow the copy. Of one model and loss it is asked once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch, copied, move_batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.criteria import SupervisedLoss
from lossmap.data.problem import Problem
from lossmap.module_walks import kinds_of
from lossmap.seeding import same_random_state
from lossmap.weak import reference

MAX_MOVED = 50_000_000  # parameters of a model that is run at other weights between two evaluations of its copy
SAME = 1e-12  # relative difference of two evaluations of one loss in float64

HELD = (
    "the loss holds the model itself, beside the one that it is given, or the model keeps something that leads to it "
    "from its copy too (a weak reference, an object in a closure), so that it cannot be evaluated over a copy; write "
    "it as a function of its argument: Problem.custom(model, loss, data) with loss(model, batch)"
)


def refuse_held(twin: Problem, model: nn.Module, batch: Batch | None = None) -> None:
    """Raise ValueError where the loss of a problem over a copy depends on the model itself.

    twin   over the copy
    model  of which it is one
    batch  of the twin's data; by default one sample
    """
    if holds(twin, model, batch):
        raise ValueError(HELD)


def holds(twin: Problem, model: nn.Module, batch: Batch | None = None) -> bool:
    """Whether the loss of a problem over a copy depends on the model itself; see `refuse_held`."""
    return not is_known_apart(twin, model) and first_look(twin, model, batch).is_held


@dataclass(frozen=True)
class Look:
    """A first evaluation of a loss over a copy.

    value         of a batch, summed over its samples
    has_gradient  whether it depends on anything that requires one
    is_held       whether it depends on the model itself
    """

    value: Tensor
    has_gradient: bool
    is_held: bool


def first_look(twin: Problem, model: nn.Module, batch: Batch | None = None) -> Look:
    """The loss of a problem over a copy, and whether it depends on the model itself; arguments as of `refuse_held`."""
    # a loss may not run on one sample, as batch norm in a criterion: then on a batch of its own
    tried = [twin.data.rebatched(1), twin.data] if batch is None else [[batch]]
    if is_known_apart(twin, model):
        with torch.inference_mode(False), torch.enable_grad(), temporary_parameters(twin.model, {}):
            with same_random_state(0):
                value = _first_total(twin, tried)
            return Look(value.detach(), value.requires_grad, False)
    is_of_pytorch = isinstance(twin.loss, SupervisedLoss) and _is_of_pytorch(twin.loss.loss)
    own = [p for p in model.parameters() if p.is_floating_point() and p.is_leaf]
    required = [p.requires_grad for p in own]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        temporary_parameters(model, {}),
        temporary_parameters(twin.model, {}),
        same_random_state(0),
    ):
        try:
            for p in own:
                p.requires_grad_(True)
            value = _first_total(twin, tried)
            is_held = value.requires_grad and any(
                g is not None for g in torch.autograd.grad(value, own, allow_unused=True)
            )
            is_held = is_held or (not is_of_pytorch and _reads_what_the_model_keeps(twin, model, tried))
        finally:
            for p, before in zip(own, required, strict=True):
                p.requires_grad_(before)
    if not is_held:
        _apart.setdefault(model, []).append((kinds_of(model), reference(twin.forward), reference(twin.loss)))
    return Look(value.detach(), value.requires_grad, is_held)


_apart: weakref.WeakKeyDictionary[nn.Module, list[tuple[tuple[type, ...], Callable[[], Any], Callable[[], Any]]]]
_apart = weakref.WeakKeyDictionary()  # with what forward and loss a copy of a model was found to be apart from it


def is_known_apart(twin: Problem, model: nn.Module) -> bool:
    """Whether it is known of this model and loss that they are apart from a copy's."""
    return any(
        forward() is twin.forward and loss() is twin.loss and kinds == kinds_of(model)
        for kinds, forward, loss in _apart.get(model, ())
    )


def _reads_what_the_model_keeps(twin: Problem, model: nn.Module, tried: Sequence[Iterable[Batch]]) -> bool:
    """Whether the copy's loss follows a pass of the model itself, at other weights, between two evaluations."""
    own = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if not own or sum(p.numel() for p in own.values()) > MAX_MOVED:
        return False
    dtype = next(iter(own.values())).dtype
    moved = {name: 1.5 * p.detach() + 0.1 for name, p in own.items()}
    try:
        with torch.no_grad(), temporary_parameters(model, moved):
            values = []
            for is_between in (False, False, True):
                if is_between:
                    twin.forward(model, move_batch(copied(next(iter(tried[-1]))), None, dtype))
                with same_random_state(0):
                    values.append(float(_first_total(twin, tried)))
    except Exception:  # user code may raise any exception, where gradients are not recorded or at other weights
        return False
    before, again, after = values
    return abs(again - before) <= SAME * abs(before) and abs(after - before) > 1e3 * SAME * abs(before)


def _first_total(problem: Problem, tried: Sequence[Iterable[Batch]]) -> Tensor:
    """The loss of the first batch of the first data on which it runs; raises what it raises on the last."""
    for data in tried[:-1]:
        with suppress(Exception):  # user code may raise any exception
            return problem.total(copied(next(iter(data))))
    return problem.total(copied(next(iter(tried[-1]))))


def _is_of_pytorch(loss: object) -> bool:
    """Whether a loss is a name, a function of PyTorch, or a module of its own."""
    where = getattr(loss if callable(loss) and hasattr(loss, "__name__") else type(loss), "__module__", "") or ""
    return isinstance(loss, str) or where.startswith("torch.")
