"""Curvature during training: the largest and smallest eigenvalue every few steps, on a fixed batch."""

import torch
from torch import nn

import lossmap


def main(steps: int = 100, every: int = 20, rate: float = 0.5) -> list[tuple[int, float, float, float]]:
    """A training loop with three lines added. Returns (step, loss, largest, smallest) for each measurement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(256, 12)
    y = x[:, :3].argmax(1)
    problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), (x, y))  # always the same samples
    optimizer = torch.optim.SGD(model.parameters(), rate)
    history = []
    print(f"step   loss    largest               smallest              2/rate = {2 / rate:g}")
    for step in range(steps + 1):
        if step % every == 0:
            s = lossmap.spectrum(problem, top=1, bottom=1, trace_products=0, density_error=None)
            history.append((step, s.loss, s.largest[0], s.smallest[0]))
            print(f"{step:4d}   {s.loss:.4f}  {s.largest[0]:.7f} +- {s.largest[1]:.0e}", end="   ")
            print(f"{s.smallest[0]:.7f} +- {s.smallest[1]:.0e}")
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return history


if __name__ == "__main__":
    main()
