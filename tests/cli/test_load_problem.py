"""The devices of a run, as the log names them."""

import pytest
import torch

from lossmap.cli.device import Machine

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
