"""What the choice of products costs on a small job: one search for both ends of ResNet-20 of width 8, in a new process.

    python benchmarks/probe_cost.py [products] [samples]

bare     products by double backward alone: nothing is checked, and rounding is assumed
plain    double backward, without a probe
first    backend `auto` with an empty cache
second   the same again, with what the first left in the cache
The search takes so many products. But for `bare`, loss and products are checked and rounding is measured by all alike,
as by commands. Ratios are to `plain`, and to `bare`.
The seconds are of the processor, from the problem in memory to the end of the search, after a first small problem that
loads what is loaded once; the least of three processes, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

KINDS = ("bare", "plain", "first", "second")


def measure(kind: str, products: int, samples: int) -> None:
    """Print the processor seconds of one job, of its preparation, and the length of its last product."""
    import time

    import torch

    from lossmap import zoo
    from lossmap.curvature.build import build_operator
    from lossmap.curvature.operators import CurvatureOperator
    from lossmap.data.problem import Problem
    from lossmap.linalg.solvers import extremes

    torch.set_num_threads(1)
    torch.manual_seed(0)

    def problem_of(name: str, count: int) -> Problem:
        data = torch.randn(count, 1, 8, 8), torch.randint(0, 10, (count,))
        return Problem.supervised(zoo.build(name).eval(), "crossentropy", data)

    build_operator(problem_of("mlp", 16), "hessian", "weights")
    problem = problem_of("resnet20-w8", samples)
    begun = time.process_time()
    if kind == "bare":
        matrix: Any = CurvatureOperator(problem)
    else:
        matrix = build_operator(problem, "hessian", "weights", backend="double-backward" if kind == "plain" else "auto")
    factory = getattr(matrix, "factory", None)
    backend = "double-backward" if factory is None else factory.plan.backend
    prepared = time.process_time() - begun
    pairs = extremes(matrix, "ends", tol=1e-9, seed=0, max_products=products)
    seconds = time.process_time() - begun
    found = {"largest": float(pairs.values[0]), "products": pairs.products}
    print(json.dumps({"seconds": seconds, "prepared": prepared, "backend": backend, **found}))


def main() -> None:
    """Measure all kinds in turns, and print a table."""
    if len(sys.argv) > 3:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    words = dict(enumerate(sys.argv))
    products, samples = int(words.get(1, "25")), int(words.get(2, "256"))
    best: dict[str, dict[str, object]] = {}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as cache:
            for kind in KINDS:
                words = [sys.executable, __file__, kind, str(products), str(samples)]
                environ = {**os.environ, "LOSSMAP_CACHE": cache}
                out = subprocess.run(words, env=environ, capture_output=True, text=True, check=True).stdout
                got = json.loads(out.splitlines()[-1])
                if kind not in best or got["seconds"] < best[kind]["seconds"]:
                    best[kind] = got
    bare, plain = (float(best[kind]["seconds"]) for kind in KINDS[:2])  # type: ignore[arg-type]
    print(f"{products} products, ResNet-20 of width 8, {samples} samples of 1 x 8 x 8, one thread")
    for kind, got in best.items():
        seconds = float(got["seconds"])  # type: ignore[arg-type]
        print(
            f"{kind:8} {seconds:.2f} s ({got['prepared']:.2f} s before the first), "
            f"{seconds / plain:.2f} x, {seconds / bare:.2f} x, "
            f"{got['backend']}, {got['products']} products, largest {got['largest']:.6g}"
        )


if __name__ == "__main__":
    main()
