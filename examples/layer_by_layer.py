"""The diagonal block of the Hessian of each layer: its definiteness, why one is zero, and the layer output Hessian."""

import torch
from torch import nn

import lossmap


def main() -> None:
    """A network with one dead layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        model[2].bias.fill_(-50.0)  # no input activates these units any more
    x = torch.randn(200, 10)
    problem = lossmap.Problem.supervised(model.eval(), nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()))

    blocks = lossmap.layer_spectra(problem, "module", second=("inputs",))
    print(blocks)
    lossmap.draw(blocks).savefig("layer_by_layer.png")
    print()
    print(lossmap.singular_values(model))


if __name__ == "__main__":
    main()
