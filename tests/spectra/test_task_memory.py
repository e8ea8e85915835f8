"""What the tasks of a spectrum hold is of the order of the eigenvectors, however many tasks there are."""

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.geometry.grid import Grid
from lossmap.io.read import SurfaceFile, journal_of
from lossmap.landscape.run_survey import survey
from lossmap.spectra.request import SpectrumRequest, Subject
from lossmap.spectra.tasks import make_tasks


def problem_of(depth, width):
    torch.manual_seed(0)
    hidden = [m for _ in range(depth) for m in (nn.Tanh(), nn.Linear(width, width))]
    net = nn.Sequential(nn.Linear(30, width), *hidden, nn.Tanh(), nn.Linear(width, 5)).eval()
    return Problem.supervised(net, "crossentropy", (torch.randn(4, 30), torch.randint(0, 5, (4,))))


def truth_of(problem):
    """Bytes of 6 eigenvectors of the weights in float32, and at most of the blocks that are made whole in float64."""
    parameters = list(problem.model.parameters())
    weights = sum(p.numel() for p in parameters if p.dim() > 1)
    return 6 * 4 * weights, sum(min(p.numel(), 256) ** 2 * 8 for p in parameters)


@pytest.mark.parametrize("by", [None, "tensor"])
@pytest.mark.parametrize(("depth", "width"), [(4, 60), (20, 60), (40, 120)])
def test_expected_bytes_are_near_those_of_the_vectors_and_small_blocks(depth, width, by):
    problem = problem_of(depth, width)
    vectors, blocks = truth_of(problem)
    tasks = make_tasks([Subject("", problem)], SpectrumRequest(vectors=True, by=by), check=False)
    assert vectors <= tasks.expected_bytes <= 4 * (vectors + blocks) + 4_000_000


def test_a_survey_holds_no_more_than_that_in_file_journal_and_memory(tmp_path):
    problem = problem_of(4, 40)
    request = SpectrumRequest(vectors=True, by="tensor", density=False, trace_products=0, tol=0.1, probes=1)
    tasks = make_tasks([Subject("net", problem)], request)
    grid, path = Grid(np.arange(float(len(tasks.tasks)))), tmp_path / "s.h5"
    with SurfaceFile.open(path, grid, measures={tasks.name: (tasks.fields, tasks.settings)}) as store:
        surface = survey(tasks, grid, store=store)
        assert surface.outcome == "complete"
        held = sum(array.nbytes for group in surface.groups.values() for array in group.arrays.values())
        journal = journal_of(path).stat().st_size
        sizes = {name: sum(a.nbytes for a in group.arrays.values()) for name, group in surface.groups.items()}
    vectors, _ = truth_of(problem)
    assert vectors < sizes["tasks/net/ends"] < 1.1 * vectors
    for size in (held, journal, path.stat().st_size):
        assert vectors < size < tasks.expected_bytes + 8_000 * len(tasks.tasks)
    # a row for each task as long as the longest, in float64, would take as much as this
    assert len(tasks.tasks) * 2 * vectors > 4 * max(held, journal)
