"""readme_snippet.py FOLDER: the README's survey, which every rank prints and draws."""

import sys

import torch
from torch import nn

import lossmap
from lossmap.parallel.world import World

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
samples = torch.utils.data.TensorDataset(torch.randn(40, 5), torch.randint(0, 2, (40,)))
loader = torch.utils.data.DataLoader(samples, batch_size=20)
problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), loader)
plane = lossmap.random_plane(model, seed=0)
surface = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid.square(-1, 1, 3))
rank = World.start().rank
sys.stdout.write(f"{surface}\nloss {surface['train_loss'].tolist()}\n")
sys.stdout.flush()
lossmap.draw(surface).savefig(f"{sys.argv[1]}/surface-{rank}.pdf")
