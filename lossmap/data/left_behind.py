"""Whether passes leave nothing behind in a model that a later one could read: most do not, which two of them show.

Where both give the same loss to the last bit, have no part of their graphs in common, and change neither tensors nor
numbers, of the model or beside it, nothing is carried from batch to batch, kept with a graph, set by the first batch
or counted. Else each of these is looked at by itself: `carried_state`, `kept_graphs`, `first_batch`, `counters`. Price:
two passes over a few samples, and the sum and norm of every tensor twice; before them one more where the loss leads to
so many objects that not all are looked at around every pass.
"""

from __future__ import annotations

import torch

from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.counters import numbers_of
from lossmap.data.first_batch import marks_of
from lossmap.data.kept_graphs import shared_steps
from lossmap.data.module_state import FAR, ModuleState
from lossmap.data.outside_state import watch
from lossmap.data.problem import Problem
from lossmap.device_errors import raise_if_of_device
from lossmap.seeding import same_random_state


def watch_what_is_far(problem: Problem, batch: Batch) -> bool:
    """Let what a pass changes far from the loss be put back after every pass; returns whether more lies beyond reach.

    A look around every pass ends at so many objects. One that is made here goes on, around a first pass over a batch.
    """
    model = problem.model
    if not ModuleState(model).is_cut:
        return False
    with temporary_parameters(model, {}), torch.inference_mode(False), torch.enable_grad():
        state = ModuleState(model, FAR)
        try:
            with same_random_state(20):
                problem.total(batch)
        except Exception as error:  # user code may raise any exception, as at a batch that is too small
            raise_if_of_device(error)
        finally:
            moved = state.moved_beside()
            state.restore()
    watch(model, moved)
    return state.is_cut


def loss_that_leaves_nothing(problem: Problem, batch: Batch) -> float | None:
    """The summed loss of a batch, where two passes show nothing that one of them leaves for another; else None."""
    model = problem.model

    def total() -> torch.Tensor:
        with same_random_state(20):
            return problem.total(batch)

    try:
        with temporary_parameters(model, {}), torch.inference_mode(False), torch.enable_grad():
            marks, state = marks_of(model), ModuleState(model)
            first = total()
            numbers = numbers_of(model)
            second = total()
            are_same = torch.equal(first.detach(), second.detach())
            # beside the model also what the first pass has set, which the same batch leaves as it is
            is_unmoved = numbers_of(model) == numbers and marks_of(model) == marks and not state.moved_beside()
            is_quiet = are_same and is_unmoved and not shared_steps(first, second, model)
            return float(first.detach()) if is_quiet else None
    except Exception as error:  # user code may raise any exception
        raise_if_of_device(error)
        return None


__all__ = ["loss_that_leaves_nothing", "watch_what_is_far"]
