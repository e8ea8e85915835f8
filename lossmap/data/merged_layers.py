"""Layers that merge or keep their weights in the first pass in evaluation mode, and are evaluated unmerged.

Some low-rank adapters look at `self.training` in `forward`: in evaluation mode they add their product to the weight, or
keep the sum, and later passes depend on the adapters no longer. What they compute is the same in training mode, and
there it can be differentiated. A layer is taken in training mode, alone, without the modules inside it, where

    its code reads `training`; the loss is the same in both modes; and of its parameters one has a gradient in training
    mode that has none in evaluation mode

Adapters that are merged by a call of their own, as PEFT's, are refused: whoever merged them can unmerge them.

Price: nothing where no class of the model reads `training` but PyTorch's; else a few gradients over a few samples. Of a
large model whose origin is read again from its file, tensors of more than `MAX_GRADIENT` numbers are taken to have one.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lossmap.data.batches import Batch
from lossmap.data.borrow import evaluate_in_training, temporary_parameters
from lossmap.data.gradients import each_gradient
from lossmap.data.moved_weights import is_moved_in_place
from lossmap.data.problem import Problem
from lossmap.data.skipped_checks import skip
from lossmap.seeding import same_random_state

TOLERANCE = 1e-4  # of the loss, between merged and unmerged
MAX_GRADIENT = 20_000_000  # numbers of a tensor beyond which none is made where no second set of weights is to be made


def refuse_merged_adapters(model: nn.Module) -> None:
    """Raises ValueError where adapters that train are merged into weights, as by PEFT's `merge_adapter`."""
    merged = [
        name
        for name, module in model.named_modules()
        if getattr(module, "merged", False) is True
        and callable(getattr(module, "unmerge", None))
        and any(p.requires_grad for p in module.parameters())
    ]
    if merged:
        more = f" and {len(merged) - 1} more" if len(merged) > 1 else ""
        raise ValueError(
            f"adapters are merged into the weights of {type(model.get_submodule(merged[0])).__name__} {merged[0]!r}"
            f"{more}, so that the loss does not depend on their parameters; call model.unmerge_adapter() first, or "
            "survey what model.merge_and_unload() returns"
        )


def find_merged_layers(problem: Problem, batch: Batch) -> None:
    """Let the layers that merge in a pass be evaluated unmerged from here on, wherever the model is borrowed.

    Raises ValueError for adapters that are merged already and could be unmerged, see `refuse_merged_adapters`.
    """
    refuse_merged_adapters(problem.model)
    candidates = {n: m for n, m in problem.model.named_modules() if _reads_training(type(m))}
    if not candidates:
        return
    try:
        with _one_pass(problem):
            total, reached = _reached(problem, batch)
        merged = []
        for name, module in candidates.items():
            missing = {n for n in _required(problem.model) if n.startswith(f"{name}." if name else "")} - reached
            if missing and _is_merged(problem, batch, module, total, missing):
                merged.append(name)
    except Exception as error:  # user code may raise anything; what fails is reported where the loss is evaluated
        skip("which layers are merged", error, problem, batch)
        return
    if merged:
        evaluate_in_training(problem.model, merged)


def _is_merged(problem: Problem, batch: Batch, module: nn.Module, total: float, missing: set[str]) -> bool:
    try:
        with _one_pass(problem):
            module.training = True
            unmerged, reached = _reached(problem, batch)
    except Exception as error:  # outputs of another kind in training mode, as of auxiliary heads
        skip("which layers are merged", error, problem, batch)
        return False
    return bool(missing & reached) and abs(unmerged - total) <= TOLERANCE * abs(total)


@contextmanager
def _one_pass(problem: Problem) -> Iterator[None]:
    with temporary_parameters(problem.model, {}), torch.enable_grad(), same_random_state(0):
        yield


def _required(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _reached(problem: Problem, batch: Batch) -> tuple[float, set[str]]:
    """The loss, and the names of the parameters that it has a gradient by."""
    own = _required(problem.model)
    total = problem.total(batch)
    if not total.requires_grad or not own:
        return float(total.detach()), set()
    reached = set()
    if is_moved_in_place(problem.model):
        # the gradient of an embedding that is the head, too, takes three tensors of its size
        reached = {name for name, p in own.items() if p.numel() > MAX_GRADIENT}
    names = [name for name in own if name not in reached]

    def take(i: int, gradient: Tensor) -> None:
        if bool(gradient.any()):
            reached.add(names[i])

    if names:
        each_gradient(total, [own[name] for name in names], take)
    return float(total.detach()), reached


def _reads_training(cls: type) -> bool:
    """Whether a forward pass of this class, or what it calls of itself, looks at the mode; PyTorch's own are known."""
    for each in cls.__mro__:
        if each.__module__.partition(".")[0] == "torch":
            return False
        methods = (f for name, f in vars(each).items() if isinstance(f, types.FunctionType))
        if any("training" in f.__code__.co_names and f.__name__ not in ("train", "eval") for f in methods):
            return True
    return False
