"""How far what a figure draws between measured points lies from the loss there: spline against straight lines.

    python benchmarks/interpolation.py [--quick]

Two networks are trained on the packaged digits, and the loss is measured on a fine grid over their filter-normalized
plane. Every k-th point of it is taken as the measured grid, and the others, where the loss is known as well, are
interpolated: straight in the loss (what contours of matplotlib are), straight in its logarithm, by the cubic spline of
the loss, and by that of its logarithm, which the figures draw on a log scale (`plotting/interpolation.py`). Printed are
the median, the 99th percentile and the largest of |drawn / measured - 1| over all points not in the coarse grid.
No figure depends on the machine but the seconds of a spline.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import lossmap
from lossmap.plotting.interpolation import refine, value_at

NETS = {"mlp": (["--epochs", "20", "--lr", "0.1"], 201), "resnet20-w8": (["--epochs", "3"], 81)}  # points along an axis
QUICK = {"mlp": (["--epochs", "2", "--lr", "0.1"], 41)}
COARSE = (11, 21, 26, 41, 51)


def measured(net: str, training: list[str], points: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ticks, (n,), and the loss on the fine grid, (n, n)."""
    weights, result = folder / f"{net}.pt", folder / f"{net}.h5"
    own = [sys.executable, "-m", "lossmap"]
    axis = f"-1:1:{points}"
    for words in (
        ["train", "--model", net, *training, "--final", str(weights)],
        ["surface", "--model", net, "--model-file", str(weights), "--samples", "512", f"--x={axis}", f"--y={axis}",
         "--surf-file", str(result)],
    ):  # fmt: skip
        subprocess.run([*own, *words], check=True, stdout=subprocess.DEVNULL)
    surface = lossmap.read(result, lossmap.Surface)
    return surface.grid.x, surface["train_loss"]


def straight(ticks: np.ndarray, values: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Bilinear interpolation at all pairs of the fine ticks, (m, m)."""
    x, y = np.meshgrid(fine, fine)
    return value_at(ticks, ticks, values, x.reshape(-1), y.reshape(-1)).reshape(x.shape)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the MLP alone, on a small grid")
    nets = QUICK if parser.parse_args().quick else NETS
    ways = ("straight in the loss", "straight in its log", "spline of the loss", "spline of its log")
    print(f"| net | loss | measured | {' | '.join(ways)} | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for net, (training, points) in nets.items():
            fine, loss = measured(net, training, points, Path(folder))
            for coarse in COARSE:
                if (points - 1) % (coarse - 1) or coarse == points:
                    continue
                print_row(net, fine, loss, coarse)


def print_row(net: str, fine: np.ndarray, loss: np.ndarray, coarse: int) -> None:
    """One row: the errors of each interpolation from so many points along each axis."""
    factor = (fine.size - 1) // (coarse - 1)
    ticks, values = fine[::factor], loss[::factor, ::factor]
    began = time.perf_counter()
    smooth_log = 10 ** refine(ticks, ticks, np.log10(values), factor)
    seconds = time.perf_counter() - began
    drawn = (straight(ticks, values, fine), 10 ** straight(ticks, np.log10(values), fine),
             refine(ticks, ticks, values, factor), smooth_log)  # fmt: skip
    between = np.ones(loss.shape, dtype=bool)
    between[::factor, ::factor] = False
    cells = []
    for found in drawn:
        error = 100 * np.abs(found / loss - 1)[between]
        cells.append(" / ".join(f"{value:.2g}" for value in (np.median(error), np.percentile(error, 99), error.max())))
    span = f"{loss.min():.2g} to {loss.max():.3g}"
    print(
        f"| {net} | {span} | {coarse}x{coarse} | {' | '.join(f'{cell} %' for cell in cells)} | {seconds:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
