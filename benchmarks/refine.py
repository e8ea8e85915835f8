"""How many points `--refine` measures, and how far its picture is off, against the full grid and its own estimate.

    python benchmarks/refine.py [--quick]

Two networks like the demo's (with and without skip connections) are trained on the packaged digits, and their losses
are measured at all 101x101 points of a filter-normalized plane; a rugged function of the plane is the third. Then the
refinement is run on the values that are known so, at 5, 2 and 1 % of the range. Printed are the share of points that it
took, the error that it tells, and the largest and the root mean square error over all points, relative to the range of
the loss, or of its logarithm where that is interpolated. No figure depends on the machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import lossmap
from lossmap.geometry.grid import Grid
from lossmap.landscape.refinement import interpolated, next_round

TOLERANCES = (0.05, 0.02, 0.01)
NETS = ("resnet20-w8", "resnet20-w8-noshort", "mlp")


def rugged(grid: Grid) -> np.ndarray:
    """A bowl with waves along it, (y, x)."""
    x, y = np.meshgrid(grid.x, grid.x)
    waves: np.ndarray = 0.4 * np.sin(9 * x) * np.cos(7 * y) + 0.2 * np.sin(17 * x + 11 * y)
    return 2 + x**2 + y**2 + waves


def measured(net: str, points: int, folder: Path) -> np.ndarray:
    """The loss at all points, (y, x)."""
    weights, result, axis = folder / f"{net}.pt", folder / f"{net}.h5", f"-1:1:{points}"
    for words in (
        ["train", "--model", net, "--epochs", "3", "--samples", "512", "--final", str(weights)],
        ["surface", "--model", net, "--model-file", str(weights), "--samples", "128", f"--x={axis}", f"--y={axis}",
         "--surf-file", str(result)],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", "lossmap", *words], check=True, stdout=subprocess.DEVNULL)
    return lossmap.read(result, lossmap.Surface)["train_loss"]


def row(name: str, grid: Grid, values: np.ndarray, tol: float) -> str:
    """A line of the table."""
    rounds = np.full(grid.shape, -1)
    while True:
        step = next_round(grid, [values], rounds, rounds >= 0, tol)
        if not step.points.size:
            break
        rounds.reshape(-1)[step.points] = rounds.max() + 1
    drawn = interpolated(grid, values, rounds >= 0)
    shown, truth = (np.log10(v) if drawn.log else v for v in (drawn.values, values))
    off = np.abs(shown - truth) / np.ptp(truth)
    return (
        f"| {name} | {tol:.0%} | {rounds.max() + 1} | {np.mean(rounds >= 0):.1%} | {step.error:.2%} | {off.max():.2%} "
        f"| {step.error / off.max():.2f} | {np.sqrt(np.mean(off**2)):.3%} | {'log' if drawn.log else 'linear'} |"
    )


def main() -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--quick", action="store_true", help="the rugged function, and the smallest network on 41x41 points"
    )
    quick = flags.parse_args().quick
    points = 41 if quick else 101
    grid = Grid.square(-1, 1, points)
    print("| surface | asked | rounds | points | told, worst | true, worst | told / true | true, rms | scale |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("rugged", *(("mlp",) if quick else NETS)):
            values = rugged(grid) if name == "rugged" else measured(name, points, Path(folder))
            for tol in TOLERANCES:
                print(row(name, grid, values, tol), flush=True)


if __name__ == "__main__":
    main()
