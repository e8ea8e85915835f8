"""Whether any parameter moves the loss, asked where a model keeps trainable tensors that are none of its parameters."""

from __future__ import annotations

import torch

from lossmap.data.batches import copied
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import movable_parameters
from lossmap.geometry.unregistered import explained, unregistered

SAMPLES = 8


def refuse_unmoved(problem: Problem) -> None:
    """Raises ValueError, naming them, where tensors in Python lists alone move the loss.

    A model without such tensors costs a look at its attributes; else a few samples are evaluated at the model's own
    parameters and elsewhere.
    """
    lost = unregistered(problem.model)
    if not lost:
        return
    elsewhere = {name: p.detach() * 1.5 + 0.1 for name, p in movable_parameters(problem.model).items()}
    batch = next(iter(problem.rebatched(min(SAMPLES, max(1, problem.data.samples))).data))
    values = []
    for tensors in ({}, elsewhere):
        with (
            temporary_parameters(problem.model, tensors),
            torch.enable_grad(),
        ):  # a loss may differentiate by its inputs
            values.append(problem.total(copied(batch)).detach())
    if torch.equal(values[0], values[1]):
        raise ValueError(f"no parameter of the model moves the loss; {explained(lost)}")
