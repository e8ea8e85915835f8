"""The diagonal block of the Hessian of each layer: its definiteness, why one is zero, and the layer output Hessian."""

import torch
from torch import nn

from lossmap import Problem
from lossmap.diagnostics.singular_values import singular_values
from lossmap.plotting.spectra import draw_layers
from lossmap.plotting.style import save
from lossmap.spectra.blocks import layer_spectra, verdicts_of


def main() -> None:
    """A network with one dead layer, and eigenvalues from elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        model[2].bias.fill_(-50.0)  # no input activates these units any more
    x = torch.randn(200, 10)
    problem = Problem.supervised(model.eval(), nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()))

    blocks = layer_spectra(problem, "module", second=("inputs",))
    print(blocks)
    save(draw_layers(blocks), "layer_by_layer.png")
    print()
    print(singular_values(model))

    print()
    print(
        verdicts_of(
            {
                "layer 1": [0.0, 0.0],
                "layer 2": [0.0, 0.0, 0.0],
                "layer 3": [-0.057, 0.0],
                "layer 4": [1.9e-9, 0.0709],
                "layer 5": [0.01, 0.02, 0.03],
                "layer 6": [-0.002, 0.0, 0.04],
            }
        )
    )


if __name__ == "__main__":
    main()
