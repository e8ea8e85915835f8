"""The one console entry: `lossmap COMMAND ...` finds the door and opens it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from lossmap.cli import DOORS
from lossmap.cli.settings import launched_rank


def usage() -> str:
    """What `lossmap --help` prints."""
    rows = "\n".join(f"  {name:10} {about}" for name, (_, _, about) in DOORS.items())
    return (
        "usage: lossmap COMMAND [flags]\n\nSurvey the loss landscape of a trained network, and read its curvature.\n\n"
        f"commands:\n{rows}\n\nlossmap COMMAND --help tells the flags. Under mpirun or srun the ranks share the work."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Open the door that was named; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from lossmap import __version__

        print(f"lossmap {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in DOORS:
        near = difflib.get_close_matches(name, DOORS, 2, 0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see lossmap --help"
        if launched_rank() == 0:
            print(f"lossmap: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    room, door, _ = DOORS[name]
    code: int = getattr(import_module(room), door)(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
