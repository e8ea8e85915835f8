"""Successive eigenvalues by deflation one by one, or all at once: products and seconds to the same accuracy.

    python benchmarks/deflation.py [--quick]

The k largest eigenvalues (k = 1 to 50) of the Hessian of the MLP 64-32-32-10 on 512 digits, each until its residual is
within 1e-3 of the largest; the true error beside it, from the dense float64 matrix, in whose eigenbasis they run.

power        power iteration with deflation: one vector after the other, the converged ones projected out
block        Lanczos from a block of four starts, full reorthogonalization
lobpcg       SciPy's LOBPCG, k vectors at once, no preconditioner
one long     one Lanczos run from one start for all k
successive   one long run, and a second search of the deflated matrix, as `lossmap spectrum`
full QR      all n products with unit vectors, then QR (LAPACK) of the dense matrix: every eigenvalue, also n^3 work
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse.linalg as sparse
import torch

from lossmap.curvature.operators import CurvatureOperator
from lossmap.linalg.deflation import successive
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.lanczos import lanczos

sys.path.insert(0, str(Path(__file__).parent))
from spectrum import Counted, price_of, table, trained

TOL = 1e-3


def power(matrix, k, most):
    vectors, values, scale = [], [], 0.0
    for i in range(k):
        v = torch.randn(matrix.size, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        while True:
            for q in vectors:
                v = v - (q @ v) * q
            v = v / v.norm()
            w = matrix @ v
            value = float(v @ w)
            scale = max(scale, abs(value))
            if float((w - value * v).norm()) <= TOL * scale or matrix.products >= most:
                break
            v = w
        vectors.append(v)
        values.append(value)
    return np.array(values)


def lobpcg(matrix, k, most):
    def times(block):
        block = np.asarray(block).reshape(matrix.size, -1)
        return np.stack([(matrix @ torch.from_numpy(c.copy())).numpy() for c in block.T], 1)

    operator = sparse.LinearOperator((matrix.size, matrix.size), matvec=times, matmat=times, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=(matrix.size, k))
    scale = float(extreme(matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, _ = sparse.lobpcg(operator, start, tol=TOL * scale, maxiter=max(1, most // max(k, 1)), largest=True)
    return np.sort(values)[::-1]


def extreme(matrix):
    """The largest eigenvalue, for LOBPCG's absolute tolerance; not counted against it."""
    before = matrix.products
    value = lanczos(matrix, "top:1", tol=1e-2).values[0]
    matrix.products = before
    return value


def remark(gave_up, error):
    if gave_up:
        return "not converged"
    return "one was missed" if error > TOL else ""


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="a small matrix, as a smoke test")
    quick = flags.parse_args().quick
    problem = trained(128 if quick else 512, 3 if quick else 30)
    operator = CurvatureOperator(problem, parameters="5.weight" if quick else "weights")
    start = time.perf_counter()
    dense = DenseMatrix.of(operator)
    made = time.perf_counter()
    values = dense.eigendecomposition[0]
    qr = time.perf_counter() - made
    price = price_of(problem)
    n, truth, most = len(values), values[::-1], 200 if quick else 20_000
    print(f"n = {n:,}; one product {1e3 * price:.2f} ms (float32, the net itself)\n")
    rows = [("k", "method", "products", "of them x price, s", "own work, s", "true error / largest", "")]
    for k in (1, 5) if quick else (1, 2, 5, 10, 20, 50):
        methods = {
            "power": lambda m, k=k: power(m, k, most),
            "block": lambda m, k=k: lanczos(m, f"top:{k}", tol=TOL, block=4).values,
            "lobpcg": lambda m, k=k: lobpcg(m, k, most),
            "one long": lambda m, k=k: lanczos(m, f"top:{k}", tol=TOL).values,
            "successive": lambda m, k=k: successive(m, f"top:{k}", tol=TOL).values,
        }
        for name, method in methods.items():
            matrix = Counted(values)  # the eigenbasis: starting vectors are normal, which is invariant under rotations
            begun = time.perf_counter()
            eigenvalues = np.sort(method(matrix))[::-1]
            took = time.perf_counter() - begun
            error = np.abs(eigenvalues[:k] - truth[:k]).max() / truth[0]
            note = remark(matrix.products >= most, error)
            row = (k, name, matrix.products, f"{matrix.products * price:.3f}", f"{took:.3f}", f"{error:.1e}", note)
            rows.append(row)
    rows.append(("all", "full QR", n, f"{n * price:.3f}", f"{qr:.3f}", "0", "every eigenvalue"))
    table(rows)
    print(f"(forming the dense matrix took {made - start:.1f} s in float64)")


if __name__ == "__main__":
    main()
