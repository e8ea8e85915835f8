"""A loss surface in Python, without files and flags. Run it: python examples/surface_in_python.py

The model is your own nn.Module, the data a DataLoader or a tuple of tensors; the model is not changed.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lossmap


def main(count=15, folder="."):
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    optimizer.zero_grad()

    problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), loader)
    plane = lossmap.random_plane(model, seed=0)
    surface = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid.square(-1, 1, count))
    print(surface)
    lossmap.draw(surface).savefig(f"{folder}/surface.png")
    return surface


if __name__ == "__main__":
    main()
