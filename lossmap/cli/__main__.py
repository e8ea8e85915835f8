"""The console entry point: `lossmap COMMAND ...` imports the module of that subcommand and runs it."""

from __future__ import annotations

import difflib
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lossmap.cli import COMMANDS
from lossmap.cli.entry_point import command_words, launched_rank
from lossmap.parallel.command_clock import IMPORTED, start_clock, stop_clock
from lossmap.parallel.end_mark import mark_end
from lossmap.parallel.process import let_threads_sleep
from lossmap.parallel.shutdown import keep_signals

# commands that a signal asks to stop; of `campaign` some of the actions
STOPPABLE = ("surface", "eigenmap", "spectrum", "sharpness", "connect", "dynamics", "resume", "train", "study")


def usage() -> str:
    """The text of `lossmap --help`."""
    rows = "\n".join(f"  {name:10} {summary}" for name, (_, _, summary) in COMMANDS.items())
    return (
        "usage: lossmap COMMAND [flags]\n\nSurvey the loss landscape of a trained network, and read its curvature.\n\n"
        f"commands:\n{rows}\n\nlossmap COMMAND --help lists the flags, with examples. Under mpirun or srun the ranks "
        "share the work.\n\nEXAMPLES\n"
        "  lossmap surface --model mlp --x=-1:1:11 --y=-1:1:11 --plot\n"
        "  lossmap spectrum --model resnet20-w8 --model-file net.pt\n"
        "  lossmap demo"
    )


def unknown_command(name: str) -> str:
    """The error for a command that does not exist, with the nearest ones."""
    nearest = difflib.get_close_matches(name, COMMANDS, 2, 0.5)
    if nearest:
        return f"unknown command {name!r}; did you mean {' or '.join(nearest)}?"
    return f"unknown command {name!r}; see lossmap --help"


def _imported_for_good(module: str) -> Any:
    """A module, imported into a process that does nothing else but its command.

    The collector of reference cycles never looks at what is imported, which lives as long as the process does: looking
    again and again at all of matplotlib is a good part of what `lossmap draw` takes (`benchmarks/draw.py`).
    """
    gc.disable()
    try:
        loaded = import_module(module)
    finally:
        gc.freeze()
        gc.enable()
    return loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that is named first; returns its exit code, or 2 for a usage error."""
    words = command_words(argv)
    if not words:
        print(usage())
        return 2
    if words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("--version", "-V"):
        from lossmap import __version__

        print(f"lossmap {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        if launched_rank() == 0:
            print(f"lossmap: {unknown_command(name)}", file=sys.stderr)
        return 2
    if name in STOPPABLE or (name == "campaign" and {"run", "resume", "retry"} & set(rest[:3])):
        keep_signals()  # before torch is imported, which takes seconds
    let_threads_sleep(os.environ)
    module, function, _ = COMMANDS[name]
    start_clock(IMPORTED if argv is None else None)
    if "lossmap.cli.load_model" in sys.modules:  # of a command before, in a notebook
        sys.modules["lossmap.cli.load_model"].say_once.cache_clear()
    try:
        loaded = import_module(module) if argv is not None else _imported_for_good(module)
        code: int = getattr(loaded, function)(rest)
    finally:
        stop_clock()
    if launched_rank() == 0:
        mark_end(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
