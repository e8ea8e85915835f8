"""shares_of_torch.py SIZE: the losses of a small net, each team sharing its samples."""

import json
import sys

import torch

from lossmap.data.problem import Problem
from lossmap.geometry.directions import random_plane
from lossmap.geometry.grid import Grid
from lossmap.landscape.loss import losses
from lossmap.landscape.run_survey import survey
from lossmap.parallel.world import World

torch.set_num_threads(1)
world = World.start()
team = world.team(int(sys.argv[1]))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
problem = Problem.supervised(model, "crossentropy", (torch.randn(101, 5).double(), torch.randint(0, 3, (101,))))
measure = losses(problem.share(team.rank, team.size), random_plane(model, axes=1), total=team.sum)
surface = survey(measure, Grid.line(count=7), world=world, team=team)
if world.rank == 0:
    print(json.dumps({"loss": surface["train_loss"].tolist(), "acc": surface["train_acc"].tolist()}), flush=True)
sys.exit(world.leave())
