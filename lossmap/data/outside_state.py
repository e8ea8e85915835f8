"""What the code of a model or a loss keeps outside of the model: tables in globals, closures, classes and defaults.

A forward pass may build a table once and keep it where no module holds it: in a global dictionary, in a list that a
closure sees, as an attribute of its class or its function, or behind `functools.lru_cache`. Such places are found once
per class and function, by the names that its code reads and writes; `module_state` remembers what stands there and puts
it back. What a cache holds cannot be put back: one that was empty is emptied.

Code of PyTorch, NumPy, transformers, PEFT and this package keeps nothing of a pass there. Price: a walk through the
code of every class that is not theirs, once in a process; then a look at the places found.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import io
import operator
import sys
import types
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import ProxyTypes, WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

import numpy as np
from torch import Tensor, nn

from lossmap.attributes import dictionary_of
from lossmap.installed import is_installed
from lossmap.module_walks import modules_of
from lossmap.seeding import GENERATORS

MAX_ENTRIES = 1000  # of a container that is looked into for modules
MAX_FUNCTIONS = 500  # of a class or a loss, whose code is read
MAX_OBJECTS = 5000  # that are looked into for modules
MAX_DEPTH = 12  # of objects in objects
LIBRARIES = (
    "torch", "numpy", "lossmap", "transformers", "peft", "accelerate", "builtins", "functools", "typing", "collections",
    "math",
)  # fmt: skip
BARE = ("types", "argparse", "_thread")  # whose objects with attributes are namespaces
SEQUENCES = (list, tuple, set, frozenset, deque, UserList, WeakSet)  # which are looked into
MAPPINGS = (dict, UserDict, ChainMap, types.MappingProxyType, WeakKeyDictionary, WeakValueDictionary)
KEPT = (  # by passes
    Tensor, np.ndarray, np.number, dict, list, set, deque, types.NoneType, int, float, Iterator, *GENERATORS,
)  # fmt: skip
CLOSED = (Tensor, str, bytes, int, float, complex, type, types.NoneType, types.ModuleType)  # which hold no module
NOTHING = object()  # in a place that holds nothing yet

# a place: what holds it, and its name there
Place = tuple[Any, str]


def _is_library(name: str | None) -> bool:
    return name is None or name.partition(".")[0] in LIBRARIES


def _is_kept(value: Any, module: str) -> bool:
    """Whether a value may be a table, hold one, or stand where one will be; objects only of the user's own classes.

    Of a package that is installed only the objects that its own code keeps.
    """
    if value is NOTHING or isinstance(value, KEPT):
        return True
    return isinstance(value, nn.Module) or (_has_attributes(value) and _is_own(type(value), module))


def _is_own(cls: type, module: str) -> bool:
    """Whether a class is the user's, of the same package as the code of this module, or one that only holds values."""
    own = cls.__module__
    if _is_library(own) or own in BARE:
        return own in BARE
    return own.partition(".")[0] == module.partition(".")[0] or not is_installed_class(cls)


def is_installed_class(cls: type) -> bool:
    """Whether a class is Python's, or of an installed package."""
    return is_installed(sys.modules.get(cls.__module__, types))


def _has_attributes(value: Any) -> bool:
    """Whether a value is an object that holds others in a dictionary or in slots."""
    return not isinstance(value, type) and (dictionary_of(value) is not None or bool(slots_of(value)))


def alive(value: Any) -> Any:
    """A value; NOTHING where it is the weak proxy of an object that is no more, of which nothing can be asked."""
    if type(value) in ProxyTypes:
        try:
            value.__class__  # noqa: B018
        except ReferenceError:
            return NOTHING
    return value


def measures(value: Any) -> bool:
    """Whether an object is of this package and no module: what measures a model keeps nothing of its passes.

    A Lightning module leads to its trainer, and that to the callback that measures it.
    """
    return type(value).__module__.startswith("lossmap.") and not isinstance(value, nn.Module)


def goes_on_elsewhere(value: Any) -> bool:
    """Whether what an object keeps belongs to what cannot be put back: a file's position, the workers of a loader.

    A loader that is told of batches it has given away already waits for them for ever.
    """
    return isinstance(value, io.IOBase) or (isinstance(value, Iterator) and is_installed_class(type(value)))


def attributes_of(value: Any) -> list[str]:
    """The names of what an object holds, in its dictionary and in slots."""
    return [*(dictionary_of(value) or ()), *slots_of(value)]


def slots_of(value: Any) -> list[str]:
    """The attributes of an object whose class names them in `__slots__`."""
    names: list[str] = []
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{cls.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


@dataclass
class _Reader:
    """Collects the places that functions read or write, and the modules that they use."""

    places: dict[tuple[int, str], Place] = field(default_factory=dict)
    modules: dict[int, nn.Module] = field(default_factory=dict)
    variables: dict[int, str] = field(default_factory=dict)  # the names of closures' cells
    caches: dict[tuple[int, str], Place] = field(default_factory=dict)  # of functions behind `functools.lru_cache`
    _read: set[int] = field(default_factory=set)
    _seen: dict[int, Any] = field(default_factory=dict)  # what has been looked into for modules

    def read_class(self, cls: type) -> None:
        """The attributes of a class and its methods."""
        if id(cls) in self._read or _is_library(cls.__module__):
            return
        self._read.add(id(cls))
        for name, value in list(vars(cls).items()):
            if name.startswith("__") and not callable(value):
                continue
            self._place(cls, name, value, cls.__module__)

    def read(self, value: Any) -> None:
        """A function, what wraps one, or a module that a function uses."""
        if isinstance(value, nn.Module):
            self.modules[id(value)] = value
        elif isinstance(value, types.FunctionType):
            self._read_function(value)
        elif isinstance(value, property):
            self.read(value.fget)
        elif isinstance(value, (staticmethod, classmethod)):
            self.read(value.__func__)
        elif isinstance(value, types.MethodType):
            self.read(value.__func__)
            self._read_callable(value.__self__)
            self._read_modules(value.__self__)
        elif isinstance(value, functools.partial):
            self._read_partial(value)
        elif isinstance(value, functools.cached_property):
            self.read(value.func)
        elif hasattr(type(value), "cache_info"):  # of functools.lru_cache
            self.read(value.__wrapped__)
        elif type(value).__module__.startswith("lossmap."):  # a loss as a problem holds it
            for each in (dictionary_of(value) or {}).values():
                self.read(each)
        elif callable(value):
            self._read_callable(value)

    def _read_callable(self, value: Any) -> None:
        """The attributes of an object that is a loss, or whose method is one, and those of its class."""
        if isinstance(value, nn.Module) or not _has_attributes(value) or id(value) in self._read:
            return
        if _is_library(type(value).__module__):
            return
        self._read.add(id(value))
        for name in attributes_of(value):
            self._place(value, name, at(value, name), type(value).__module__)
        self._read_classes(value)

    def _place(self, holder: Any, name: str, value: Any, module: str) -> None:
        if without_cache(value) is not None:
            self.caches[id(holder), name] = (holder, name)
        self._read_modules(value)
        if _is_kept(value, module):
            self.places[id(holder), name] = (holder, name)
            if callable(value):
                self.read(value)
        elif isinstance(value, type):
            self.read_class(value)
        else:
            self.read(value)

    def _read_partial(self, value: functools.partial[Any]) -> None:
        """Its function and the arguments that are bound to it."""
        self.read(value.func)
        self._read_modules([value.args, value.keywords])
        for each in (*value.args, *value.keywords.values()):
            self._read_callable(each)

    def _read_modules(self, value: Any, depth: int = MAX_DEPTH) -> None:
        """The modules in a value, whose tensors a pass may change in place, and the code of the objects in it."""
        if isinstance(value, nn.Module):
            self.modules[id(value)] = value
            return
        if isinstance(value, CLOSED) or not depth or id(value) in self._seen or len(self._seen) >= MAX_OBJECTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self.read(value)
        inner = _held_by(value)
        for each in inner if len(inner) <= MAX_ENTRIES else ():
            self._read_modules(alive(each), depth - 1)
        if _has_attributes(value) and _is_own(type(value), ""):
            self._read_classes(value)

    def _read_classes(self, value: Any) -> None:
        """The code of an object's class and of those that it inherits from."""
        for cls in type(value).__mro__:
            self.read_class(cls)

    def _read_function(self, function: types.FunctionType) -> None:
        module = function.__module__
        if id(function) in self._read or len(self._read) >= MAX_FUNCTIONS or _is_library(module):
            return
        self._read.add(id(function))
        for name in ("__dict__", "__defaults__", "__kwdefaults__"):
            self.places[id(function), name] = (function, name)
        self._read_modules([function.__defaults__, function.__kwdefaults__])
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.variables[id(cell)] = variable
            self._place(cell, "cell_contents", at(cell, "cell_contents"), module)
        for name in _global_names(function.__code__):
            value = at(function.__globals__, name)
            if isinstance(value, types.ModuleType):
                self._read_module(value, function.__code__)
            elif value is not NOTHING or not hasattr(builtins, name):
                self._place(function.__globals__, name, value, module)

    def _read_module(self, module: types.ModuleType, code: types.CodeType) -> None:
        """What a function may take from a module of the user's by its name, `tables.make(x)`.

        Not of installed ones: from a name such as `plt` the way leads to all that a process has.
        """
        if is_installed(module):
            return
        for name in _attribute_names(code) & vars(module).keys():
            self._place(vars(module), name, vars(module)[name], module.__name__)


def _held_by(value: Any) -> list[Any]:
    """What a container, a weak reference or an object holds: of a mapping the keys too, of a library's object none."""
    if isinstance(value, ref):
        return [value()]
    if isinstance(value, ContextVar):
        return [value.get(None)]
    if isinstance(value, MAPPINGS):
        return [*value.keys(), *value.values()]
    if isinstance(value, np.ndarray):
        return value.ravel().tolist() if value.dtype == object else []
    if isinstance(value, SEQUENCES):
        return list(value)
    if not _has_attributes(value) or _is_library(type(value).__module__):
        return []
    return [at(value, name) for name in attributes_of(value)]


def without_cache(value: Any, wrapped: Callable[[Any], Any] = lambda function: function) -> Any:
    """The function behind `functools.lru_cache`, in the property or static method that it is in; else None.

    wrapped  what is put around the function
    """
    if isinstance(value, property):
        getter = without_cache(value.fget, wrapped)
        return None if getter is None else property(getter, value.fset, value.fdel)
    if isinstance(value, (staticmethod, classmethod)):
        function = without_cache(value.__func__, wrapped)
        return None if function is None else type(value)(function)
    return wrapped(value.__wrapped__) if hasattr(type(value), "cache_info") else None


def cache_of(value: Any) -> Any:
    """What `functools.lru_cache` made, taken out of the property or static method that it is in."""
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def _global_names(code: types.CodeType) -> set[str]:
    """The globals that a function, and the functions inside it, read or write."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "STORE_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _attribute_names(code: types.CodeType) -> set[str]:
    """The attributes that a function, and the functions inside it, read."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_attribute_names, inner))


def at(holder: Any, name: str) -> Any:
    """What stands in a place; NOTHING where nothing does."""
    if isinstance(holder, dict):
        return alive(holder.get(name, NOTHING))
    if isinstance(holder, type):
        return alive(vars(holder).get(name, NOTHING))
    try:
        return alive(getattr(holder, name))
    except Exception:  # a cell that is empty; an object that stands for a package which is not there
        return NOTHING


def put(holder: Any, name: str, value: Any) -> None:
    """Put a value, or nothing, in a place; in a frozen one of dataclasses or attrs too, where it is put back."""
    is_frozen = dataclasses.is_dataclass(holder) or hasattr(type(holder), "__attrs_attrs__")
    own = getattr(holder, "__dict__", None) if is_frozen else None
    holder = holder if own is None or isinstance(holder, type) else own
    if isinstance(holder, dict):
        if value is NOTHING:
            holder.pop(name, None)
        else:
            holder[name] = value
    elif value is NOTHING:
        delattr(holder, name)
    elif is_frozen and not isinstance(holder, type):  # with slots
        object.__setattr__(holder, name, value)
    else:
        setattr(holder, name, value)


class Company:
    """Functions that run beside a model, a loss and its like; it lives as long as the problem that they belong to."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self.functions = tuple(functions)
        self.watched: list[Any] = []  # what their passes change though it is far, see `module_state`

    @functools.cached_property
    def reader(self) -> _Reader:
        """What they keep, read once."""
        reader = _Reader()
        for function in self.functions:
            reader.read(function)
        return reader


_of_class: dict[type, tuple[tuple[Place, ...], tuple[Place, ...]]] = {}  # places, and those of caches
_of_model: WeakKeyDictionary[nn.Module, list[ref[Company]]] = WeakKeyDictionary()
_original_of: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()  # of a copy the model it is one of


def accompany(model: nn.Module, functions: Sequence[Callable[..., Any]]) -> Company:
    """Let what these functions keep be looked after wherever this model is borrowed, while the result is alive."""
    companies = _companies(model)
    for company in companies:
        if len(company.functions) == len(functions) and all(map(operator.is_, company.functions, functions)):
            return company
    company = Company(functions)
    _of_model[model] = [ref(each) for each in [*companies, company]]
    return company


def accompany_as(twin: nn.Module, model: nn.Module) -> None:
    """Let a copy of a model have the same company."""
    _of_model[twin] = [ref(each) for each in _companies(model)]
    _original_of[twin] = ref(model)


def watch(model: nn.Module, values: Sequence[Any]) -> None:
    """Let these be looked after, however far they are from the functions that accompany a model."""
    for company in _companies(model):
        company.watched.extend(values)


def watched_beside(model: nn.Module) -> list[Any]:
    """What is looked after though it is far."""
    return [value for company in _companies(model) for value in company.watched]


def places_of(model: nn.Module) -> list[Place]:
    """Where the code of a model's classes, and of the functions that accompany it, may keep something."""
    places = [place for cls in _classes_of(model) for place in _places_of_class(cls)[0]]
    for company in _companies(model):
        places.extend(company.reader.places.values())
    return places


def caches_of(model: nn.Module) -> list[Place]:
    """Where functions behind `functools.lru_cache` stand that a model's classes, or what accompanies it, may call."""
    places = [place for cls in _classes_of(model) for place in _places_of_class(cls)[1]]
    for company in _companies(model):
        places.extend(company.reader.caches.values())
    return list({(id(holder), name): (holder, name) for holder, name in places}.values())


def _classes_of(model: nn.Module) -> set[type]:
    """Of its modules and of those that its loss uses."""
    return {type(m) for m in (*modules_of(model), *modules_beside(model))}


def name_of_place(model: nn.Module, holder: Any, name: str) -> str:
    """What people call a place: the variable of a closure, or the class and its attribute."""
    if isinstance(holder, type):
        return f"{holder.__name__}.{name}"
    if isinstance(holder, types.CellType):
        names = (company.reader.variables.get(id(holder)) for company in _companies(model))
        return next(filter(None, names), "a variable of a closure")
    return name


def modules_beside(model: nn.Module) -> list[nn.Module]:
    """The modules that a model's loss uses: criteria, teachers, critics; not the model itself, nor what it copies."""
    own = [model, *_originals_of(model)]
    return [m for root in _roots(model) if not any(root is each for each in own) for m in root.modules()]


def originals_beside(model: nn.Module) -> list[nn.Module]:
    """The modules of what this model is a copy of, where its loss uses that."""
    own = _originals_of(model)
    return [m for root in _roots(model) if any(root is each for each in own) for m in root.modules()]


def _roots(model: nn.Module) -> list[nn.Module]:
    return [root for company in _companies(model) for root in company.reader.modules.values()]


def _originals_of(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    last: nn.Module | None = model
    while last is not None and last in _original_of:
        last = _original_of[last]()
        found.extend([] if last is None else [last])
    return found


def _companies(model: nn.Module) -> list[Company]:
    return [company for each in _of_model.get(model, ()) if (company := each()) is not None]


def _places_of_class(cls: type) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    if cls not in _of_class:
        reader = _Reader()
        for each in cls.__mro__:
            reader.read_class(each)
        _of_class[cls] = tuple(reader.places.values()), tuple(reader.caches.values())
    return _of_class[cls]
