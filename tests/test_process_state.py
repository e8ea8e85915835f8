"""What a process holds beside models, put back for each problem that it computes."""

import pytest
import torch

from lossmap.data.import_by_name import resolve_callable
from lossmap.process_state import ProcessState, begin

SOURCE = """\
import torch
import {helper}

torch.set_float32_matmul_precision("high")
COUNT, TABLE = 0, None


class Net:
    made = 0


def net():
    global COUNT, TABLE, LATE
    COUNT, Net.made, LATE = COUNT + 1, Net.made + 1, 5
    {helper}.SCALE *= 2
    TABLE = torch.ones(2)
    torch.set_default_dtype(torch.float64)
    return COUNT, Net.made, {helper}.SCALE, torch.get_float32_matmul_precision()


def seen():
    return COUNT, Net.made, {helper}.SCALE, torch.get_default_dtype()


def table():
    return TABLE


def late():
    return LATE
"""


@pytest.fixture
def base():
    before = ProcessState.now()
    yield before
    before.put()
    assert torch.get_default_dtype() == torch.float32


def test_each_problem_begins_as_in_a_process_of_its_own_and_goes_on_as_it_left_it(base, tmp_path):
    (tmp_path / "helper_of_state.py").write_text("SCALE = 1.0\n")
    path = tmp_path / "own_state.py"
    path.write_text(SOURCE.format(helper="helper_of_state"))

    def build():
        begin(base)
        return resolve_callable(f"{path}:net")(), ProcessState.now()

    first, own = build()
    assert first == (1, 1, 2.0, "high")
    base.put()
    assert torch.get_float32_matmul_precision() == base.settings["precision of matrix products"]
    assert build()[0] == first  # the file is not imported again, and what its import set is set again
    resolve_callable(f"{path}:net")()
    own.put()  # the first one goes on
    assert resolve_callable(f"{path}:seen")() == (1, 1, 2.0, torch.float64)
    assert resolve_callable(f"{path}:table")().tolist() == [1, 1]  # what is built once stays
    begin(base)
    with pytest.raises(NameError):
        resolve_callable(f"{path}:late")()


def test_a_module_named_twice_sets_nothing_a_second_time(base, tmp_path):
    """As Python does: its factory may have set something else since."""
    path = tmp_path / "named_twice.py"
    path.write_text("import torch\ntorch.set_default_dtype(torch.float64)\n\ndef net():\n    pass\n")
    for _ in range(2):
        begin(base)
        resolve_callable(f"{path}:net")
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)
        resolve_callable(f"{path}:net")
        assert torch.get_default_dtype() == torch.float32
