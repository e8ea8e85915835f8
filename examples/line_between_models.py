"""The loss on the line between two trained models, including the running statistics of batch norm.

Run it: python examples/line_between_models.py
"""

import torch
from torch import nn

import lossmap


def trained(seed, x, y, epochs):
    """One network from its own initialization."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(epochs):
        for inputs, targets in zip(x.split(50), y.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model.eval()


def main(count=21, epochs=10, folder="."):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 8, 8, generator=generator)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()  # brighter above than below
    first, second = (trained(seed, x[:300], y[:300], epochs) for seed in (0, 1))
    problems = {
        "train": lossmap.Problem.supervised(first, "crossentropy", (x[:300], y[:300])),
        "test": lossmap.Problem.supervised(first, "crossentropy", (x[300:], y[300:])),
    }
    line = lossmap.line_between(first, second, states=True)
    surface = lossmap.survey(lossmap.losses(problems, line), lossmap.Grid.line(-0.5, 1.5, count))
    print(surface)
    lossmap.draw(surface).savefig(f"{folder}/line.png")
    return surface


if __name__ == "__main__":
    main()
