"""The user's own files that a file of code imports, as far as its import statements show. No torch, nothing is run.

Of two run folders with the same `net.py` and another `config.py` or `config.json` beside it, each is another network.
Looked for are files beside the one that imports, in the folder of its package for relative imports, and in the
campaign's folder; and files with settings and data that code reads (READ) where a text in it names them, but for those
that it writes. What is imported or read by a name that is made while the code runs is not found: of code that asks
where it lies, or extends the search path, the place itself counts (`depends_on_place`).
"""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from lossmap.special_files import plain_text

MAX_FILES = 500  # that one file leads to
# endings of files with settings and with data
READ = {
    ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".csv", ".tsv", ".txt", ".npy", ".npz", ".pt", ".pth",
    ".safetensors", ".pkl", ".pickle", ".h5", ".hdf5", ".parquet", ".mat",
}  # fmt: skip
# functions that write what they are given the name of; and `open`, by its mode
WRITERS = {
    "save", "savez", "savez_compressed", "savetxt", "save_file", "save_model", "dump", "to_csv", "to_json",
    "to_parquet", "to_pickle", "write_text", "write_bytes", "unlink", "remove",
}  # fmt: skip
PLACES = {"__file__", "__spec__", "__path__", "import_module", "__import__", "getfile", "getsourcefile"}

Import = tuple[int, str, tuple[str, ...]]  # level of a relative import, module, names


class _Statements(NamedTuple):
    """What a file of code says of others.

    imports  that stand anywhere in it
    texts    names of files with settings or data that it does not write
    places   whether it asks where it lies, or extends the path on which modules are searched
    """

    imports: tuple[Import, ...] = ()
    texts: tuple[str, ...] = ()
    places: bool = False


def imported_files(file: Path, folder: Path) -> list[Path]:
    """The user's own files that `file` imports, those that they import, and what these read; without itself.

    folder  a further one in which they are looked for

    Sorted.
    """
    file = Path(os.path.realpath(file))
    found, to_read = {file}, [file]
    while to_read and len(found) < MAX_FILES:
        path = to_read.pop()
        roots = (file.parent, Path(os.path.realpath(folder)))
        for other in (*_imports_of(path, roots), *_settings_of(path, roots)):
            if other not in found:
                found.add(other)
                if other.suffix == ".py":
                    to_read.append(other)
    return sorted(found - {file})


def depends_on_place(file: Path, imported: list[Path], folder: Path) -> bool:
    """Whether the same text in another folder may be other code: of a file, or of one that it imports.

    It is where one of them asks where it lies, or imports what is found neither beside it nor among the installed.
    """
    roots = (Path(os.path.realpath(file)).parent, Path(os.path.realpath(folder)))
    for path in (file, *(other for other in imported if other.suffix == ".py")):
        statements = _read(path)
        tops = {module.partition(".")[0] for level, module, _ in statements.imports if not level}
        if statements.places or not all(_is_installed(top) or any(_files_of(r, [top]) for r in roots) for top in tops):
            return True
    return False


@functools.cache
def _is_installed(module: str) -> bool:
    if module in sys.builtin_module_names or module in sys.stdlib_module_names:
        return True
    try:
        return PathFinder.find_spec(module, [p for p in sys.path if p not in ("", os.getcwd())]) is not None
    except (ImportError, ValueError):
        return False


def module_file(module: str, folder: Path) -> Path | None:
    """The file of `package.module` below a folder; None where there is none."""
    files = _files_of(folder, module.split("."))
    return files[-1] if files and files[-1].stem in (module.rpartition(".")[2], "__init__") else None


def _imports_of(path: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    for level, module, names in _read(path).imports:
        places = roots
        if level:
            places = (path.parents[level - 1],) if level <= len(path.parents) else ()
        parts = module.split(".") if module else []
        for place in places:
            yield from _files_of(place, parts)
            for name in names:  # from package import module
                yield from _files_of(place, [*parts, name])


def _settings_of(path: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    """The files with settings and data that a file of code names: beside it, or below a root."""
    for text in _read(path).texts:
        for place in (path.parent, *roots):
            if (place / text).is_file():
                yield Path(os.path.realpath(place / text))


def _files_of(root: Path, parts: list[str]) -> list[Path]:
    """The files that importing a.b.c from a folder runs, in their order: of its packages, and its own."""
    files = []
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        for candidate in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if candidate.is_file():
                files.append(Path(os.path.realpath(candidate)))
                break
    return files


def _read(path: Path) -> _Statements:
    try:
        status = os.stat(path)
    except OSError:
        return _Statements()
    return _statements(str(path), (status.st_mtime_ns, status.st_size, status.st_ino))


@functools.lru_cache(maxsize=2000)
def _statements(path: str, stamp: tuple[int, ...]) -> _Statements:
    """What stands in a file, wherever it stands. `stamp` tells the versions of the file apart."""
    try:
        tree = ast.parse(plain_text(path))
    except (OSError, ValueError, SyntaxError, RecursionError):  # the command that runs it says what is wrong
        return _Statements()
    imports: list[Import] = []
    texts: set[str] = set()
    written: set[str] = set()
    places = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
            places |= node.module == "sys" and any(alias.name == "path" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if os.path.splitext(node.value)[1].lower() in READ and "\0" not in node.value:
                texts.add(node.value)
        elif isinstance(node, ast.Call) and _writes(node):
            written |= set(_texts_in(node))
        elif isinstance(node, ast.Name):
            places |= node.id in PLACES
        elif isinstance(node, ast.Attribute):
            places |= node.attr in PLACES or (node.attr == "path" and getattr(node.value, "id", "") == "sys")
    return _Statements(tuple(imports), tuple(sorted(texts - written)), places)


def _writes(call: ast.Call) -> bool:
    """Whether a call writes, or removes, a file that is named in it."""
    name = getattr(call.func, "attr", "") or getattr(call.func, "id", "")
    modes = [text for text in _texts_in(call) if len(text) <= 3 and set("wax") & set(text)]
    return name in WRITERS or (name == "open" and bool(modes))


def _texts_in(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
