"""A small trainer that writes checkpoints and resumes from them, and a recorder for a user's own loop.

history = train(problem, Recipe(epochs=12), folder="run")
"""

from lossmap.training.recipe import History, Recipe
from lossmap.training.recorder import Recorder, ends
from lossmap.training.run_folder import save
from lossmap.training.trainer import Observer, readings, steps_per_epoch, train

__all__ = ["History", "Observer", "Recipe", "Recorder", "ends", "readings", "save", "steps_per_epoch", "train"]
