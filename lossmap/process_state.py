"""What a process holds for all that it computes: PyTorch's settings, the user's own modules, and numbers in them.

    base = ProcessState.now()
    begin(base)                 as in a process that has imported nothing of the user's yet
    own = ProcessState.now()    after one problem was built
    own.put()                   before it is evaluated, where another one was built meanwhile

A file that calls `torch.set_default_dtype(torch.float64)`, or a factory that counts its calls in a global, changes
what is built after it in the same process; and of two folders that hold a `config.py` each, Python imports one. Where
several problems share a process, as in a campaign, each is begun by `begin` and has a state of its own, so that none
depends on which came before. A module is imported once: what its import set is set again when it is named for the first
time after a `begin`. A named file finds its own neighbours (`enter`), whatever else has their names.

Known are the settings below, and plain numbers and texts in globals and in classes of modules that were imported by
name, and of the user's modules that these imported. Lists, dictionaries, iterators and objects there stay as they are.
Cost: some 20 microseconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None))
Numbers = Mapping[tuple[str, str], Any]  # by the name of a class, empty for globals, and of what it holds


def _put_device(device: Any) -> None:
    import torch

    torch.set_default_device(None if device.type == "cpu" else device)  # "cpu" would watch over every call


@functools.cache
def _known() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """By name, how a setting is read, and how it is set."""
    import torch  # not before something is computed: plans are made without it

    return {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (torch.get_default_device, _put_device),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "determinism": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        "precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        "cuDNN": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    }


def also(name: str, read: Callable[[], Any], put: Callable[[Any], Any]) -> None:
    """A further setting: how it is read, and how it is set."""
    _known()[name] = read, put


@dataclass
class _Import:
    """A module that was imported by name: the settings that its import changed, and since which `begin` they hold."""

    changed: Mapping[str, Any]
    generation: int


@dataclass(frozen=True)
class _Own:
    """A module of the user's that was imported while one was imported by name.

    root     the folder in which Python found it, or the package that it is part of
    numbers  what stood there after its import
    digest   SHA-256 of its file then; None of a folder
    spec     of this import: a module that is reloaded has another one
    """

    root: str
    numbers: Numbers
    digest: str | None
    spec: Any

    @classmethod
    def of(cls, module: ModuleType) -> _Own:
        return cls(_root(module), _numbers(module), _digest(module), module.__dict__.get("__spec__"))


def _nobodys(module: ModuleType) -> bool:
    return False


_is_own: Callable[[ModuleType], bool] = _nobodys  # whether a module is the user's; known once a folder was entered
_generation = 0
_loaded: dict[str, ModuleType] = {}  # what was looked at: no module of the user's that came later
_imports: dict[str, _Import] = {}
_own: dict[ModuleType, _Own] = {}
_aside: set[ModuleType] = set()  # of these, whose names others have now
_searched: list[str] = []  # folders that were put on the search path, in their order there


@dataclass(frozen=True)
class ProcessState:
    """Settings, modules and numbers at one time.

    settings  by name, as in `_known`
    numbers   of the user's modules
    modules   which of them are known by which name
    searched  the order in which their folders are searched
    """

    settings: Mapping[str, Any]
    numbers: Mapping[ModuleType, Numbers] = field(default_factory=dict)
    modules: Mapping[str, ModuleType] = field(default_factory=dict)
    searched: tuple[str, ...] = ()

    @classmethod
    def now(cls) -> ProcessState:
        """What stands there."""
        if len(sys.modules) != len(_loaded):
            _look_at_new()
        names = {module.__name__ for module in _own}
        modules = {name: sys.modules[name] for name in names if name in sys.modules}
        return cls(_settings(), {module: _numbers(module) for module in _own}, modules, tuple(_searched))

    def put(self) -> None:
        """Set what differs. A module that is not known here keeps its name, unless another one has it here."""
        _put_settings(self.settings)
        for module, numbers in self.numbers.items():
            _put_numbers(module, numbers)
        for module in self.modules.values():
            _bring_back(module)
        _search([*self.searched, *(folder for folder in _searched if folder not in self.searched)])


def begin(base: ProcessState) -> None:
    """Settings and numbers as they were in `base`; of modules that came later, numbers as after their imports."""
    global _generation
    _generation += 1
    _look_at_reloaded()
    ProcessState(base.settings, {module: own.numbers for module, own in _own.items()} | {**base.numbers}).put()


@contextmanager
def recorded_import(name: str) -> Iterator[None]:
    """Inside, a module is imported under this name: what that sets, and the numbers of what comes with it, are kept."""
    before = _settings()
    yield
    changed = {what: value for what, value in _settings().items() if value != before[what]}
    _imports[name] = _Import(changed, _generation)
    _look_at_new()


def imported_again(name: str) -> None:
    """Set what the import of this module has set, where it is named for the first time since the last `begin`."""
    known = _imports.get(name)
    if known is not None and known.generation != _generation:
        _put_settings(known.changed)
        known.generation = _generation


def enter(folder: Path, is_own: Callable[[ModuleType], bool]) -> None:
    """Let files of this folder find their neighbours there: the folder is searched before others that were entered.

    A module of another folder by the name of a neighbour is set aside; one that was set aside comes back. What was
    imported before the first folder was entered stays.

    is_own  whether a module is the user's
    """
    global _is_own
    if not _loaded:
        _loaded.update(sys.modules)
    _is_own, own = is_own, str(folder)
    _look_at_new()
    _look_at_reloaded()
    _search([own, *(other for other in _searched if other != own)])
    for module, known in _own.items():
        name = module.__name__
        top = name.partition(".")[0]
        if known.root == own:
            _bring_back(module)
        elif sys.modules.get(name) is module and (Path(own, f"{top}.py").exists() or Path(own, top).is_dir()):
            _aside.add(sys.modules.pop(name))
    _loaded.clear()
    _loaded.update(sys.modules)


def imported_digests(path: Path) -> set[str]:
    """The SHA-256 of a file as this process has imported it, once for each time that it did."""
    name = str(path.resolve())
    _look_at_reloaded()
    return {own.digest for module, own in _own.items() if own.digest is not None and _file(module) == name}


def _look_at_new() -> None:
    """Know the user's modules that have been imported since the last look."""
    for name, module in list(sys.modules.items()):
        if _loaded.get(name) is not module:
            _loaded[name] = module
            if isinstance(module, ModuleType) and module not in _own and _is_own(module):
                _own[module] = _Own.of(module)


def _bring_back(module: ModuleType) -> None:
    """Give a module that was set aside its name again; one that somebody has deleted stays away."""
    if module in _aside:
        other = sys.modules.get(module.__name__)
        if other is not None:
            _aside.add(other)
        sys.modules[module.__name__] = module
        _aside.discard(module)


def _look_at_reloaded() -> None:
    for module, own in list(_own.items()):
        if sys.modules.get(module.__name__) is not module and module not in _aside:
            del _own[module]  # deleted, to be imported anew
        elif module.__dict__.get("__spec__") is not own.spec:
            _own[module] = _Own.of(module)


def _search(folders: list[str]) -> None:
    """Folders last on the search path, in this order, for good: functions may import their neighbours when called."""
    others = [entry for entry in sys.path if entry not in _searched]
    _searched[:] = [folder for folder in folders if folder not in others]
    if sys.path != [*others, *_searched]:
        sys.path[:] = [*others, *_searched]


def _file(module: ModuleType) -> str:
    file = module.__dict__.get("__file__")
    return os.path.realpath(file) if isinstance(file, str) else ""


def _digest(module: ModuleType) -> str | None:
    try:
        return hashlib.sha256(Path(_file(module)).read_bytes()).hexdigest()
    except OSError:
        return None


def _root(module: ModuleType) -> str:
    """The folder in which Python finds the first part of a module's name; empty where it is known by no folder."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    places = list(getattr(top, "__path__", [])) or [_file(top)]
    return os.path.dirname(os.path.realpath(places[0])) if places[0] else ""


def _settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in _known().items()}


def _put_settings(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        read, put = _known()[name]
        if read() != value:
            put(value)


def _holders(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The module itself, and the classes that it defines."""
    yield "", module
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield name, value


def _numbers(module: ModuleType) -> dict[tuple[str, str], Any]:
    return {
        (owner, name): value
        for owner, holder in _holders(module)
        for name, value in list(vars(holder).items())
        if isinstance(value, PLAIN) and not name.startswith("__")
    }


def _put_numbers(module: ModuleType, wanted: Numbers) -> None:
    now = _numbers(module)
    holders = dict(_holders(module))
    for key, value in wanted.items():
        owner, name = key
        # a number that has become something else, such as a table that is built once, stays what it is
        if key in now and not (type(now[key]) is type(value) and now[key] == value):
            setattr(holders[owner], name, value)
    for owner, name in now.keys() - wanted.keys():
        if owner in holders:
            delattr(holders[owner], name)
