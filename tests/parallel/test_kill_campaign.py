"""Twenty-eight random SIGKILLs over real surveys: nothing lost, nothing hung, every file opens."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_campaign.py"
MPIRUN = shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")


@pytest.fixture
def campaign(monkeypatch):
    spec = importlib.util.spec_from_file_location("kill_campaign", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_campaign", module)  # its dataclasses look for their module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HANG", 120.0)  # below the time limit of a test
    return module.campaign


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")
@pytest.mark.parametrize(("kills", "ft"), [(20, True), (8, False)])
def test_random_kills_lose_nothing(campaign, kills, ft):
    tally = campaign(kills, ft=ft, seed=kills)
    assert tally.clean, f"{tally}\n" + "\n".join(tally.messages)
    assert tally.kills >= kills and tally.of_rank_0 > 0
    assert tally.survived > 0 or not ft
