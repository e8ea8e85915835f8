"""Any loss of model and batch, including a regularizer; training and test samples; what a larger penalty adds."""

from functools import partial

import torch
from torch import nn

import lossmap


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], strength: float = 1e-3) -> torch.Tensor:
    """The mean over the batch's samples; terms that do not depend on them, such as a penalty, are added once."""
    inputs, targets = batch
    fit = nn.functional.smooth_l1_loss(model(inputs), targets)
    penalty = sum(p.square().sum() for p in model.parameters())
    return fit + strength * penalty


def main() -> None:
    """Two spectra, and the effect of a larger penalty."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(300, 5)
    y = torch.sin(x.sum(1, keepdim=True))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss(model, (x[:200], y[:200])).backward()
        optimizer.step()
    model.eval()

    for label, samples in (("train", (x[:200], y[:200])), ("test", (x[200:], y[200:]))):
        print(lossmap.spectrum(lossmap.Problem.custom(model, loss, samples), parameters="all", label=label))
        print()
    for strength in (1e-3, 1e-2, 1e-1):  # each eigenvalue is shifted by twice the strength
        problem = lossmap.Problem.custom(model, partial(loss, strength=strength), (x[:200], y[:200]))
        largest = lossmap.eigenpairs(lossmap.hessian(problem, parameters="all"), "top:1")
        print(f"strength {strength:g}: largest eigenvalue {largest.values[0]:.7f} +- {largest.residuals[0]:.0e}")


if __name__ == "__main__":
    main()
