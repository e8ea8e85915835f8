"""`lossmap resume FILE`: go on with a result, by the settings that it holds; no flags are needed.

Flags of the command that made it may follow, such as --retry-failed or --batch-size. It may run under mpirun or srun
like any survey, also with another number of ranks than before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmap.cli.settings import UsageError, guarded
from lossmap.cli.wrapped_command import MEASURES, room_of, unsharded
from lossmap.io.read import read
from lossmap.io.surface import Surface

# What belongs to one run alone, and is not taken up again.
ONCE = ("overwrite", "dry_run", "stop_after", "retry_failed", "plot", "page", "vtk", "show")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Open this door, and behind it the one that the result names; returns that one's exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: lossmap resume FILE [flags]\n\n{__doc__}")
        return 0 if words else 2
    if words[0].startswith("-"):
        raise UsageError(f"the result comes first: lossmap resume FILE {words[0]} ...")
    path = Path(words[0]).absolute()
    surface = read(path)
    command = command_of(surface, path)
    given, folder = settings_of(surface, command, path)
    if not folder.is_dir():
        raise UsageError(f"{path} was begun in {folder}, which is not here; its model and data were named from there")
    os.chdir(folder)
    code: int = room_of(command).main(words[1:], given=given)
    return code


def command_of(surface: Surface, path: Path) -> str:
    """The command to go on with: the one that ran last, or else one that has more to do."""
    parts = "along" if "along" in surface.status else "spectrum"  # dealt as points are, over no plane
    measures = MEASURES | {"spectrum": parts}
    known = [c for c in measures if f"resolved_{c}" in surface.attributes]
    if not known:
        raise UsageError(
            f"{path} does not say how it was made (it is no result of a lossmap survey): nothing to resume"
        )
    last = surface.attributes.get("command")
    known.sort(key=lambda command: command != last)
    unfinished = [c for c in known if surface.outcome_of(measures[c]) == "unfinished"]
    return (unfinished or known)[0]


def settings_of(surface: Surface, command: str, path: Path) -> tuple[dict[str, Any], Path]:
    """The settings of that command as the result holds them, and the folder in which it was begun."""
    told = surface.attributes[f"resolved_{command}"]
    told = json.loads(told) if isinstance(told, str) else told
    given = {name: value for name, value in told["settings"].items() if name not in ONCE}
    whole, _ = unsharded(path) if given.get("shard") else (path, None)
    return given | {"surf_file": str(whole)}, Path(told["folder"])
