"""a_loss_that_changes.py TEAM: rank 1 alone counts its calls, and its loss is another one after some of them.

Each rank says how the survey ended for it.
"""

import json
import sys
from array import array

import torch
from landscape import Grid, World, survey

from lossmap import Problem, losses, random_plane

world = World.start()
team = world.team(int(sys.argv[1]))
calls = array("q", [0])  # which no look finds, so that nothing puts it back


def loss(outputs, targets):
    calls[0] += world.rank == 1
    return torch.nn.functional.cross_entropy(outputs, targets) * (0.5 if calls[0] > last else 1.0)


torch.manual_seed(0)
model, last = torch.nn.Linear(4, 3), 10**9
problem = Problem.supervised(model, loss, (torch.randn(12, 4), torch.arange(12) % 3))
share = problem.share(team.rank, team.size)
measure = losses(share, random_plane(model, axes=1), plan={"batch_size": 12}, total=team.sum)
whole = survey(measure, Grid.line(count=30), world=world, team=team, rank_0="computes").outcome
last = calls[0] + 3
surface = survey(measure, Grid.line(count=60), world=world, team=team, rank_0="computes")
every = world.gather((whole, surface.outcome, surface.change_of("loss")))
if world.rank == 0:
    print(json.dumps(every), flush=True)
sys.exit(world.leave())
