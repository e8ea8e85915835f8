"""Cost of a point of an eigenmap against the original tool: products, seconds, and true accuracy, in one run.

    python benchmarks/eigenmap.py [--quick] [--only mlp resnet20] [--workers 2]

mlp       64-32-32-10, 512 digits, two neighboring rows of a 51 x 51 plane
resnet20  digits at 32x32x3, neighboring points of a row of a 51 x 51 plane

classic   the original tool: two `eigsh(k=1, tol=1e-2)` runs, the second shifted; double backward, and a DataLoader with
          batches of 128 for every product, with workers and without; at some of the points
ours      `EigenvalueMap` at 1e-2 and 1e-3, as `lossmap eigenmap` runs it; the first point is not counted
truth     ARPACK with double backward in float64, both ends: at every point of the MLP to 1e-10, and for ResNet-20 to
          1e-5 (of an eigenvalue that is an error of 1e-10 beside its gap) at the points where classic runs

beyond counts points with an end off by more than the tolerance, off is the worse end relative to max(abs(value)).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lossmap import zoo
from lossmap.curvature.autotune import prepare
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data import datasets
from lossmap.data.problem import Problem, temporary_parameters
from lossmap.geometry.directions import Plane, random_plane
from lossmap.geometry.grid import Grid, Point
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.linalg.arpack import eigsh as arpack
from lossmap.parallel.process import keep_freed_memory

Ends = tuple[float, float]


def trained(model: str, data: str, epochs: int, rate: float, samples: int | None = None) -> nn.Module:
    """A model of the zoo, trained by plain SGD on the digits."""
    torch.manual_seed(0)
    net = zoo.build(model)
    x, y = datasets.load(data, "train", samples=samples).tensors
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    net.zero_grad()
    return net.eval()


def truths(problem: Problem, plane: Plane, points: dict[int, Point], tol: float) -> dict[int, Ends]:
    """Both ends at each point, in float64; on all cores, since this is not timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    model = problem.model
    state = {k: t.clone() for k, t in model.state_dict().items()}
    model.double()
    wide = problem.to(dtype=torch.float64)
    ends = {}
    for i, point in points.items():
        tensors = {k: t.double() for k, t in plane.at(point).items()}
        with temporary_parameters(model, tensors):
            values = arpack(CurvatureOperator(wide), tol=tol).values
        ends[i] = (float(values[0]), float(values[1]))
    model.float().load_state_dict(state)
    torch.set_num_threads(threads)
    return ends


def classic(problem: Problem, plane: Plane, point: Point, workers: int) -> tuple[Ends, int]:
    """The original tool at one point: the ends, and the number of products."""
    model = problem.model
    loader = DataLoader(TensorDataset(*problem.data.tensors), batch_size=128, num_workers=workers)
    samples, spent = problem.data.samples, 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        parameters = [p for p in model.parameters() if p.dim() > 1]
        parts = torch.from_numpy(vector.reshape(-1).astype(np.float32)).split([p.numel() for p in parameters])
        total = [torch.zeros_like(p) for p in parameters]
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y) * len(x) / samples
            gradient = torch.autograd.grad(loss, parameters, create_graph=True)
            along = sum((g * v.view_as(g)).sum() for g, v in zip(gradient, parts, strict=True))
            for t, h in zip(total, torch.autograd.grad(along, parameters), strict=True):
                t += h
        return torch.cat([t.reshape(-1) for t in total]).numpy()

    with temporary_parameters(model, plane.at(point)):
        n = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        first = float(eigsh(LinearOperator((n, n), product, dtype=np.float32), k=1, tol=1e-2)[0][0])
        shift = 0.51 * first
        shifted = LinearOperator((n, n), lambda v: product(v) - shift * v.reshape(-1), dtype=np.float32)
        second = float(eigsh(shifted, k=1, tol=1e-2)[0][0]) + shift
    return (max(first, second), min(first, second)), spent


def off(ends: Ends, truth: Ends) -> float:
    """The worse end's error relative to max(abs(value))."""
    return max(abs(a - b) for a, b in zip(ends, truth, strict=True)) / max(map(abs, truth))


def line(what: str, products: float, seconds: float, errors: Sequence[float], tol: float) -> str:
    missed = sum(e > tol for e in errors)
    return (
        f"  {what:34} {products:6.1f} products {1e3 * seconds:10.1f} ms a point   off {max(errors):.1e} "
        f"(median {np.median(errors):.1e}), {missed} of {len(errors)} beyond {tol:g}"
    )


def compared(
    problem: Problem,
    plane: Plane,
    points: Sequence[Point],
    some: Sequence[int],
    workers: Sequence[int],
    known: Sequence[int],
    truth_tol: float = 1e-10,
) -> None:
    """Print a block of lines for one model; the truth is computed at the points `known`, classic runs at `some`."""
    truth = truths(problem, plane, {i: points[i] for i in known}, truth_tol)
    slow: dict[int, float] = {}
    for number in workers:
        errors, spent, began = [], 0, time.perf_counter()
        for i in some:
            ends, products = classic(problem, plane, points[i], number)
            errors.append(off(ends, truth[i]))
            spent += products
        slow[number] = (time.perf_counter() - began) / len(some)
        print(line(f"classic, {number} workers", spent / len(some), slow[number], errors, 1e-2), flush=True)
    began = time.perf_counter()
    ready = prepare(problem)
    plan = ready.plan
    took = time.perf_counter() - began
    print(f"  prepared in {took:.1f} s: {plan.backend}, batches of {plan.batch_size}, {plan.memory_format}")
    for tol in (1e-2, 1e-3):
        for what, keywords in (("ours, from neighbors", {}), ("ours, cold with limits (audit)", {"certify": "each"})):
            measure = EigenvalueMap({"train": ready}, plane, tol=tol, **keywords)
            measure(points[0])
            chosen = range(1, len(points)) if not keywords else some
            errors, spent, began = [], 0.0, time.perf_counter()
            for i in chosen:
                reading = measure(points[i])
                if i in truth:
                    errors.append(off((reading["max_eig"], reading["min_eig"]), truth[i]))
                spent += reading["products"]
            seconds = (time.perf_counter() - began) / len(chosen)
            times = ", ".join(f"{s / seconds:.1f}" for s in slow.values())
            print(
                f"{line(f'{what}, {tol:g}', spent / len(chosen), seconds, errors, tol)}; {times} times cheaper",
                flush=True,
            )


def rows(count: int, low: int, width: int = 51) -> list[Point]:
    """The first `count` points of a serpentine over neighboring rows of a 51 x 51 plane, from row `low`."""
    grid = Grid.square(-1.0, 1.0, 51)
    from lossmap.landscape.survey_recorder import serpentine_order

    inside = [i for i in range(len(grid)) if i // 51 >= low and abs(i % 51 - 25) <= width // 2]
    return [grid.point(int(i)) for i in serpentine_order(grid, np.array(inside))[:count]]


def mlp(quick: bool, workers: Sequence[int]) -> None:
    net = trained("mlp", "digits", 2 if quick else 40, 0.05, samples=512)
    problem = Problem.supervised(
        net, "crossentropy", datasets.load("digits", "train", samples=512).tensors, batch_size=128
    )
    points = rows(4 if quick else 102, low=10)
    print(f"mlp, {problem.data.samples} digits, {len(points)} points")
    some = range(0, len(points), 2 if quick else 13)
    compared(problem, random_plane(net), points, some, workers, range(len(points)))


def resnet20(quick: bool, workers: Sequence[int]) -> None:
    images = 4 if quick else 128
    net = trained("resnet20", "digits32", 1, 0.1, samples=64) if quick else trained("resnet20", "digits32", 4, 0.1)
    data = datasets.load("digits32", "train", samples=images).tensors
    problem = Problem.supervised(net, "crossentropy", data, batch_size=128)
    points = rows(2 if quick else 11, low=20, width=3 if quick else 11)
    some = range(0, len(points), 1 if quick else 4)
    print(f"resnet20, {images} images, {len(points)} points")
    compared(problem, random_plane(net), points, some, workers, some, 1e-5)


NETS: dict[str, Callable[[bool, Sequence[int]], None]] = {"mlp": mlp, "resnet20": resnet20}


def main() -> None:
    """Print a block for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points and images, as a smoke test")
    parser.add_argument("--only", nargs="*", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--workers", nargs="*", type=int, default=(2, 0), help="workers of the original tool's loaders")
    options = parser.parse_args()
    keep_freed_memory()
    for name in options.only:
        NETS[name](options.quick, (0,) if options.quick else options.workers)


if __name__ == "__main__":
    main()
