"""The one console entry: `lossmap COMMAND ...` finds the door and opens it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

DOORS = {
    "surface": ("lossmap.commands.surface", "main", "losses and accuracies over a line or plane, drawn"),
    "eigenmap": ("lossmap.commands.eigenmap", "main", "extreme Hessian eigenvalues over the same grid"),
    "spectrum": ("lossmap.commands.spectrum", "main", "curvature at one checkpoint, or --along a run of them"),
    "health": ("lossmap.commands.health", "main", "whether a network is in good health, and why"),
    "plane": ("lossmap.commands.plane", "main", "make and inspect planes, project a training path"),
    "draw": ("lossmap.commands.draw", "main", "draw what a result file holds"),
    "watch": ("lossmap.commands.draw", "watch", "draw it again while it grows"),
    "estimate": ("lossmap.commands.estimate", "main", "what a survey will cost, from a few points"),
    "submit": ("lossmap.commands.submit", "main", "run on SLURM"),
    "status": ("lossmap.commands.status", "main", "how far a result is; exits 0, 3 or 75 by what the file says"),
    "resume": ("lossmap.commands.resume", "main", "go on with a result, with no flags at all"),
    "merge": ("lossmap.commands.merge", "main", "join the shards of an array"),
    "train": ("lossmap.commands.train", "main", "a small trainer that leaves checkpoints behind"),
    "demo": ("lossmap.commands.demo", "main", "train two small nets, survey and draw them"),
}


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
        print(f"lossmap: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    room, door, _ = DOORS[name]
    code: int = getattr(import_module(room), door)(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
