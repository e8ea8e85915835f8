"""What is made of the weights once, kept with its graph, and read by later passes: `self.kernel = weight.exp()`.

Made before the survey it is the same at all other points, and its graph leads to the weights all the same: loss and
gradient are those of two functions. Made in the first pass at a point it is right there, but a second backward pass
through its graph fails, so that it is to be made anew in every pass. Both show in the graphs, wherever it is kept: two
passes have steps in common that lead to the weights. Price: two passes over two samples, three where it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch, FixedBatches, map_tensors
from lossmap.data.borrow import entries_of, restored, temporary_parameters
from lossmap.data.memos import memos_of
from lossmap.data.module_state import CONTAINERS
from lossmap.data.problem import CustomCount, Problem
from lossmap.data.skipped_checks import skip
from lossmap.seeding import same_random_state

MAX_ENTRIES = 1000  # of a container that is looked into
MAX_DEPTH = 3  # of containers within each other
MAX_STEPS = 100_000  # of a graph that is looked through

# a step of a graph: what PyTorch keeps as `grad_fn`
Step = Any


@dataclass(frozen=True)
class MadeAnew:
    """A function of a model and a batch, after which the model keeps nothing that it has made."""

    function: Callable[..., Any]

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """What the function returns."""
        with restored(model):
            return self.function(model, batch)


def with_nothing_kept(problem: Problem, batch: Batch) -> Problem:
    """The problem whose passes keep nothing, where a second one would read what the first has made with its graph.

    Raises ValueError, with its name where that is known, where something that was kept before is read. Where the model
    or the loss fails, which other checks name, the problem as it is.
    """
    cuts: list[slice | None] = [None] if isinstance(problem.data, FixedBatches) else [slice(2), None]
    for cut in cuts:
        part = map_tensors(lambda t, cut=cut: _part(t, cut), batch)  # type: ignore[misc]
        try:
            name, is_older = _read_again(problem, part)
            break
        except Exception as error:  # user code may raise any exception, as on so few samples
            skip("what the model keeps with its graph", error, problem, part)
            name, is_older = None, False
    if name is None:
        return problem
    if is_older:
        raise ValueError(
            f"the model keeps {name}, which was made of its weights before, with its graph: it would be the same at "
            "all other points, while gradients follow the weights; delete it before the survey, or compute it in every "
            "pass"
        )
    count = problem.count
    if isinstance(count, CustomCount):  # it runs the loss
        count = CustomCount(MadeAnew(count.loss), count.model)
    return replace(problem, forward=MadeAnew(problem.forward), count=count)


def _part(t: Tensor, cut: slice | None) -> Tensor:
    t = t.detach()  # a batch may have a graph of its own
    return t if cut is None or not t.dim() else t[cut]


def _read_again(problem: Problem, batch: Batch) -> tuple[str | None, bool]:
    """(the name of what a pass reads of one before it, whether a pass of another look does too); None for nothing."""
    model = problem.model

    def steps() -> dict[Step, None]:
        with same_random_state(20):
            return dict.fromkeys(_steps_below([problem.total(batch).grad_fn]))

    with temporary_parameters(model, {}), torch.inference_mode(False), torch.enable_grad():
        first = steps()
        common = _made_of_weights(first.keys() & steps().keys(), model)
        if not common:
            return None, False
        name = _name_of(model, common)
    with temporary_parameters(model, {}), torch.inference_mode(False), torch.enable_grad():
        return name, bool(_made_of_weights(first.keys() & steps().keys(), model))


def shared_steps(first: Tensor, second: Tensor, model: nn.Module) -> bool:
    """Whether the graphs of two losses have steps in common that lead to parameters of a model."""
    steps = [dict.fromkeys(_steps_below([loss.grad_fn])).keys() for loss in (first, second)]
    return bool(_made_of_weights(steps[0] & steps[1], model))


def _steps_below(starts: Iterable[Step]) -> Iterator[Step]:
    """The steps of a graph, each once, leaves included."""
    pending, known = [step for step in starts if step is not None], set[Step]()
    while pending and len(known) < MAX_STEPS:
        step = pending.pop()
        if step not in known:
            known.add(step)
            yield step
            pending.extend(below for below, _ in step.next_functions if below is not None)


def _made_of_weights(steps: Iterable[Step], model: nn.Module) -> list[Step]:
    """Those of these steps, without leaves, that lead to parameters of a model."""
    own = {id(p) for p in model.parameters()}

    def leads_there(step: Step) -> bool:
        return any(id(getattr(leaf, "variable", None)) in own for leaf in _steps_below([step]))

    return [step for step in steps if step.next_functions and leads_there(step)]


def _name_of(model: nn.Module, steps: Iterable[Step]) -> str:
    """What keeps the result of one of these steps; where that is not found, of which weights it was made."""
    wanted = set(steps)
    for name, t in _kept(model):
        if t.grad_fn in wanted:
            return name
    made_of = {id(leaf.variable) for leaf in _steps_below(wanted) if hasattr(leaf, "variable")}
    return "something made of " + ", ".join(name for name, p in model.named_parameters() if id(p) in made_of)


def _kept(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors with a graph by name: in buffers and attributes of modules, and where their code keeps some."""
    held = [(name, t) for name, t in model.named_buffers()]
    held += [(memo.name, t) for memo in memos_of(model) for t in _tensors_in(memo.value)]
    yield from ((name, t) for name, t in held if t.grad_fn is not None)


def _tensors_in(value: Any, depth: int = MAX_DEPTH) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (*CONTAINERS, tuple)) and len(value) <= MAX_ENTRIES and depth:
        for each in entries_of(value):
            yield from _tensors_in(each, depth - 1)
