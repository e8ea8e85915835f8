"""`lossmap resume FILE`: continue a result, with the settings that it holds; no flags are needed.

Flags of the command that made it may follow, such as --retry-failed or --batch-size. It may run under mpirun or srun
like any survey, also with another number of ranks than before. Code that the result names and that is not yours is run
only when you say so; --unsafe-load is never taken from a file. A complete result runs nothing.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmap.cli.entry_point import EXIT_CODES, command_words, guarded, launched_rank
from lossmap.cli.setting_groups import moving_parameters
from lossmap.cli.settings import UsageError, decode_settings
from lossmap.cli.trust import code_files, confirm_code
from lossmap.cli.wrapped_command import SURVEYS, TASKS, module_of
from lossmap.io.methods import method_note
from lossmap.io.printable import printable
from lossmap.io.provenance import PYTHON
from lossmap.io.read import journal_of, read
from lossmap.io.surface import Surface
from lossmap.parallel.shards import unsharded

# What belongs to one run alone, and is not taken up again.
# Pickled files can run code of their own: a result of somebody else's does not say that they may.
ONCE = (
    "unsafe_load",
    "accept_change",
    "trust",
    "overwrite",
    "dry_run",
    "stop_after",
    "retry_failed",
    "plot",
    "page",
    "vtk",
    "show",
)
OWN_FLAGS = """Flags of resume:
  --folder FOLDER  folder to start in, where the result was moved; by default the one that it was started in
  --trust          run the code that the result names (model, data, loss) without a question, whoever it belongs to
"""
EXAMPLES = (
    "lossmap resume moved/surface.h5 --folder .",
    "lossmap resume surface.h5 --retry-failed --batch-size 64",
    "mpirun -n 4 lossmap resume eigenmap.h5",
)


@dataclass(frozen=True)
class Resumption:
    """What is to be continued, and how.

    path      of the result, absolute
    command   that continues it
    defaults  its settings, as the result holds them
    folder    in which it is started
    """

    path: Path
    command: str
    defaults: dict[str, Any]
    folder: Path


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the result names; returns that one's exit code, or 2 for a usage error."""
    words = command_words(argv)
    if not words:
        print(usage())
        return 2
    if words[0] in ("-h", "--help"):
        print(usage())
        return 0
    own, more = split_words(words)
    surface = read(own.file)
    if is_finished(surface, Path(own.file)) and not more:
        if launched_rank() == 0:
            print(printable(f"{own.file}: nothing is left to do"))
            if (note := method_note(surface)) is not None:
                print(note)
        return EXIT_CODES[surface.outcome]
    plan = plan_of(own, surface)
    if not own.trust:
        confirm_code(plan.path, code_files(plan.defaults, plan.folder), Path.cwd(), command_line(own, more, trust=True))
    start = os.getcwd()
    # Python looks for modules in the current folder where an entry is empty: that must not become another one.
    sys.path[:] = [entry or start for entry in sys.path]
    os.chdir(plan.folder)
    code: int = module_of(plan.command).main(more, defaults=plan.defaults)
    return code


@dataclass(frozen=True)
class OwnWords:
    """The words of the command line that are `resume`'s own."""

    file: str
    folder: str | None = None
    trust: bool = False


def split_words(words: Sequence[str]) -> tuple[OwnWords, list[str]]:
    """The words of `resume` itself, and those of the command that it runs. Raises UsageError without a result."""
    if words[0].startswith("-"):
        raise UsageError(f"the result must come first: lossmap resume FILE {words[0]} ...")
    folder, trust, more = None, False, []
    pending = list(words[1:])
    while pending:
        word = pending.pop(0)
        name, _, value = word.partition("=")
        if word == "--trust":
            trust = True
        elif name == "--folder":
            if not value and not pending:
                raise UsageError("--folder must name the folder to start in")
            folder = value or pending.pop(0)
        else:
            more.append(word)
    return OwnWords(words[0], folder, trust), more


def command_line(own: OwnWords, more: Sequence[str] = (), *, folder: str | None = None, trust: bool = False) -> str:
    """The words as a person would type them, with another folder or with --trust."""
    words = ["lossmap", "resume", own.file]
    folder = folder or own.folder
    if folder is not None:
        words += ["--folder", folder]
    if trust or own.trust:
        words.append("--trust")
    return shlex.join([*words, *more])


def plan_of(own: OwnWords, surface: Surface) -> Resumption:
    """What continues the result. Raises UsageError where it does not say, or was started in a folder that is gone."""
    path = Path(own.file).absolute()
    command = command_of(surface, path)
    defaults, folder = settings_of(surface, command, path)
    if own.folder is not None:
        folder = Path(own.folder).absolute()
        if not folder.is_dir():
            raise UsageError(f"--folder {own.folder} is not a folder")
    elif not folder.is_dir():
        line = command_line(own, folder=str(path.parent))
        raise UsageError(
            f"{path} was started in {folder}, which does not exist here; its model and data were named from there. "
            f"Where they lie elsewhere now, name that folder, such as: {line}"
        )
    return Resumption(path, command, defaults, folder)


def is_finished(surface: Surface, path: Path) -> bool:
    """Whether nothing is left to do: no point, no report, no comparison of a run's eigenspaces."""
    if surface.outcome == "unfinished" or not surface.status or journal_of(path).exists():
        return False
    return "along" not in surface.status or any(name.startswith("evolution/") for name in surface.groups)


def trusted_words(words: Sequence[str]) -> list[str]:
    """The words of a `resume` that is to run without a terminal, with --trust; asks now what it would ask then.

    words  behind `resume`
    """
    own, more = split_words(words)
    surface = read(own.file)
    if is_finished(surface, Path(own.file)) and not more:
        return list(words)
    plan = plan_of(own, surface)
    if not own.trust:
        line = shlex.join(["lossmap", "submit", "...", "--", "resume", *words, "--trust"])
        confirm_code(plan.path, code_files(plan.defaults, plan.folder), Path.cwd(), line)
    return [*words, *([] if own.trust else ["--trust"])]


def usage() -> str:
    """The text of `lossmap resume --help`."""
    examples = "\n  ".join(["EXAMPLES", *EXAMPLES])
    return f"usage: lossmap resume FILE [--folder FOLDER] [--trust] [flags]\n\n{__doc__}\n{OWN_FLAGS}\n{examples}"


def stored_under(surface: Surface, command: str) -> str | None:
    """The attribute that holds the settings of a command; None where the result was not made by it.

    Version 0.1 had no `dynamics`: it stored a run as `spectrum`, told apart by its measure.
    """
    if command in TASKS and TASKS[command] not in surface.status:
        return None
    names = [f"resolved_{command}"]
    if command == "dynamics":
        names.append("resolved_spectrum")
    return next((name for name in names if name in surface.attributes), None)


def command_of(surface: Surface, path: Path) -> str:
    """The command to continue with: the one that ran last, or else one that is unfinished."""
    measures = SURVEYS | TASKS
    commands = [c for c in measures if stored_under(surface, c)]
    if not commands and surface.attributes.get("command") == PYTHON:
        raise UsageError(
            f"{path} was begun by lossmap.survey in a program: run that again to resume, or the command that surveys "
            f"the same model, plane and data, with --surf-file {path}"
        )
    if not commands:
        raise UsageError(
            f"{path} does not say how it was made (it is not a result of a lossmap survey): nothing to resume"
        )
    last = surface.attributes.get("command")
    commands.sort(key=lambda command: command != last)
    unfinished = [c for c in commands if surface.outcome_of(measures[c]) == "unfinished"]
    return (unfinished or commands)[0]


def settings_of(surface: Surface, command: str, path: Path) -> tuple[dict[str, Any], Path]:
    """The settings of that command as the result holds them, and the folder in which it was started."""
    try:
        stored = decode_settings(surface.attributes[stored_under(surface, command) or ""])
        values = {name: value for name, value in stored["settings"].items() if name not in ONCE}
        folder = Path(stored["folder"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UsageError(f"{path} is damaged: the settings of its command {command} cannot be read") from None
    if values.get("along"):  # a run of version 0.1: only the checkpoints that it names were read
        values["model_folder"] = None
    values["plane_parameters"] = moving_parameters(values, surface)
    if values.get("shard"):
        path, _ = unsharded(path)
    return values | {"surf_file": str(path)}, folder
