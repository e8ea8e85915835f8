"""What stands beside a loss, as around a training, and what it costs: preparation, a point, memory.

    python benchmarks/company.py [names ...]

A small network's loss is a method of an object that counts its calls, alone or with one of: a tensor or an array of
512 MB, a list of a million numbers, 60,000 samples as dictionaries, as many views of one tensor, 400 tensors of
160 kB, a replay buffer of 990 transitions. Each case is a process of its own. Told are the seconds from the problem to
the measured origin, the milliseconds of a point of 101, their ratios to the loss alone, and how far the process grew in
memory beyond what was there before. After it everything beside the loss is as it was, or the case fails.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import deque
from typing import Any


def companies() -> dict[str, Any]:
    """What makes each, by name."""
    import numpy as np
    import torch

    def views() -> list[torch.Tensor]:
        rows = torch.zeros(60_000, 784)
        return [rows[i] for i in range(len(rows))]

    return {
        "alone": lambda: None,
        "tensor": lambda: torch.ones(128, 1024, 1024),
        "array": lambda: np.ones((128, 1024, 1024), np.float32),
        "numbers": lambda: list(range(1_000_000)),
        "samples": lambda: [{"x": torch.zeros(3), "y": i} for i in range(60_000)],
        "views": views,
        "tables": lambda: [torch.randn(200, 200) for _ in range(400)],
        "replay": lambda: deque([(torch.randn(4), torch.tensor(1), torch.randn(4)) for _ in range(990)], maxlen=1000),
    }


def measure(name: str) -> None:
    """Print the seconds of preparation and of a point, and the growth in MiB."""
    import torch

    import lossmap

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Trainer:
        def __init__(self, company: Any) -> None:
            self.company, self.calls = company, 0

        def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            self.calls += 1
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def run(trainer: Trainer, points: int) -> tuple[float, float]:
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        start = time.process_time()
        problem = lossmap.Problem.custom(model, trainer.loss, [(torch.randn(64, 6), torch.arange(64) % 3)])
        at = lossmap.losses(problem, lossmap.random_plane(model, axes=1))
        at((0.0,))
        prepared = time.process_time()
        lossmap.survey(at, lossmap.Grid.line(-1, 1, points))
        return prepared - start, (time.process_time() - prepared) / points

    run(Trainer(None), 3)  # loads what is loaded once
    trainer = Trainer(companies()[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared, point = run(trainer, 101)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if trainer.calls:
        raise SystemExit(f"{name}: {trainer.calls} calls were left")
    print(json.dumps([prepared, point, grown]))


def main() -> int:
    """Each case, and its ratios to the first."""
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2])
        return 0
    alone = None
    print("beside the loss   preparation     ratio   a point      ratio   grown by")
    for name in ["alone", *(sys.argv[1:] or list(companies())[1:])]:
        words = [sys.executable, __file__, "--one", name]
        told = subprocess.run(
            words, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        prepared, point, grown = json.loads(told.stdout.splitlines()[-1])
        alone = alone or (prepared, point)
        ratios = prepared / alone[0], point / alone[1]
        seconds = f"{prepared:8.3f} s  {ratios[0]:8.1f}  {1e3 * point:7.2f} ms  {ratios[1]:7.1f}"
        print(f"{name:<16}  {seconds}  {grown:6.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
