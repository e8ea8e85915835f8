"""The path of a training run on the plane of its principal axes, over the loss surface.

Run it: python examples/training_path.py
"""

import numpy as np
import torch
from torch import nn

import lossmap


def main(count=15, epochs=6, folder="."):
    torch.manual_seed(0)
    x = torch.randn(300, 10)
    y = (x[:, :3] + 0.3 * torch.randn(300, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    checkpoints = []
    for _ in range(epochs):
        checkpoints.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        for inputs, targets in zip(x.split(50), y.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    plane = lossmap.pca_plane(model, checkpoints)
    path = {  # the axes are orthogonal and of length one
        name: np.array([sum(float(((c[k] - plane.origin[k]) * d).sum()) for k, d in axis.items()) for c in checkpoints])
        for name, axis in zip("xy", plane.axes, strict=True)
    }
    grid = lossmap.Grid(*(np.linspace(v.min() - 1, v.max() + 1, count) for v in path.values()))
    problem = lossmap.Problem.supervised(model, "crossentropy", (x, y))
    surface = lossmap.survey(lossmap.losses(problem, plane), grid)
    shares = [recipe["explained_variance_ratio"] for recipe in plane.recipes]
    print(f"the axes explain {shares[0]:.0%} and {shares[1]:.0%} of the path")
    lossmap.draw(surface, trajectory=path).savefig(f"{folder}/path.png")
    return surface


if __name__ == "__main__":
    main()
