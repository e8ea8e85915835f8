"""Settings of a process on which its numbers depend: how each is read, and how it is set.

Beside those that PyTorch names as settings: modes that were entered and never left (`torch.autocast`,
`torch.inference_mode`, a `TorchFunctionMode`), hooks for all modules, and functions of PyTorch that a file of the
user's has replaced. What installed packages replace when they are imported is no setting: they are imported once.

Cost: looking for what was replaced takes some 100 microseconds, all others together as much.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, cast

import torch
from torch import overrides
from torch.utils._device import DeviceContext

from lossmap import accelerators

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
FOLDER = "current folder"
DEVICES = ("cpu", *accelerators.KINDS)  # that `torch.autocast` is for
Place = tuple[ModuleType | type, str]  # an attribute of a module or a class

_inference: list[
    Any
] = []  # by which inference mode was set; never left, since the user's own may have been entered since


def known() -> dict[str, Setting]:
    """By name, all settings but those of modules."""
    cudnn = torch.backends.cudnn
    return {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (torch.get_default_device, _put_device),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "inference mode": (torch.is_inference_mode_enabled, _put_inference),
        "automatic precision": (_autocast, _put_autocast),
        "modes": (_modes, _put_modes),
        "hooks of all modules": (_hooks, _put_hooks),
        "determinism": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        "precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        "cuDNN": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
        "cuDNN's timing": (lambda: cudnn.benchmark, functools.partial(setattr, cudnn, "benchmark")),
        "cuDNN's determinism": (lambda: cudnn.deterministic, functools.partial(setattr, cudnn, "deterministic")),
        "flash attention": (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
        "efficient attention": (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
        "plain attention": (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math),
        "fused attention": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        "anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "denormal numbers": (_flushes_denormals, torch.set_flush_denormal),
        "depth of recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
        "rights of new files": (_umask, os.umask),
        FOLDER: (_folder, os.chdir),
    }


def _put_device(device: Any) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # "cpu" would watch over every call


def _put_inference(enabled: bool) -> None:
    _inference.append(torch.inference_mode(enabled))
    _inference[-1].__enter__()


def _autocast() -> tuple[Any, ...]:
    return tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in DEVICES)


def _put_autocast(states: tuple[Any, ...]) -> None:
    for device, (enabled, dtype) in zip(DEVICES, states, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()


def _stack() -> list[Any]:
    return cast("list[Any]", overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _modes() -> tuple[Any, ...]:
    """Modes that see every call, but that of the default device, which is a setting of its own."""
    return tuple(mode for mode in _stack() if not isinstance(mode, DeviceContext))


def _put_modes(modes: tuple[Any, ...]) -> None:
    stack = _stack()
    for _ in stack:
        overrides._pop_mode()  # type: ignore[no-untyped-call]
    for mode in (*(mode for mode in stack if isinstance(mode, DeviceContext)), *modes):
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]


def _hooks() -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(table.items())) for name, table in _tables_of_hooks())


def _put_hooks(tables: tuple[tuple[str, Any], ...]) -> None:
    for name, table in _tables_of_hooks():
        table.clear()
        table.update(dict(tables)[name])


@functools.cache
def _tables_of_hooks() -> list[tuple[str, dict[Any, Any]]]:
    tables = vars(torch.nn.modules.module).items()
    return [(name, table) for name, table in tables if name.startswith("_global_") and isinstance(table, dict)]


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-310, dtype=torch.float64) * 0.5) == 0.0


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _folder() -> str:
    with suppress(OSError):  # one that was deleted has no name
        return os.getcwd()
    return ""


class Replaced:
    """Functions and classes of PyTorch that were replaced, or added to its classes, since the first look.

    is_users  whether a function or class is of the user's code
    current   what was replaced at the last look, by its place
    """

    def __init__(self, is_users: Callable[[Any], bool]) -> None:
        self.is_users = is_users
        self.current: dict[Place, Any] = {}
        functional = torch.nn.functional
        layers = [value for value in vars(torch.nn).values() if isinstance(value, type)]
        self._holders: list[ModuleType | type] = [torch, functional, torch.nn, torch.nn.init, torch.Tensor, *layers]
        self._names = [[name for name, value in vars(h).items() if _is_function(value)] for h in self._holders]
        self._values = [self._now(index) for index in range(len(self._holders))]
        self._sizes = [len(vars(holder)) for holder in self._holders]
        self._pytorchs = {id(value) for values in self._values for value in values}

    def _now(self, index: int) -> list[Any]:
        return list(map(vars(self._holders[index]).get, self._names[index]))

    def look(self) -> None:
        """See what stands there."""
        self.current = {}
        for index, holder in enumerate(self._holders):
            now, first = self._now(index), self._values[index]
            if now != first:
                for name, value, original in zip(self._names[index], now, first, strict=True):
                    if value is not original and (id(value) in self._pytorchs or self.is_users(value)):
                        self.current[holder, name] = value
            if isinstance(holder, type) and len(vars(holder)) > self._sizes[index]:
                for name in vars(holder).keys() - self._names[index]:  # in place of what it inherits
                    if self.is_users(vars(holder)[name]):
                        self.current[holder, name] = vars(holder)[name]

    def put(self, wanted: dict[Place, Any]) -> None:
        """Put replacements where they are `wanted`, and what was first there elsewhere."""
        for holder, name in self.current.keys() - wanted.keys():
            index = self._holders.index(holder)
            if name in self._names[index]:
                setattr(holder, name, self._values[index][self._names[index].index(name)])
            else:
                delattr(holder, name)
        for (holder, name), value in wanted.items():
            if vars(holder).get(name) is not value:
                setattr(holder, name, value)
        self.current = dict(wanted)


def _is_function(value: Any) -> bool:
    return callable(value) or isinstance(value, (staticmethod, classmethod, property))
