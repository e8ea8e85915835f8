"""Trace, density and largest eigenvalues to the same true accuracy: ours and plain methods, dense float64 reference.

    python benchmarks/spectrum.py [--quick]

The MLP 64-32-32-10 trained on 512 digits (3,392 weights). Its Hessian is formed in float64 once; estimators use its
products alone, which are counted. The cost of a product is measured on the model: seconds = products x cost + own.

trace      relative error of 100 products over seeds: Hutchinson, Hutch++, XTrace; coverage of the 95 %
           intervals (XTrace and the density, whose probes are rotation invariant, in the eigenbasis)
density    Wasserstein distance to the true spectrum, as a share of its range, of 100 steps: full reorthogonalization
           with 1 and 10 probes, none at all (plain three-term recurrence) and its ghosts, and the smoothed curve of the
           classic tools; negative mass as raw node weights and as ours, with its interval
top 5      products until all five are within 1e-3 of the largest: power iteration with deflation, eigsh, Lanczos
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.integrate import trapezoid

from lossmap import zoo
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data import datasets
from lossmap.data.problem import Problem
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.quadrature import LanczosRun, lanczos_run
from lossmap.linalg.solvers import extremes
from lossmap.linalg.spectral_density import Density, spectral_density
from lossmap.linalg.trace import METHODS, trace
from lossmap.spectra.blocks import doubled
from lossmap.training import Recipe, train


class Counted:
    """A dense float64 matrix that counts its products."""

    def __init__(self, entries):
        self.entries = torch.as_tensor(entries)
        self.size, self.dtype, self.device = len(self.entries), torch.float64, torch.device("cpu")
        self.products = 0

    def __matmul__(self, v):
        self.products += 1
        return self.entries @ v if self.entries.dim() == 2 else self.entries * v


def trained(samples, epochs):
    """The trained model and its problem, in float64."""
    torch.manual_seed(0)
    model = zoo.build("mlp")
    problem = Problem.supervised(model, "crossentropy", datasets.load("digits", "train", samples=samples))
    train(problem, Recipe(epochs=epochs, rate=0.1, batch_size=64))
    return doubled(problem)


def price_of(problem, repeats=20):
    """Seconds of one product with the model, float32, double backward."""
    single = CurvatureOperator(
        Problem.supervised(problem.model.float(), "crossentropy", problem.data.to(dtype=torch.float32))
    )
    v = torch.randn(single.size)
    single @ v
    start = time.perf_counter()
    for _ in range(repeats):
        single @ v
    return (time.perf_counter() - start) / repeats


def table(rows):
    """Print rows with aligned columns."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    print()


def traces(full, values, seeds, coverage):
    truth = values.sum()
    print(f"trace, 100 products, {seeds} seeds; exact {truth:.6g}")
    rows = [("method", "mean error", "largest", "stated error", f"coverage at 95 % ({coverage} seeds, 24 products)")]
    for method in reversed(METHODS):
        matrix = Counted(values) if method == "xtrace" else full
        results = [trace(matrix, method, products=100, seed=s) for s in range(seeds)]
        errors = np.array([abs(r.value - truth) / truth for r in results])
        stated = np.mean([r.error / truth for r in results])
        hits = 0
        for s in range(coverage):
            low, high = trace(matrix, method, products=24, seed=s).interval()
            hits += low <= truth <= high
        rows.append(
            (method, f"{100 * errors.mean():.3g} %", f"{100 * errors.max():.3g} %", f"{100 * stated:.2g} %",
             f"{100 * hits / coverage:.1f} %")
        )  # fmt: skip
    table(rows)


def without_reorthogonalization(matrix, steps, seed):
    """The three-term recurrence alone, as classic tools run it."""
    v = torch.randn(matrix.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight, v = float(v @ v), v / v.norm()
    before, beta, alphas, betas = torch.zeros_like(v), 0.0, [], []
    for _ in range(steps):
        w = matrix @ v - beta * before
        alpha = float(w @ v)
        w = w - alpha * v
        beta, before = float(w.norm()), v
        v = w / beta
        alphas.append(alpha)
        betas.append(beta)
    return LanczosRun(np.array(alphas), np.array(betas), weight)


def classic_curve(density_, values):
    """Wasserstein distance of the smoothed curve, sigma a hundredth of the range, as a share of the range."""
    nodes, weights = density_.nodes
    spread = float(np.ptp(values))
    t = np.linspace(values[0] - 0.1 * spread, values[-1] + 0.1 * spread, 10_000)
    curve = np.exp(-0.5 * ((t[:, None] - nodes) / (0.01 * spread)) ** 2) @ weights
    share = np.cumsum(curve) / curve.sum()
    truth = np.searchsorted(values, t, side="right") / len(values)
    return float(trapezoid(np.abs(share - truth), t)) / spread


def densities(matrix, values, steps, seeds):
    spread, eps = float(np.ptp(values)), float(np.finfo(float).eps)
    top = values[-1]
    t = 1e-3 * top
    print(f"density, {steps} steps, {seeds} seeds; true negative share {np.mean(values < 0):.3f}, below -{t:.2g} "
          f"{np.mean(values < -t):.3f}")  # fmt: skip
    rows = [
        (
            "method",
            "products",
            "distance/range",
            "ghosts at the top",
            "negative: raw nodes",
            f"below -{t:.2g}: ours, 95 %",
        )
    ]

    def row(name, runs):
        all_runs = [Density(tuple(r), matrix.size, eps) for r in runs]
        distance = np.mean([d.wasserstein(values) / spread for d in all_runs])
        ghosts = max(int((r.quadrature[0] > top * (1 - 1e-6)).sum()) - 1 for run_of in runs for r in run_of)
        nodes, weights = all_runs[0].nodes
        mine = all_runs[0].below(-t) if "none" not in name else "-"
        raw = f"{weights[nodes < 0].sum():.3f}"
        rows.append((name, all_runs[0].products, f"{distance:.2e}", ghosts, raw, mine))
        return all_runs[0]

    one = row("full, 1 probe", [[lanczos_run(matrix, steps, seed=s)] for s in range(seeds)])
    row(
        "full, 10 probes",
        [[lanczos_run(matrix, steps, seed=s, probe=p) for p in range(10)] for s in range(max(1, seeds // 3))],
    )
    row("none, 1 probe", [[without_reorthogonalization(matrix, steps, s)] for s in range(seeds)])
    rows.append(("classic curve", steps, f"{classic_curve(one, values):.2e}", "", "", ""))
    chosen = spectral_density(matrix)
    rows.append(
        ("ours, by default", chosen.products, f"{chosen.wasserstein(values) / spread:.2e}", 0, "", chosen.below(-t))
    )
    table(rows)
    print(f"  the last one as reported: {chosen!r}\n")


def deflated(matrix, values, k, tol, most=20_000):
    """Power iteration with deflation; stops, unlike the tools that it models, only when truly within tol."""
    vectors, start = [], matrix.products
    targets = values[np.argsort(-np.abs(values))][:k]
    for i in range(k):
        v = torch.randn(matrix.size, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        while matrix.products - start < most:
            for q in vectors:
                v = v - (q @ v) * q
            v = v / v.norm()
            w = matrix @ v
            if abs(float(v @ w) - targets[i]) <= tol * abs(values).max():
                break
            v = w
        vectors.append(v)
    return matrix.products - start


def tops(matrix, values, price, k=5, tol=1e-3):
    print(f"top {k} within {tol:g} of the largest; one product {1e3 * price:.2f} ms")
    rows = [("method", "products", "seconds of products", "true error / largest")]
    spent = deflated(matrix, values, k, tol)
    rows.append(("power iteration, deflation (true stop)", spent, f"{spent * price:.3f}", f"<= {tol:g}"))
    truth = values[::-1][:k]
    for solver in ("eigsh", "lanczos"):
        pairs = extremes(matrix, f"top:{k}", solver=solver, tol=tol)
        error = np.abs(pairs.values - truth).max() / values[-1]
        rows.append((solver, pairs.products, f"{pairs.products * price:.3f}", f"{error:.1e}"))
    table(rows)


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="a smaller model and fewer seeds, as a smoke test")
    flags.add_argument("--seeds", type=int, default=20, help="for the trace; ten times as many for its intervals")
    options = flags.parse_args()
    quick, seeds = options.quick, 3 if options.quick else options.seeds
    problem = trained(128 if quick else 512, 3 if quick else 30)
    dense = DenseMatrix.of(CurvatureOperator(problem, parameters="5.weight" if quick else "weights"))
    matrix, values = Counted(dense.entries), dense.eigendecomposition[0]
    price = price_of(problem)
    print(f"n = {matrix.size:,}, eigenvalues {values[0]:.4g} to {values[-1]:.4g}\n")
    traces(matrix, values, seeds, 10 * seeds)
    densities(Counted(values), values, 30 if quick else 100, 2 if quick else 6)
    tops(matrix, values, price)


if __name__ == "__main__":
    main()
