"""What a process holds for all that it computes: PyTorch's settings, the user's own modules, and what these hold.

    base = ProcessState.now()
    begin(base)                 as in a process that has imported nothing of the user's yet
    own = ProcessState.now()    after one problem was built
    own.put()                   before it is evaluated, where another one was built meanwhile

A file that calls `torch.set_default_dtype(torch.float64)`, or a factory that counts its calls in a global, changes
what is built after it in the same process; and of two folders that hold a `config.py` each, Python imports one. Where
several problems share a process, as in a campaign, each is begun by `begin` and has a state of its own, so that none
depends on which came before. A module is executed once, and sought each time: `begin` sets all modules of the user's
aside, an import finds what Python's search finds then, and where that is the file of one that was set aside it is that
one, with what its import had set. A named file finds its own neighbours (`enter`), whatever else has their names.

Known are the settings in `settings.py`, the environment, the current folder, the folders that are searched, and what
modules of the user's hold (`held.py`): those that were imported by name, and those that these imported. Where one holds
what is not kept and has changed since its import, such as a network, `renew` has them executed anew. What is replaced
in installed packages other than PyTorch stays as it is. Cost: some 600 microseconds each.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import islice
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from lossmap.process_state.held import Held
from lossmap.process_state.marks import mark_of

FOLDER = "current folder"  # as `settings` calls it, which is not imported before it is needed
CACHED = type(functools.lru_cache(len))
SEARCH_PATH = "search path"
REPLACED = "functions of PyTorch"
VARIABLE = "$"  # before the name of an environment variable, among the settings


@functools.cache
def _known() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """By name, how a setting is read, and how it is set."""
    from lossmap.process_state.settings import known  # torch, which plans are made without

    return {
        **known(),
        SEARCH_PATH: (_searched_besides, lambda path: _search(list(_searched), path)),
        REPLACED: (lambda: _replaced().current, lambda wanted: _replaced().put(wanted)),
    }


@functools.cache
def _replaced() -> Any:
    from lossmap.process_state.settings import Replaced

    return Replaced(_is_users_function)


def _is_users_function(value: Any) -> bool:
    """Whether a function or class is of a module of the user's."""
    value = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
    home = value.__module__ if isinstance(value, type) else getattr(value, "__globals__", {}).get("__name__")
    return any(module.__name__ == home for module in _own)


def also(name: str, read: Callable[[], Any], put: Callable[[Any], Any]) -> None:
    """A further setting: how it is read, and how it is set."""
    _known()[name] = read, put


@dataclass
class _Import:
    """What the import of a module of the user's did.

    changed     the settings that it changed; None for an environment variable that it took away
    searched    the folders that it put before the others on the search path, and behind them
    numbers     of modules that it imported or changed, as they were afterwards
    imported    the modules that came with it
    generation  the `begin` since which this holds
    """

    changed: Mapping[str, Any]
    searched: tuple[list[str], list[str]]
    numbers: Mapping[ModuleType, Held]
    imported: frozenset[ModuleType]
    generation: int


@dataclass(frozen=True)
class _Own:
    """A module of the user's that was imported while one was imported by name.

    root     the folder in which Python found it, or the package that it is part of
    numbers  what stood there after its import
    cached   how often each of its cached functions had been computed then
    digest   SHA-256 of its file then; None of a folder
    spec     of this import: a module that is reloaded has another one
    marks    of what it held then that is not kept
    """

    root: str
    numbers: Held
    cached: Mapping[Any, int]
    digest: str | None
    spec: Any
    marks: list[tuple[Any, Any]]

    @classmethod
    def of(cls, module: ModuleType) -> _Own:
        others = {thing for other, own in _own.items() if other is not module for thing in own.numbers.things}
        cached = {function: function.cache_info().misses for function in _cached(module)}
        held, spec = _held(module, others), module.__dict__.get("__spec__")
        return cls(_root(module), held, cached, _digest(module), spec, held.marks())

    def changed(self) -> list[Any]:
        """What has changed since the import and is not put back: the first such thing, if any."""
        return list(islice((thing for thing, mark in self.marks if mark_of(thing) != mark), 1))


def _nobodys(module: ModuleType) -> bool:
    return False


_is_own: Callable[[ModuleType], bool] = _nobodys  # whether a module is the user's; known once a folder was entered
_executing: Callable[[], AbstractContextManager[None]] = nullcontext  # in which each file is executed
_generation = 0
_loaded: dict[str, ModuleType] = {}  # what was looked at: no module of the user's that came later
_imports: dict[ModuleType, _Import] = {}
_own: dict[ModuleType, _Own] = {}
_aside: set[ModuleType] = set()  # of these, which have no name now
_named: set[ModuleType] = set()  # of these, which were named as files and have names of their own
_spent: set[ModuleType] = set()  # of these, which no import finds again
_changes: list[str] = []  # for what they were executed anew last, in words
_searched: list[str] = []  # folders that were entered, and are last on the search path, in their order there


@dataclass(frozen=True)
class ProcessState:
    """Settings, modules and numbers at one time.

    settings  by name, as in `_known`
    numbers   of the user's modules
    modules   which of them are known by which name
    searched  the order in which their folders are searched
    """

    settings: Mapping[str, Any]
    numbers: Mapping[ModuleType, Held] = field(default_factory=dict)
    modules: Mapping[str, ModuleType] = field(default_factory=dict)
    searched: tuple[str, ...] = ()

    @classmethod
    def now(cls) -> ProcessState:
        """What stands there."""
        modules = visible_modules()
        numbers: dict[ModuleType, Held] = {}
        known: set[int] = set()
        for module in _own:  # what several hold is kept with one of them
            numbers[module] = _held(module, known)
            known |= numbers[module].things.keys()
        return cls(_settings(), numbers, modules, tuple(_searched))

    def put(self) -> None:
        """Set what differs: settings, which modules have names, numbers, and what is searched."""
        _look_at_new()
        names = {name: module for name, module in self.modules.items() if module not in _named or module in _aside}
        for module in _own:
            if names.get(module.__name__) is not module:
                _set_aside(module)
        for module in names.values():
            _bring_back(module)
        for numbers in self.numbers.values():
            numbers.put()
        _searched[:] = self.searched
        _put_settings(_missing_variables(self.settings) | dict(self.settings))


def begin(base: ProcessState, looked: bool = False) -> None:
    """As in `base`: modules that came later are set aside, with the numbers that they had after their imports.

    looked  whether `ProcessState.now` has looked since the last user code was executed
    """
    global _generation
    _generation += 1
    _look_at_reloaded()
    if not looked:
        _look_at_new()
        _replaced().look()
    numbers = {module: own.numbers for module, own in _own.items()} | {**base.numbers}
    modules = {name: module for name, module in base.modules.items() if module not in _spent}
    replace(base, numbers=numbers, modules=modules).put()


def renew(base: ProcessState, states: Collection[ProcessState]) -> None:
    """Let the user's modules be executed anew at their next import where one has changed in what cannot be put back.

    All of them, since they hold each other; but those of `base`, in which the process is now, that were not named as
    files.

    states  of problems that are still to be evaluated: with what they hold, they stay as they are
    """
    kept = set(base.modules.values()) - _named
    for module in _spent - {module for state in states for module in state.modules.values()}:
        for known in (_spent, _aside):
            known.discard(module)
        for table in (_own, _imports):
            table.pop(module, None)
    later = [module for module in _own if module not in kept and module not in _spent]
    first = next(((module, thing) for module in later for thing in _own[module].changed()), None)
    if first is not None:
        _changes[:] = [_name_of(*first)]
        for module in later:
            _named.discard(module)
            _spent.add(module)
            _set_aside(module)


def _name_of(module: ModuleType, thing: Any) -> str:
    """What a person calls a thing that a module holds."""
    names = [name for name, value in vars(module).items() if value is thing]
    file = os.path.basename(_file(module)) or module.__name__
    return f"{names[0]} in {file}" if names else f"a {type(thing).__name__} that {file} holds"


def why_anew(error: BaseException) -> str:
    """What has changed, where an error comes from a file that is executed anew for that; else empty."""
    files = {os.path.realpath(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    again = any(_place(module) in files for module in _spent)
    return _changes[0] if again and _changes else ""


def forget_cached() -> None:
    """Empty the caches of the user's cached functions: what another problem has put there may be another's."""
    for module, own in _own.items():
        for function in _cached(module):
            if function.cache_info().misses != own.cached.get(function, 0):
                function.cache_clear()


def _cached(module: ModuleType) -> list[Any]:
    """The functions of a module, and of its classes, whose results `functools.lru_cache` keeps."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    values = [value for holder in (module, *classes) for value in list(vars(holder).values())]
    return [value for value in values if isinstance(value, CACHED) and value.__module__ == module.__name__]


def visible_modules() -> dict[str, ModuleType]:
    """The user's modules that have names, by them."""
    if len(sys.modules) != len(_loaded):
        _look_at_new()
    names = {module.__name__ for module in _own}
    return {name: sys.modules[name] for name in names if name in sys.modules}


@contextmanager
def recorded_import(module: ModuleType, named: bool = False) -> Iterator[None]:
    """Inside, a module is executed: what that sets is kept, and the numbers of what comes with it.

    named  whether it has a name of its own, under which nothing else is ever sought
    """
    before, own = _settings(), {other: _held(other) for other in visible_modules().values()}
    yield
    if named:
        _named.add(module)
    if _is_users(module):
        _own[module] = _Own.of(module)  # it may have been looked at before it was executed to its end
    _look_at_new()
    after = _settings()
    names = (after.keys() | before.keys()) - {FOLDER, SEARCH_PATH}  # the folder is the one that code is called in
    changed = {what: after.get(what) for what in names if after.get(what) != before.get(what)}
    if after[FOLDER] != before[FOLDER]:
        changed[FOLDER] = after[FOLDER]
    if REPLACED in changed:  # by this module, and not by what imports it
        changed[REPLACED] = {place: f for place, f in after[REPLACED].items() if before[REPLACED].get(place) is not f}
    numbers = {other: _held(other) for other in visible_modules().values()}
    numbers = {other: values for other, values in numbers.items() if own.get(other) != values}
    came = frozenset(set(numbers) - set(own) - {module})
    _imports[module] = _Import(
        changed, _added(before[SEARCH_PATH], after[SEARCH_PATH]), numbers, came - _named, _generation
    )


def imported_again(module: ModuleType) -> None:
    """Set what the import of this module has set, where it is named for the first time since the last `begin`."""
    known = _imports.get(module)
    if known is None:
        return
    if FOLDER in known.changed:
        _put_settings({FOLDER: known.changed[FOLDER]})
    if known.generation == _generation:
        return
    known.generation = _generation
    first, last = known.searched
    path = _searched_besides()
    _search(list(_searched), tuple(dict.fromkeys((*first, *path, *last))))
    changed = dict(known.changed)
    if REPLACED in changed:
        _replaced().look()
        changed[REPLACED] = {**_replaced().current, **changed[REPLACED]}
    _put_settings(changed)
    for other in known.imported:
        _bring_back(other)
        if other in _imports:
            _imports[other].generation = _generation
    for numbers in known.numbers.values():
        numbers.put()


def _added(before: tuple[str, ...], after: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What was put on a path before what stood there, and behind that."""
    new = [entry for entry in after if entry not in before]
    first = after.index(next((entry for entry in after if entry in before), after[-1])) if after else 0
    return [entry for entry in new if entry in after[:first]], [entry for entry in new if entry not in after[:first]]


class _Again(Loader):
    """Loads a module that was set aside: gives it its name again."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
        _aside.discard(module)
        _loaded[module.__name__] = module
        imported_again(module)


class _Finder(MetaPathFinder):
    """Finds modules of the user's where Python finds them, of which those that were executed before are not again."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if target is not None or name.partition(".")[0] in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or not _is_own(_stand_in(name, spec)):
            return None
        for module in list(_aside):
            if module not in _spent and module.__name__ == name and _place(module) == _place_of(spec):
                again = ModuleSpec(name, _Again(module), origin=spec.origin)
                again.submodule_search_locations = spec.submodule_search_locations
                return again
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Recorded(spec.loader.name, str(spec.loader.path))
        return spec


class _Recorded(SourceFileLoader):
    """Executes a file of the user's, and keeps what that sets."""

    def exec_module(self, module: ModuleType) -> None:
        with recorded_import(module), _executing():
            super().exec_module(module)


def _stand_in(name: str, spec: ModuleSpec) -> ModuleType:
    """A module of this place, to be asked whose it is."""
    module = ModuleType(name)
    module.__file__ = _place_of(spec)
    return module


def _place_of(spec: ModuleSpec) -> str:
    """The file of a module, or the folder of one without a file."""
    if spec.origin is not None and spec.has_location:
        return os.path.realpath(spec.origin)
    return os.path.realpath(next(iter(spec.submodule_search_locations or []), os.devnull))


def _place(module: ModuleType) -> str:
    """The same of a module that is there; empty where it has none."""
    if _file(module):
        return _file(module)
    folders = list(module.__dict__.get("__path__", []))
    return os.path.realpath(folders[0]) if folders else ""


def enter(
    folder: Path, is_own: Callable[[ModuleType], bool], executing: Callable[[], AbstractContextManager[None]]
) -> None:
    """Let files of this folder find their neighbours there: the folder is searched before others that were entered.

    A module of another folder by the name of a neighbour is set aside; one that was set aside comes back when it is
    imported, with what it had set. What was imported before the first folder was entered stays.

    is_own     whether a module is the user's
    executing  in which the files of these modules are executed
    """
    global _is_own, _executing
    if not _loaded:
        _loaded.update(sys.modules)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        here = next((i for i, finder in enumerate(sys.meta_path) if finder is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(here, _Finder())
    _is_own, _executing, own = is_own, executing, str(folder)
    _look_at_new()
    _look_at_reloaded()
    _search([own, *(other for other in _searched if other != own)])
    for module, known in _own.items():
        name = module.__name__
        top = name.partition(".")[0]
        if (
            known.root != own
            and sys.modules.get(name) is module
            and (Path(own, f"{top}.py").exists() or Path(own, top).is_dir())
        ):
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
            is_new = isinstance(module, ModuleType) and module not in _own and _is_users(module)
            if is_new and _is_executed(module):  # there is more to come
                continue
            _loaded[name] = module
            if is_new:
                _own[module] = _Own.of(module)


def _is_executed(module: ModuleType) -> bool:
    """Whether the code of a module's file is being executed now, by whomever."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals is module.__dict__ and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def _is_users(module: ModuleType) -> bool:
    if not _is_own(module):
        return False
    if _file(module) or not _place(module):
        return True
    stand_in = ModuleType(module.__name__)  # a folder without a file of its own
    stand_in.__file__ = _place(module)
    return _is_own(stand_in)


def _set_aside(module: ModuleType) -> None:
    """Take a module's name away, but of one that is known by no place, or has a name of its own."""
    if sys.modules.get(module.__name__) is module and module not in _named and _place(module):
        del sys.modules[module.__name__]
        _loaded.pop(module.__name__, None)
        _aside.add(module)


def _bring_back(module: ModuleType) -> None:
    """Give a module that was set aside its name again; one that somebody has deleted stays away."""
    if module in _aside:
        other = sys.modules.get(module.__name__)
        if other is not None:
            _aside.add(other)
        sys.modules[module.__name__] = _loaded[module.__name__] = module
        _aside.discard(module)


def _look_at_reloaded() -> None:
    for module, own in list(_own.items()):
        if sys.modules.get(module.__name__) is not module and module not in _aside:
            del _own[module]  # deleted, to be imported anew
        elif module.__dict__.get("__spec__") is not own.spec:
            _own[module] = _Own.of(module)


def _searched_besides() -> tuple[str, ...]:
    """The search path without the folders that were entered."""
    return tuple(entry for entry in sys.path if entry not in _searched)


def _search(folders: list[str], others: tuple[str, ...] | None = None) -> None:
    """Folders last on the search path, in this order: functions may import their neighbours when called.

    others  what is searched before them; None: what is now
    """
    others = _searched_besides() if others is None else others
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
    variables = {VARIABLE + name: value for name, value in os.environ.copy().items()}
    _replaced().look()
    return {name: read() for name, (read, _) in _known().items()} | variables


def _missing_variables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The environment variables that there are, and are none of these settings: to be taken away."""
    return {VARIABLE + name: None for name in os.environ if VARIABLE + name not in settings}


def _put_settings(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name.startswith(VARIABLE):
            _put_variable(name.removeprefix(VARIABLE), value)
            continue
        read, put = _known()[name]
        if read() != value:
            put(value)


def _put_variable(name: str, value: str | None) -> None:
    if os.environ.get(name) != value:
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _held(module: ModuleType, besides: Collection[int] = ()) -> Held:
    names = {own.__name__ for own in _own} | {module.__name__}
    return Held.of(module, names.__contains__, besides)
