"""Tensors that a model or its loss keeps in the memory of a parameter, and reads: `self.tail = self.weight.data[2:]`.

So may arrays of NumPy, `self.table = self.weight.detach().numpy()`, and a storage, `self.weight.untyped_storage()`.
A step of an optimizer in place changes them too. A survey gives the parameters other memory and leaves them behind, and
no gradient follows them: the loss would be another one at every point but the origin. Price: a look at what is kept;
two passes over a few samples for each that lies in such memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lossmap.data.batches import Batch
from lossmap.data.borrow import temporary_parameters
from lossmap.data.memos import memos_of
from lossmap.data.outside_state import Company, at
from lossmap.data.problem import Problem
from lossmap.data.skipped_checks import skip
from lossmap.geometry.parameter_vector import memory_of
from lossmap.seeding import same_random_state

STORAGES = torch.UntypedStorage, torch.TypedStorage


def refuse_aliases(problem: Problem, batch: Batch, tolerance: float) -> None:
    """Raise ValueError where the loss of a batch reads such a tensor.

    tolerance  relative difference of two values that is rounding
    """
    model = problem.model
    parameters = {name: p for name, p in model.named_parameters() if _is_plain(p)}
    memory = {name: memory_of(p) for name, p in parameters.items()}
    kept = [(memo.name, t) for memo in memos_of(model) for t in pytree.tree_leaves(memo.value)]
    for name, value in [*kept, *_storages_in(model), *_seen_by_functions(model), *model.named_buffers()]:
        t = _array_of(value, parameters.values()) if isinstance(value, STORAGES) else value
        if isinstance(t, np.ndarray):
            shared = [n for n, p in parameters.items() if p.device.type == "cpu" and _is_within(t, p)]
            is_read = bool(shared) and _is_array_read(problem, batch, t, [parameters[n] for n in shared], tolerance)
        elif _is_plain(t):
            storage, begin, end = memory_of(t)
            shared = [n for n, (s, first, last) in memory.items() if s == storage and first < end and begin < last]
            is_read = bool(shared) and _is_read(problem, batch, t, tolerance)
        else:
            continue
        if is_read and isinstance(t, Tensor) and t.grad_fn is not None:
            raise ValueError(
                f"{name} is a view of the parameter {shared[0]!r} that was made before the pass which reads it: a "
                "survey moves the parameter alone; make the view in every pass"
            )
        if is_read:
            raise ValueError(
                f"{name} lies in the memory of the parameter {shared[0]!r}, as after .data or .detach(): a step of an "
                "optimizer changes both, a survey moves the parameter alone, and no gradient follows it; compute it "
                "from the parameter in every pass, or keep a clone() of it"
            )


def _seen_by_functions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What functions see that a model's modules hold, as hooks and attributes: in closures, defaults and globals."""
    held = [value for module in model.modules() for value in pytree.tree_leaves(vars(module))]
    functions = [value for value in held if isinstance(value, (FunctionType, functools.partial))]
    reader = Company(functions).reader
    seen = [(reader.variables.get(id(holder), key), at(holder, key)) for holder, key in reader.places.values()]
    seen += [("an argument", (f.args, f.keywords)) for f in functions if isinstance(f, functools.partial)]
    for name, value in seen:
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, nn.Parameter):  # which moves itself
                yield f"{name}, which a function of the model sees,", leaf


def _storages_in(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The storages that modules keep."""
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, STORAGES):
                    yield f"{prefix}.{key}".lstrip("."), leaf


def _array_of(storage: Any, parameters: Iterable[Tensor]) -> Any:
    """The memory of a parameter, of which this is the storage, as an array of its numbers; None where it is of none."""
    storage = getattr(storage, "_untyped_storage", storage)
    for p in parameters:
        if (
            p.device.type == "cpu"
            and p.dtype != torch.bfloat16
            and storage.data_ptr() == p.untyped_storage().data_ptr()
        ):
            return torch.empty(0, dtype=p.dtype).set_(storage).numpy()
    return None


def _is_within(array: np.ndarray, p: Tensor) -> bool:
    """Whether an array of NumPy's lies in the memory of a parameter, in part."""
    _, first, last = memory_of(p)
    begin = int(array.ctypes.data)
    address = int(torch._C._data_address(p.detach()))  # type: ignore[attr-defined]  # which makes no copy of a lazy one
    return address < begin + array.nbytes and begin < address + last - first


def _is_read(problem: Problem, batch: Batch, t: Tensor, tolerance: float) -> bool:
    """Whether the loss follows what stands in a tensor, which is as before afterwards."""
    data = t.data

    def put(value: Tensor) -> None:
        t.data = value

    return _moves_the_loss(problem, batch, put, (data, 1.5 * data + 0.1), (), tolerance)


def _is_array_read(
    problem: Problem, batch: Batch, array: np.ndarray, shared: Sequence[Tensor], tolerance: float
) -> bool:
    """The same of an array in the memory of parameters, which have other memory meanwhile."""
    values = array.copy(), (1.5 * array + 0.1).astype(array.dtype)
    return array.flags.writeable and _moves_the_loss(
        problem, batch, lambda value: np.copyto(array, value), values, shared, tolerance
    )


def _moves_the_loss(
    problem: Problem,
    batch: Batch,
    put: Callable[[Any], None],
    values: tuple[Any, Any],
    shared: Sequence[Tensor],
    tolerance: float,
) -> bool:
    """Whether the loss is another one with the second of two values put in the place of the first, which stays there.

    shared  parameters that get memory of their own: a write through an array reaches a lazy copy too
    """
    try:
        with torch.enable_grad(), temporary_parameters(problem.model, {}):
            for p in shared:
                p.data = p.data.clone()
            losses = []
            for value in values:
                put(value)
                with same_random_state(20):
                    losses.append(float(problem.total(batch).detach()))
    except Exception as error:  # user code may raise any exception at other values
        skip("what lies in a parameter's memory", error, problem, batch)
        return False
    finally:
        put(values[0])
    return abs(losses[1] - losses[0]) > tolerance * max(map(abs, losses))


def _is_plain(t: Any) -> bool:
    plain = isinstance(t, Tensor) and t.layout == torch.strided and not (t.is_nested or t.is_meta)
    return plain and t.is_floating_point() and t.numel() > 0


__all__ = ["refuse_aliases"]
