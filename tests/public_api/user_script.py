"""A user's script, checked by mypy --strict with the package: what it ignores, mypy must find."""

import numpy as np
import torch
from torch import nn

import lossmap

model = nn.Sequential(nn.Linear(4, 3))
problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(8, 4), torch.arange(8) % 3))
plane = lossmap.random_plane(model, seed=0)
surface: lossmap.Surface = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid.square(-1, 1, 3))
loss: np.ndarray = surface["train_loss"]
result: lossmap.Spectrum = lossmap.spectrum(problem, top=2)
largest: float = result.largest[0]
product: torch.Tensor = lossmap.hessian(problem) @ torch.ones(12)
again = lossmap.read(surface.save("surface.h5"), lossmap.Surface)
minimum: tuple[float, tuple[float, ...]] | None = again.minimum("train_loss")

lossmap.spectrum(problem, tops=2)  # type: ignore[call-arg]
lossmap.survey(problem, lossmap.Grid.line())  # type: ignore[arg-type]
number: str = result.largest[0]  # type: ignore[assignment]
nothing = again.nothing  # type: ignore[attr-defined]
