"""Whose code a result names: a file that somebody else made must not make a command run somebody else's code.

A result names models, data, losses, metrics and problems by the file and function that make them, and the folder in
which its command was started. `lossmap resume` imports those. It does so unasked where each file lies below the current
folder and belongs to the person who runs the command (or to root), in a folder that nobody else may write; packages
that are installed count as that person's own. Otherwise it names the files and asks; without a terminal it ends with
exit code 2 and the flag to add, `--trust`.
"""

from __future__ import annotations

import importlib.machinery
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lossmap.cli.settings import UsageError
from lossmap.io.printable import printable

CODE = ("model", "dataset", "loss", "metric", "problem")  # the settings that may name code
MAX_NAMED = 5  # files in a question


def code_files(settings: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files of code that these settings name, as they would be found from this folder; installed ones left out."""
    files: dict[Path, None] = {}
    for name in CODE:
        value = settings.get(name)
        for spec in [value] if isinstance(value, str) else value or ():
            files |= dict.fromkeys(_files_of(str(spec), folder))
    return list(files)


def _files_of(spec: str, folder: Path) -> Iterator[Path]:
    home, colon, _ = spec.rpartition(":")
    if not colon:
        return
    if home.endswith(".py"):
        yield (folder / home).resolve()
        return
    top = home.split(".")[0]
    if not top.isidentifier() or _is_installed(top):
        return
    for place in (folder / f"{top}.py", folder / top / "__init__.py", folder / top):
        if place.exists():
            yield place.resolve()
            return


def _is_installed(top: str) -> bool:
    """Whether a package is found without the folder: of the installation, not of the current folder. Runs no code."""
    here = os.getcwd()
    path = [entry for entry in sys.path if entry and os.path.abspath(entry) != here]
    return top in sys.builtin_module_names or importlib.machinery.PathFinder.find_spec(top, path) is not None


def why_foreign(file: Path, start: Path) -> str | None:
    """Why a file of code is not this person's own; None where it is, or where there is no such file.

    start  the folder in which the command was started
    """
    if not file.exists():  # to import it says so
        return None
    if not file.is_relative_to(start.resolve()):
        return "not below the current folder"
    for place in (file, file.parent):
        about = place.stat()
        if about.st_uid not in (os.geteuid(), 0):
            return f"belongs to {_owner(about.st_uid)}"
        if about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX:
            return "may be written by everybody"
    return None


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def foreign_code(result: Path, files: Sequence[Path], start: Path) -> str | None:
    """A sentence on the code that is not known to be this person's own; None where there is none."""
    foreign = {file: reason for file in files if (reason := why_foreign(file, start))}
    if not foreign:
        return None
    named = [f"{file} ({reason})" for file, reason in foreign.items()]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"{result} would run code that is not known to be yours: {', '.join(named[:MAX_NAMED])}{more}"


def confirm_code(result: Path, files: Sequence[Path], start: Path, command: str) -> None:
    """Return where the code may be run; ask where it is not this person's own.

    command  what runs it without a question

    Raises UsageError where the answer is no, and where there is nobody to ask.
    """
    text = foreign_code(result, files, start)
    if text is None:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{text}. Look at it; then, to run it: {command}")
    answer = input(printable(f"{text}\nRun it? [y/N] "))
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(f"nothing was run; to run it without a question: {command}")
