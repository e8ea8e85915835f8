"""Any loss of model and batch, including a regularizer; training and test samples compared; an L2 path."""

import torch
from torch import nn

from lossmap import Problem
from lossmap.spectra.compare import compare, l2_path
from lossmap.spectra.spectrum import spectrum


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean over the batch's samples; terms that do not depend on them, such as a penalty, are added once."""
    inputs, targets = batch
    fit = nn.functional.smooth_l1_loss(model(inputs), targets)
    penalty = sum(p.square().sum() for p in model.parameters())
    return fit + 1e-3 * penalty


def main() -> None:
    """Two spectra compared, and the effect of a larger penalty."""
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

    train = spectrum(Problem.custom(model, loss, (x[:200], y[:200])), parameters="all")
    test = spectrum(Problem.custom(model, loss, (x[200:], y[200:])), parameters="all")
    print(compare({"train": train, "test": test}))
    print()
    print(l2_path(train, [0.0, 1e-3, 1e-2, 1e-1]))


if __name__ == "__main__":
    main()
