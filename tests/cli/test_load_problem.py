"""The devices of a run, as the log names them; and what is said while a problem is made."""

import logging

import pytest
import torch

from lossmap.cli.device import Machine, prepare_machine
from lossmap.cli.load_problem import problem_and_files
from lossmap.cli.surface import COMMAND
from lossmap.parallel.world import World

H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("every", "names", "sentence"),
    [
        ([("n1", "", "cpu")], "cpu", "computing on cpu; 2 threads"),
        ([("n1", "", "cpu"), ("n2", "", "cpu")], "cpu (2 ranks)", "computing on cpu (2 ranks); 2 threads each"),
        (
            [("n1", "0", H100), ("n1", "3", H100), ("n2", "0", H100), ("n2", "", "cpu")],
            f"{H100} (3 ranks), cpu (1 rank)",
            f"computing on {H100} (3 ranks), cpu (1 rank): n1 GPU 0 3, n2 GPU 0; 2 threads each",
        ),
        (
            [(f"n{i}", "0", H100) for i in range(10)],
            f"{H100} (10 ranks)",
            f"computing on {H100} (10 ranks): {', '.join(f'n{i} GPU 0' for i in range(8))} and 2 more nodes; "
            "2 threads each",
        ),
    ],
)
def test_devices_are_named_as_people_know_them(every, names, sentence):
    machine = Machine(torch.device("cpu"), torch.float32, None, 2, tuple(every))
    assert machine.describe() == names
    assert machine.sentence() == sentence


@pytest.mark.parametrize(("rank", "times"), [(0, 1), (1, 0)])
def test_what_is_left_out_of_the_batches_is_said_once_by_all_ranks_and_for_all_splits(rank, times, tmp_path, caplog):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def model(): return torch.nn.Linear(4, 3)\n"
        "def data(split):\n"
        "    return [{'x': torch.ones(5, 4), 'y': torch.arange(5) % 3, 'path': [split] * 5}]\n"
    )
    world = World()
    world.rank = rank
    own = str(tmp_path / "own.py")
    settings = COMMAND.parse(["--model", f"{own}:model", "--dataset", f"{own}:data", "--split", "both"])
    problems = problem_and_files(settings, world, prepare_machine(settings.run, world))
    assert [p.data.samples for p in problems.values()] == [5, 5]
    assert caplog.text.count("does not take it: path") == times
    assert logging.getLogger("lossmap").level == logging.NOTSET
