"""A surface with a thread for each core, beside programs that keep the cores busy.

    python benchmarks/beside_others.py [--busy 2] [--repeats 3]

`lossmap surface` of the zoo's mlp over 121 points, as it is, and with the turns that GCC's OpenMP takes by default
(GOMP_SPINCOUNT=300000); in turns, alone and beside so many busy programs. Reported is the smallest time between the
first point and the last, as the command says it in its file, in seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lossmap.parallel.process import available_cores

COMMAND = "surface --model mlp --x=-1:1:11 --y=-1:1:11 --no-probe"
KINDS = {"as it is": {}, "by default": {"GOMP_SPINCOUNT": "300000"}}


def seconds(variables: dict[str, str]) -> float:
    """Seconds of the survey's points, all together."""
    import lossmap

    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "surface.h5")
        threads = str(available_cores())
        command = [sys.executable, "-m", "lossmap", *COMMAND.split(), "--threads", threads, "--surf-file", str(path)]
        subprocess.run(command, env=own | variables, check=True, capture_output=True)
        return float(np.nansum(lossmap.read(path)["loss_seconds"]))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--busy", type=int, default=available_cores())
    flags.add_argument("--repeats", type=int, default=3)
    options = flags.parse_args()
    print("| beside | " + " | ".join(f"{kind}, s" for kind in KINDS) + " | ratio |")
    print("|---|---|---|---|")
    for busy in (0, options.busy):
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            each = [{kind: seconds(variables) for kind, variables in KINDS.items()} for _ in range(options.repeats)]
        finally:
            for loop in loops:
                loop.kill()
        own, default = (min(one[kind] for one in each) for kind in KINDS)
        print(f"| {busy} busy programs | {own:.2f} | {default:.2f} | {default / own:.1f} |", flush=True)


if __name__ == "__main__":
    main()
