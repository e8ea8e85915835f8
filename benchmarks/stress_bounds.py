"""How often the bounds of an eigenmap are violated: over a thousand points of small models, dense float64 Hessians.

    python benchmarks/stress_bounds.py [--quick] [--side 21] [--precision float32]

Each model is trained on the packaged digits and mapped over a random plane, along the survey's serpentine, at 1e-2 and
1e-3. At each point the dense Hessian (torch.func, float64, independent of the products) is the reference.

error   points where no true eigenvalue lies within max_eig_error of max_eig, or of the other end   must be 0
limit   points whose true end lies beyond its 99 % limit, by end                                    at most 20 in 1,000
missed  points with an end off by more than the tolerance: warm, warm after the audit's repair, and cold
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lossmap.curvature.autotune import prepare
from lossmap.data import datasets
from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.geometry.grid import Grid
from lossmap.landscape.audit import Audit, better
from lossmap.landscape.eigenvalues import EigenvalueMap
from lossmap.landscape.survey_recorder import serpentine_order

FIELDS = ("max_eig", "min_eig")
Ends = np.ndarray  # (points, n) ascending eigenvalues


def tanh() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 10))


def relu() -> nn.Module:
    layers = (nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *layers)


def convolution() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3, stride=2), nn.GELU(), nn.Conv2d(4, 6, 2), nn.GELU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 10))


NETS: dict[str, Callable[[], nn.Module]] = {"tanh": tanh, "relu": relu, "convolution": convolution}


@dataclass
class Count:
    """The counts over some points."""

    points: int = 0
    error: int = 0
    limit_max: int = 0
    limit_min: int = 0
    missed_warm: int = 0
    missed_repaired: int = 0
    missed_cold: int = 0
    worst_warm: float = 0.0  # in tolerances
    worst_cold: float = 0.0
    audited: int = 0
    detected: int = 0  # misses in the audit's random sample
    products_warm: float = 0.0
    products_cold: float = 0.0
    where: list[str] = field(default_factory=list)


def trained(make: Callable[[], nn.Module], dtype: torch.dtype, samples: int, steps: int = 150) -> Problem:
    """A model on some digits, trained by full-batch Adam."""
    torch.manual_seed(0)
    net = make().to(dtype)
    problem = Problem.supervised(net, "crossentropy", datasets.load("digits", "train", samples=samples)).to(
        "cpu", dtype
    )
    x, y = problem.data.tensors
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.zero_grad()
    net.eval()
    return problem.rebatched(samples)


def dense(problem: Problem, tensors: dict[str, Tensor]) -> np.ndarray:
    """All eigenvalues of the Hessian over the parameters of dimension > 1, (n,), ascending."""
    x, y = problem.data.tensors
    state = {k: t.double() for k, t in tensors.items()}
    moving = [k for k, t in state.items() if t.dim() > 1]
    theta = torch.cat([state[k].reshape(-1) for k in moving])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([state[k].numel() for k in moving])
        placed = {k: p.view(state[k].shape) for k, p in zip(moving, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(problem.model, {**state, **placed}, (x.double(),)), y)

    _, back = torch.func.vjp(grad(loss), theta)
    rows = vmap(lambda v: back(v)[0], chunk_size=64)(torch.eye(len(theta), dtype=torch.float64))
    return np.linalg.eigvalsh(rows.numpy())


def mapped(measure: EigenvalueMap, grid: Grid) -> dict[str, np.ndarray]:
    """The fields over the grid, (points,), in the order of a survey."""
    fields = {f.name: np.full(len(grid), np.nan) for f in measure.fields}
    for i in serpentine_order(grid, np.arange(len(grid))):
        for name, value in measure(grid.point(int(i))).items():
            fields[name][i] = value
    return fields


def far(fields: dict[str, np.ndarray], truth: Ends) -> np.ndarray:
    """The error of the worse end relative to max(abs(value)), (points,)."""
    off = np.maximum(np.abs(fields["max_eig"] - truth[:, -1]), np.abs(fields["min_eig"] - truth[:, 0]))
    result: np.ndarray = off / np.abs(truth).max(1)
    return result


def repaired(
    grid: Grid, warm: dict[str, np.ndarray], cold: EigenvalueMap, tol: float
) -> tuple[dict[str, np.ndarray], dict]:
    """The map after its audit, and the audit's report."""
    n = len(grid)
    second = {name: np.full(n, np.nan) for name in warm}
    status = np.zeros(n, dtype=np.uint8)
    while True:
        audit = Audit(grid, warm, second, status, np.arange(n), tol, 0)
        points = audit.pending()
        if not points.size:
            break
        for i in points:
            for name, value in cold(grid.point(int(i))).items():
                second[name.removeprefix("audit_")][i] = value
        status[points] = 1
    fields = {name: values.copy() for name, values in warm.items()}
    for i in np.flatnonzero(status):
        for name, value in better({k: v[i] for k, v in warm.items()}, {k: v[i] for k, v in second.items()}).items():
            fields[name][i] = value
    return fields, audit.report()


def count(
    name: str, tol: float, side: int, dtype: torch.dtype, samples: int, truth: Ends | None = None, backend: str = "auto"
) -> tuple[Count, Ends]:
    """One model at one tolerance."""
    problem = trained(NETS[name], dtype, samples)
    plane, grid = random_plane(problem.model, seed=1), Grid.square(-1.0, 1.0, side)
    if truth is None:
        truth = np.stack([dense(problem, plane.at(grid.point(i))) for i in range(len(grid))])
    ready = {"train": prepare(problem, backend=backend)}
    warm = mapped(EigenvalueMap(ready, plane, tol=tol), grid)
    cold = mapped(EigenvalueMap(ready, plane, tol=tol, certify="each"), grid)
    after, report = repaired(grid, warm, EigenvalueMap(ready, plane, tol=tol, audit=True), tol)
    broken = np.zeros(len(grid), dtype=bool)
    for fields in (warm, cold):
        for end in FIELDS:
            nearest = np.abs(truth - fields[end][:, None]).min(1)
            broken |= nearest > fields[f"{end}_error"]
    beyond = [warm["max_eig_limit"] < truth[:, -1], warm["min_eig_limit"] > truth[:, 0]]
    result = Count(
        points=len(grid),
        error=int(broken.sum()),
        limit_max=int(beyond[0].sum()),
        limit_min=int(beyond[1].sum()),
        missed_warm=int((far(warm, truth) > tol).sum()),
        missed_repaired=int((far(after, truth) > tol).sum()),
        missed_cold=int((far(cold, truth) > tol).sum()),
        worst_warm=float(far(warm, truth).max() / tol),
        worst_cold=float(far(cold, truth).max() / tol),
        audited=report["audited"],
        detected=report["misses"],
        products_warm=float(warm["products"].mean()),
        products_cold=float(cold["products"].mean()),
        where=[f"{name} at {grid.point(int(i))}" for i in np.flatnonzero(broken)],
    )
    return result, truth


def main() -> int:
    """Print a line for each model and tolerance, the totals, and both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, as a smoke test")
    parser.add_argument("--side", type=int, default=21, help="points along each axis of each plane")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--precision", default="float32", choices=("float32", "float64"))
    options = parser.parse_args()
    side = 5 if options.quick else options.side
    began, rows, total = time.perf_counter(), {}, Count()
    for name in NETS:
        truth: Ends | None = None
        for tol in (1e-2, 1e-3):
            counts, truth = count(name, tol, side, getattr(torch, options.precision), options.samples, truth)
            rows[f"{name} {tol:g}"] = asdict(counts)
            for key in ("points", "error", "limit_max", "limit_min", "missed_warm", "missed_repaired", "missed_cold"):
                setattr(total, key, getattr(total, key) + getattr(counts, key))
            print(
                f"{name:12} tol {tol:g}, {counts.points} points: errors violated {counts.error}; beyond the limit "
                f"{counts.limit_max} max, {counts.limit_min} min; missed {counts.missed_warm} warm (worst "
                f"{counts.worst_warm:.2g} tol), {counts.missed_repaired} after the audit ({counts.audited} audited, "
                f"{counts.detected} detected), {counts.missed_cold} cold; products {counts.products_warm:.1f} warm, "
                f"{counts.products_cold:.1f} cold",
                flush=True,
            )
    print(
        f"in all {total.points} points, {options.precision}: errors violated {total.error}, beyond the limit "
        f"{total.limit_max} max and {total.limit_min} min, missed {total.missed_warm} warm, {total.missed_repaired} "
        f"after the audit, {total.missed_cold} cold; {time.perf_counter() - began:.0f} s"
    )
    print(json.dumps(rows))
    return 1 if total.error else 0


if __name__ == "__main__":
    sys.exit(main())
