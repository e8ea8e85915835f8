"""A pretended GPU: tensors that say they are on a device of their own, and compute on the CPU underneath.

    from tests import pretended_device       # once, first: it changes PyTorch for the whole process
    model = pretended_device.moved(model); x = pretended_device.up(x)

What it shows of code that is meant for CUDA, where there is none:

- operations that mix devices raise, as CUDA's do (tensors of no dimension on the CPU are let through, as there);
- each wait of the host for the device (`.item()`, `.tolist()`, `.cpu()`, boolean masks) is counted by the line of
  lossmap that asked for it, in `waits`; what is sent there in `uploads`; each operation in `launches`;
- the numbers are the CPU's.

With `without_float64()` it is as Apple's MPS and Intel's Arc are: a float64 tensor that is made or sent there raises.

It is a PrivateUse1 backend in Python alone. Memory, streams, and what CUDA's own kernels round otherwise are not in it.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from lossmap import accelerators

NAME = "pretended"
waits: Counter[str] = Counter()
uploads: Counter[str] = Counter()
launches: Counter[str] = Counter()
_without: set[torch.dtype] = set()  # precisions that it has not

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.is_nonzero.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
VIEWS = {
    "t", "view", "_unsafe_view", "slice", "select", "detach", "transpose", "permute", "expand", "unsqueeze", "squeeze",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "_reshape_alias", "empty", "empty_strided",
    "_local_scalar_dense", "unfold", "narrow", "diagonal", "lift_fresh", "empty_like", "new_empty",
}  # fmt: skip  # by name: operations that read and write no numbers on the device
MOVING = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXING = {  # which take indices that lie on the CPU
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
}  # fmt: skip


def without_float64(missing: bool = True) -> None:
    """From here on the device has no float64 and no complex128, or has them again."""
    _without.clear()
    if missing:
        _without.update((torch.float64, torch.complex128))


def _refuse_missing(dtype: torch.dtype | None) -> None:
    """Raise TypeError for a precision that the device has not, in the words of MPS."""
    if dtype in _without:
        name = str(dtype).removeprefix("torch.")
        raise TypeError(
            f"Cannot convert a {NAME} Tensor to {name} dtype as the {NAME} framework doesn't support {name}. "
            "Please use float32 instead."
        )


class _Module:
    """What PyTorch asks of `torch.<device>`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, *_: Any) -> None:
        pass

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()]

    def set_rng_state_all(self, *_: Any) -> None:
        pass

    def set_device(self, device: Any) -> None:
        self.taken = torch.device(device)

    def get_device_name(self, *_: Any) -> str:
        return "Pretended GPU"

    def synchronize(self, *_: Any) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def empty_cache(self) -> None:
        pass

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return 1 << 30, 1 << 31

    def max_memory_allocated(self, *_: Any) -> int:
        return 1 << 20


def as_a_kind_of_gpu() -> None:
    """Let the commands know it as a kind of GPU, which `--device auto` takes."""
    accelerators.KINDS += (NAME,)
    accelerators.AUTOMATIC += (NAME,)


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


torch.utils.rename_privateuse1_backend(NAME)
torch._register_device_module(NAME, _Module())
_KEPT = (_Hooks(), _Guard())
torch._C._acc.register_python_privateuseone_hook(_KEPT[0])
torch._C._acc.register_python_privateuseone_device_guard(_KEPT[1])
DEVICE = torch.device(NAME, 0)


def _asked_by() -> str:
    """The innermost line of lossmap on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        is_ours = "/lossmap/" in file and "site-packages" not in file and "/tests/" not in file
        if is_ours and not file.endswith(("/stable/forms.py", "/curvature/formulas.py")):  # which hand on calls
            return f"{file.rpartition('/lossmap/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class Pretended(torch.Tensor):
    """A tensor of the pretended device; `inner` holds its numbers on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        _refuse_missing(inner.dtype)
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner.detach() if inner.requires_grad else inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Pretended):
            if func is torch.Tensor.tolist and type(first.inner) is torch.Tensor:
                waits[_asked_by()] += 1
                return first.inner.tolist()
            if func is torch.Tensor.untyped_storage:
                return first.inner.untyped_storage()
            if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                args = (first, _as_tensors(args[1]), *args[2:])
        if getattr(func, "__self__", None) is torch.Tensor.data and func.__name__ == "__set__":
            if isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
                raise RuntimeError("a tensor's .data was set to one of another device")
            if isinstance(args[0], Pretended):
                args[0].inner = args[1].inner
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _as_tensors(index: Any) -> Any:
    """Lists in an index as tensors: PyTorch would make them on the device, which a backend in Python cannot serve."""
    if isinstance(index, list):
        return torch.tensor(index)
    if isinstance(index, tuple):
        return tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
    return index


def _inner(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _refuse_mixture(func: Any, args: Any, on_cpu: list[torch.Tensor]) -> None:
    if func in INDEXING:
        indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            waits[f"{_asked_by()} (boolean mask)"] += 1
        if any(not isinstance(index, Pretended) and index.dim() for index in indices):
            uploads[f"{_asked_by()} (index)"] += 1
    elif func not in MOVING and any(t.dim() for t in on_cpu):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({func}, on the CPU tensors of the shapes {[tuple(t.shape) for t in on_cpu if t.dim()]})"
        )


def _count_moves(func: Any, args: Any, to_cpu: bool, to_here: bool, ours: bool, others: bool) -> None:
    if (func in WAITING and ours) or (func is aten._to_copy.default and to_cpu and ours):
        waits[_asked_by()] += 1
    if func is aten._to_copy.default and to_here and others:
        uploads[_asked_by()] += 1
    if func is aten.copy_.default and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        (uploads if isinstance(args[0], Pretended) else waits)[_asked_by()] += 1


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation: on the CPU underneath, counted, and refused where it mixes devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, Pretended)]
    others = [t for t in tensors if not isinstance(t, Pretended)]
    device = kwargs.get("device")
    to_cpu = device is not None and torch.device(device).type == "cpu"
    to_here = device is not None and torch.device(device).type == NAME
    if ours:
        _refuse_mixture(func, args, others)
    if ours and func is aten._to_copy.default:
        _refuse_missing(kwargs.get("dtype"))  # on the way to the CPU too: it may be converted here first
    _count_moves(func, args, to_cpu, to_here, bool(ours), bool(others))
    launches[str(func)] += 1
    below = {name: _inner(value) for name, value in tree_map(_inner, kwargs).items()}
    below.pop("pin_memory", None)
    out = func(*tree_map(_inner, args), **below)
    if func is aten._local_scalar_dense.default:
        return out
    if func._schema.is_mutable:  # written in place: the wrapper that was given is the result
        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info and argument.alias_info.is_write
        ]
        if not func._schema.returns:
            return None
        if len(func._schema.returns) == 1 and written and isinstance(written[0], torch.Tensor):
            return written[0]
    here = isinstance(args[0], Pretended) if func is aten.copy_.default else (bool(ours) and not to_cpu) or to_here
    return tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) and here else x, out)


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(op, args, kwargs)


_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(_fallback, "PrivateUse1")
torch.inference_mode = lambda mode=True: torch.no_grad() if mode else nullcontext()  # wrappers bear no inference mode
_tensor = torch.tensor


def _tensor_there(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    if device is not None and torch.device(device).type == NAME:
        return Pretended(_tensor(data, *args, **kwargs))
    return _tensor(data, *args, device=device, **kwargs)


torch.tensor = _tensor_there


def moved(model: nn.Module) -> nn.Module:
    """The model, on the pretended device, in place."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                there = nn.Parameter(Pretended(p.detach().clone()), requires_grad=p.requires_grad)
                module._parameters[name] = there
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer.detach().clone())
    return model


def up(values: Any) -> Any:
    """Tensors, anywhere in a structure, on the pretended device."""
    return tree_map(lambda leaf: Pretended(leaf.detach()) if isinstance(leaf, torch.Tensor) else leaf, values)
