"""A recorder for a user's own training loop: checkpoints like the trainer's, or curvature, at regular steps.

recorder = Recorder("run", every=50)
for step, (x, y) in enumerate(loader):
...
recorder(model, loss)
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lossmap.data.borrow import temporary_parameters
from lossmap.data.checkpoints import finite_or_named
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import state_tensors
from lossmap.training.run_folder import save


class Recorder:
    """Checkpoints, or curvature, at regular steps of a user's own loop; also an observer of `train`.

    folder     where `step_000050.pt` and `record.csv` go
    every      steps between two records
    curvature  model -> numbers by name, such as `ends(problem)`; they go into record.csv, a row a record, beside
               step and loss
    weights    whether checkpoints are written; by default where no curvature is given
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 100,
        curvature: Callable[[nn.Module], Mapping[str, float]] | None = None,
        weights: bool | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1; got {every}")
        self.folder = Path(folder)
        self.every = every
        self.curvature = curvature
        self.weights = curvature is None if weights is None else weights
        self.step = 0
        self.records: list[dict[str, float]] = []

    def __call__(self, model: nn.Module, loss: Tensor | float) -> None:
        """Count a step, and record where one is due. The model is left in its mode, with its gradients."""
        self.step += 1
        if self.step % self.every:
            return
        if isinstance(loss, Tensor):
            loss = loss.detach()
        record = {"step": float(self.step), "loss": float(loss)}
        if self.curvature is not None:
            record |= _undisturbed(self.curvature, model)
        self.records.append(record)
        if self.weights:
            state = {name: tensor.detach().clone() for name, tensor in state_tensors(model).items()}
            finite_or_named(state, f"the model at step {self.step}")
            save({"state_dict": state, "step": self.step, "loss": record["loss"]}, self._path())
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "record.csv").open("w", newline="") as file:
            columns = dict.fromkeys(name for record in self.records for name in record)  # not every one has all
            rows = csv.DictWriter(file, list(columns), restval="nan")
            rows.writeheader()
            rows.writerows({**row, "step": int(row["step"])} for row in self.records)

    def _path(self) -> Path:
        return self.folder / f"step_{self.step:06d}.pt"

    def observe(self, step: int, model: nn.Module, loss: float) -> None:
        """The same, as an observer of `train`: `observers=[recorder.observe]`."""
        self.step = step - 1
        self(model, loss)


def _undisturbed(read: Callable[[nn.Module], Mapping[str, float]], model: nn.Module) -> dict[str, float]:
    """A reading in evaluation mode, after which modes, gradients and chance are as before."""
    with temporary_parameters(model, {}), torch.random.fork_rng([]):
        return {name: float(value) for name, value in read(model).items()}


def ends(problem: Problem, *, tol: float = 1e-3, seed: int = 0) -> Callable[[nn.Module], dict[str, float]]:
    """A curvature function for a `Recorder`: the Hessian's ends over a problem's own samples.

    It gives max_eig and min_eig, and condition = abs(max_eig / min_eig), the ratio of the two ends; where the
    lower end is negative, no condition number of a minimum.
    """
    from lossmap.curvature.build import build_operator
    from lossmap.linalg.solvers import extremes

    def read(model: nn.Module) -> dict[str, float]:
        operator = build_operator(replace(problem, model=model), "hessian", "weights")
        pairs = extremes(operator, tol=tol, seed=seed, certify=True)  # no bar or limit is kept beside the numbers
        high, low = float(pairs.values.max()), float(pairs.values.min())
        condition = abs(high / low) if low else math.inf
        return {"max_eig": high, "min_eig": low, "condition": condition}

    return read
