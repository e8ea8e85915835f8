"""The path of a training run on the plane of its principal axes, over the loss surface.

Run it: python examples/training_path.py
"""

import numpy as np

import lossmap
from lossmap import zoo
from lossmap.data import checkpoints, datasets
from lossmap.geometry.directions import Plane, origin_of
from lossmap.geometry.training_path import principal_axes, trajectory
from lossmap.training import Recipe, train


def main(count=15, epochs=6, folder="."):
    model = zoo.build("mlp", seed=0)
    problem = lossmap.Problem.supervised(model, "crossentropy", datasets.load("digits", "train"))
    train(problem, Recipe(epochs=epochs), folder=f"{folder}/run")
    files = checkpoints.sorted_as_people_count(checkpoints.checkpoints_in(f"{folder}/run"))
    states = [checkpoints.load_state(file) for file in files]
    origin = origin_of(model)
    principal = principal_axes(origin, states, 2)
    plane = Plane(origin, principal.axes, ({"kind": "pca:1"}, {"kind": "pca:2"}))
    path = trajectory(plane, states)
    x, y = (np.linspace(v.min() - 1, v.max() + 1, count) for v in (path["x"], path["y"]))
    surface = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid(x, y))
    print(f"the axes explain {principal.explained[0]:.0%} and {principal.explained[1]:.0%} of the path")
    lossmap.draw(surface, trajectory=path).savefig(f"{folder}/path.png")
    return surface


if __name__ == "__main__":
    main()
