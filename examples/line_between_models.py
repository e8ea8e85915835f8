"""The loss on the line between two trained models, including the running statistics of batch norm.

Run it: python examples/line_between_models.py
"""

from torch.nn.functional import cross_entropy

import lossmap
from lossmap import zoo
from lossmap.data import datasets
from lossmap.training import Recipe, train


def main(count=21, epochs=10, folder="."):
    data = datasets.load("digits", "train")
    models = []
    for seed in (0, 1):  # two initializations of one network
        model = zoo.build("cnn", seed=seed)
        problem = lossmap.Problem.supervised(model, cross_entropy, data)
        train(problem, Recipe(epochs=epochs, seed=seed))
        models.append(model.eval())
    problems = {
        split: lossmap.Problem.supervised(models[0], "crossentropy", datasets.load("digits", split))
        for split in ("train", "test")
    }
    line = lossmap.line_between(models[0], models[1], states=True)
    surface = lossmap.survey(lossmap.losses(problems, line), lossmap.Grid.line(-0.5, 1.5, count))
    print(surface)
    lossmap.draw(surface).savefig(f"{folder}/line.png")
    return surface


if __name__ == "__main__":
    main()
