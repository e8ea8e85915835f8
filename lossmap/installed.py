"""Which modules and files are installed: Python's, those of its packages, lossmap itself. All others are the user's."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType


def is_installed(module: ModuleType) -> bool:
    """Whether a module is Python's, or of an installed package; one that was typed at a prompt is not."""
    file = module.__dict__.get("__file__")  # not by getattr, at which one that is loaded when first used would load
    if isinstance(file, str):
        return file.startswith(installed_prefixes())
    return module.__name__.partition(".")[0] in sys.stdlib_module_names


def _as_named() -> list[str]:
    """Folders of what is installed, as they are named."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    return [*folders, str(Path(__file__).parent)]


@functools.cache
def installed_folders() -> tuple[Path, ...]:
    """Folders of what is installed, with links followed."""
    return tuple(Path(os.path.realpath(folder)) for folder in _as_named())


@functools.cache
def installed_prefixes() -> tuple[str, ...]:
    """How names of installed files begin, with and without links followed."""
    return tuple(f"{folder}{os.sep}" for folder in (*_as_named(), *map(str, installed_folders())))
