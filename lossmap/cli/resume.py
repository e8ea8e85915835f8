"""`lossmap resume FILE`: continue a result, with the settings that it holds; no flags are needed.

Flags of the command that made it may follow, such as --retry-failed or --batch-size. It may run under mpirun or srun
like any survey, also with another number of ranks than before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmap.cli.entry_point import command_words, guarded
from lossmap.cli.setting_groups import moving_parameters
from lossmap.cli.settings import UsageError, decode_settings
from lossmap.cli.wrapped_command import SURVEYS, TASKS, module_of
from lossmap.io.read import read
from lossmap.io.surface import Surface
from lossmap.landscape.survey_file import PYTHON
from lossmap.parallel.shards import unsharded

# What belongs to one run alone, and is not taken up again.
ONCE = ("overwrite", "dry_run", "stop_after", "retry_failed", "plot", "page", "vtk", "show")
EXAMPLES = (
    "lossmap resume surface.h5",
    "lossmap resume surface.h5 --retry-failed --batch-size 64",
    "mpirun -n 4 lossmap resume eigenmap.h5",
)


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
    if words[0].startswith("-"):
        raise UsageError(f"the result must come first: lossmap resume FILE {words[0]} ...")
    path = Path(words[0]).absolute()
    surface = read(path)
    command = command_of(surface, path)
    defaults, folder = settings_of(surface, command, path)
    if not folder.is_dir():
        raise UsageError(
            f"{path} was started in {folder}, which does not exist here; its model and data were named from there"
        )
    os.chdir(folder)
    code: int = module_of(command).main(words[1:], defaults=defaults)
    return code


def usage() -> str:
    """The text of `lossmap resume --help`."""
    examples = "\n  ".join(["EXAMPLES", *EXAMPLES])
    return f"usage: lossmap resume FILE [flags]\n\n{__doc__}\n{examples}"


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
    stored = decode_settings(surface.attributes[stored_under(surface, command) or ""])
    values = {name: value for name, value in stored["settings"].items() if name not in ONCE}
    if values.get("along"):  # a run of version 0.1: only the checkpoints that it names were read
        values["model_folder"] = None
    values["plane_parameters"] = moving_parameters(values, surface.groups)
    if values.get("shard"):
        path, _ = unsharded(path)
    return values | {"surf_file": str(path)}, Path(stored["folder"])
