"""The user's own files that a file of code imports, as far as its import statements show. No torch, nothing is run.

Of two run folders with the same `net.py` and another `config.py` beside it, each is another network. Looked for are
files beside the one that imports, in the folder of its package for relative imports, and in the campaign's folder. What
is imported by a name that is made while the code runs is not found.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from lossmap.special_files import plain_text

MAX_FILES = 500  # that one file leads to

Import = tuple[int, str, tuple[str, ...]]  # level of a relative import, module, names


def imported_files(file: Path, folder: Path) -> list[Path]:
    """The user's own files that `file` imports, and those that they import, sorted; without itself.

    folder  a further one in which modules are looked for
    """
    file = Path(os.path.realpath(file))
    found, to_read = {file}, [file]
    while to_read and len(found) < MAX_FILES:
        path = to_read.pop()
        for other in _imports_of(path, (file.parent, Path(os.path.realpath(folder)))):
            if other not in found:
                found.add(other)
                to_read.append(other)
    return sorted(found - {file})


def module_file(module: str, folder: Path) -> Path | None:
    """The file of `package.module` below a folder; None where there is none."""
    files = _files_of(folder, module.split("."))
    return files[-1] if files and files[-1].stem in (module.rpartition(".")[2], "__init__") else None


def _imports_of(path: Path, roots: tuple[Path, ...]) -> Iterator[Path]:
    try:
        status = os.stat(path)
        imports = _statements(str(path), (status.st_mtime_ns, status.st_size, status.st_ino))
    except OSError:
        return
    for level, module, names in imports:
        places = roots
        if level:
            places = (path.parents[level - 1],) if level <= len(path.parents) else ()
        parts = module.split(".") if module else []
        for place in places:
            yield from _files_of(place, parts)
            for name in names:  # from package import module
                yield from _files_of(place, [*parts, name])


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


@functools.lru_cache(maxsize=2000)
def _statements(path: str, stamp: tuple[int, ...]) -> tuple[Import, ...]:
    """The imports in a file, wherever they stand in it. `stamp` tells the versions of the file apart."""
    try:
        tree = ast.parse(plain_text(path))
    except (OSError, ValueError, SyntaxError, RecursionError):  # the command that runs it says what is wrong
        return ()
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return tuple(imports)
