"""A user's functions by name: `package.module:function`, or `path/file.py:function`.

What runs is what the file holds when it is imported: no bytecode of an earlier import, which Python takes where a file
of the same size was changed within the same second. Its SHA-256 is kept, so that a process that goes on after the file
was edited knows it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from lossmap.installed import is_installed
from lossmap.process_state import enter, imported_again, imported_digests, recorded_import, why_anew
from lossmap.special_files import SPECIAL, is_special

_digests: dict[Path, str] = {}  # of the files that this process has imported, as they were then


def resolve_callable(spec: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `path/file.py:function` names.

    A file is imported once, however often it is named, and may import its neighbours; what it draws then is the same
    in each process. Dots after the colon
    reach into classes. Raises ValueError where the text, the file, the module or the name is wrong, or where
    importing fails.
    """
    home, colon, name = spec.rpartition(":")
    if not colon or not home or not name:
        raise ValueError(f"{spec!r} must have the form package.module:function or path/file.py:function")
    module = _from_file(Path(home)) if home.endswith(".py") else _from_package(home)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, [n for n in vars(value) if not n.startswith("_")], 3)
            message = f"{home} has nothing named {part!r}"
            if near:
                message += f"; it has {', '.join(near)}"
            raise ValueError(message)
        value = getattr(value, part)
    if not callable(value):
        raise ValueError(f"{spec} is a {type(value).__name__} and cannot be called")
    result: Callable[..., Any] = value
    return result


@contextmanager
def kept_folder() -> Iterator[None]:
    """Inside, code of a person's may change the current folder; afterwards it is as before: other paths start there.

    A file that does so when it is imported is in its folder again whenever it is named inside.
    """
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def imported_digest(path: Path) -> str | None:
    """The SHA-256 of a file as this process imported it; None where it did not, by its path or beside one."""
    path = path.resolve()
    if _module_name(path) in sys.modules and path in _digests:
        return _digests[path]
    return next(iter(imported_digests(path)), None)


def is_imported_otherwise(path: Path, digest: str) -> bool:
    """Whether this process has imported a file, by its path or beside one, when its SHA-256 was another one."""
    path = path.resolve()
    if _module_name(path) in sys.modules:
        return _digests.get(path, digest) != digest
    return bool(imported_digests(path) - {digest})


def _module_name(path: Path) -> str:
    """A name of its own, so that two files called data.py are two modules."""
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _from_file(path: Path) -> ModuleType:
    if is_special(path):
        raise ValueError(f"{path} {SPECIAL}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    path = path.resolve()
    name = _module_name(path)
    enter(path.parent, _is_own, _same_draws)
    if name in sys.modules:
        imported_again(sys.modules[name])
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not isinstance(spec.loader, SourceLoader):
        raise ValueError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, which dataclasses and pickles rely on
    try:
        source = path.read_bytes()
        _digests[path] = hashlib.sha256(source).hexdigest()
        with recorded_import(module, named=True), _same_draws():
            exec(spec.loader.source_to_code(source, str(path)), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        raise _failed(str(path), error, path) from error
    return module


def _from_package(home: str) -> ModuleType:
    try:
        enter(Path.cwd(), _is_own, _same_draws)
        if home in sys.modules:
            imported_again(sys.modules[home])
            return sys.modules[home]
        return importlib.import_module(home)
    except BaseException as error:
        raise _failed(home, error) from error


@contextmanager
def _same_draws() -> Iterator[None]:
    """Inside, a file of the user's is executed: what it draws from global generators is the same in each process.

    A network in a global has then the same weights on all ranks and in all runs, whatever asked for the file first.
    """
    from lossmap.seeding import same_random_state  # torch, which plans are made without

    with same_random_state(devices=False):
        yield


def _is_own(module: ModuleType) -> bool:
    return not is_installed(module)


def _failed(home: str, error: BaseException, file: Path | None = None) -> BaseException:
    if isinstance(error, KeyboardInterrupt):
        return error
    changed, advice = why_anew(error), ""
    if changed:
        advice = (
            f"; the file is executed once more, since a member before this one has changed {changed}: make that anew "
            "in the function instead, or let the file register only what is not there yet"
        )
    if file is not None and isinstance(error, ImportError) and "relative import" in str(error):
        package, name = file.parent, file.stem
        while (package / "__init__.py").is_file():
            package, name = package.parent, f"{package.name}.{name}"
        advice = (
            f"; name it as a part of its package, {name}:... in place of {file.name}:..., from the folder {package}"
        )
    return ValueError(f"importing {home} failed: {type(error).__name__}: {error}{advice}")
