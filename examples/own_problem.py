"""A problem of your own: a small physics-informed network for u' = -u, u(0) = 1.

Run it:              python examples/own_problem.py
On the command line: lossmap surface --problem examples/own_problem.py:problem --x=-1:1:25 --y=-1:1:25 --plot
"""

import torch
from torch import nn

import lossmap


def residual(model, batch):
    """Any loss of model and batch: the mean squared residual over the batch's points, plus that of the boundary."""
    t = batch.clone().requires_grad_(True)
    u = model(t)
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    return (slope + u).square().mean() + (model(torch.zeros(1, 1, dtype=t.dtype)) - 1).square().mean()


def problem(steps=300):
    """The function that --problem calls: the problem, with the model trained here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    t = torch.linspace(0, 2, 64)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        residual(model, t).backward()
        optimizer.step()
    optimizer.zero_grad()
    return lossmap.Problem.custom(model, residual, t)


def main(count=15, folder="."):
    own = problem()
    plane = lossmap.random_plane(own.model)
    surface = lossmap.survey(lossmap.losses(own, plane), lossmap.Grid.square(-1, 1, count))
    print(surface)
    lossmap.draw(surface, log=True).savefig(f"{folder}/own_problem.png")
    return surface


if __name__ == "__main__":
    main()
