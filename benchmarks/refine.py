"""How many points `--refine` measures, and how far its picture is off, against the full grid and its own estimate.

    python benchmarks/refine.py [--quick | --drawn]

Two networks like the demo's (with and without skip connections) are trained on the packaged digits, and their losses
are measured at all 101x101 points of a filter-normalized plane; a rugged function of the plane is the third. Then the
refinement is run on the values that are known so, at 5, 2 and 1 % of the range. Printed are the share of points that it
took, the error that it tells, and the largest and the root mean square error over all points, relative to the range of
the loss, or of its logarithm where that is interpolated. No figure depends on the machine.

With `--drawn` the same is counted over 40 functions of eight kinds, whose constants are drawn: valleys with waves,
exponentials, bends as of ReLUs, bowls with a bump, soft corners, a curved valley, a network's square, and waves.
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
DRAWN = 40  # functions
NETS = ("resnet20-w8", "resnet20-w8-noshort", "mlp")


def rugged(grid: Grid) -> np.ndarray:
    """A bowl with waves along it, (y, x)."""
    x, y = np.meshgrid(grid.x, grid.x)
    waves: np.ndarray = 0.4 * np.sin(9 * x) * np.cos(7 * y) + 0.2 * np.sin(17 * x + 11 * y)
    return 2 + x**2 + y**2 + waves


def drawn(grid: Grid, seed: int) -> np.ndarray:
    """A function of the kind of its seed, (y, x), positive."""
    draw = np.random.default_rng(1000 + seed)
    x, y = np.meshgrid(grid.x, grid.x)
    angle = draw.uniform(0, np.pi)
    u, w = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    a, b = draw.uniform(-0.5, 0.5, 2)
    match seed % 8:
        case 0:
            values = u**2 + draw.uniform(0.1, 5) * w**2 + 0.3 * np.sin(draw.uniform(2, 6) * u + a)
        case 1:
            values = np.exp(draw.uniform(1, 3) * u) + w**2
        case 2:
            values = np.maximum(0, u - a) + 2 * np.maximum(0, -w - b) + 0.5 * u**2
        case 3:
            bump = np.exp(-((x - a) ** 2 + (y - b) ** 2) / draw.uniform(0.02, 0.1))
            values = u**2 + w**2 - draw.uniform(0.3, 1) * bump
        case 4:
            steep = draw.uniform(3, 10, 2)
            values = np.logaddexp(0, steep[0] * (u - a)) + np.logaddexp(0, -steep[1] * (w - b))
        case 5:
            values = draw.uniform(5, 50) * (w - 0.5 * u**2) ** 2 + u**2
        case 6:
            weights, biases, outer = draw.normal(size=(6, 2)), 0.5 * draw.normal(size=6), draw.normal(size=6)
            units = np.maximum(0, np.tensordot(weights, [x, y], 1) + biases[:, None, None])
            values = np.tensordot(outer, units, 1) ** 2
        case _:
            waves = [
                draw.uniform(0.05, 0.3) * np.sin(p * x + q * y + 6 * r)
                for p, q, r in draw.uniform((4, 4, 0), (14, 14, 1), (3, 3))
            ]
            values = 2 + u**2 + sum(waves)
    positive: np.ndarray = values - values.min() + 0.05
    return positive


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


def refined(grid: Grid, values: np.ndarray, tol: float) -> tuple[np.ndarray, float, np.ndarray, bool]:
    """(rounds of the points, error told, true errors relative to the range, whether of logarithms)."""
    rounds = np.full(grid.shape, -1)
    while True:
        step = next_round(grid, [values], rounds, rounds >= 0, tol)
        if not step.points.size:
            break
        rounds.reshape(-1)[step.points] = rounds.max() + 1
    field = interpolated(grid, values, rounds >= 0)
    shown, truth = (np.log10(v) if field.log else v for v in (field.values, values))
    return rounds, step.error, np.abs(shown - truth) / np.ptp(truth), field.log


def row(name: str, grid: Grid, values: np.ndarray, tol: float) -> str:
    """A line of the table."""
    rounds, error, off, is_log = refined(grid, values, tol)
    return (
        f"| {name} | {tol:.0%} | {rounds.max() + 1} | {np.mean(rounds >= 0):.1%} | {error:.2%} | {off.max():.2%} "
        f"| {error / off.max():.2f} | {np.sqrt(np.mean(off**2)):.3%} | {'log' if is_log else 'linear'} |"
    )


def counted(grid: Grid, tol: float) -> str:
    """A line of the table of functions that are drawn."""
    found = [refined(grid, drawn(grid, seed), tol) for seed in range(DRAWN)]
    ratios = np.array([error / off.max() for _, error, off, _ in found])
    worst = np.array([off.max() / tol for _, _, off, _ in found])
    share = np.mean([np.mean(rounds >= 0) for rounds, _, _, _ in found])
    return (
        f"| {tol:.0%} | {share:.1%} | {np.mean((ratios >= 0.5) & (ratios <= 2)):.0%} | {(ratios < 0.5).sum()} "
        f"| {ratios.min():.2f} to {ratios.max():.2f} | {(worst > 1).sum()} | {worst.max():.2f} |"
    )


def main() -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--quick", action="store_true", help="the rugged function, and the smallest network on 41x41 points"
    )
    flags.add_argument("--drawn", action="store_true", help="count over functions whose constants are drawn")
    chosen = flags.parse_args()
    quick = chosen.quick
    points = 41 if quick else 101
    grid = Grid.square(-1, 1, points)
    if chosen.drawn:
        print("| asked | points | told within factor 2 | below | told / true | true above asked | at most, of asked |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for tol in TOLERANCES:
            print(counted(grid, tol), flush=True)
        return
    print("| surface | asked | rounds | points | told, worst | true, worst | told / true | true, rms | scale |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("rugged", *(("mlp",) if quick else NETS)):
            values = rugged(grid) if name == "rugged" else measured(name, points, Path(folder))
            for tol in TOLERANCES:
                print(row(name, grid, values, tol), flush=True)


if __name__ == "__main__":
    main()
