"""Models and losses that write into their batch, `x /= 255` or `y[y == 255] = -100`: they are given a copy each time.

In training every batch comes fresh from its loader; here one batch is read many times. Whether one is written to is
seen by the version that PyTorch counts of each tensor, and by what an array or an object pickles to. Price: one pass
over a few samples, and a copy of each batch where it is needed.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from lossmap.data.batch_parts import targets_of
from lossmap.data.batch_structure import CLOSED, attributes_of
from lossmap.data.batches import Batch, Resident, copied
from lossmap.data.borrow import temporary_parameters
from lossmap.data.problem import CustomCount, Problem
from lossmap.data.skipped_checks import skip
from lossmap.seeding import same_random_state
from lossmap.trees import UNCHANGING


@dataclass(frozen=True)
class OnACopy:
    """A function whose last argument is a batch, called with a copy of it."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        *first, batch = args
        return self.function(*first, copied(batch))


def with_copied_batches(problem: Problem, batch: Batch) -> Problem:
    """The problem whose model, or loss, is given a copy of every batch where it writes into this one; else as it is.

    The batch itself stays as it is. Where the model or the loss fails, which the checks after this one name, as it is.
    Raises ValueError where what is written is seen through another tensor, of which a copy would know nothing.
    """
    try:
        changed, is_seen = _on_copies(problem, copied(batch))
    except Exception as error:  # user code may raise any exception
        skip("whether batches are written into", error, problem, batch)
        return problem
    if is_seen:
        raise ValueError(
            "the model writes into its inputs, whose memory is that of the targets too: the loss would be that of the "
            "targets so written; give the targets as a copy, (x, x.clone()), or write into a copy in the model"
        )
    if changed and isinstance(problem.data, Resident) and problem.data.had_views:
        raise ValueError(
            "the model or the loss writes into its batch, two tensors of which are views of one memory, such as "
            "ids[:, :-1] and ids[:, 1:]: what is written into one is seen in the other; give copies of them (.clone())"
        )
    return replace(problem, **changed)


def _on_copies(problem: Problem, batch: Batch) -> tuple[dict[str, Any], bool]:
    """The functions of a problem that write into this batch, each to be called with a copy, by their names.

    And whether the model writes into the targets of a loss of outputs and targets.
    """
    changed: dict[str, Any] = {}
    targets = targets_of(batch) if problem.separable else ()
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(20):
        before, of_targets = _contents(batch), _contents(targets)
        outputs = problem.forward(problem.model, batch)
        is_seen = _contents(targets) != of_targets
        if _contents(batch) != before:
            changed["forward"] = OnACopy(problem.forward)
            if isinstance(problem.count, CustomCount):  # it runs the loss
                changed["count"] = CustomCount(OnACopy(problem.count.loss), problem.count.model)
        before = _contents(batch)
        problem.loss(outputs, batch)
        if _contents(batch) != before:
            changed["loss"] = OnACopy(problem.loss)
    return changed, is_seen


def _contents(batch: Batch) -> list[Any]:
    """What changes where a batch is written into: versions of tensors, digests of all else that can be."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if type(leaf) not in UNCHANGING]
    return [leaf._version if isinstance(leaf, Tensor) else _digest(leaf) for leaf in leaves]


def _digest(value: Any) -> Any:
    """A digest of an array's or an object's state; of one that cannot be pickled what its attributes are."""
    if isinstance(value, (*CLOSED, Dataset)):
        return None
    content = _Content()
    try:
        pickle.Pickler(content).dump(value)
    except Exception:  # what somebody's class raises
        return [(name, v if type(v) in UNCHANGING else id(v)) for name, v in attributes_of(value).items()]
    return content.digest.digest()


class _Content:
    """A file that keeps a digest of what is written into it."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.digest.update(data)
