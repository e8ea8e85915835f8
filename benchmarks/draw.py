"""What `lossmap draw` takes for a plane of 51x51 points, from the command's start to its end.

    python benchmarks/draw.py [--quick]

Two files are made, one of losses and one of eigenvalues with their errors and limits, and each is drawn into a PDF by
the command as it is typed, in turn with a process that imports matplotlib and saves an empty figure. Printed are the
median, the smallest and the largest of the wall seconds, and the median of the processor's; one thread. Bytecode is
compiled before, as it is once lossmap is installed, also where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lossmap.geometry.grid import Grid
from lossmap.io.read import Surface, write_surface

POINTS, REPEATS = 51, 7
EMPTY = """
from matplotlib.figure import Figure
figure = Figure()
figure.subplots().set_title("loss")
figure.savefig({out!r}, format="pdf")
"""


def planes(points: int) -> dict[str, Surface]:
    """The two results, by what they are called in the table."""
    grid = Grid.square(-1, 1, points)
    x, y = np.meshgrid(grid.x, grid.y)
    loss = 0.02 + 2 * (y - 0.25 * np.sin(3 * x)) ** 2 + 0.5 * x**2 + 3 * (x**2 + y**2) ** 2
    most, least = 5 + 3 * x**2 + 2 * y, 0.2 - 0.3 * np.cos(4 * x) * np.cos(3 * y) - 0.4 * x**2
    eigen = {
        "max_eig": most, "min_eig": least, "max_eig_error": 0 * x + 0.01, "min_eig_error": 0 * x + 0.02,
        "max_eig_limit": most + 0.02, "min_eig_limit": least - 0.03,
    }  # fmt: skip
    losses = {"train_loss": loss, "train_acc": 100 / (1 + loss)}
    return {
        "surface: filled contours": Surface(grid, losses),
        "eigenmap: convexity figure": Surface(grid, eigen),
        "both in one file: convexity figure": Surface(grid, {**losses, **eigen}),
    }


def timed(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small planes, each drawn once")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment = {**os.environ, **threads, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        out = str(folder / "p.pdf")
        commands = {"matplotlib alone, an empty figure": [sys.executable, "-c", EMPTY.format(out=out)]}
        for i, (title, surface) in enumerate(planes(11 if quick else POINTS).items()):
            file = folder / f"{i}.h5"
            write_surface(file, surface)
            commands[title] = [sys.executable, "-m", "lossmap", "draw", str(file), "--output", out]
        for words in commands.values():
            timed(words, environment)
        times: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
        for _ in range(1 if quick else REPEATS):
            for title, words in commands.items():
                times[title].append(timed(words, environment))
    print("| drawn | wall, s | from | to | processor, s |")
    print("|---|---|---|---|---|")
    for title, own in times.items():
        wall, processor = zip(*own, strict=True)
        middle = statistics.median(wall)
        print(f"| {title} | {middle:.2f} | {min(wall):.2f} | {max(wall):.2f} | {statistics.median(processor):.2f} |")


if __name__ == "__main__":
    main()
