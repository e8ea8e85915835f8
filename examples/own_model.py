"""The Hessian spectrum of your own model in three lines: a Problem, a spectrum, a report with error bars."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap


def trained_model() -> tuple[nn.Module, DataLoader]:
    """Any model, and any loader that yields (inputs, targets)."""
    torch.manual_seed(0)
    inputs = torch.randn(400, 20)
    targets = (inputs[:, :4] + 0.3 * torch.randn(400, 4)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 4))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), loader


def main() -> None:
    """Report and figure."""
    model, loader = trained_model()

    problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), loader)
    s = lossmap.spectrum(problem, top=5)
    print(s)

    print("largest eigenvalue and its error:", s.largest)
    print("trace between", s.trace.interval(0.95))
    print("share of eigenvalues below -1e-3:", s.density.below(-1e-3))
    lossmap.draw(s).savefig("own_model_spectrum.png")


if __name__ == "__main__":
    main()
