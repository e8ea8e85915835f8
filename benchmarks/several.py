"""Products of several eigenvalues at the points of a map, every copy of a multiple one counted.

    python benchmarks/several.py [--quick]

mlp     64-32-32-10, 512 digits, two neighboring rows of a 51 x 51 plane: no eigenvalue has a copy
linear  40 inputs, two outputs, squared errors over 300 samples, 10 points: every eigenvalue is there twice

first is the first point, from a cold start, warm the mean over the others, from their neighbors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from eigenmap import rows, trained
from torch import nn

from lossmap.curvature.autotune import prepare
from lossmap.data import datasets
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.geometry.grid import Point
from lossmap.landscape.eigenvalues import EigenvalueMap


def table(name: str, problem: Problem, points: Sequence[Point]) -> None:
    """Print a line for each request and tolerance."""
    ready, plane = prepare(problem, backend="double-backward"), random_plane(problem.model)
    for which in ("ends", "top:3", "bottom:3", "abs:3", "top:10"):
        for tol in (1e-2, 1e-3):
            measure = EigenvalueMap({"train": ready}, plane, which, tol=tol)
            first, *warm = (measure(point)["products"] for point in points)
            print(f"{name:7} {which:9} {tol:g}  first {first:4.0f}  warm {np.mean(warm):5.1f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, as a smoke test")
    quick = parser.parse_args().quick
    net = trained("mlp", "digits", 2 if quick else 40, 0.05, samples=512)
    digits = datasets.load("digits", "train", samples=512).tensors
    points = rows(4 if quick else 40, low=10)
    table("mlp", Problem.supervised(net, "crossentropy", digits, batch_size=512), points)
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 2), torch.randn(300, 40) * torch.linspace(0.1, 3, 40)
    table("linear", Problem.supervised(linear, "mse", (x, torch.randn(300, 2)), batch_size=300), points[:10])


if __name__ == "__main__":
    main()
