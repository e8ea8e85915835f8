"""From a few points to a finished file on a cluster: `lossmap estimate | submit | status | resume | merge | campaign`.

python scheduler.py estimate -- surface --model resnet56 --model-file net.t7 --x=-1:1:51 --y=-1:1:51
python scheduler.py submit --nodes 2 --time 4:00:00 --requeue -- surface ...
python scheduler.py status surface.h5           exits 0 complete, 3 some points failed, 75 unfinished
python scheduler.py resume surface.h5
python scheduler.py merge surface.h5
python scheduler.py campaign sweep.toml plan    many surveys as one: plan, run, submit, status, collect, report
"""

import sys

from lossmap.cli.__main__ import main as lossmap

COMMANDS = ("estimate", "submit", "status", "resume", "merge", "campaign")


def main() -> int:
    """Run the command that is named first; returns its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    return lossmap(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
